"""Local models through a whole gateway: loaded when asked for, unloaded when idle, for others or by hand, and failing alone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_process import ROOT, GatewayProcess, declared_key, http_client

USER, ADMIN = "sk-models-user-0123456789abcdef", "sk-models-admin-0123456789abcdef"
LOAD_S = 1.5


def engine(**more: Any) -> dict[str, Any]:
    options = {"load_s": LOAD_S, "step_s": 0.01, **more.pop("options", {})}
    return {"kind": "scripted", "model": "none", "slots": 2, "load": "lazy", "options": options, **more}


def tree(engines: dict[str, dict[str, Any]], **server: Any) -> dict[str, object]:
    return {
        "server": server,
        "engines": engines,
        "deployments": {name: {"engine": name, "model": "scripted"} for name in engines},
        "models": {name: {"tiers": [[name]]} for name in engines},
        "keys": {"declared": [declared_key("user", USER)]},
    }


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    engines = {name: engine(memory_mb=100) for name in ("a", "b", "c")}
    engines["idle"] = engine(idle_unload_s=1.0, memory_mb=1, options={"load_s": 0.0})
    engines["bad"] = engine(memory_mb=1, load="eager", options={"load_error": "no such weights in /a/secret/path"})
    engines["slow"] = engine(memory_mb=1, options={"load_s": 600.0})
    config = tree(engines, engine_memory_mb=110)
    config["deployments"]["slow"]["timeouts"] = {"first_event_s": 2}  # type: ignore[index]
    with GatewayProcess(tmp_path_factory.mktemp("models"), config) as process:
        process.start()
        minted = cli(process, "keys", "new", "--name", "admin", "--admin", "--json")
        process.admin = json.loads(minted.stdout)["secret"]  # type: ignore[attr-defined]
        yield process


def cli(gateway: GatewayProcess, *arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", *arguments, "--config", str(gateway.file)]
    env = {**os.environ, "SWITCHYARD_ADMIN_KEY": key}
    return subprocess.run(command, check=False, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


async def ask(gateway: GatewayProcess, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
    async with http_client(USER) as http:
        return await http.post(gateway.url + "/v1/chat/completions", json=body)


def states(gateway: GatewayProcess) -> dict[str, dict[str, Any]]:
    status, body = gateway.get("/admin/v1/models", gateway.admin)  # type: ignore[attr-defined]
    assert status == 200, body
    return {one["name"]: one for one in json.loads(body)["data"]}


async def until(condition: Callable[[], bool], what: str, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.1)


def loads(gateway: GatewayProcess, *names: str) -> list[str]:
    """The engines whose hosts began to load, by the hosts' own log lines."""
    return [str(one["engine"]) for one in gateway.events("engine_loading") if one["engine"] in names]


async def test_a_burst_over_three_models_of_which_one_fits_is_three_loads_and_no_failure(gateway: GatewayProcess) -> None:
    assert loads(gateway, "a", "b", "c") == [], "lazy"
    answers = []
    async with asyncio.TaskGroup() as group:
        for name in ("a", "b", "c", "a", "b", "c"):
            answers.append(group.create_task(ask(gateway, name)))
            await asyncio.sleep(0.05)
    assert [task.result().status_code for task in answers] == [200] * 6
    assert loads(gateway, "a", "b", "c") == ["a", "b", "c"]


async def test_a_stream_gets_comments_while_its_model_loads(gateway: GatewayProcess) -> None:
    await asyncio.to_thread(cli, gateway, "models", "unload", "a", key=gateway.admin)  # type: ignore[attr-defined]
    body = {"model": "a", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    lines: list[str] = []
    async with http_client(USER) as http, http.stream("POST", gateway.url + "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            lines.append(line)
    said = [line for line in lines if line]
    assert said[0].startswith(":")
    assert said[-1] == "data: [DONE]"
    first = next(n for n, line in enumerate(said) if line.startswith("data:"))
    assert all(line.startswith(":") for line in said[:first])


async def test_a_request_waits_no_longer_than_its_timeout(gateway: GatewayProcess) -> None:
    began = time.monotonic()
    answer = await ask(gateway, "slow")
    assert answer.status_code == 504
    assert 1.5 < time.monotonic() - began < 15
    cli(gateway, "models", "unload", "slow", "--force", key=gateway.admin)  # type: ignore[attr-defined]


async def test_an_idle_model_is_unloaded_and_comes_back(gateway: GatewayProcess) -> None:
    assert (await ask(gateway, "idle")).status_code == 200
    await until(lambda: states(gateway)["idle"]["state"] == "unloaded", "not unloaded")
    assert not gateway.children("backends.engines.host idle")
    assert (await ask(gateway, "idle")).status_code == 200
    assert len(loads(gateway, "idle")) == 2


async def test_a_model_that_does_not_load_fails_alone_and_says_why(gateway: GatewayProcess) -> None:
    def told() -> object:  # while it is tried again, nothing has failed
        status, body = gateway.get("/health/ready")
        assert status == 200, "the other models serve"
        return json.loads(body).get("engines")

    await until(lambda: told() == {"bad": "load_failed"}, "not told as failed")
    answer = await ask(gateway, "bad")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (502, "engine_failed")
    assert "secret" not in answer.text
    found = states(gateway)["bad"]
    assert (found["state"], found["code"]) in (("failed", "load_failed"), ("loading", ""))
    assert (await ask(gateway, "idle")).status_code == 200
    tries = [float(str(one["again_in_s"])) for one in gateway.events("engine_crashed") if one["role"] == "engine:bad"]
    assert tries == sorted(tries) and round(tries[0], 1) == 0.2, "each time later"


async def test_load_and_unload_by_the_command_line(gateway: GatewayProcess) -> None:
    key = gateway.admin  # type: ignore[attr-defined]
    loaded = await asyncio.to_thread(cli, gateway, "models", "load", "b", "--json", key=key)
    assert loaded.returncode == 0, loaded.stderr
    (row,) = json.loads(loaded.stdout)
    assert (row["name"], row["state"], row["models"], row["load"]) == ("b", "ready", ["b"], "lazy")
    unloaded = await asyncio.to_thread(cli, gateway, "models", "unload", "b", "--json", key=key)
    assert json.loads(unloaded.stdout)[0]["state"] == "unloaded"
    listed = await asyncio.to_thread(cli, gateway, "models", "list", key=key)
    assert "MODELS" in listed.stdout and "unloaded" in listed.stdout
    refused = await asyncio.to_thread(cli, gateway, "models", "list", key="sk-wrong-0123456789abcdefghij")
    assert (refused.returncode, refused.stdout) == (1, "")
    none = await asyncio.to_thread(cli, gateway, "models", "load", "nothing", key=key)
    assert none.returncode == 1 and "no such local model" in none.stderr
    trail = json.loads(gateway.get("/admin/v1/audit?noun=model", key)[1])["data"]
    assert {(one["action"], one["name"]) for one in trail} >= {("load", "b"), ("unload", "b")}


async def test_only_admins_may(gateway: GatewayProcess) -> None:
    async with http_client(USER) as http:
        for method, path in (("GET", ""), ("POST", "/a/load"), ("POST", "/a/unload")):
            assert (await http.request(method, gateway.url + "/admin/v1/models" + path)).status_code == 403


async def test_unloading_waits_for_the_open_request(gateway: GatewayProcess, tmp_path: Path) -> None:
    config = tree({"long": engine(load="eager", options={"load_s": 0.0, "step_s": 0.05, "repeat": True})})
    with GatewayProcess(tmp_path / "long", config) as own:
        own.start()
        key = json.loads(cli(own, "keys", "new", "--name", "admin", "--admin", "--json").stdout)["secret"]
        asked = asyncio.create_task(ask(own, "long", max_tokens=60))
        await until(lambda: bool(own.metric("switchyard_open_streams")), "not asked")
        await asyncio.sleep(0.5)
        done = await asyncio.to_thread(cli, own, "models", "unload", "long", "--json", key=key)
        assert json.loads(done.stdout)[0]["state"] == "unloaded"
        answer = await asked
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 60
