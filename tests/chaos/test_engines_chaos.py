"""Every local engine through a whole gateway: stopped, killed, cut files, too little memory, slow readers, clients that leave.

Each request is settled once, the key's one place is free again, no process is left over, and another model serves on.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests import heavy
from tests.gateway_process import GatewayProcess, declared_key, http_client
from tests.models import chat_gguf
from tests.raw_client import RawClient

USER, ONE = "sk-chaos-user-0123456789abcdef", "sk-chaos-one-0123456789abcdef"
#: Seconds within which a model is up again.
UP_S = 240.0


def _heavy(kind: str, **more: Any) -> dict[str, Any]:
    python = heavy.python(kind)
    environment = heavy.VLLM_ON_CPU if kind == "vllm" else heavy.OFFLINE
    return {"python": str(python), "environment": environment, "model": str(heavy.tiny_model(python)), **more}


def _llamacpp() -> dict[str, Any]:
    return {"model": chat_gguf(), "threads": 1}


def _vllm() -> dict[str, Any]:
    return _heavy("vllm", options={"arguments": {"enforce_eager": True, "dtype": "float32"}})


def _transformers(batching: str) -> Callable[[], dict[str, Any]]:
    return lambda: _heavy("transformers", options={"threads": 1, "batching": batching})


@dataclass(frozen=True)
class Engine:
    """One kind: its entry in the configuration, the file of its model's folder that is cut in one of the tests, and MiB of
    memory that its libraries can be loaded in, but no model."""

    kind: str
    entry: Callable[[], dict[str, Any]]
    weights: str = ""
    tight_mb: int = 150


ENGINES = (
    pytest.param(Engine("llamacpp", _llamacpp), id="llamacpp", marks=(pytest.mark.llamacpp, pytest.mark.timeout(300))),
    pytest.param(
        Engine("vllm", _vllm, "model.safetensors", 900), id="vllm", marks=(pytest.mark.heavy, pytest.mark.timeout(600))
    ),
    *(
        pytest.param(
            Engine("transformers", _transformers(batching), "model.safetensors"),
            id=f"transformers-{batching}",
            marks=(pytest.mark.heavy, pytest.mark.timeout(600)),
        )
        for batching in ("queue", "continuous")
    ),
)


def config(engines: dict[str, dict[str, Any]]) -> dict[str, object]:
    return {
        "server": {"queue_wait_s": 30},
        "engines": engines,
        "deployments": {name: {"engine": name, "model": name} for name in engines},
        "models": {name: {"tiers": [[name]]} for name in engines},
        "keys": {"declared": [declared_key("user", USER), declared_key("one", ONE, limits=[{"concurrent": 1}])]},
    }


OTHER: dict[str, Any] = {"kind": "scripted", "model": "none", "slots": 2, "options": {"step_s": 0.02, "repeat": True}}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


@pytest.fixture(scope="module")
def gateway(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("chaos")
    entry = engine.entry()
    entry["options"] = {**entry.get("options", {}), "log": str(folder / "victim.jsonl")}
    victim = {"kind": engine.kind, "slots": 1, "context": 1024, "watchdog_s": 15, **entry}
    with GatewayProcess(folder, config({"victim": victim, "other": OTHER})) as process:
        yield process.start(timeout_s=UP_S)


def body(content: str = "Sing without end.", cap: int = 900, model: str = "victim", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "max_tokens": cap, "temperature": 0, "ignore_eos": True, **more}


async def asked(gateway: GatewayProcess, key: str = USER, **more: Any) -> RawClient:
    return await (await RawClient.connect(gateway.port)).ask(key, body(**more))


async def ask(gateway: GatewayProcess, key: str = USER, **more: Any) -> httpx.Response:
    async with http_client(key) as http:
        return await http.post(gateway.url + "/v1/chat/completions", json=body(**{"cap": 2, **more}), timeout=120)


def journal(gateway: GatewayProcess, event: str) -> list[dict[str, Any]]:
    file = gateway.folder / "victim.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if line["event"] == event]


async def until(condition: Callable[[], Any], what: str, within_s: float = 60.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := await asyncio.to_thread(condition)):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)
    return found


async def serves(gateway: GatewayProcess, model: str, within_s: float = UP_S) -> None:
    deadline = time.monotonic() + within_s
    while (answer := await ask(gateway, ONE, model=model)).status_code != 200:
        assert answer.status_code in (502, 503, 504), answer.text
        assert time.monotonic() < deadline, answer.text
        await asyncio.sleep(0.3)


def hosts(gateway: GatewayProcess, name: str) -> list[psutil.Process]:
    return gateway.children(f"backends.engines.host {name}") or gateway.children(f"backends {name}") or [
        one for one in gateway.children() if one.cmdline()[-1:] == [name]
    ]  # fmt: skip


async def gone(processes: list[psutil.Process]) -> None:
    def left() -> list[psutil.Process]:
        return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def zombies() -> list[psutil.Process]:
        return [one for one in processes if one.is_running() and one.status() == psutil.STATUS_ZOMBIE]

    await until(lambda: not left(), "processes are left over")
    await until(lambda: not zombies(), "a zombie is left")


def crashes(gateway: GatewayProcess, name: str, since: int) -> list[dict[str, object]]:
    return [one for one in gateway.events("engine_crashed")[since:] if one["role"] == f"engine:{name}"]


async def settled_once(gateway: GatewayProcess, since_us: int, outcome: str, **having: object) -> Any:
    rows = await asyncio.to_thread(gateway.rows, 1, since_us=since_us, model="victim", within_s=20, **having)
    assert [row["outcome"] for row in rows] == [outcome]
    return rows[0]


def now_us() -> int:
    return time.time_ns() // 1000


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
async def test_who_leaves_is_settled_once_and_frees_its_place(gateway: GatewayProcess, phase: str, stream: bool) -> None:
    since, first = now_us(), None
    submitted, cancelled = len(journal(gateway, "submit")), len(journal(gateway, "cancel"))
    if phase == "queued":
        first = await asked(gateway, stream=True)
        await first.until(b'"content":"', 60)
        submitted += 1
    words = f"{since} " + "word " * 700 if phase == "prefill" else "Sing without end."
    client = await asked(gateway, ONE, content=words, cap=200 if phase == "prefill" else 900, stream=stream)
    await until(lambda: len(journal(gateway, "submit")) == submitted + 1, "it was not handed down")
    if phase == "decode" and stream:
        await client.until(b'"content":"', 60)
    elif phase == "decode":
        await asyncio.sleep(0.4)
    client.leave()
    await until(lambda: len(journal(gateway, "cancel")) == cancelled + 1, "it was not cancelled")
    was = journal(gateway, "cancel")[-1]["was"]
    assert was in {"queued": ("queued",), "prefill": ("prefill", "decode"), "decode": ("decode",)}[phase]
    await settled_once(gateway, since, "cancelled", key_id="one")
    if first is not None:
        await first.until(b'"content":"', 10)  # the one that runs goes on
        first.leave()
    assert (await ask(gateway, ONE)).status_code == 200, "the key's one place is free"


async def test_a_slow_reader_harms_nobody_else(gateway: GatewayProcess) -> None:
    since = now_us()
    client = await asked(gateway, ONE, stream=True, logprobs=True, top_logprobs=20)
    await client.until(b'"content":"', 60)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    answers = await asyncio.gather(ask(gateway, model="other", cap=20), ask(gateway, cap=3))
    assert [answer.status_code for answer in answers] == [200, 200], "both models serve on"
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    text = await client.until(b"0\r\n\r\n", 120)
    ended = b"[DONE]" in text
    assert ended or b'"error"' in text, "whole, or an error that says so"
    await settled_once(gateway, since, "ok" if ended else "upstream_error", key_id="one")
    assert (await ask(gateway, ONE)).status_code == 200


@pytest.mark.parametrize("signal_", [signal.SIGSTOP, signal.SIGKILL, signal.SIGABRT], ids=lambda one: one.name)
async def test_a_host_that_stops_or_dies_is_replaced_and_nothing_is_left(gateway: GatewayProcess, signal_: int) -> None:
    await serves(gateway, "victim")
    since, before = now_us(), len(gateway.events("engine_crashed"))
    (host,) = hosts(gateway, "victim")
    family = [host, *host.children(recursive=True)]
    client = await asked(gateway, ONE, stream=True)
    await client.until(b'"content":"', 60)
    other = asyncio.create_task(ask(gateway, model="other", cap=100))
    host.send_signal(signal_)
    text = await client.until(b"0\r\n\r\n", 60)
    assert b'"engine_crashed"' in text and b"[DONE]" not in text
    assert (await other).json()["usage"]["completion_tokens"] == 100, "the other model's answer is whole"
    [crash] = await until(lambda: crashes(gateway, "victim", before), "not logged")
    assert crash["code"] == ("hung" if signal_ == signal.SIGSTOP else "crashed")
    await settled_once(gateway, since, "upstream_error", key_id="one")
    await gone(family)
    await serves(gateway, "victim")


async def test_a_stopped_process_behind_the_host_is_noticed_too(gateway: GatewayProcess, engine: Engine) -> None:
    if engine.kind != "vllm":
        pytest.skip(f"{engine.kind}: it computes in its host")
    await serves(gateway, "victim")
    since, before = now_us(), len(gateway.events("engine_crashed"))
    (host,) = hosts(gateway, "victim")
    family = host.children(recursive=True)
    client = await asked(gateway, ONE, stream=True)
    await client.until(b'"content":"', 60)
    for one in family:
        one.send_signal(signal.SIGSTOP)
    text = await client.until(b"0\r\n\r\n", 120)
    assert b'"engine_crashed"' in text and b"[DONE]" not in text
    assert await until(lambda: crashes(gateway, "victim", before), "not logged")
    await settled_once(gateway, since, "upstream_error", key_id="one")
    await gone(family)
    await serves(gateway, "victim")


async def test_a_cut_file_and_too_little_memory_fail_alone_until_they_are_mended(engine: Engine, tmp_path: Path) -> None:
    entry = engine.entry()
    whole = Path(entry["model"])
    cut = tmp_path / ("model" if engine.weights else "model.gguf")
    if engine.weights:
        shutil.copytree(whole, cut)
    else:
        shutil.copyfile(whole, cut)
    file = cut / engine.weights if engine.weights else cut
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    common = {"kind": engine.kind, "context": 512, **entry}
    engines = {
        "cut": {**common, "model": str(cut), "slots": 1},
        "tight": {**common, "memory_limit_mb": engine.tight_mb, "slots": 64},
        "other": OTHER,
    }
    with GatewayProcess(tmp_path / "gateway", config(engines)) as own:
        own.start(ready=False)
        await until(lambda: own.get("/health/live")[0] == 200, "not up")
        for name in ("cut", "tight"):
            [crash, *_] = await until(lambda name=name: crashes(own, name, 0), f"{name}: not told", UP_S)
            assert crash["code"] in ("load_failed", "crashed") and crash["reason"], crash
            assert name == "tight" or (crash["code"] == "load_failed" and str(file) in str(crash["reason"])), crash
            answer = await ask(own, model=name)
            assert answer.status_code in (502, 503), answer.text
            assert str(tmp_path) not in answer.text
        assert (await ask(own, model="other")).status_code == 200
        file.write_bytes(data)
        await serves(own, "cut")
        rows = own.rows(1, model="cut", outcome="ok", within_s=20)
        assert len(rows) == 1, "settled once"
