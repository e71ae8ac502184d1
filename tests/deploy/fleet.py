"""The fleet of docs/scaling.md on one machine: two gateways behind HAProxy, Redis with a replica and three sentinels, and
PostgreSQL. HAProxy and Sentinel run with the files of deploy/; only addresses and times are the trial's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.gateway_process import GatewayProcess, declared_key
from tests.servers import PostgresServer, free_port, redis_binary

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PASSWORD = "trial-0123456789abcdef"
DENY, ALLOW = "sk-trial-deny-0123456789abcdef", "sk-trial-allow-0123456789abcdef"
#: Far above what the trial sends, so that every refusal is an outage's and the counter tells how much was charged.
_LIMIT = 10_000_000


def missing() -> str | None:
    """Which program the trial lacks, else None."""
    if shutil.which("haproxy") is None:
        return "haproxy (apt-get install haproxy)"
    return None if redis_binary() is not None else "redis-server (apt-get install redis-server)"


class Program:
    """A server that is started, killed and started again, with its output in a file."""

    def __init__(self, folder: Path, name: str, command: list[str], env: dict[str, str] | None = None) -> None:
        self.log = folder / f"{name}.log"
        self._command, self._env = command, {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and wait."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(20)


class Fleet:
    """Everything, started by `start` and ended by `stop`. `upstream_url` is what the gateways' deployments ask."""

    def __init__(self, folder: Path, upstream_url: str, models: list[str], down_after_ms: int) -> None:
        self.folder = folder
        self.redis_port = free_port()
        self.api_port, self.redis_front = free_port(), free_port()
        self.addresses = ["127.0.0.2", "127.0.0.3"]
        self.postgres = PostgresServer()
        self.redis = [self._redis(index) for index in range(2)]
        ports = [free_port() for _ in range(3)]
        self._sentinel_ports = ports
        self.sentinels = [self._sentinel(index, port, down_after_ms) for index, port in enumerate(ports)]
        env = {"SY_PEPPER": "p" * 40, "SY_REDIS": f"redis://:{PASSWORD}@127.0.0.1:{self.redis_front}/0"}
        self.gateways = [
            GatewayProcess(folder / f"gateway-{index + 1}", self._config(upstream_url, models), env) for index in range(2)
        ]
        self.haproxy = self._haproxy(ports)

    @property
    def url(self) -> str:
        """Of the one address that clients know."""
        return f"http://127.0.0.1:{self.api_port}"

    def start(self) -> None:
        """Start all, in the order in which they need each other; returns when the API answers."""
        self.postgres.start()
        for one in self.redis:
            one.start()
        for address in self.addresses:
            self._until(lambda a=address: self._ask(a, self.redis_port, f"AUTH {PASSWORD}").startswith(b"+OK"), 20)
        for one in self.sentinels:
            one.start()
        self.haproxy.start()
        self._until(lambda: self.primary() == self.addresses[0], 30)
        self._until(lambda: self._ask("127.0.0.1", self.redis_front, f"AUTH {PASSWORD}").startswith(b"+OK"), 30)
        for gateway in self.gateways:
            gateway.start()
        self._until(self._ready, 30)

    def primary(self) -> str:
        """The address that the first sentinel takes for the primary's."""
        reply = self._ask("127.0.0.1", self._sentinel_ports[0], "SENTINEL get-master-addr-by-name switchyard")
        return reply.split(b"\r\n")[2].decode() if reply.startswith(b"*2") else ""

    def stop(self) -> None:
        """End all."""
        for gateway in self.gateways:
            with contextlib.suppress(Exception):
                gateway.stop(30)
            gateway.kill()
        for program in (self.haproxy, *self.sentinels, *self.redis):
            program.kill()
        self.postgres.remove()

    def _redis(self, index: int) -> Program:
        folder = self.folder / f"redis-{index + 1}"
        folder.mkdir(parents=True)
        # deploy/redis/redis.conf with the addresses of this machine.
        text = (DEPLOY / "redis/redis.conf").read_text().replace("/secrets/redis/password.conf", str(folder / "password.conf"))
        text = text.replace("dir /data", f"dir {folder}").replace("bind * -::*", f"bind {self.addresses[index]}")
        text = text.replace("port 6379", f"port {self.redis_port}")
        text += f"masterauth {PASSWORD}\nreplica-announce-ip {self.addresses[index]}\n"
        if index:
            text += f"replicaof {self.addresses[0]} {self.redis_port}\n"
        (folder / "password.conf").write_text(f"requirepass {PASSWORD}\n")
        (folder / "redis.conf").write_text(text)
        return Program(self.folder, f"redis-{index + 1}", [redis_binary() or "", str(folder / "redis.conf")])

    def _sentinel(self, index: int, port: int, down_after_ms: int) -> Program:
        folder = self.folder / f"sentinel-{index + 1}"
        folder.mkdir(parents=True)
        text = (DEPLOY / "redis/sentinel.conf").read_text()
        text = text.replace("10.0.0.31 6379", f"{self.addresses[0]} {self.redis_port}").replace("CHANGE-ME", PASSWORD)
        text = text.replace("port 26379", f"port {port}\nbind 127.0.0.1").replace("/var/lib/redis", str(folder))
        text = text.replace("switchyard 5000", f"switchyard {down_after_ms}")
        (folder / "sentinel.conf").write_text(text)
        command = [redis_binary() or "", str(folder / "sentinel.conf"), "--sentinel"]
        return Program(self.folder, f"sentinel-{index + 1}", command)

    def _haproxy(self, sentinels: list[int]) -> Program:
        env = {
            "API_BIND": f"127.0.0.1:{self.api_port}",
            "REDIS_BIND": f"127.0.0.1:{self.redis_front}",
            "REDIS_PORT": str(self.redis_port),
            "REDIS_PASSWORD": PASSWORD,
            **{f"GATEWAY_{n + 1}": f"127.0.0.1:{gateway.port}" for n, gateway in enumerate(self.gateways)},
            **{f"REDIS_{n + 1}": address for n, address in enumerate(self.addresses)},
            **{f"SENTINEL_{n + 1}": f"127.0.0.1:{port}" for n, port in enumerate(sentinels)},
        }
        return Program(self.folder, "haproxy", ["haproxy", "-db", "-f", str(DEPLOY / "haproxy/haproxy.cfg")], env)

    def _config(self, upstream_url: str, models: list[str]) -> dict[str, object]:
        return {
            "server": {"workers": 2, "drain_delay_s": 5, "drain_s": 20},
            "redis": {"url": "env:SY_REDIS", "timeout_ms": 250},
            "ledger": {"url": self.postgres.url},
            "auth": {"pepper": "env:SY_PEPPER"},
            "deployments": {f"d-{m}": {"dialect": "openai_compatible", "base_url": upstream_url, "model": m} for m in models},
            "models": {m: {"tiers": [[f"d-{m}"]]} for m in models},
            "keys": {
                "declared": [
                    declared_key(name, secret, limits=[{"requests": _LIMIT, "per": "day", "on_outage": name}])
                    for name, secret in (("deny", DENY), ("allow", ALLOW))
                ]
            },
        }

    def _ready(self) -> bool:
        return b" 200 " in self._ask("127.0.0.1", self.api_port, "GET /health/ready HTTP/1.0\r\n").split(b"\r\n")[0]

    @staticmethod
    def _ask(host: str, port: int, line: str) -> bytes:
        try:
            with socket.create_connection((host, port), 1) as connection:
                connection.settimeout(2)
                connection.sendall(line.encode() + b"\r\n")
                return connection.recv(4096)
        except OSError:
            return b""

    @staticmethod
    def _until(holds: Callable[[], bool], within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline, "the fleet did not come up in time"
            time.sleep(0.05)
