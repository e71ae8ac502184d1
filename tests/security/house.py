"""A gateway to attack, and what an attacker needs: raw sockets, hostile upstreams, keys of every kind.

Two workers on Redis; every secret is a canary, so that whatever leaks can be found.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.gateway_process import ROOT, GatewayProcess, declared_key
from tests.liars import Liars, liar_server
from tests.security.hostile import Hostile, hostile_server
from tests.servers import RedisServer, free_port
from tests.upstream import Upstream, in_thread, upstream_server

PLAIN, FEW, LIMITED, EXPIRED, CAPPED, PREFIX = (
    f"sk-attacked-canary-{name}-0123456789abcdef" for name in ("plain", "few", "limited", "expired", "capped", "prefix")
)
ADMIN = "sk-attacked-canary-admin-0123456789abcdef"
UPSTREAM_KEY = "sk-attacked-canary-upstream-0123456789"
METRICS_TOKEN = "attacked-canary-metrics-token"
PEPPER = "attacked-canary-pepper-" + "p" * 30
PROMPT = "attacked-canary-prompt"
SECRETS = (PLAIN, FEW, LIMITED, EXPIRED, CAPPED, PREFIX, ADMIN, UPSTREAM_KEY, METRICS_TOKEN, PEPPER)
MAX_BODY = 1 << 20

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class House:
    """The running gateway and what is around it."""

    gateway: GatewayProcess
    redis: RedisServer
    upstream: Upstream
    liars: Liars
    hostile: Hostile
    proxy: list[tuple[str, int]] = field(default_factory=list)
    """Connections that the proxy of the environment got: none, ever."""

    def raw(self, data: bytes, within_s: float = 10.0, *, half_close: bool = False) -> bytes:
        """Send bytes, read until the end or for so long."""
        with socket.create_connection(("127.0.0.1", self.gateway.port), within_s) as connection:
            connection.settimeout(within_s)
            got = b""
            try:
                connection.sendall(data)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
                while more := connection.recv(65536):
                    got += more
            except (TimeoutError, ConnectionError):
                pass
            return got

    def request(self, method: str, path: str, key: str = "", body: bytes = b"", **headers: str) -> Answer:
        """One request by hand, so that nothing is mended on the way; names with _ become -."""
        lines = [f"{method} {path} HTTP/1.1", "Connection: close", f"Content-Length: {len(body)}"]
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        lines += [] if "Host" in given else ["Host: gateway"]
        lines += [f"Authorization: Bearer {key}"] if key else []
        lines += [f"{name}: {value}" for name, value in given.items()]
        return parsed(self.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body))

    def chat(self, body: dict[str, object] | bytes, key: str = PLAIN, **headers: str) -> Answer:
        """A chat completion."""
        if isinstance(body, dict):
            body = json.dumps({"model": "words-3", "messages": [{"role": "user", "content": PROMPT}], **body}).encode()
        return self.request("POST", "/v1/chat/completions", key, body, **headers)

    def admin(self, method: str, path: str, body: object = None, key: str = ADMIN) -> httpx.Response:
        """A call of the admin API."""
        headers = {"authorization": f"Bearer {key}"}
        return httpx.request(method, f"{self.gateway.url}/admin/v1{path}", json=body, headers=headers, timeout=10)

    def command(self, *words: str) -> dict[str, object]:
        """A command of ours."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *words, "--config", str(self.gateway.file), "--json"],
            cwd=ROOT, env={**os.environ, **environment(0)}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        return answer


def resident(house: House) -> int:
    """Memory of the gateway's processes."""
    assert house.gateway.process is not None
    return sum(one.memory_info().rss for one in psutil.Process(house.gateway.process.pid).children(recursive=True))


def head(length: str = "", extra: str = "") -> bytes:
    """The head of a chat completion with `plain`'s key."""
    lines = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return f"{lines}Authorization: Bearer {PLAIN}\r\n{length}{extra}\r\n".encode()


def parsed(answer: bytes) -> Answer:
    """Status, headers (lower case; a repeated one joined) and body of the first answer; (0, {}, b"") when there is none."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return 0, {}, answer
    lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = ", ".join(filter(None, [headers.get(name.lower()), value.strip()]))
    return int(lines[0].split()[1]), headers, body


def code_of(answer: Answer) -> str | None:
    """The `code` of an error in OpenAI's shape."""
    code: str | None = json.loads(answer[2])["error"]["code"]
    return code


def environment(proxy_port: int) -> dict[str, str]:
    """What the gateway's process is given."""
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"), f"http://127.0.0.1:{proxy_port}")
    return {"SY_PEPPER": PEPPER, "UPSTREAM": UPSTREAM_KEY, "SCRAPE": METRICS_TOKEN, **(proxies if proxy_port else {})}


def _tree(redis: RedisServer, upstream: Upstream, liars: Liars, hostile: Hostile, metrics_port: int) -> dict[str, object]:
    far = {"dialect": "openai_compatible", "base_url": upstream.url, "credential": "env:UPSTREAM", "params": "drop"}
    deployments: dict[str, object] = {
        name: {**far, "model": name} for name in ("words-3", "words-200-d10", "words-400-k64", "words-3-echo-400")
    }
    deployments |= {
        f"h-{name}": {**far, "base_url": hostile.url, "model": name, "timeouts": {"first_event_s": 5, "idle_s": 5}}
        for name in hostile.names
    }
    deployments |= {
        f"l-{name}": {**far, "base_url": f"http://127.0.0.1:{liars.port}/v1", "model": name}
        for name in ("redirect", "telling-400", "telling-500", "telling-headers", "bad-usage", "html", "big-event", "deep-json")
    }
    return {
        "server": {"workers": 2, "max_body_mb": 1, "head_timeout_s": 2, "body_timeout_s": 2, "client_stall_s": 3},
        "redis": {"url": redis.url, "timeout_ms": 2000},
        "auth": {"pepper": "env:SY_PEPPER"},
        "telemetry": {"metrics": {"listen": f"127.0.0.1:{metrics_port}", "token": "env:SCRAPE"}},
        "deployments": deployments,
        "models": {name: {"tiers": [[name]]} for name in deployments},
        "teams": {"red": {}, "blue": {}},
        "keys": {
            "declared": [
                declared_key("plain", PLAIN),
                declared_key("few", FEW, models=["words-200-d10"]),
                declared_key("limited", LIMITED, limits=[{"requests": 3, "per": "hour"}]),
                declared_key("expired", EXPIRED, expires="2020-01-01"),
                declared_key("capped", CAPPED, limits=[{"tokens": 5000, "per": "hour"}]),
                declared_key("prefix", PREFIX),
            ]
        },
    }


@contextmanager
def attacked(folder: Path) -> Iterator[House]:
    """All of it, started; ended at the exit."""
    with ExitStack() as stack:
        redis = RedisServer(folder / "redis").start()
        stack.callback(redis.kill)
        upstream = stack.enter_context(in_thread(upstream_server))
        liars = stack.enter_context(in_thread(liar_server))
        hostile = stack.enter_context(in_thread(hostile_server))
        proxied: list[tuple[str, int]] = []
        proxy_port = stack.enter_context(_proxy(proxied))
        metrics_port = free_port()
        tree = _tree(redis, upstream, liars, hostile, metrics_port)
        gateway = GatewayProcess(folder / "gateway", tree, environment(proxy_port))
        gateway.metrics_port = metrics_port
        house = House(gateway, redis, upstream, liars, hostile, proxied)
        stack.enter_context(gateway)
        gateway.start()
        yield house


@contextmanager
def _proxy(got: list[tuple[str, int]]) -> Iterator[int]:
    """A port that notes who connects."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            got.append(peer)
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
