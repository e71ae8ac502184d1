"""Who gets in: items 1 to 7 and 12 of the attack list in docs/security.md."""

from __future__ import annotations

import asyncio
import importlib.metadata
import math
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from backends.core.errors import GatewayError
from gateway.admin.caller import AdminParts
from gateway.admin.surface import admin_routers
from gateway.auth.authenticate import Authenticator, NotAuthenticated, presented_key
from gateway.auth.database import Database
from gateway.auth.keys import mint
from gateway.auth.keystore import KeyStore, NewKey, create_key
from gateway.auth.records import Changes, KeyRecord
from gateway.config.snapshot import Snapshot
from gateway.edge.web import WebParts, web_app
from gateway.ledger.migrations import migrate
from gateway.protocols.registry import PATHS
from tests.gateway_process import ROOT
from tests.security.house import ADMIN, EXPIRED, FEW, LIMITED, PLAIN, PREFIX, House, code_of

pytestmark = pytest.mark.redis
#: What anybody may see: see docs/security.md.
PUBLIC = {"/", "/docs", "/openapi.json", "/health/live", "/health/ready"}
NOW_US = 1_800_000_000_000_000


def routes() -> list[tuple[str, str]]:
    """Every method and path that the application knows, parameters filled in."""
    nobody = AdminParts(**dict.fromkeys(AdminParts.__dataclass_fields__))
    routers = admin_routers(nobody, None, None)  # type: ignore[arg-type]
    app = web_app(WebParts(auth=None, now_us=None, snapshot=None, not_ready=None, routers=routers))  # type: ignore[arg-type]
    found = {("POST", path) for path in PATHS}
    pending = list(app.routes)
    while pending:
        route = pending.pop()
        path, methods = getattr(route, "path", None), getattr(route, "methods", None)
        if path is not None and methods:
            found |= {(method, re.sub(r"\{[^}]*\}", "x", path)) for method in methods}
        pending += getattr(getattr(route, "original_router", None), "routes", [])
    return sorted(found)


ROUTES = routes()
PROTECTED = [(method, path) for method, path in ROUTES if path not in PUBLIC and path != "/metrics"]


def test_the_list_of_routes_is_the_whole_surface(house: House) -> None:
    """The matrix below would say nothing if it did not see the routes."""
    documented = set(house.gateway.get("/openapi.json")[1].decode().split('"'))
    paths = {path for path in documented if path.startswith("/") and "/{" not in path and " " not in path}
    assert len(PROTECTED) > 30
    assert {path for path in paths if path.startswith(("/admin", "/v1"))} <= {path for _, path in ROUTES}


# 1. Host decides nothing.


def test_starlette_is_one_without_the_host_bypass() -> None:
    found = importlib.metadata.version("starlette")
    assert tuple(int(part) for part in found.split(".")[:3]) >= (1, 0, 1)
    declared = (ROOT / "pyproject.toml").read_text()
    assert '"starlette>=1.0.1"' in declared


@pytest.mark.parametrize("host", ["x/health/live?", "x#", "x/docs/", "x?a=", "health/live", "gateway\t", "a@b", "x\\y"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/admin/v1/keys"), ("GET", "/v1/models")]
)
def test_a_poisoned_host_opens_nothing(house: House, method: str, path: str, host: str) -> None:
    assert house.request(method, path, body=b"{}", Host=host)[0] in (400, 401)


@pytest.mark.parametrize(
    "target", ["http://x/health/live?/admin/v1/keys", "http://x/admin/v1/keys", "http://x/docs#/admin/v1/keys"]
)
def test_an_absolute_target_opens_nothing(house: House, target: str) -> None:
    status, _, body = house.request("GET", target)
    assert status in (400, 401, 404) or b"sk-" not in body
    assert b'"data"' not in body


# 2. Every route that is not public asks for a key.


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_every_route_asks_for_a_key(house: House, method: str, path: str) -> None:
    status, headers, body = house.request(method, path, body=b"{}" if method not in ("GET", "HEAD") else b"")
    assert status == 401, body
    assert headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), [(m, p) for m, p in PROTECTED if p.startswith("/admin")])
def test_every_admin_route_refuses_a_key_without_a_role(house: House, method: str, path: str) -> None:
    assert house.request(method, path, PLAIN, b"{}" if method not in ("GET", "HEAD") else b"")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/admin/v1/keys/",
        "//admin/v1/keys",
        "/admin//v1/keys",
        "/admin/v1/keys%2f",
        "/admin%2fv1/keys",
        "/admin/v1/keys;x",
        "/ADMIN/v1/keys",
        "/admin/v1/%6beys",
        "/docs/../admin/v1/keys",
        "/health/live/../../admin/v1/keys",
        "/./admin/v1/keys",
        "/admin/v1/keys?x",
        "/admin/v1/keys%00",
        "/admin/v1/keys%0a",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "TRACE"])
def test_no_spelling_of_a_path_goes_around(house: House, method: str, path: str) -> None:
    status, _, body = house.request(method, path)
    assert status in ({401, 404, 405, 400} | ({204} if method == "OPTIONS" else set())), body
    assert b"sk-sy" not in body and b'"data"' not in body


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/",
        "//v1/chat/completions",
        "/v1/chat%2fcompletions",
        "/v1/chat/completions;x",
        "/V1/chat/completions",
        "/v1/chat/%63ompletions",
    ],
)
def test_no_spelling_of_the_models_path_answers(house: House, path: str) -> None:
    before = len(house.upstream.seen)
    assert house.request("POST", path, PLAIN, b"{}")[0] in (400, 404, 405)
    assert len(house.upstream.seen) == before


# 3. Every carrier of a key is the same key.

CARRIERS = ("Authorization", "x-api-key", "api-key")


def carried(house: House, carrier: str, key: str, body: dict[str, object]) -> tuple[int, dict[str, str], bytes]:
    value = f"Bearer {key}" if carrier == "Authorization" else key
    return house.chat(body, "", **{carrier: value})


@pytest.mark.parametrize("carrier", CARRIERS)
def test_limits_lists_and_expiry_hold_through_every_carrier(house: House, carrier: str) -> None:
    assert carried(house, carrier, PLAIN, {})[0] == 200
    assert code_of(carried(house, carrier, FEW, {})) == "model_not_found"
    assert carried(house, carrier, EXPIRED, {})[0] == 401
    statuses = [carried(house, carrier, LIMITED, {})[0] for _ in range(4)]
    assert statuses[-1] == 429  # three an hour, whatever carried the earlier ones


def test_two_keys_are_none(house: House) -> None:
    assert code_of(house.chat({}, PLAIN, x_api_key=LIMITED)) == "conflicting_api_keys"
    assert code_of(house.chat({}, PLAIN, api_key=ADMIN)) == "conflicting_api_keys"
    assert house.chat({}, PLAIN, x_api_key=PLAIN)[0] == 200


@pytest.mark.parametrize("query", ["?api_key=", "?key=", "?authorization=Bearer%20", "?api-key="])
def test_a_key_in_the_query_is_none(house: House, query: str) -> None:
    body = b'{"model":"words-3","messages":[{"role":"user","content":"x"}]}'
    assert house.request("POST", f"/v1/chat/completions{query}{PLAIN}", body=body)[0] == 401
    assert house.request("GET", f"/v1/models{query}{PLAIN}")[0] == 401


@pytest.mark.parametrize("scheme", ["Basic", "Digest", "Token", "bearer:", "Bearer,"])
def test_other_schemes_are_no_key(house: House, scheme: str) -> None:
    import base64

    value = base64.b64encode(f"x:{PLAIN}".encode()).decode() if scheme == "Basic" else PLAIN
    assert house.chat({}, "", Authorization=f"{scheme} {value}")[0] == 401


# 4. The time of a refusal says nothing of the key.


class NoStore:
    """A store that must not be asked."""

    asked = 0

    async def find_by_hash(self, hash: str) -> KeyRecord | None:
        self.asked += 1
        return None

    async def changes(self, since: int | None) -> Changes:
        return Changes(1, None, None, None)


def authenticator(store: NoStore | KeyStore) -> Authenticator:
    empty = Snapshot("v", {}, {}, {})
    return Authenticator(lambda: empty, store, b"p" * 40)


def refusal_ns(one: Authenticator, key: bytes) -> int:
    headers = [(b"authorization", b"Bearer " + key)]
    began = time.perf_counter_ns()
    try:
        one.authenticate(headers, NOW_US).send(None)  # it never waits for what is no key of ours
    except NotAuthenticated:
        return time.perf_counter_ns() - began
    raise AssertionError("it was let in")


def test_a_good_prefix_is_refused_as_fast_as_nonsense() -> None:
    """20,000 refusals each of keys whose MAC begins rightly and of others, mixed; a t-test of the trimmed times.

    All have the same body: one that is asked for again and again is found warmer by any cache of the processor's, whoever
    made it up.
    """
    genuine = mint(b"p" * 40, random.Random(1).randbytes(42)).secret.encode()
    dice, one = random.Random(2), authenticator(NoStore())

    def forged(kept: int) -> bytes:
        """A key of the right shape: that it is one is no secret."""
        noise = dice.choices(b"abcdefghijklmnopqrstuvwxyz234567", k=len(genuine))
        return bytes(
            old if at < kept or old == ord("-") else new for at, (old, new) in enumerate(zip(genuine, noise, strict=True))
        )

    for _ in range(3):  # a busy machine may fail one round; a leak fails all
        times: dict[int, list[int]] = {len(genuine) - 4: [], len(genuine) - 16: []}
        # made beforehand: the making itself would warm the caches differently
        shown = [(kept, forged(kept)) for kept in times for _ in range(20_000)]
        dice.shuffle(shown)
        for kept, key in shown:
            times[kept].append(refusal_ns(one, key))
        near, far = (sorted(found)[: int(len(found) * 0.9)] for found in times.values())
        spread = math.sqrt(statistics.variance(near) / len(near) + statistics.variance(far) / len(far))
        difference = statistics.mean(near) - statistics.mean(far)
        # two-sided p > 0.01, or a difference too small to be measured over any network
        if abs(difference) < max(2.58 * spread, 0.02 * statistics.mean(far)):
            return
    raise AssertionError(f"{difference} ns between a good prefix and nonsense")


def test_comparisons_of_secrets_take_constant_time() -> None:
    source = (ROOT / "gateway" / "auth" / "keys.py").read_text()
    assert "compare_digest" in source
    for path in ("gateway/edge/web.py", "backends/engines/ipc.py"):
        assert "compare_digest" in (ROOT / path).read_text()


# 5. All refusals look alike.


def test_all_refusals_look_alike(house: House) -> None:
    minted = house.command("keys", "new", "--name", "revoked", "--rpm", "5")
    secret = str(minted["secret"])
    assert house.chat({}, secret)[0] == 200
    house.command("keys", "revoke", str(minted["id"]))
    time.sleep(1.5)
    suspended = house.command("keys", "new", "--name", "suspended", "--rpm", "5")
    house.command("keys", "suspend", str(suspended["id"]))
    flipped = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    cases = {
        "absent": "",
        "unknown": "sk-" + "a" * 40,
        "expired": EXPIRED,
        "revoked": secret,
        "suspended": str(suspended["secret"]),
        "forged": flipped,
        "malformed": "sk-sy-",
        "long": "x" * 600,
        "short": "x",
    }
    answers = {name: house.chat({}, key) for name, key in cases.items()}
    shapes = {
        (status, body, tuple(sorted((n, v) for n, v in headers.items() if n not in ("date", "x-request-id"))))
        for status, headers, body in answers.values()
    }
    assert len(shapes) == 1, answers
    assert next(iter(shapes))[0] == 401


# 6. A key's text goes nowhere.

WORDS = [b"' OR '1'='1", b"'; DROP TABLE keys; --", b"\x27\x00\x27", b"x" * 8000, "schlüssel-ключ-鍵".encode(), b"\xff\xfe\x80",
         b"sk-sy-' UNION SELECT hash FROM keys--", b"%00%27", b"${jndi:ldap://x}", b"{{7*7}}"]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_hostile_key_is_a_401(house: House, word: bytes, carrier: str) -> None:
    value = b"Bearer " + word if carrier == "Authorization" else word
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + carrier.encode() + b": " + value
    answer = house.raw(head + b"\r\nContent-Length: 2\r\n\r\n{}")
    assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400")), answer[:200]
    assert (b"HTTP/1.1 400" in answer) is (b"\x00" in word)  # NUL is no header at all
    assert word[:20] not in answer


async def test_no_statement_holds_a_keys_text(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'keys.db'}"
    await asyncio.to_thread(migrate, url)
    pepper = b"p" * 40
    genuine = (await create_key(url, pepper, NewKey("x", scopes=frozenset({"inference"})))).secret
    said: list[str] = []
    listen = lambda *a: said.append(f"{a[2]} {a[3]}")  # noqa: E731
    sa.event.listen(sa.Engine, "before_cursor_execute", listen)
    try:
        database = Database(url)
        store = KeyStore(database)
        one = authenticator(store)
        await one.refresh()
        assert (await one.authenticate([(b"authorization", b"Bearer " + genuine.encode())], NOW_US)).key_id
        for word in WORDS:
            with pytest.raises(GatewayError):
                await one.authenticate([(b"authorization", b"Bearer " + word)], NOW_US)
        await store.aclose()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", listen)
    assert said
    everything = "\n".join(said)
    assert genuine not in everything and genuine[-30:] not in everything
    assert not any(word.decode("latin-1")[:12] in everything for word in WORDS)


# 7. Keys that begin alike.


@pytest.mark.parametrize("same", [20, 40])
def test_keys_with_the_same_beginning_are_never_confused(house: House, same: int) -> None:
    assert house.chat({}, PREFIX)[0] == 200
    other = PREFIX[:same] + "z" * (len(PREFIX) - same)
    assert PREFIX[:same] == other[:same]
    assert house.chat({}, other)[0] == 401
    assert house.chat({}, PREFIX + "0")[0] == 401
    assert house.chat({}, PREFIX)[0] == 200


def test_a_revoked_key_is_refused_on_every_worker_within_a_second(house: House) -> None:
    minted = house.command("keys", "new", "--name", "short-lived")
    for _ in range(8):  # both workers have it in memory
        assert house.chat({}, str(minted["secret"]))[0] == 200
    house.command("keys", "revoke", str(minted["id"]))
    time.sleep(1.0)
    assert {house.chat({}, str(minted["secret"]))[0] for _ in range(12)} == {401}


# 12. No secret is empty or weak.


@pytest.mark.parametrize(
    ("key", "value"),
    [("SWITCHYARD_AUTH__PEPPER", "short"), ("SWITCHYARD_AUTH__PEPPER", " "), ("SWITCHYARD_TELEMETRY__METRICS__TOKEN", "short")],
)
def test_a_weak_secret_stops_the_start(tmp_path: Path, key: str, value: str) -> None:
    import os

    file = tmp_path / "config.yaml"
    file.write_text(f"state_dir: {tmp_path}/var\n")
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(file)],
        cwd=ROOT, env={**os.environ, key: value}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode not in (0, None)
    assert b"too short" in done.stderr or b"characters" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "headers", [[(b"authorization", b"Bearer ")], [(b"x-api-key", b"")], [(b"authorization", b"Bearer  \t")], []]
)
def test_an_empty_key_is_none(headers: Sequence[tuple[bytes, bytes]]) -> None:
    with pytest.raises(NotAuthenticated):
        presented_key(headers)
