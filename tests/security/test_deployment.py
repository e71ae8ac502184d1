"""Paths, files, processes and packages: items 37 to 45 of the attack list."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis as redis_py
import yaml

from gateway.config.loader import parse
from gateway.config.problems import ConfigError
from gateway.domain.settlement import LedgerRow, Rule
from gateway.limits.redis_store import RedisStore
from gateway.limits.store import LimitExceeded
from tests.gateway_process import ROOT, GatewayProcess, declared_key
from tests.models import chat_gguf
from tests.security.house import METRICS_TOKEN, PLAIN, House, code_of
from tests.servers import RedisServer
from tests.upstream import in_thread, upstream_server

# 37. A model's name is a name.


@pytest.mark.redis
@pytest.mark.parametrize(
    "model",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "%2e%2e/words-3",
        "words-3\\..\\x",
        "x" * 4096,
        "w\u03bfrds-3",
        "words-3 ",
        " words-3",
        "WORDS-3",
        "words-3\u200b",
        "\uff57ords-3",
        "",
        ".",
        "..",
        "~",
        "$HOME",
        "words-3;ls",
        "hf:org/model",
        "org/model@main",
    ],
)
def test_only_configured_names_are_models(house: House, model: str) -> None:
    before = len(house.upstream.seen)
    answer = house.chat({"model": model})
    assert answer[0] in (400, 404) and (answer[0] == 400 or code_of(answer) == "model_not_found")
    assert len(house.upstream.seen) == before
    assert b"root:" not in answer[2]


# 38. Files that are read.

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join('*' + chr(ord(name) - 1) for _ in range(9))}]\n" for name in "bcdefghij"
)


@pytest.mark.parametrize(
    "text",
    [
        "models: !!python/object/apply:os.system ['touch /tmp/evil']",
        "!!python/name:os.system",
        "a: !!python/module:os",
        BOMB,
        "models: {a: {tiers: [[x]]}}\n<<: *x",
        "{" * 20_000,
        "[" * 20_000,
        "a: &a\n  b: *a\n",
        "\x00",
        "a: 1\na: 2",
    ],
    ids=range(10),
)
def test_a_hostile_configuration_is_refused_quickly(text: str, tmp_path: Path) -> None:
    began = time.thread_time()
    with pytest.raises(ConfigError):
        parse(text.encode(), tmp_path / "config.yaml")
    assert time.thread_time() - began < 5
    assert not Path("/tmp/evil").exists()


def test_the_environment_is_read_only_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_ANOTHER", "sk-canary-of-another")
    text = "deployments: {far: {dialect: openai_compatible, base_url: 'http://h/v1', model: '${SECRET_OF_ANOTHER}'}}\n"
    found = parse((text + "models: {m: {tiers: [[far]]}}\n").encode(), tmp_path / "config.yaml")
    assert found.snapshot.deployments["far"].model == "${SECRET_OF_ANOTHER}"


# 39. What is shown to anybody.


@pytest.mark.redis
def test_metrics_want_the_token_on_the_apis_port(house: House) -> None:
    for key in ("", PLAIN, METRICS_TOKEN + "x", METRICS_TOKEN[:-1], METRICS_TOKEN.upper()):
        assert house.request("GET", "/metrics", key)[0] == 404
    assert house.request("GET", "/metrics", METRICS_TOKEN)[0] == 200
    assert house.request("GET", f"/metrics?token={METRICS_TOKEN}")[0] == 404


@pytest.mark.redis
@pytest.mark.parametrize(
    "path",
    ["/debug", "/debug/pprof", "/redoc", "/console", "/admin", "/admin/v1", "/.env", "/config", "/static/x", "/server-status"],
)
def test_there_is_nothing_else(house: House, path: str) -> None:
    assert house.request("GET", path)[0] in (401, 404)


@pytest.mark.redis
def test_health_tells_no_version_and_no_address(house: House) -> None:
    for path in ("/health/live", "/health/ready", "/"):
        _, headers, body = house.request("GET", path)
        assert "server" not in headers
        assert not re.search(rb"\d+\.\d+\.\d+|http://|words-|h-content", body), body


@pytest.mark.redis
def test_the_page_of_the_api_tells_no_model_and_no_address(house: House) -> None:
    for path in ("/openapi.json", "/docs"):
        body = house.gateway.get(path)[1]
        assert b"words-200" not in body and b"h-content" not in body and b"127.0.0.1" not in body


# 40. Containers.


def test_every_service_is_hardened() -> None:
    files = sorted((ROOT / "deploy").glob("compose*.yaml"))
    assert files
    text = "\n".join(file.read_text() for file in files)
    assert "docker.sock" not in text and "privileged: true" not in text and "network_mode: host" not in text
    main = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    published = {}
    for name, service in main["services"].items():
        assert service.get("read_only") is True, name
        assert service.get("cap_drop") == ["ALL"], name
        assert "no-new-privileges:true" in service.get("security_opt", []), name
        assert service.get("user", "0").split(":")[0] not in ("0", "root"), name
        if "ports" in service:
            published[name] = service["ports"]
    assert set(published) == {"gateway", "grafana"}
    assert all(str(port).startswith("127.0.0.1:") for port in published["grafana"])
    for word in re.findall(r"(?i)(?:password|secret|token|pepper)\w*:[ \t]+([^\s#]+)", text):
        assert word.startswith(("$", "file:", "/", "{", "&", "*", "[", "env:")) or word in ("true", "false"), word


# 41. Nothing that runs what it reads.


def test_nothing_is_unpickled_or_evaluated() -> None:
    forbidden = re.compile(
        r"\bpickle\b|\bmarshal\.|\bshelve\b|torch\.load\(|(?<![.\w])eval\(|(?<![.\w])exec\(|yaml\.load\(|shell=True|os\.system\(|\bzmq\b"
    )
    found = []
    for folder in ("gateway", "backends"):
        for file in (ROOT / folder).rglob("*.py"):
            for number, line in enumerate(file.read_text().splitlines(), 1):
                code = line.partition("#")[0]
                if forbidden.search(code) and not re.match(r'\s*("|\'|\w+ .*\bdoc)', code):
                    found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.redis
def test_sockets_are_private(house: House) -> None:
    run = house.gateway.folder / "var" / "run"
    folders = [run] if run.exists() else list(Path("/tmp").glob("switchyard-*"))
    sockets = [path for folder in folders for path in folder.glob("*.sock")]
    assert sockets
    for path in sockets:
        assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0
    assert (house.gateway.folder / "var").stat().st_mode & 0o077 == 0
    database = next((house.gateway.folder / "var").glob("*.db"))
    assert database.stat().st_mode & 0o077 == 0 or database.parent.stat().st_mode & 0o077 == 0


# 42. A model file that lies.


@pytest.mark.llamacpp
@pytest.mark.timeout(180)
def test_a_broken_model_file_takes_down_its_own_engine_alone(tmp_path: Path) -> None:
    good = Path(chat_gguf()).read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(good[:2000] + b"\xff" * 4000 + good[6000:200_000])
    with in_thread(upstream_server) as upstream:
        tree: dict[str, object] = {
            "engines": {"bad": {"kind": "llamacpp", "model": str(broken), "slots": 1, "context": 64}},
            "deployments": {
                "bad": {"engine": "bad", "model": "x"},
                "good": {"dialect": "openai_compatible", "base_url": upstream.url, "model": "words-2"},
            },
            "models": {"bad": {"tiers": [["bad"]]}, "good": {"tiers": [["good"]]}},
            "keys": {"declared": [declared_key("plain", PLAIN)]},
        }
        with GatewayProcess(tmp_path / "gateway", tree).start(ready=False, timeout_s=90) as gateway:
            import httpx

            def ask(model: str) -> httpx.Response:
                body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
                headers = {"authorization": f"Bearer {PLAIN}"}
                return httpx.post(gateway.url + "/v1/chat/completions", json=body, headers=headers, timeout=60)

            for _ in range(3):
                answer = ask("bad")
                assert answer.status_code in (502, 503), answer.text
                assert str(tmp_path) not in answer.text
                assert ask("good").status_code == 200


# 43. A Redis that somebody else writes to.


@pytest.mark.redis
async def test_a_poisoned_counter_is_the_outage_policy_and_no_bug(own_redis: RedisServer) -> None:
    async with RedisStore(own_redis.url, wall_us, worker="w", timeout_ms=2000) as store:
        rule = Rule("key:x:requests:60000", "rate", "requests", 5, 60_000, 1)
        await store.admit("a", (rule,), row("a"), 15_000)
        client = redis_py.Redis(port=own_redis.port)
        counters = [key for key in client.scan_iter() if b":c:" in key]
        assert counters
        for poison in (b"nonsense", b"\x00\xff" * 40, b"NaN", b""):
            for key in counters:
                client.delete(key)
                client.set(key, poison)
            before = store.poisoned
            try:
                await store.admit(f"b{poison!r}", (rule,), row("b"), 15_000)
            except Exception as error:
                assert type(error).__name__ in ("LimitsUnavailable", "LimitExceeded"), error
                assert store.poisoned >= before
        for key in counters:
            client.delete(key)
            client.lpush(key, "x")
        with pytest.raises(Exception, match="cannot be checked"):
            await store.admit("c", (rule,), row("c"), 15_000)
        client.close()


# 44. Clocks.


def wall_us() -> int:
    return time.time_ns() // 1000


def row(id: str) -> LedgerRow:
    return LedgerRow(id, 1, 1, "k", "", "", "", "m", "d", "openai_chat", "ok", 200, False, 0, 0, 0, 0, "reported", 0, 1, 0, 0)


@pytest.mark.redis
async def test_a_gateway_with_a_wrong_clock_mints_no_quota(own_redis: RedisServer) -> None:
    rule = Rule("key:y:requests:60000", "rate", "requests", 10, 60_000, 1)
    skews: list[Callable[[], int]] = [lambda: wall_us() - 300_000_000, wall_us, lambda: wall_us() + 300_000_000]
    admitted = 0
    for number, clock in enumerate(skews):
        async with RedisStore(own_redis.url, clock, worker=f"w{number}", timeout_ms=2000) as store:
            for n in range(10):
                try:
                    await store.admit(f"{number}-{n}", (rule,), row("x"), 15_000)
                    admitted += 1
                except LimitExceeded:
                    pass
    assert admitted == 10


# 45. Packages.


def test_importing_makes_no_connection() -> None:
    script = (
        "import socket\n"
        "def no(*a, **k): raise SystemExit('a connection while importing')\n"
        "socket.socket.connect = no; socket.create_connection = no; socket.getaddrinfo = no\n"
        "import gateway.app, gateway.cli, gateway.parts, backends.engines.host, deploy.dashboards.generate\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
