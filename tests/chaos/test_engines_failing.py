"""One model's host is stopped, hangs, aborts, has no memory or a corrupt file: that model alone is unready, and comes back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.gateway_process import GatewayProcess, declared_key, http_client
from tests.models import chat_gguf
from tests.raw_client import RawClient

USER = "sk-failing-user-0123456789abcdef"
SPEAKS = {"step_s": 0.02, "repeat": True}


def config(engines: dict[str, dict[str, Any]]) -> dict[str, object]:
    return {
        "engines": engines,
        "deployments": {name: {"engine": name, "model": name} for name in engines},
        "models": {name: {"tiers": [[name]]} for name in engines},
        "keys": {"declared": [declared_key("user", USER)]},
    }


def scripted(**more: Any) -> dict[str, Any]:
    options = {**SPEAKS, **more.pop("options", {})}
    return {"kind": "scripted", "model": "none", "slots": 2, "options": options, **more}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("failing")
    log = str(folder / "other.jsonl")
    engines = {
        "one": scripted(watchdog_s=5),
        "hangs": scripted(watchdog_s=5, options={"hang_at_step": 5}),
        "other": scripted(options={"log": log}),
    }
    with GatewayProcess(folder, config(engines)) as process:
        yield process.start()


def body(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


async def ask(gateway: GatewayProcess, model: str, **more: Any) -> httpx.Response:
    async with http_client(USER) as http:
        return await http.post(gateway.url + "/v1/chat/completions", json=body(model, **more), timeout=60)


def failed(gateway: GatewayProcess) -> dict[str, str]:
    status, answer = gateway.get("/health/ready")
    assert status == 200, "the gateway serves on"
    return dict(json.loads(answer).get("engines", {}))


async def until(condition: Callable[[], Any], what: str, within_s: float = 40.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := await asyncio.to_thread(condition)):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)
    return found


async def serves(gateway: GatewayProcess, model: str, within_s: float = 40.0) -> None:
    deadline = time.monotonic() + within_s
    while (answer := await ask(gateway, model, max_tokens=3)).status_code != 200:
        assert answer.status_code in (502, 503), answer.text
        assert time.monotonic() < deadline, answer.text
        await asyncio.sleep(0.2)


async def the_other_serves_meanwhile(gateway: GatewayProcess, asked: asyncio.Task[httpx.Response]) -> None:
    """The other model's answer, begun before, is whole."""
    answer = await asked
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 200
    assert (await ask(gateway, "other", max_tokens=3)).status_code == 200


def crashes(gateway: GatewayProcess, name: str) -> list[dict[str, object]]:
    return [one for one in gateway.events("engine_crashed") if one["role"] == f"engine:{name}"]


async def test_a_stopped_host_is_killed_and_restarted(gateway: GatewayProcess) -> None:
    since = time.time_ns() // 1000
    client = await RawClient.connect(gateway.port)
    await client.ask(USER, body("one", stream=True, max_tokens=4000))
    await client.until(b'"content":"Hello"', 20)
    other = asyncio.create_task(ask(gateway, "other", max_tokens=200))
    await asyncio.sleep(0.3)
    (host,) = gateway.children("backends.engines.host one")
    host.send_signal(signal.SIGSTOP)
    text = await client.until(b"0\r\n\r\n", 40)
    assert b'"engine_crashed"' in text and b"[DONE]" not in text
    client.leave()
    (crash,) = await until(lambda: crashes(gateway, "one"), "not logged")
    assert crash["code"] == "hung"
    await the_other_serves_meanwhile(gateway, other)
    await serves(gateway, "one")
    assert failed(gateway) == {}
    await until(lambda: not psutil.pid_exists(host.pid), "a zombie is left")
    await asyncio.to_thread(gateway.rows, 1, model="one", outcome="upstream_error", since_us=since)


async def test_a_step_that_never_returns_is_noticed(gateway: GatewayProcess) -> None:
    since = time.time_ns() // 1000
    other = asyncio.create_task(ask(gateway, "other", max_tokens=200))
    answer = await ask(gateway, "hangs", max_tokens=50)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_crashed")
    (crash,) = await until(lambda: crashes(gateway, "hangs"), "not logged")
    assert crash["code"] == "hung" and "watchdog_s" in str(crash["reason"])
    await the_other_serves_meanwhile(gateway, other)
    rows = await asyncio.to_thread(gateway.rows, 1, model="hangs", outcome="upstream_error", since_us=since)
    assert len(rows) == 1, "settled once"
    await serves(gateway, "hangs")


async def test_an_abort_is_a_crash_of_that_model_alone(gateway: GatewayProcess) -> None:
    other = asyncio.create_task(ask(gateway, "other", max_tokens=200))
    asked = asyncio.create_task(ask(gateway, "one", max_tokens=4000))
    await asyncio.sleep(0.5)
    (host,) = gateway.children("backends.engines.host one")
    host.send_signal(signal.SIGABRT)
    answer = await asked
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_crashed")
    await until(lambda: any("SIGABRT" in str(one["reason"]) for one in crashes(gateway, "one")), "no reason")
    await the_other_serves_meanwhile(gateway, other)
    await serves(gateway, "one")


@pytest.mark.llamacpp
async def test_files_and_memory_that_will_not_do_fail_alone_until_they_are_mended(tmp_path: Path) -> None:
    good = Path(chat_gguf())
    corrupt, wrong, cut = (tmp_path / name for name in ("corrupt.gguf", "wrong.gguf", "cut.gguf"))
    data = good.read_bytes()
    corrupt.write_bytes(data[:64] + os.urandom(4096) + data[4160:200_000])
    wrong.write_bytes(b"PK\x03\x04" + data[4:1000])
    cut.write_bytes(data[: len(data) // 2])
    files = {"corrupt": corrupt, "wrong": wrong, "cut": cut, "tight": good}
    engines: dict[str, dict[str, Any]] = {name: {"model": str(file), "context": 512} for name, file in files.items()}
    # a context that cannot be allocated: the cache alone needs many times the limit
    engines["tight"] |= {"memory_limit_mb": 200, "slots": 64, "context": 2048, "threads": 1}
    engines["other"] = scripted()
    with GatewayProcess(tmp_path / "gateway", config(engines)) as own:
        own.start()
        assert set(await until(lambda: (f := failed(own)).keys() >= files.keys() and f, "not all told")) == set(files)
        for name in files:
            answer = await ask(own, name)
            assert answer.status_code in (502, 503), answer.text
            assert str(tmp_path) not in answer.text
            assert {one["code"] for one in crashes(own, name)} == {"load_failed"}
            assert all(one["reason"] for one in crashes(own, name))
        assert (await ask(own, "other", max_tokens=3)).status_code == 200
        wrong.write_bytes(data)
        await serves(own, "wrong")
        assert "wrong" not in failed(own)
