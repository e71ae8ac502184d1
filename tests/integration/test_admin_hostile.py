"""The admin API under hostile input: no value in any field is a bug's 500, each 400 names its field, one of many wins."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.integration.test_admin_api import A, Office, office

__all__ = ["office"]
HOSTILE: list[Any] = [
    None, True, 0, -1, 1.5, 2**63, 10**400, 1e308, float("inf"), "", " ", "a" * 129, "a\0b", "\ud800", "\u202e", "名前",
    "../../x", "'; DROP TABLE keys;--", [], {}, [[]], [None], {"a": 1}, "NaN", "💥" * 40,
]  # fmt: skip
LIMIT = {"requests": 1, "per": "minute"}
BODIES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/keys", {"name": "n", "team": "red", "user": "ann", "models": ["chat"], "limits": [LIMIT],
                       "scopes": ["inference"], "expires": "2030-01-01"}),
    ("POST", "/teams", {"name": "n1", "organisation": "acme", "timezone": "UTC", "models": ["chat"], "limits": []}),
    ("PATCH", "/teams/red", {"organisation": "acme", "timezone": "UTC", "models": ["chat"], "limits": []}),
    ("POST", "/users", {"name": "u1", "limits": []}),
    ("POST", "/prices", {"model": "other", "deployment": "far", "input": 1, "cached_input": 1, "output": 1,
                         "valid_from": "2027-01-01"}),
    ("PUT", "/rules/model/other", {"limits": [LIMIT]}),
]  # fmt: skip
FIELDS = ("requests", "tokens", "usd", "concurrent", "per", "model", "shadow", "on_outage", "on_insufficient")


async def _send(office: Office, method: str, path: str, body: Any) -> None:
    headers = {"authorization": f"Bearer {office.secrets['admin']}", "content-type": "application/json"}
    answer = await office.http.request(method, A + path, content=json.dumps(body).encode(), headers=headers)
    assert answer.status_code < 500, (method, path, body, answer.text)
    if answer.status_code == 400 and isinstance(body, dict):
        assert answer.json()["error"]["param"], (method, path, body, answer.text)


@pytest.mark.parametrize(("method", "path", "body"), BODIES, ids=[f"{m} {p}" for m, p, _ in BODIES])
async def test_no_value_of_a_field_is_a_bug(office: Office, method: str, path: str, body: dict[str, Any]) -> None:
    for value in HOSTILE:
        await _send(office, method, path, value)
        for field in body:
            await _send(office, method, path, {**body, field: value})


async def test_no_value_in_a_limit_is_a_bug(office: Office) -> None:
    for value in HOSTILE:
        for field in FIELDS:
            await _send(office, "PUT", "/rules/model/other", {"limits": [{**LIMIT, field: value}]})


async def test_no_path_or_query_is_a_bug(office: Office) -> None:
    for noun in ("/keys/", "/teams/", "/users/", "/organisations/", "/prices/", "/rules/model/"):
        for name in ("%00", "%ff", "..%2f..", "a" * 5000, "%F0%9F%92%A5", "'", "%0a"):
            for method in ("GET", "PATCH", "DELETE", "PUT"):
                await _send(office, method, noun + name, None)
    for noun in ("/keys", "/teams", "/usage", "/audit", "/rules", "/prices"):
        for query in ("limit=1e9", "after=%00", "after=99999999999999999999", "team=%00", "by=%00", "since=0001-01-01",
                      "until=9999-12-31T23:59:59-23:59", "scope=key&name=%00", "noun=%ff"):  # fmt: skip
            await _send(office, "GET", f"{noun}?{query}", None)


async def test_of_many_who_make_the_same_thing_one_does(office: Office) -> None:
    price = {"model": "other", "input": 1, "output": 1, "valid_from": "2028-01-01"}
    for path, body in (("/teams", {"name": "same"}), ("/prices", price)):
        answers = await asyncio.gather(*(office.ask("admin", "POST", A + path, body) for _ in range(12)))
        assert sorted(one.status_code for one in answers) == [200] + [409] * 11
