"""What a role may not do: items 8 to 11 of the attack list."""

from __future__ import annotations

import re

import pytest

from tests.gateway_process import ROOT
from tests.security.house import ADMIN, PLAIN, House

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def roles(house: House) -> dict[str, dict[str, object]]:
    """Keys: the admin's, and of two teams a team-admin's and a user's each."""
    made = {"admin": house.command("keys", "new", "--name", "admin", "--admin")}
    for team in ("red", "blue"):
        words = ("--team", team)
        made[f"{team}-admin"] = house.command("keys", "new", "--name", f"{team} admin", *words, "--scope", "team-admin")
        made[f"{team}-user"] = house.command("keys", "new", "--name", f"{team} user", *words)
    made["viewer"] = house.command("keys", "new", "--name", "viewer", "--team", "red", "--scope", "viewer")
    import time

    time.sleep(1.2)
    return made


def secret(roles: dict[str, dict[str, object]], name: str) -> str:
    return str(roles[name]["secret"])


# 8. Nobody gives himself more.


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": ["admin"]},
        {"scopes": ["inference", "admin"]},
        {"role": "admin"},
        {"user_role": "proxy_admin"},
        {"allowed_routes": ["*"]},
        {"spend": 0},
        {"budget": 1e9},
        {"team": "blue"},
        {"team_id": "blue"},
        {"id": "k_1"},
        {"hash": "0" * 64},
        {"secret": "sk-mine"},
        {"created_us": 0},
        {"revoked_us": None},
        {"__proto__": {"admin": True}},
    ],
)
def test_a_team_admin_cannot_raise_a_key(house: House, roles: dict[str, dict[str, object]], body: dict[str, object]) -> None:
    mine = roles["red-admin"]["id"]
    answer = house.admin("PATCH", f"/keys/{mine}", body, secret(roles, "red-admin"))
    assert answer.status_code in (400, 403, 404), answer.text
    answer = house.admin("POST", "/keys", {"name": "more", "team": "red", **body}, secret(roles, "red-admin"))
    assert answer.status_code in (400, 403, 404), answer.text
    shown = house.admin("GET", f"/keys/{mine}", key=secret(roles, "admin")).json()
    assert shown["scopes"] == ["team-admin"] and shown["team"] == "red"


def test_a_team_admin_cannot_rotate_or_change_an_admins_key(house: House, roles: dict[str, dict[str, object]]) -> None:
    words = ("--name", "red's admin", "--team", "red", "--admin")
    admins = house.command("keys", "new", *words)
    for method, path, body in (
        ("POST", f"/keys/{admins['id']}/rotate", {}),
        ("PATCH", f"/keys/{admins['id']}", {"name": "mine"}),
        ("POST", f"/keys/{admins['id']}/suspend", None),
        ("POST", f"/keys/{admins['id']}/revoke", None),
        ("DELETE", f"/keys/{admins['id']}", None),
    ):
        answer = house.admin(method, path, body, secret(roles, "red-admin"))
        assert answer.status_code in (403, 404, 405), (method, path, answer.text)
        assert "sk-" not in answer.text


@pytest.mark.parametrize("role", ["viewer", "red-user", "red-admin", "blue-admin"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/teams", {"name": "green"}),
        ("PATCH", "/teams/red", {"limits": []}),
        ("DELETE", "/teams/red", None),
        ("POST", "/organisations", {"name": "o"}),
        ("POST", "/users", {"name": "u"}),
        ("POST", "/prices", {"model": "words-3"}),
    ],
)
def test_lesser_roles_change_nothing_shared(
    house: House, roles: dict[str, dict[str, object]], role: str, method: str, path: str, body: object
) -> None:
    answer = house.admin(method, path, body, secret(roles, role))
    assert answer.status_code in ((400, 403, 404, 405) if path == "/prices" else (403, 404, 405)), answer.text


def test_a_keys_own_page_takes_nothing(house: House) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert house.request(method, "/v1/me", PLAIN, b'{"scopes":["admin"]}')[0] in (404, 405)


# 9. What is another's is not there.


def test_another_teams_things_are_not_there(house: House, roles: dict[str, dict[str, object]]) -> None:
    theirs = roles["blue-user"]["id"]
    for role in ("red-admin", "viewer"):
        key = secret(roles, role)
        assert house.admin("GET", f"/keys/{theirs}", key=key).status_code == 404
        assert house.admin("PATCH", f"/keys/{theirs}", {"name": "x"}, key).status_code in (403, 404)
        assert house.admin("GET", "/teams/blue", key=key).status_code == 404
        listed = house.admin("GET", "/keys", key=key).json()["data"]
        assert {one["team"] for one in listed} == {"red"}
        for query in ("?team=blue", "?key=" + str(theirs), "?team_id=blue"):
            answer = house.admin("GET", "/usage" + query, key=key)
            assert answer.status_code in (400, 403, 404) or "blue" not in answer.text, answer.text
        audit = house.admin("GET", "/audit", key=key)
        assert audit.status_code in (200, 403)
        assert "blue" not in audit.text


def test_a_user_sees_himself_alone(house: House, roles: dict[str, dict[str, object]]) -> None:
    status, _, body = house.request("GET", "/v1/me", secret(roles, "red-user"))
    assert status == 200
    assert str(roles["red-user"]["id"]).encode() in body
    assert b"blue" not in body


def test_no_answer_holds_a_hash_or_a_secret(house: House, roles: dict[str, dict[str, object]]) -> None:
    for path in ("/keys", "/teams", "/users", "/organisations", "/audit", "/usage", f"/keys/{roles['red-user']['id']}"):
        text = house.admin("GET", path, key=secret(roles, "admin")).text
        assert not re.search(r"\b[0-9a-f]{64}\b", text), path
        assert "sk-sy-" not in text
    # a stored hash opens nothing
    import hashlib

    for form in ("sha256:{}", "{}"):
        digest = hashlib.sha256(secret(roles, "admin").encode()).hexdigest()
        assert house.admin("GET", "/keys", key=form.format(digest)).status_code == 401


# 10. A browser cannot be made to act.


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_nothing_is_done_by_cookie_and_no_page_may_read(house: House, roles: dict[str, dict[str, object]], origin: str) -> None:
    for method, path in (("GET", "/admin/v1/keys"), ("POST", "/v1/chat/completions"), ("GET", "/docs"), ("GET", "/")):
        cookie = f"session={secret(roles, 'admin')}; key={secret(roles, 'admin')}"
        status, headers, _ = house.request(method, path, body=b"{}" if method == "POST" else b"", Origin=origin, Cookie=cookie)
        assert status in (200, 401)
        assert "set-cookie" not in headers
        assert "access-control-allow-origin" not in headers
        assert (status == 200) is (path in ("/docs", "/"))


def test_the_page_of_the_api_cannot_be_framed_and_runs_nothing(house: House) -> None:
    _, headers, body = house.request("GET", "/docs")
    policy = headers["content-security-policy"]
    for word in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"):
        assert word in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert b"<script" not in body.lower()


def test_a_form_of_another_page_changes_nothing(house: House, roles: dict[str, dict[str, object]]) -> None:
    """A form can send text/plain across origins without asking; without the key's header it is nobody."""
    answer = house.request(
        "POST", "/admin/v1/teams", body=b'{"name": "evil"}', Content_Type="text/plain", Origin="https://evil.example"
    )
    assert answer[0] == 401
    assert house.admin("GET", "/teams/evil", key=secret(roles, "admin")).status_code == 404


# 11. No search by pattern.


def test_no_query_is_a_pattern(house: House, roles: dict[str, dict[str, object]]) -> None:
    key = secret(roles, "admin")
    for path in ("/keys?team=%25", "/keys?team=re_", "/usage?team=%25", "/audit?name=%25"):
        answer = house.admin("GET", path, key=key)
        assert answer.status_code == 400 or not re.search(r'"team": ?"(red|blue)"', answer.text), (path, answer.text[:300])
    for file in (ROOT / "gateway").rglob("*.py"):
        assert not re.search(r"\.i?like\(|\bI?LIKE\b|\bREGEXP\b|\bGLOB\b", file.read_text()), file


def test_paging_is_bounded(house: House, roles: dict[str, dict[str, object]]) -> None:
    key = secret(roles, "admin")
    for path in ("/keys?limit=1000000000", "/audit?limit=1000000000", "/keys?limit=-1", "/keys?limit=9" + "9" * 400):
        assert house.admin("GET", path, key=key).status_code == 400, path


def test_declared_admin_text_is_no_key(house: House) -> None:
    assert house.admin("GET", "/keys", key=ADMIN).status_code == 401  # it is declared nowhere
