"""Ports, a real engine host under the supervisor, the metrics port: what the toys do not cover."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from backends.engines.launch import EngineLaunch
from gateway.gate.local import LocalGate
from gateway.gate.protocol import GatedDeployment
from gateway.runtime.engine_keeper import EngineKeeper
from gateway.runtime.gate_role import export_alone
from gateway.runtime.lifecycle import Lifecycle
from gateway.runtime.ports import PortTaken, own_port, worker_socket
from gateway.telemetry import families as f
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.sink import DirectSink
from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent.parent


class Events:
    def __init__(self) -> None:
        self.names: list[str] = []

    def event(self, name: str, /, **fields: object) -> None:
        self.names.append(name)


def test_the_owner_keeps_strangers_out_and_lets_workers_in() -> None:
    owner = own_port("127.0.0.1", 0)
    port = owner.getsockname()[1]
    with pytest.raises(PortTaken, match="in use"):
        own_port("127.0.0.1", port)
    one, two = worker_socket(owner), worker_socket(owner)
    one.listen()
    two.listen()
    with pytest.raises(PortTaken, match=f"127.0.0.1:{port}"):
        own_port("127.0.0.1", port)
    with pytest.raises(PortTaken):
        own_port("host.invalid", 1)
    for sock in (owner, one, two):
        sock.close()


def test_a_port_with_old_connections_can_be_owned_again_at_once() -> None:
    owner = own_port("127.0.0.1", 0)
    address = owner.getsockname()
    listening = worker_socket(owner)
    listening.setblocking(True)
    listening.listen()
    with socket.create_connection(address) as client:
        served, _ = listening.accept()
        served.close()  # our side closes first, so TIME_WAIT is ours
        assert client.recv(1) == b""
    listening.close()
    owner.close()
    own_port(*address).close()


def test_an_owned_port_without_a_listener_refuses_connections() -> None:
    owner = own_port("127.0.0.1", 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(owner.getsockname(), timeout=1)
    owner.close()


SUPERVISED = """
import sys, msgspec
from backends.engines.launch import EngineLaunch
from gateway.domain.engines import EngineKeep
from gateway.runtime.engine_keeper import EngineKeeper
from gateway.runtime.lifecycle import Lifecycle
from gateway.runtime.supervisor import Supervisor
from gateway.telemetry.sink import DirectSink
launch = msgspec.json.decode(sys.argv[1], type=EngineLaunch)
log = DirectSink(1)
engines = EngineKeeper([launch], Lifecycle([EngineKeep(launch.name)]), log)
sys.exit(Supervisor([], log, engines=engines).run())
"""


def hosts(parent: psutil.Process) -> list[psutil.Process]:
    return [p for p in parent.children() if p.status() != psutil.STATUS_ZOMBIE]


def until(condition, what: str, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_real_engine_host_is_restarted_and_dies_with_the_supervisor(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    launch = EngineLaunch("toy", "scripted", "backends.engines.scripted:ScriptedEngine", "none", str(path), "secret-token")
    fields = {
        "name": "toy",
        "kind": "scripted",
        "engine": launch.engine,
        "model": "none",
        "socket": str(path),
        "token": "secret-token",
    }
    process = subprocess.Popen([sys.executable, "-c", SUPERVISED, json.dumps(fields)], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        supervisor = psutil.Process(process.pid)
        until(path.exists, "no socket")
        (host,) = hosts(supervisor)
        assert "secret-token" not in " ".join(host.cmdline())
        assert "secret-token" not in str(host.environ())
        os.kill(host.pid, signal.SIGKILL)
        until(lambda: [p.pid for p in hosts(supervisor)] not in ([], [host.pid]), "not restarted")
        (again,) = hosts(supervisor)
        until(lambda: any(c.status == psutil.CONN_NONE for c in again.net_connections("unix")), "not listening again")
        process.kill()
        process.wait(2)
        began = time.monotonic()
        until(lambda: not again.is_running() or again.status() == psutil.STATUS_ZOMBIE, "survives its supervisor", 2.0)
        assert time.monotonic() - began < 2.0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(2)


def test_a_launch_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="slots"):
        EngineKeeper([EngineLaunch("toy", "scripted", "a:B", "none", "/s", "t", slots=0)], Lifecycle([]), DirectSink(1))


async def get(port: int, head: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    try:
        return await asyncio.wait_for(reader.read(), 3)
    finally:
        writer.close()


async def test_one_worker_serves_its_own_metrics() -> None:
    metrics, gate, events, port = Metrics(), LocalGate(), Events(), free_port()
    metrics.set(f.OPEN_STREAMS, 4)
    await gate.acquire("r", "k", [GatedDeployment("d", 2)], 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        task = asyncio.get_running_loop().create_task(export_alone(metrics, gate.stats, ("127.0.0.1", port), events))
        await asyncio.sleep(0.05)
        assert events.names == ["metrics_port_taken"]
    async with asyncio.timeout(5):
        while True:
            try:
                answer = await get(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.1)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    found = {s.name: s.value for m in text_string_to_metric_families(body.decode()) for s in m.samples}
    assert found["switchyard_open_streams"] == 4
    assert found["switchyard_slots_in_use"] == 1
    assert found["switchyard_workers"] == 1
    assert (await get(port, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
    assert (await get(port, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405")
    head_only = await get(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert head_only.endswith(b"\r\n\r\n")
    assert await get(port, b"x" * 20_000 + b"\r\n\r\n") == b""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
