"""Numbers as people read them; the page, the tables of the command line and comparisons share these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def digits(value: Any, significant: int = 4) -> str:
    """That many significant digits, whole numbers whole, – for undefined; text stays as it is.

    >>> digits(0.123456), digits(12_345.6), digits(None), digits(3.0)
    ('0.1235', '12,346', '–', '3')
    """
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{significant}g}"


def interval_text(number: Mapping[str, Any], significant: int = 4) -> str:
    """``low … high`` of a number, or nothing where no interval is meant."""
    low, high = number.get("low"), number.get("high")
    return "" if low is None or high is None else f"{digits(low, significant)} … {digits(high, significant)}"


def number_cells(name: str, number: Mapping[str, Any]) -> list[str]:
    """Cells of one number: name, value, interval, n, unit."""
    n = number.get("n")
    return [name, digits(number.get("value")), interval_text(number), digits(n) if n else "", number.get("unit") or ""]
