"""schemathesis plays against every operation of the OpenAPI schema: whatever is sent, nothing breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from talking import Site, script

from truing.collect.app import ROUTERS
from truing.collect.limits import Buckets
from truing.collect.web import SESSION_COOKIE

GOING = ("/logout", "/password")
"""Pages after which the browser is somebody else."""


@pytest.mark.parametrize("role", ["worker", "reviewer", "admin"])
def test_nothing_that_is_sent_breaks_the_app(db: str, tmp_path: Path, role: str, monkeypatch: pytest.MonkeyPatch):
    """Pages and their forms, which the schema leaves out for everybody else, are played against too."""
    for router in ROUTERS:
        monkeypatch.setattr(router, "include_in_schema", True)
        for route in router.routes:
            monkeypatch.setattr(route, "include_in_schema", True)
    site = Site(db, [f"a={script(tmp_path / 'lines.jsonl')}"])
    site.house.limits.person = Buckets(1e9, 1e9)
    visitor = site.visitor(role=role)
    browser = TestClient(site.app, follow_redirects=False)
    browser.cookies.set(SESSION_COOKIE, visitor.token, domain="testserver.local", path="/")
    headers = {"X-CSRF-Token": visitor.csrf}
    begun = browser.post("/api/tasks", json={"mode": "helpful"}, headers=headers | {"Idempotency-Key": "0123456789"})
    own = begun.json()["id"] if role != "reviewer" else "0" * 32
    statuses: dict[str, set[int]] = {}

    def send(case: Any, real: bool) -> None:
        if real and "conversation" in (case.path_parameters or {}):
            case.path_parameters["conversation"] = own
        if case.method == "GET" and "conversation" in (case.path_parameters or {}):
            case.query = dict(case.query or {}) | {"wait": 0}  # do not wait for news
        plan = case.as_transport_kwargs(base_url="http://testserver")
        plan["headers"] = {**plan.get("headers", {}), **headers}
        plan.pop("cookies", None)
        answer = browser.request(plan.pop("method"), plan.pop("url"), **plan)
        statuses.setdefault(f"{case.method} {case.operation.path}", set()).add(answer.status_code)
        assert answer.status_code < 500, f"{case.method} {case.operation.path}: {answer.status_code}"

    schema = schemathesis.openapi.from_asgi("/openapi.json", site.app)
    operations = [found.ok() for found in schema.get_all_operations()]
    operations = [o for o in operations if o.path not in GOING and (role == "admin" or not o.path.startswith("/admin"))]
    try:
        for operation in operations:
            playing = given(case=operation.as_strategy(), real=st.booleans())(send)
            settings(
                max_examples=10 if operation.path.startswith("/api/") else 4,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )(playing)()
    finally:
        browser.close()
        site.close()
    assert len(statuses) == len(operations) >= (60 if role == "admin" else 30)
    assert {s for found in statuses.values() for s in found} > {200, 422}  # let in and refused, each at least once
