"""The host process itself: start, refusals, crashes, restarts, its supervisor's death, slow and stopped workers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.core.errors import EngineCrashed, UpstreamOverloaded, UpstreamUnavailable
from backends.core.events import Failure, Started
from backends.core.request import GenerationRequest, Message, Prompt, Sampling, Text
from backends.core.usage import Usage
from backends.engines import ipc
from backends.engines.client import MAX_BATCHES, EngineClient
from backends.engines.launch import EngineLaunch, command
from tests.engine_host import ROOT, TOKEN, HostProcess, events, running, up

ENDLESS = {"script": ["word "], "repeat": True}


def job(max_tokens: int = 5, text: str = "a b c") -> GenerationRequest:
    return GenerationRequest("m", prompts=(Prompt(text),), sampling=Sampling(max_tokens=max_tokens))


async def gone(host: HostProcess, within_s: float = 5.0) -> int:
    async with asyncio.timeout(within_s):
        while (status := host.process.poll()) is None:
            await asyncio.sleep(0.01)
    return status


async def test_the_socket_is_this_users_alone_and_the_token_in_no_list() -> None:
    async with running("scripted") as (host, _):
        assert stat.S_IMODE(Path(host.socket).stat().st_mode) == 0o600
        assert stat.S_IMODE(host.directory.stat().st_mode) == 0o700
        for name in ("cmdline", "environ"):
            assert TOKEN.encode() not in Path(f"/proc/{host.process.pid}/{name}").read_bytes()
        assert TOKEN not in host.stderr.read_text()


async def test_kill_9_before_and_after_the_first_event_then_a_restart() -> None:
    options = {**ENDLESS, "step_s": 0.01}
    async with running("scripted", options=options, slots=1) as (host, client):
        async with client.open(job(10_000)) as spoken, client.open(job()) as silent:
            assert (await anext(spoken))[0] == Started("m")
            host.process.send_signal(signal.SIGKILL)
            with pytest.raises(EngineCrashed) as caught:
                await anext(silent)
            assert caught.value.status == 502
            last = [batch async for batch in spoken][-1]
            assert isinstance(last[-1], Failure)
            assert last[-1].kind == "crashed"
        with pytest.raises(UpstreamOverloaded) as down:
            await events(client, job())
        assert (down.value.status, down.value.code) == (503, "model_loading")
        assert down.value.retry_after_ms
        assert host.socket not in down.value.message
        host.process.wait()
        host.restart()
        await up(client)
        assert isinstance((await events(client, job()))[-1], Usage)


async def test_a_prompt_is_counted_without_running_it_and_nobody_waits_for_a_host_that_is_not_up() -> None:
    async with running("scripted") as (host, client):
        counts = await asyncio.gather(*(client.prompt_tokens(job(text="a " * n)) for n in range(1, 30)))
        assert counts == list(range(1, 30))
        assert await client.prompt_tokens(GenerationRequest("m", (Message("user", (Text("one two"),)),))) == 2
        host.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert await client.prompt_tokens(job()) is None
        assert time.monotonic() - began < 5
        host.process.send_signal(signal.SIGCONT)
        host.process.kill()
        await gone_client(client)
        assert await client.prompt_tokens(job()) is None


async def gone_client(client: EngineClient) -> None:
    """Until the client knows that its host is gone."""
    async with asyncio.timeout(5):
        while await client.prompt_tokens(job()) is not None:
            await asyncio.sleep(0.01)


async def test_a_loading_engine_says_so() -> None:
    host = HostProcess("scripted", options={"load_s": 1.0})
    client = EngineClient(host.socket, TOKEN, "e1")
    try:
        async with asyncio.timeout(10):
            while not Path(host.socket).exists():
                await asyncio.sleep(0.01)
        with pytest.raises(UpstreamOverloaded) as caught:
            await client.probe()
        assert caught.value.code == "model_loading"
        await up(client)
        assert isinstance((await events(client, job()))[-1], Usage)
    finally:
        await client.aclose()
        host.end()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"load_error": "no such weights"}, "no such weights"), ({"sript": []}, "unknown engine option 'sript'")],
)
async def test_what_does_not_load_is_reported_and_ends_the_process(options: dict[str, Any], words: str) -> None:
    host = HostProcess("scripted", options=options)
    try:
        assert await gone(host) == 3
        lines = [json.loads(line) for line in host.stderr.read_text().splitlines()]
        assert lines[-1]["event"] == "engine_load_failed"
        assert words in lines[-1]["reason"]
    finally:
        host.end()


async def test_a_bad_launch_ends_with_two(tmp_path: Any) -> None:
    launch = EngineLaunch("e", "scripted", "no-colon", "m", str(tmp_path / "s"), "t")
    for stdin in (command(launch)[1], b"{", b'{"nonsense": 1}'):
        ran = subprocess.run(command(launch)[0], input=stdin, capture_output=True, cwd=ROOT, timeout=20, check=False)
        assert ran.returncode == 2
        assert json.loads(ran.stderr)["event"] == "bad_launch"


async def test_a_directory_open_to_others_is_refused(tmp_path: Any) -> None:
    tmp_path.chmod(0o755)
    launch = EngineLaunch("e", "scripted", "backends.engines.scripted:ScriptedEngine", "m", str(tmp_path / "s"), "t")
    argv, stdin = command(launch)
    ran = subprocess.run(argv, input=stdin, capture_output=True, cwd=ROOT, timeout=20, check=False)
    assert ran.returncode == 3
    assert "0700" in json.loads(ran.stderr)["reason"]


async def test_the_host_ends_when_its_supervisor_is_gone() -> None:
    async with running("scripted", options={**ENDLESS, "step_s": 0.01}) as (host, client):
        async with client.open(job(10_000)) as stream:
            await anext(stream)
            host.close_pipe()
            assert await gone(host) == 0
            with pytest.raises(StopAsyncIteration):
                while True:
                    await anext(stream)
        assert not Path(host.socket).exists()


async def test_a_step_that_raises_ends_the_process_and_fails_its_jobs() -> None:
    async with running("scripted", options={**ENDLESS, "die_at_step": 20, "step_s": 0.01}) as (host, client):
        got = [e async for batch in _batches(client, job(10_000)) for e in batch]
        assert isinstance(got[-1], Failure)
        assert await gone(host) == 4


async def _batches(client: EngineClient, one: GenerationRequest) -> Any:
    async with client.open(one) as stream:
        async for batch in stream:
            yield batch


async def test_a_wrong_token_gets_nothing() -> None:
    async with running("scripted") as (host, _):
        stranger = EngineClient(host.socket, "wrong", "e1")
        with pytest.raises(UpstreamOverloaded) as caught:
            await stranger.probe()
        assert "wrong" not in caught.value.message
        assert "wrong token" in host.stderr.read_text()
        assert isinstance((await events(EngineClient(host.socket, TOKEN, "e1"), job()))[-1], Usage)


async def test_connecting_again_waits_its_turn() -> None:
    now = [100.0]
    client = EngineClient("/nonexistent/e.sock", TOKEN, "e1", clock=lambda: now[0])
    with pytest.raises(UpstreamOverloaded) as first:
        await client.probe()
    assert "FileNotFoundError" in first.value.detail
    with pytest.raises(UpstreamOverloaded) as second:
        await client.probe()
    assert "waiting" in second.value.detail
    now[0] += 2
    with pytest.raises(UpstreamOverloaded) as third:
        await client.probe()
    assert "FileNotFoundError" in third.value.detail


async def test_a_slow_reader_fails_alone() -> None:
    options = {**ENDLESS, "step_s": 0.002}
    async with (
        running("scripted", options=options, slots=2, context=1_000_000) as (host, client),
        client.open(job(100_000)) as slow,
    ):
        await anext(slow)
        fast = await events(client, job(MAX_BATCHES * 2))
        assert isinstance(fast[-1], Usage)
        await host.until("cancel")
        got = [batch async for batch in slow]
        assert len([e for batch in got for e in batch]) <= MAX_BATCHES + 2
        assert isinstance(got[-1][-1], Failure)
        assert got[-1][-1].code == "client_too_slow"


async def test_a_worker_that_stops_reading_is_cut_off_and_its_jobs_cancelled() -> None:
    async with running("scripted", options={"script": ["x" * 20_000], "repeat": True}, context=1_000_000) as (host, client):
        with socket.socket(socket.AF_UNIX) as stopped:
            stopped.connect(host.socket)
            stopped.sendall(ipc.frame(ipc.Hello(ipc.VERSION, TOKEN)))
            stopped.sendall(ipc.frame(ipc.Submit("stuck", ipc.pack_job(job(1_000_000)))))
            found = await host.until("cancel")
            assert found[0]["id"] == "stuck"
        assert "does not read" in host.stderr.read_text()
        assert isinstance((await events(client, job()))[-1], Usage)


@pytest.mark.parametrize("data", [ipc.frame(ipc.Submit("a", b"nonsense")), b"\xff" * 8, ipc.frame(ipc.Hello(1, TOKEN))])
async def test_a_worker_that_talks_nonsense_loses_its_connection_only(data: bytes) -> None:
    async with running("scripted") as (host, client):
        with socket.socket(socket.AF_UNIX) as odd:
            odd.settimeout(5)
            odd.connect(host.socket)
            odd.sendall(ipc.frame(ipc.Hello(ipc.VERSION, TOKEN)) + data)
            while odd.recv(65536):
                pass
        assert host.process.poll() is None
        assert isinstance((await events(client, job()))[-1], Usage)


async def test_a_failed_load_is_told_to_who_asks() -> None:
    ready = ipc.Ready(False, failed=True, reason="/private/path is broken")
    directory = HostProcess("scripted")
    await asyncio.sleep(0)
    path = str(directory.directory / "fake.sock")

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ipc.frame(ready))
        await writer.drain()

    server = await asyncio.start_unix_server(answer, path)
    client = EngineClient(path, TOKEN, "e1")
    try:
        with pytest.raises(UpstreamUnavailable) as caught:
            await client.probe()
        assert "private" not in caught.value.message
        assert "private" in caught.value.detail
    finally:
        await client.aclose()
        server.close()
        directory.end()


def test_the_log_is_json_lines() -> None:
    host = HostProcess("scripted")
    try:
        deadline = time.monotonic() + 10
        while "engine_ready" not in host.stderr.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        lines = host.stderr.read_bytes().splitlines()
        host.end()
    assert {msgspec.json.decode(line)["event"] for line in lines} >= {"engine_loading", "engine_ready"}


async def test_a_job_that_a_host_never_read_because_it_was_unloading_may_be_asked_again(tmp_path: Path) -> None:
    """A worker submits in the very moment in which an idle host is told to end."""

    async def host(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inbound, jobs = ipc.HostInbound(TOKEN), 0
        while data := await reader.read(65_536):
            for message in inbound.feed(data):
                if isinstance(message, ipc.Hello):
                    writer.write(ipc.frame(ipc.Ready(True)))
                jobs += isinstance(message, ipc.Submit)
            if jobs:
                writer.write(ipc.frame(ipc.Ready(False, reason=ipc.UNLOADING)))
                writer.close()
                return

    path = str(tmp_path / "host.sock")
    server = await asyncio.start_unix_server(host, path)
    client = EngineClient(path, TOKEN, "e1")
    try:
        with pytest.raises(UpstreamOverloaded) as refused:
            await events(client, job())
        assert refused.value.code == "model_loading", "LoadedFirst has it loaded and asks again"
    finally:
        await client.aclose()
        server.close()
