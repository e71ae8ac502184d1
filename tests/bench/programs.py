"""The programs of a measurement: our two in C, nginx, Redis and the gateway, each pinned to its core.

The gateway and nginx share one core and are never loaded at once; the mock upstream, Redis and the load generator have
the other. Everything listens on free ports of 127.0.0.1 and keeps its files in one temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.scenarios import models
from tests.gateway_process import ROOT, GatewayProcess, declared_key
from tests.servers import RedisServer, free_port, redis_binary

KEY = "sk-bench-0123456789abcdef"
PATH = "/v1/chat/completions"
_SOURCES = Path(__file__).parent / "native"
_BUILT = ROOT / ".build" / "bench"
_PROGRAMS = {"upstream": ("upstream.c", "connection.c"), "load": ("load.c", "answer.c")}

NGINX = """# The anchor: one worker, connections kept to the upstream, nothing buffered.
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_buffer_size 1m; keepalive_requests 1000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream mock {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 300s;
    }}
  }}
}}
"""


class Missing(Exception):
    """A program that the measurement cannot do without; the text says how to get it."""


@dataclass(frozen=True)
class Cores:
    """Which core serves and which loads. With one core in all they are the same, and no figure means much."""

    serving: int
    loading: int


def cores() -> Cores:
    """The first and the last core that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[-1])


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started inside runs on this core, with all its children."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def build() -> Path:
    """Compile the mock upstream and the load generator; the folder that holds `upstream` and `load`.

    Raises:
        Missing: there is no gcc.
        subprocess.CalledProcessError: it does not compile.
    """
    if shutil.which("gcc") is None:
        raise Missing("gcc compiles the mock upstream and the load generator: apt-get install -y gcc libc6-dev")
    _BUILT.mkdir(parents=True, exist_ok=True)
    newest = max(file.stat().st_mtime for file in _SOURCES.iterdir())
    for name, sources in _PROGRAMS.items():
        program = _BUILT / name
        if not program.exists() or program.stat().st_mtime < newest:
            files = [str(_SOURCES / source) for source in sources]
            subprocess.run(["gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(program), *files], check=True)
    return _BUILT


def listening(port: int) -> bool:
    """Whether somebody accepts connections on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(0.3)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A program that listens on `port`; started with the object, stopped by `stop`."""

    def __init__(self, name: str, arguments: list[str], port: int, core: int, log: Path) -> None:
        self.port = port
        with log.open("ab") as out, pinned(core):
            self._process = subprocess.Popen(arguments, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not listening(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Missing(f"{name} does not listen: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        """Of the root of its processes."""
        return self._process.pid

    def stop(self) -> None:
        """End it and wait for it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)


def configuration(upstream: int, redis_url: str | None) -> dict[str, object]:
    """A gateway with everything on: a key, a team, four limits that are never reached, metrics, the log, the ledger.

    Args:
        upstream: the mock's port.
        redis_url: where the limits live; None is the embedded mode, in which they live in the one worker.
    """
    day = [{"tokens": 10**12, "per": "day"}]
    key = [{"requests": 10**9, "per": "minute"}, {"tokens": 10**12, "per": "minute"}, {"concurrent": 100_000}]
    tree: dict[str, object] = {
        "server": {"workers": 1},
        "deployments": {
            model: {"dialect": "openai_compatible", "base_url": f"http://127.0.0.1:{upstream}/v1", "model": model}
            for model in models()
        },
        "models": {model: {"tiers": [[model]]} for model in models()},
        "teams": {"bench": {"limits": day}},
        "keys": {"declared": [declared_key("bench", KEY, team="bench", limits=key)]},
    }
    if redis_url is not None:
        # A machine that others use pauses Redis for longer than the default allows; no refusal is to be measured.
        tree["redis"] = {"url": redis_url, "timeout_ms": 2000}
        tree["auth"] = {"pepper": "env:SWITCHYARD_BENCH_PEPPER"}
    return tree


@dataclass
class Bench:
    """The running programs of one measurement. `nginx` is None where it is not installed."""

    folder: Path
    cores: Cores
    load: Path
    upstream: Server
    redis: RedisServer
    nginx: Server | None
    gateways: list[GatewayProcess] = field(default_factory=list)

    def gateway(self, name: str, *, redis: bool = True) -> GatewayProcess:
        """Start a gateway of its own folder and ports, pinned; it is stopped at the end at the latest."""
        tree = configuration(self.upstream.port, self.redis.url if redis else None)
        gateway = GatewayProcess(self.folder / name, tree, {"SWITCHYARD_BENCH_PEPPER": "p" * 40})
        self.gateways.append(gateway)
        with pinned(self.cores.serving):
            gateway.start()
        return gateway


@contextlib.contextmanager
def bench(folder: Path, *, nginx: bool = True) -> Iterator[Bench]:
    """Build and start all but the gateways, and stop everything at the end.

    Raises:
        Missing: gcc or redis-server is not there.
    """
    built, places = build(), cores()
    if redis_binary() is None:
        raise Missing("the limits live in Redis: apt-get install -y redis-server")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        port = free_port()
        upstream = Server("upstream", [str(built / "upstream"), str(port)], port, places.loading, folder / "upstream.log")
        stack.callback(upstream.stop)
        redis = RedisServer(folder / "redis")
        with pinned(places.loading):
            redis.start()
        stack.callback(redis.kill)
        anchor = _nginx(folder, port, places.serving) if nginx and shutil.which("nginx") else None
        if anchor is not None:
            stack.callback(anchor.stop)
        running = Bench(folder, places, built / "load", upstream, redis, anchor)
        try:
            yield running
        finally:
            for gateway in running.gateways:
                gateway.__exit__()


def _nginx(folder: Path, upstream: int, core: int) -> Server:
    port = free_port()
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(folder=folder, upstream=upstream, port=port))
    return Server("nginx", ["nginx", "-e", str(folder / "nginx.log"), "-c", str(file)], port, core, folder / "nginx.log")
