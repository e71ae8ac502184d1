"""What comes out: items 26 to 36 of the attack list."""

from __future__ import annotations

import json
import random
import re
import time

import pytest
import redis as redis_py

from backends.core.errors import UpstreamUnavailable
from gateway.auth.authenticate import Authenticator, NotAuthenticated
from gateway.auth.keys import mint
from gateway.config.loader import load
from gateway.config.snapshot import Snapshot, UnknownModel
from gateway.pipeline.tally import Tally
from gateway.telemetry.metrics import Metrics
from tests.security.hostile import LEAK
from tests.security.house import ADMIN, METRICS_TOKEN, PLAIN, PROMPT, SECRETS, House, code_of
from tests.security.test_auth import NOW_US, NoStore

pytestmark = pytest.mark.redis


def series(house: House) -> set[str]:
    return {line.rsplit(" ", 1)[0] for line in house.gateway.metrics().splitlines() if line and line[0] != "#"}


# 26. Nothing grows by what clients say.


def test_names_that_clients_make_up_make_no_series_and_no_keys(house: House) -> None:
    def attack(count: int) -> None:
        for _ in range(count):
            word = f"{dice.random():.17f}"
            house.chat({"model": f"model-{word}", "user": f"user-{word}"})
            house.chat({}, f"sk-{word}")
            house.request("GET", f"/path/{word}", PLAIN)
            house.request("PATCH", f"/admin/v1/keys/{word}", PLAIN, b"{}")

    dice = random.Random(3)
    attack(3)  # whatever is counted is counted once
    before = series(house)
    client = redis_py.Redis(port=house.redis.port)
    keys_before = client.dbsize()
    attack(20)
    assert series(house) == before
    assert client.dbsize() <= keys_before + 2
    for key in client.scan_iter():
        fixed = key.rsplit(b":", 1)[-1] in (b"usage", b"committed", b"meta", b"live", b"sweeper", b"ledger") or b":w:" in key
        assert fixed or client.ttl(key) > 0 or b"hour" in key or b":c:" not in key, key
    client.close()


def test_fifty_thousand_names_make_one_series() -> None:
    metrics = Metrics()
    for n in range(50_000):
        tally = Tally(f"id-{n}", "openai_chat", 1, 1)
        tally.fail(
            UnknownModel(f"model-{n}", code=f"code-{n}") if n % 2 else UpstreamUnavailable(f"{n}", code=f"c-{n}"), "refused"
        )
        metrics.observe(tally)
    assert sum(len(found) for found in metrics.dump().values()) < 40


# 27. A flood of bad keys asks nobody.


async def test_a_flood_of_forged_keys_asks_no_store_and_keeps_nothing() -> None:
    store = NoStore()
    empty = Snapshot("v", {}, {}, {})
    one = Authenticator(lambda: empty, store, b"p" * 40, unknown_max=100)
    dice = random.Random(4)
    for _ in range(5_000):
        forged = mint(b"q" * 40, dice.randbytes(42)).secret.encode()
        with pytest.raises(NotAuthenticated):
            await one.authenticate([(b"authorization", b"Bearer " + forged)], NOW_US)
    assert store.asked == 0
    for _ in range(300):  # genuine by their MAC, but of no key: a pepper that is known elsewhere
        with pytest.raises(NotAuthenticated):
            await one.authenticate(
                [(b"authorization", b"Bearer " + mint(b"p" * 40, dice.randbytes(42)).secret.encode())], NOW_US
            )
    assert store.asked <= 300


# 28. What a backend says stays inside its event.


def events(body: bytes) -> list[str]:
    """The data of each event; nothing else may be in a stream."""
    text = body.decode()
    blocks = [
        block for block in re.sub(r"(?m)^[0-9a-f]+\r\n", "", text).replace("\r\n", "").split("\n\n") if block.strip("0\r\n")
    ]
    out = []
    for block in blocks:
        assert block.startswith("data: "), block[:200]
        assert "\n" not in block and "\r" not in block
        out.append(block[6:])
    return out


@pytest.mark.parametrize("name", ["content", "ids", "headers", "usage"])
def test_line_breaks_of_a_backend_are_data(house: House, name: str) -> None:
    status, headers, body = house.chat({"model": f"h-{name}", "stream": True, "stream_options": {"include_usage": True}})
    assert status == 200
    told = events(body)
    assert told[-1] == "[DONE]" and told.count("[DONE]") == 1
    parsed = [json.loads(one) for one in told[:-1]]
    assert {one["id"] for one in parsed} == {parsed[0]["id"]}
    assert all(re.fullmatch(r"chatcmpl-[0-9a-f]+", one["id"]) and one["model"] == f"h-{name}" for one in parsed)
    finishes = {choice["finish_reason"] for one in parsed for choice in one["choices"]}
    assert finishes <= {None, "stop", "tool_calls", "length", "content_filter"}
    assert "evil" not in json.dumps(headers)


@pytest.mark.parametrize("name", ["error", "error-stream"])
def test_line_breaks_of_a_backends_error_are_data_and_tell_nothing(house: House, name: str) -> None:
    for stream in (True, False):
        status, headers, body = house.chat({"model": f"h-{name}", "stream": stream})
        assert status in (200, 502)
        assert b"\nevent:" not in body and b"\nid:" not in body and b"\r\nevent" not in body
        for word in ("/srv/secret", "10.11.12.13", "sk-hostile"):
            assert word.encode() not in body, body
        assert headers["x-request-id"]


# 29. Malice of a backend. (tests/chaos/test_lying_upstreams.py has forty more lies.)


def test_only_our_own_headers_reach_the_client(house: House) -> None:
    for model in ("h-headers", "l-telling-headers"):
        _, headers, _ = house.chat({"model": model, "stream": True})
        known = {"date", "content-type", "x-request-id", "cache-control", "x-accel-buffering", "transfer-encoding"}
        known |= {"connection", "content-length", "retry-after", "retry-after-ms"}
        assert {name for name in headers if not name.startswith(("x-ratelimit", "x-switchyard"))} <= known
        assert "evil" not in json.dumps(headers)


def test_absurd_usage_is_not_believed(house: House) -> None:
    _, _, body = house.chat({"model": "h-usage", "stream": True, "stream_options": {"include_usage": True}})
    usage = [json.loads(one)["usage"] for one in events(body)[:-1] if json.loads(one).get("usage")]
    assert usage and all(0 <= usage[-1][name] < 10_000 for name in ("prompt_tokens", "completion_tokens", "total_tokens"))


def test_a_line_without_end_is_cut(house: House) -> None:
    began = time.monotonic()
    status, _, body = house.chat({"model": "h-endless", "stream": True})
    assert status in (200, 502)
    assert len(body) < 1 << 20
    assert time.monotonic() - began < 30


# 30, 31. Secrets.


@pytest.mark.parametrize("model", ["l-telling-400", "l-telling-500", "h-error", "words-3-echo-400"])
def test_an_errors_details_are_for_the_log(house: House, model: str) -> None:
    status, headers, body = house.chat({"model": model})
    assert status >= 400
    assert not any(word in body.decode() for word in ("10.11.12.13", "internal.example", "sk-upstream-secret", LEAK[:20]))
    assert json.loads(body)["error"]["message"]
    time.sleep(0.5)
    (line,) = [one for one in house.gateway.events("request") if one["request_id"] == headers["x-request-id"]]
    assert "sk-upstream-secret" not in json.dumps(line) and "sk-hostile-leak" not in json.dumps(line)


def test_no_secret_is_anywhere(house: House) -> None:
    house.chat({}, PLAIN)
    house.chat({}, ADMIN)
    house.chat({"messages": "wrong"}, PLAIN, x_request_id=PLAIN, User_Agent=PLAIN)
    time.sleep(1)
    file = house.gateway.file
    import os

    places = {
        "log": house.gateway.log.read_bytes(),
        "metrics": house.gateway.metrics().encode(),
        "openapi": house.gateway.get("/openapi.json")[1] + house.gateway.get("/docs")[1],
        "database": b"".join(path.read_bytes() for path in (house.gateway.folder / "var").glob("*.db*")),
        "models": house.request("GET", "/v1/models", PLAIN)[2],
        "me": house.request("GET", "/v1/me", PLAIN)[2],
    }
    client = redis_py.Redis(port=house.redis.port)
    client.save()
    client.close()
    places["redis"] = b"".join(path.read_bytes() for path in house.redis.folder.glob("*.rdb"))
    assert places["redis"]
    os.environ.update({"SY_PEPPER": "attacked-canary-pepper-" + "p" * 30, "UPSTREAM": "u", "SCRAPE": METRICS_TOKEN})
    configuration = load(file)
    places["repr"] = f"{configuration!r} {configuration.static!r} {configuration.snapshot.deployments!r}".encode()
    for place, text in places.items():
        for secret in SECRETS:
            assert secret.encode() not in text, (place, secret)
        assert PROMPT.encode() not in text, place


# 32, 33. The log.


@pytest.mark.parametrize(
    "value", ['x\\n{"event":"evil"}', "\x1b[31mred", '"}{"event":"evil"', "\u2028", "a" * 5000, "%s%n", "${x}"]
)
def test_nothing_of_a_client_begins_a_line(house: House, value: str) -> None:
    before = house.gateway.log.stat().st_size
    body = {"model": value, "user": value, "messages": [{"role": "user", "content": value}]}
    plain = "".join(letter for letter in value if " " <= letter <= "~")[:100]
    house.chat(body, PLAIN, x_request_id=plain or "x", User_Agent="x" + plain)
    time.sleep(0.4)
    with house.gateway.log.open("rb") as log:
        log.seek(before)
        new = log.read()
    assert new
    for line in new.splitlines():
        entry = json.loads(line)
        assert entry["event"] != "evil"
        assert not re.search(rb"[^\x20-\x7e]", line)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("my-id.7_X", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("<script>", False), ("ä", False)],
)
def test_a_clients_id_is_only_told_when_it_is_one(house: House, given: str, kept: bool) -> None:
    _, headers, _ = house.chat({}, x_request_id=given)
    assert headers["x-request-id"] != given
    time.sleep(0.4)
    (line,) = [one for one in house.gateway.events("request") if one["request_id"] == headers["x-request-id"]]
    assert (line.get("client_request_id") == given) is kept


def test_an_id_that_is_used_again_is_another_request(house: House) -> None:
    first, second = (house.chat({}, x_request_id="same")[1]["x-request-id"] for _ in range(2))
    assert first != second


# 34. Pages of other origins.


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost", "file://"])
def test_no_origin_is_allowed_unless_configured(house: House, origin: str) -> None:
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("OPTIONS", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("OPTIONS", "/admin/v1/keys"),
    ):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        headers = house.request(method, path, PLAIN, b"{}" if method == "POST" else b"", **asked)[1]
        assert not [name for name in headers if name.startswith("access-control")]


def test_an_unknown_model_and_a_forbidden_one_look_alike(house: House) -> None:
    from tests.security.house import FEW

    forbidden, unknown = house.chat({"model": "words-3"}, FEW), house.chat({"model": "words-9"}, FEW)
    assert code_of(forbidden) == code_of(unknown) == "model_not_found"
    assert forbidden[2].replace(b"words-3", b"X") == unknown[2].replace(b"words-9", b"X")
