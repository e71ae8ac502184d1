"""The admin API over a real SQLite file: every route with every role, bodies, paging, conflicts, and what it reports."""

import hashlib
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.admin.caller import AdminParts
from gateway.admin.surface import admin_routers
from gateway.auth import keys
from gateway.auth.authenticate import Authenticator
from gateway.auth.database import By, Database
from gateway.auth.keystore import KeyStore
from gateway.auth.overlay import in_file
from gateway.auth.owners import OwnerStore
from gateway.auth.prices import PriceStore
from gateway.auth.records import KeyLimit, NewKey, Owner
from gateway.config.loader import parse
from gateway.domain.money import price_at
from gateway.edge.web import WebParts, web_app
from gateway.ledger.migrations import migrate
from gateway.ledger.rows import connect, store_rows
from gateway.limits.reference import Counters
from gateway.runtime.board import Board
from tests.rows import row

PEPPER = b"p" * 32
NOW = 1_700_000_000_000_000
FILE_KEY = "sk-file-0123456789abcdef"
CONFIG = f"""
deployments:
  near:
    {{dialect: openai_compatible, base_url: http://127.0.0.1:9/v1, model: m,
     price: {{input: 2.5, cached_input: 0.25, output: 10}},
     prices: [{{valid_from: 2023-11-01, input: 3}}, {{valid_from: 2030-01-01, input: 4}}]}}
  far: {{dialect: openai_compatible, base_url: http://127.0.0.1:9/v1, model: m}}
models:
  chat: {{tiers: [[near], [far]], aliases: [gpt-4o-mini]}}
  other: {{tiers: [[far]], limits: [{{requests: 7, per: day}}]}}
organisations:
  file-org: {{limits: [{{requests: 9, per: day}}]}}
teams:
  file-team: {{organisation: file-org, limits: [{{tokens: 100, per: minute}}]}}
users:
  named: {{file-user: {{limits: [{{concurrent: 2}}]}}}}
keys:
  declared:
    - {{name: file-key, team: file-team, user: file-user, hash: "sha256:{hashlib.sha256(FILE_KEY.encode()).hexdigest()}"}}
"""


class Office:
    """The admin API in this process."""

    def __init__(self, folder: Path) -> None:
        url = f"sqlite+aiosqlite:///{folder / 'gateway.db'}"
        migrate(url)
        snapshot = parse(CONFIG.encode(), folder / "config.yaml").snapshot
        self.ledger = connect(url)
        self.database = Database(url)
        self.keys = KeyStore(self.database)
        self.owners = OwnerStore(self.database, lambda kind, name: in_file(snapshot, kind, name))
        self.auth = Authenticator(lambda: snapshot, self.keys, PEPPER)
        self.counters = Counters()
        self._count = itertools.count()

        async def peek(rules: Any) -> Any:
            return self.counters.states(rules, 15_000, NOW)

        parts = AdminParts(
            auth=self.auth, database=self.database, keys=self.keys, owners=self.owners, pepper=PEPPER, now_us=lambda: NOW,
            prices=PriceStore(self.database),
            snapshot=lambda: snapshot, present=self.auth.snapshot, peek=peek, store_now_us=lambda: NOW, randomness=self.random,
        )  # fmt: skip
        web = WebParts(
            auth=self.auth, now_us=lambda: NOW, snapshot=lambda: snapshot, not_ready=dict,
            routers=admin_routers(parts, self.ledger, Board(lambda kind, payload: None)),
        )  # fmt: skip
        self.app = web_app(web)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url="http://gateway"
        )
        self.secrets: dict[str, str] = {"nobody": "", "file": FILE_KEY}
        self.ids: dict[str, str] = {}

    def random(self, size: int) -> bytes:
        return hashlib.sha512(next(self._count).to_bytes(4)).digest()[:size]

    async def mint(self, role: str, **fields: Any) -> None:
        minted, _ = await self.keys.create(PEPPER, NewKey(role, **fields), By("t", NOW), self.random(keys.RANDOM_BYTES))
        self.secrets[role], self.ids[role] = minted.secret, minted.id

    async def ask(self, role: str, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.secrets[role]}"} if self.secrets[role] else {}
        return await self.http.request(method, path, json=body, headers=headers)

    async def good(self, method: str, path: str, body: Any = None, role: str = "admin") -> Any:
        answer = await self.ask(role, method, path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def bad(self, status: int, method: str, path: str, body: Any = None, role: str = "admin") -> Any:
        answer = await self.ask(role, method, path, body)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(tmp_path)
    await office.owners.create(Owner("organisation", "acme"), By("t", NOW))
    await office.owners.create(Owner("team", "red", "acme"), By("t", NOW))
    await office.owners.create(Owner("team", "blue"), By("t", NOW))
    await office.owners.create(Owner("user", "ann"), By("t", NOW))
    await office.mint("admin", scopes=frozenset({"admin"}))
    await office.mint("team-admin", scopes=frozenset({"team-admin"}), team="red")
    await office.mint("viewer", scopes=frozenset({"viewer"}))
    await office.mint("team-viewer", scopes=frozenset({"viewer"}), team="red")
    await office.mint("user", team="red")
    await office.mint("of-red", team="red", user="ann")
    await office.mint("of-blue", team="blue")
    await office.mint("red-admin", scopes=frozenset({"admin"}), team="red")
    yield office
    await office.http.aclose()
    await office.database.aclose()
    await office.ledger.dispose()


ROLES = ("nobody", "user", "viewer", "team-viewer", "team-admin", "admin")
READ = (401, 403, 200, 200, 200, 200)
OTHERS = (401, 403, 200, 404, 404, 200)
ADMIN = (401, 403, 403, 403, 403, 200)
OTHERS_ADMIN = (401, 403, 403, 404, 404, 200)
TEAM = (401, 403, 403, 403, 200, 200)
OTHERS_TEAM = (401, 403, 403, 403, 404, 200)
A = "/admin/v1"
#: method, path ({name}: a minted key's id), body, status by role.
MATRIX: list[tuple[str, str, Any, tuple[int, ...]]] = [
    ("GET", A + "/organisations", None, READ),
    ("GET", A + "/organisations/acme", None, READ),
    ("GET", A + "/organisations/file-org", None, OTHERS),
    ("POST", A + "/organisations", {"name": "new"}, ADMIN),
    ("PATCH", A + "/organisations/acme", {"timezone": "Europe/Berlin"}, ADMIN),
    ("DELETE", A + "/organisations/acme", None, (401, 403, 403, 403, 403, 409)),
    ("GET", A + "/teams", None, READ),
    ("GET", A + "/teams/red", None, READ),
    ("GET", A + "/teams/blue", None, OTHERS),
    ("POST", A + "/teams", {"name": "new"}, ADMIN),
    ("PATCH", A + "/teams/red", {"models": ["chat"]}, ADMIN),
    ("PATCH", A + "/teams/blue", {"models": ["chat"]}, OTHERS_ADMIN),
    ("DELETE", A + "/teams/blue", None, (401, 403, 403, 404, 404, 409)),
    ("GET", A + "/users", None, READ),
    ("GET", A + "/users/ann", None, OTHERS),
    ("POST", A + "/users", {"name": "bob"}, ADMIN),
    ("PATCH", A + "/users/ann", {"limits": [{"concurrent": 1}]}, OTHERS_ADMIN),
    ("DELETE", A + "/users/ann", None, OTHERS_ADMIN),
    ("GET", A + "/keys", None, READ),
    ("GET", A + "/keys/{of-red}", None, READ),
    ("GET", A + "/keys/{of-blue}", None, OTHERS),
    ("GET", A + "/keys/file-key", None, OTHERS),
    ("POST", A + "/keys", {"name": "n"}, TEAM),
    ("POST", A + "/keys", {"name": "n", "team": "blue"}, (401, 403, 403, 403, 400, 200)),
    ("POST", A + "/keys", {"name": "n", "scopes": ["admin"]}, ADMIN),
    ("PATCH", A + "/keys/{of-red}", {"name": "m"}, TEAM),
    ("PATCH", A + "/keys/{of-red}", {"team": "blue"}, ADMIN),
    ("PATCH", A + "/keys/{of-red}", {"scopes": ["admin"]}, ADMIN),
    ("PATCH", A + "/keys/{of-blue}", {"name": "m"}, OTHERS_TEAM),
    ("PATCH", A + "/keys/{red-admin}", {"name": "m"}, ADMIN),
    ("POST", A + "/keys/{red-admin}/rotate", {}, ADMIN),
    *((("POST", A + "/keys/{of-red}/" + verb, {} if verb == "rotate" else None, TEAM)) for verb in
      ("suspend", "resume", "rotate", "revoke")),
    *((("POST", A + "/keys/{of-blue}/" + verb, {} if verb == "rotate" else None, OTHERS_TEAM)) for verb in
      ("suspend", "resume", "rotate", "revoke")),
    ("GET", A + "/models", None, (401, 403, 200, 403, 403, 200)),
    ("POST", A + "/models/nothing/load", None, (401, 403, 403, 403, 403, 404)),
    ("POST", A + "/models/nothing/unload", None, (401, 403, 403, 403, 403, 404)),
    ("GET", A + "/prices", None, READ),
    ("POST", A + "/prices", {"model": "other", "input": 1, "output": 2}, ADMIN),
    ("POST", A + "/prices", {"model": "chat", "deployment": "near", "input": 1, "output": 2}, (401, 403, 403, 403, 403, 409)),
    ("DELETE", A + "/prices/file:near:0", None, (401, 403, 403, 403, 403, 409)),
    ("DELETE", A + "/prices/nothing", None, (401, 403, 403, 403, 403, 404)),
    ("GET", A + "/rules", None, READ),
    ("GET", A + "/rules?scope=key&name={of-red}", None, READ),
    ("GET", A + "/rules?scope=key&name={of-blue}", None, OTHERS),
    ("PUT", A + "/rules/model/chat", {"limits": [{"concurrent": 5}]}, ADMIN),
    ("PUT", A + "/rules/gateway/gateway", {"limits": []}, ADMIN),
    ("GET", A + "/usage", None, READ),
    ("GET", A + "/audit", None, READ),
    ("GET", "/v1/me", None, (401, 200, 200, 200, 200, 200)),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "statuses"), MATRIX, ids=[f"{m} {p}" for m, p, _, _ in MATRIX])
async def test_every_route_with_every_role(
    office: Office, method: str, path: str, body: Any, statuses: tuple[int, ...]
) -> None:
    for id in ("of-red", "of-blue", "red-admin"):
        path = path.replace(f"{{{id}}}", office.ids[id])
    for role, status in zip(ROLES, statuses, strict=True):
        answer = await office.ask(role, method, path, body)
        assert answer.status_code == status, (role, answer.text)
        if status >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_the_matrix_names_every_route(office: Office) -> None:
    have = {
        (method.upper(), path)
        for path, operations in office.app.openapi()["paths"].items()
        for method in operations
        if path.startswith(A) or path == "/v1/me"
    }
    covered = {(method, path.split("/{")[0]) for method, path, _, _ in MATRIX}
    verbs = {(method, path) for method, path, _, _ in MATRIX}
    for method, path in have:
        stem = path.split("/{")[0]
        assert any(m == method and p.startswith(stem) for m, p in covered | verbs), (method, path)
        operation = office.app.openapi()["paths"][path][method.lower()]
        assert operation["security"] == [{"key": []}] and operation["description"]


async def test_a_key_from_its_minting_to_its_end(office: Office) -> None:
    body = {
        "name": "ci", "team": "red", "user": "ann", "models": ["gpt-4o-mini"], "scopes": ["inference"],
        "limits": [{"tokens": 1000, "per": "minute"}, {"usd": 2.5, "per": "month"}], "expires": "2030-01-01",
    }  # fmt: skip
    made = await office.good("POST", A + "/keys", body)
    office.secrets["made"] = secret = made.pop("secret")
    id = made["id"]
    assert made == await office.good("GET", f"{A}/keys/{id}")
    assert (made["models"], made["state"], made["source"]) == (["chat"], "active", "database")
    assert made["limits"] == [{"tokens": 1000, "per": "minute"}, {"usd": "2.5", "per": "month"}]
    assert made["expires_at"] == "2030-01-01T00:00:00Z"
    me = await office.good("GET", "/v1/me", role="made")
    assert (me["id"], me["organisation"], me["models"]) == (id, "acme", ["chat"])
    assert [(one["scope"], one["remaining"]) for one in me["limits"]] == [("key", 1000), ("key", 2_500_000_000)]
    changed = await office.good("PATCH", f"{A}/keys/{id}", {"limits": [{"concurrent": 4}], "expires": None, "models": None})
    assert (changed["limits"], changed["expires_at"], changed["models"]) == ([{"concurrent": 4}], None, None)
    assert changed["user"] == "ann", "what is not stated stays"
    rotated = await office.good("POST", f"{A}/keys/{id}/rotate", {"grace_s": 60})
    assert rotated["id"] == id and rotated["previous_secret_until"]
    office.secrets["rotated"] = rotated["secret"]
    for role in ("made", "rotated"):
        await office.good("GET", "/v1/me", role=role)
    await office.good("POST", f"{A}/keys/{id}/suspend")
    await office.bad(401, "GET", "/v1/me", role="rotated")
    await office.good("POST", f"{A}/keys/{id}/resume")
    await office.good("GET", "/v1/me", role="rotated")
    assert (await office.good("POST", f"{A}/keys/{id}/revoke"))["state"] == "revoked"
    for role in ("made", "rotated"):
        await office.bad(401, "GET", "/v1/me", role=role)
    await office.bad(409, "PATCH", f"{A}/keys/{id}", {"name": "x"})
    trail = (await office.good("GET", f"{A}/audit?noun=key&name={id}"))["data"]
    assert [one["action"] for one in trail] == ["revoke", "resume", "suspend", "rotate", "change", "create"]
    assert {one["actor"] for one in trail} == {office.ids["admin"]}
    assert secret.split("-")[3] not in json.dumps(trail)


BAD = [
    ("POST", "/keys", {"name": "n", "secret": "mine"}, "secret"),
    ("POST", "/keys", {"name": "n", "id": "mine"}, "id"),
    ("POST", "/keys", {"name": "n", "state": "active"}, "state"),
    ("POST", "/keys", {"name": "n", "hash": "x"}, "hash"),
    ("POST", "/keys", {"name": ""}, "name"),
    ("POST", "/keys", {"name": "a\nb"}, "name"),
    ("POST", "/keys", {}, "name"),
    ("POST", "/keys", {"name": "n", "team": "nowhere"}, "team"),
    ("POST", "/keys", {"name": "n", "models": ["nothing"]}, "models"),
    ("POST", "/keys", {"name": "n", "models": []}, "models"),
    ("POST", "/keys", {"name": "n", "scopes": ["root"]}, "scopes.0"),
    ("POST", "/keys", {"name": "n", "scopes": ["team-admin"]}, "scopes"),
    ("POST", "/keys", {"name": "n", "expires": "2001-01-01"}, "expires"),
    ("POST", "/keys", {"name": "n", "limits": [{"requests": -1, "per": "minute"}]}, "limits.0.requests"),
    ("POST", "/keys", {"name": "n", "limits": [{"requests": 1, "per": "fortnight"}]}, "limits.0.per"),
    ("POST", "/keys", {"name": "n", "limits": [{"requests": 1, "tokens": 1, "per": "minute"}]}, "limits.0"),
    ("POST", "/keys", {"name": "n", "limits": [{"requests": 1, "per": "minute", "model": "nothing"}]}, "limits.0.model"),
    ("POST", "/keys", {"name": "n", "limits": [{"concurrent": 1}, {"concurrent": 2}]}, "limits"),
    ("POST", "/teams", {"name": "n", "timezone": "Mars/Olympus"}, "timezone"),
    ("POST", "/teams", {"name": "n", "organisation": "nowhere"}, "organisation"),
    ("POST", "/teams", {"name": "n", "created_us": 5}, "created_us"),
    ("POST", "/teams", {"name": "has space"}, "name"),
    ("PATCH", "/teams/red", {"name": "green"}, "name"),
    ("POST", "/organisations", {"name": "n", "models": ["chat"]}, "models"),
    ("POST", "/prices", {"model": "nothing", "input": 1, "output": 1}, "model"),
    ("POST", "/prices", {"model": "other", "deployment": "near", "input": 1, "output": 1}, "deployment"),
    ("POST", "/prices", {"model": "other", "input": -1, "output": 1}, "input"),
    ("POST", "/prices", {"model": "other", "input": 1e300, "output": 1}, "input"),
    ("POST", "/prices", {"model": "other", "input": 0.0000001, "output": 1}, "input"),
    ("POST", "/prices", {"model": "other", "input": "NaN", "output": 1}, "input"),
    ("POST", "/prices", {"model": "other", "input": 1}, "output"),
    ("POST", "/prices", {"model": "other", "input": 1, "output": 1, "valid_from": "soon"}, "valid_from"),
    ("POST", "/prices", {"model": "other", "input": 1, "output": 1, "valid_from": "0001-01-01"}, "valid_from"),
    ("POST", "/prices", {"model": "other", "input": 1, "output": 1, "id": "mine"}, "id"),
    ("PUT", "/rules/model/chat", {"limits": [{"requests": 0, "per": "minute"}]}, "limits.0.requests"),
    ("PUT", "/rules/model/chat", {"limits": [{"requests": 2**53 + 1, "per": "minute"}]}, "limits.0.requests"),
    ("PUT", "/rules/model/chat", {"limits": [{"requests": 1, "per": "minute", "model": "chat"}]}, "limits"),
    ("PUT", "/rules/model/chat", {"limits": [{"concurrent": 1}, {"concurrent": 2}]}, "limits"),
    ("PUT", "/rules/team/red", {"limits": []}, "scope"),
    ("PUT", "/rules/gateway/gateway", {}, "limits"),
    ("GET", "/rules?scope=key", None, "name"),
    ("GET", "/rules?scope=planet", None, "scope"),
    ("GET", "/usage?by=team,nonsense", None, "by"),
    ("GET", "/usage?since=yesterday", None, "since"),
    ("GET", "/keys?limit=0", None, "limit"),
    ("GET", "/keys?team=%00", None, "team"),
    ("GET", "/keys/%00", None, "path"),
    ("GET", "/rules?scope=key&name=a%00", None, "name"),
    ("GET", "/audit?after=-1", None, "after"),
]


@pytest.mark.parametrize(("method", "path", "body", "param"), BAD, ids=[f"{p} {b}" for _, p, b, _ in BAD])
async def test_bad_input_is_a_400_that_names_the_field(office: Office, method: str, path: str, body: Any, param: str) -> None:
    revision = (await office.keys.changes(None)).revision
    error = await office.bad(400, method, A + path, body)
    assert error["param"] == param and error["message"].startswith(param.split(".")[0])
    assert (await office.keys.changes(None)).revision == revision, "nothing was written"


async def test_what_the_file_declares_is_read_only(office: Office) -> None:
    for method, path, body in [
        ("POST", "/teams", {"name": "file-team"}),
        ("PATCH", "/teams/file-team", {"limits": []}),
        ("DELETE", "/teams/file-team", None),
        ("POST", "/organisations", {"name": "file-org"}),
        ("DELETE", "/organisations/file-org", None),
        ("PATCH", "/users/file-user", {"limits": []}),
        ("PATCH", "/keys/file-key", {"name": "x"}),
        ("POST", "/keys/file-key/revoke", None),
        ("DELETE", "/prices/file:near:1", None),
        ("POST", "/prices", {"model": "chat", "deployment": "near", "input": 1, "output": 1}),
    ]:
        assert (await office.bad(409, method, A + path, body))["code"] == "read_only"
    assert (await office.good("GET", A + "/teams/file-team"))["source"] == "file"
    me = await office.good("GET", "/v1/me", role="file")
    assert {one["scope"] for one in me["limits"]} == {"user", "team", "organisation", "model"}
    await office.bad(409, "POST", A + "/teams", {"name": "red"})
    await office.bad(404, "PATCH", A + "/teams/nowhere", {"limits": []})
    await office.bad(404, "POST", A + "/keys/nobody/suspend")


async def test_me_tells_limits_of_the_models_that_the_key_may_use(office: Office) -> None:
    await office.mint("both", limits=(KeyLimit("tokens", 9, 60_000, model="other"),))
    await office.mint("chat-only", models=frozenset({"chat"}))
    limits = (await office.good("GET", "/v1/me", role="both"))["limits"]
    assert [(one["scope"], one["model"], one["limit"], one["remaining"]) for one in limits] == [
        ("key", "other", {"tokens": 9, "per": "minute", "model": "other"}, 9),
        ("model", "other", {"requests": 7, "per": "day"}, 7),
    ]
    assert (await office.good("GET", "/v1/me", role="chat-only"))["limits"] == []


async def test_rules_of_models_and_of_the_gateway_come_beside_the_files(office: Office) -> None:
    made = await office.good("PUT", A + "/rules/model/other", {"limits": [{"concurrent": 5}]})
    assert [(one["limit"], one["source"]) for one in made["data"]] == [
        ({"requests": 7, "per": "day"}, "file"), ({"concurrent": 5}, "database"),
    ]  # fmt: skip
    await office.good("PUT", A + "/rules/gateway/gateway", {"limits": [{"usd": 5, "per": "month"}]})
    await office.good("PATCH", A + "/teams/red", {"limits": [{"tokens": 10, "per": "minute"}]})
    await office.good("PATCH", A + "/teams/blue", {"limits": [{"tokens": 10, "per": "minute"}]})
    everything = (await office.good("GET", A + "/rules"))["data"]
    assert [(one["scope"], one["name"]) for one in everything] == [
        ("gateway", "gateway"), ("organisation", "file-org"), ("team", "blue"), ("team", "file-team"), ("team", "red"),
        ("user", "file-user"), ("model", "other"), ("model", "other"),
    ]  # fmt: skip
    theirs = (await office.good("GET", A + "/rules", role="team-admin"))["data"]
    assert [one["name"] for one in theirs] == ["gateway", "red", "other", "other"]
    assert [one["name"] for one in (await office.good("GET", A + "/rules?scope=team&name=blue"))["data"]] == ["blue"]
    of_key = (await office.good("GET", f"{A}/rules?scope=key&name={office.ids['of-red']}", role="team-admin"))["data"]
    assert [one["scope"] for one in of_key] == ["team", "gateway"]
    assert [one["scope"] for one in (await office.good("GET", "/v1/me", role="of-blue"))["limits"]] == [
        "team", "gateway", "model", "model",
    ]  # fmt: skip
    first = await office.good("GET", A + "/rules?limit=3")
    rest = await office.good("GET", f"{A}/rules?after={first['last_id']}")
    assert first["has_more"] and first["data"] + rest["data"] == everything
    await office.good("PUT", A + "/rules/gateway/gateway", {"limits": []})
    assert office.auth.snapshot().gateway_limits == ()
    await office.bad(404, "PUT", A + "/rules/model/nothing", {"limits": []})
    await office.bad(404, "PUT", A + "/rules/gateway/other", {"limits": []})
    trail = (await office.good("GET", A + "/audit?noun=gateway"))["data"]
    assert [one["action"] for one in trail] == ["change", "change"]


async def test_lists_come_in_pages(office: Office) -> None:
    for path, field in (("/teams", "name"), ("/keys", "id"), ("/audit", "id")):
        whole = [one[field] for one in (await office.good("GET", A + path))["data"]]
        seen: list[str] = []
        after = ""
        while True:
            page = await office.good("GET", f"{A}{path}?limit=2{after}")
            seen += [one[field] for one in page["data"]]
            after = f"&after={page['last_id']}"
            if not page["has_more"]:
                break
        assert seen == whole and len(whole) >= 3
    only = await office.good("GET", A + "/keys?team=red&user=ann")
    assert [one["name"] for one in only["data"]] == ["of-red"]
    mine = await office.good("GET", A + "/keys?team=blue", role="team-admin")
    assert mine["data"] == []
    assert {one["team"] for one in (await office.good("GET", A + "/keys", role="team-viewer"))["data"]} == {"red"}
    assert {one["name"] for one in (await office.good("GET", A + "/teams", role="team-admin"))["data"]} == {"red"}


async def test_usage_equals_the_ledger_and_a_team_sees_its_own(office: Office) -> None:
    rows = [
        row(
            f"r{n}", admitted_us=NOW - n * 43_200_000_000, settled_us=NOW, key_id=f"k{n % 3}", team_id=("red", "blue")[n % 2],
            user="ann", model=("chat", "other")[n % 4 == 0], input_tokens=n, output_tokens=2 * n, cost_nusd=10**9 * n + 1,
            outcome="ok",
        )
        for n in range(20)
    ]  # fmt: skip
    await store_rows(office.ledger, rows)
    for by in ("key", "team", "user", "model", "day", "team,model", "day,key,model,user", "outcome", "deployment"):
        found = (await office.good("GET", f"{A}/usage?by={by}"))["data"]
        assert sum(one["requests"] for one in found) == 20
        assert sum(one["output_tokens"] for one in found) == sum(one.output_tokens for one in rows)
        assert sum(one["cost_nusd"] for one in found) == sum(one.cost_nusd for one in rows)
        assert all(set(by.split(",")) == {name for name in by.split(",") if one[name] is not None} for one in found)
    red = [one for one in rows if one.team_id == "red"]
    mine = (await office.good("GET", f"{A}/usage?by=team,model", role="team-admin"))["data"]
    assert {one["team"] for one in mine} == {"red"}
    assert sum(one["cost_nusd"] for one in mine) == sum(one.cost_nusd for one in red)
    assert (await office.good("GET", f"{A}/usage?by=team&team=blue", role="team-admin"))["data"] == []
    first = await office.good("GET", f"{A}/usage?by=day&limit=4")
    rest = await office.good("GET", f"{A}/usage?by=day&limit=100&after={first['last_id']}")
    assert first["has_more"] and sum(one["requests"] for one in first["data"] + rest["data"]) == 20
    table = (await office.ask("admin", "GET", f"{A}/usage?by=team&format=csv")).text.splitlines()
    assert table[0].startswith("team,requests,input_tokens") and len(table) == 3
    assert table[2].split(",")[-2:] == ["90.00000001", str(sum(one.cost_nusd for one in red))]


async def test_prices_are_shown_exactly(office: Office) -> None:
    found = (await office.good("GET", A + "/prices?model=gpt-4o-mini", role="viewer"))["data"]
    near = [one for one in found if one["deployment"] == "near"]
    assert [(one["valid_from"], one["now"]) for one in near] == [
        (None, False), ("2023-11-01T00:00:00Z", True), ("2030-01-01T00:00:00Z", False),
    ]  # fmt: skip
    assert [(one["input"], one["cached_input"], one["output"]) for one in near] == [
        ("2.5", "0.25", "10"), ("3", "3", "0"), ("4", "4", "0"),
    ]  # fmt: skip
    assert {tuple(one["models"]) for one in near} == {("chat",)}
    assert len((await office.good("GET", A + "/prices"))["data"]) == 3


async def test_prices_of_models_are_made_followed_and_deleted(office: Office) -> None:
    new = {"model": "gpt-4o-mini", "input": "1.5", "cached_input": 0.15, "output": 6, "valid_from": "2023-11-01"}
    general = await office.good("POST", A + "/prices", new)
    assert (general["model"], general["deployment"], general["now"], general["source"]) == ("chat", None, True, "database")
    assert (general["input"], general["cached_input"], general["output"]) == ("1.5", "0.15", "6")
    await office.bad(409, "POST", A + "/prices", {**new, "model": "chat"})
    later = await office.good("POST", A + "/prices", {"model": "chat", "input": 2, "output": 7, "valid_from": "2030-01-01"})
    assert not later["now"]
    own = await office.good("POST", A + "/prices", {"model": "chat", "deployment": "far", "input": 3, "output": 8})
    found = {one["id"]: one for one in (await office.good("GET", A + "/prices?model=chat"))["data"]}
    assert {found[one["id"]]["now"] for one in (general, later)} == {False}, "far has a price of its own now"
    assert found[own["id"]]["now"] and "file:near:1" in found
    route = office.auth.snapshot().models["gpt-4o-mini"]
    near, far = route.tiers[0][0], route.tiers[1][0]
    assert price_at(route, far, NOW).input == 3_000_000 and price_at(route, far, NOW - 1).input == 1_500_000
    assert price_at(route, near, NOW).input == 3_000_000, "the file's"
    assert "other" not in {one["model"] for one in found.values()}
    assert (await office.good("DELETE", f"{A}/prices/{own['id']}"))["deleted"]
    route = office.auth.snapshot().models["chat"]
    assert price_at(route, far, NOW).output == 6_000_000
    trail = (await office.good("GET", A + "/audit?noun=price"))["data"]
    assert [one["action"] for one in trail] == ["delete", "create", "create", "create"]
    assert trail[0]["changes"]["model"] == "chat"


async def test_no_json_and_too_deep_json_are_400(office: Office) -> None:
    headers = {"authorization": f"Bearer {office.secrets['admin']}", "content-type": "application/json"}
    for body in (b"{", b"[" * 100_000, b"\xff", b"[]"):
        answer = await office.http.post(A + "/keys", content=body, headers=headers)
        assert answer.status_code == 400, answer.text


async def test_a_team_admin_names_no_user_of_another_team(office: Office) -> None:
    """A key that names a user spends that user's limits."""
    await office.owners.create(Owner("team", "rose", "acme"), By("t", NOW))
    await office.mint("of-rose", team="rose", user="rita")
    await office.mint("bob-blue", team="blue", user="bob")
    await office.owners.create(Owner("user", "limited"), By("t", NOW))
    await office.auth.refresh()
    for user in ("bob", "file-user", "limited"):
        wrong = await office.bad(400, "POST", A + "/keys", {"name": "n", "user": user}, "team-admin")
        assert wrong["param"] == "user"
        path = f"{A}/keys/{office.ids['user']}"
        assert (await office.bad(400, "PATCH", path, {"user": user}, "team-admin"))["param"] == "user"
    assert not [one for one in await office.keys.list(team="red") if one.name == "n"], "nothing half-written stays"
    for user in ("ann", "rita", "nobody-yet", "nobody-yet", None):
        made = await office.good("POST", A + "/keys", {"name": "n", "user": user}, "team-admin")
        assert (made["team"], made["user"]) == ("red", user)
    await office.good("PATCH", f"{A}/keys/{office.ids['user']}", {"user": "rita", "name": "renamed"}, "team-admin")
    for _ in range(2):  # what an admin named stays when the team's admin changes something else
        await office.good("PATCH", f"{A}/keys/{office.ids['user']}", {"user": "bob"})
        assert (await office.good("PATCH", f"{A}/keys/{office.ids['user']}", {"user": "bob", "name": "m"}, "team-admin"))[
            "user"
        ] == "bob"
    await office.good("POST", f"{A}/keys/{office.ids['user']}/revoke")
    await office.bad(400, "POST", A + "/keys", {"name": "n", "user": "bob"}, "team-admin")
    await office.good("POST", A + "/keys", {"name": "n", "user": "bob"})
