"""The columns that tables of the feedback store are made of."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, MetaData, String

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def row_id() -> Column[str]:
    """A random id."""
    return Column("id", String(32), primary_key=True)


def moment(name: str = "at") -> Column[int]:
    """A time in microseconds."""
    return Column(name, BigInteger, nullable=False)


def of(table: str, *, name: str = "", null: bool = False, index: bool = True) -> Column[str]:
    """The id of a row of another table."""
    return Column(name or f"{table}_id", String(32), ForeignKey(f"{table}.id"), nullable=null, index=index)


def serial() -> Column[int]:
    """A number that grows with every row."""
    return Column("serial", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
