"""A real uvicorn on a free port with the edge's protocol class and a scripted pipeline; raw sockets to talk to it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from backends.core.errors import GatewayError
from gateway.edge.asgi import EdgeApp
from gateway.edge.cycle import App
from gateway.edge.limits import Limits
from gateway.pipeline.exchange import Exchange
from gateway.protocols.contract import ClientProtocol
from tests.edge_server_config import server_config

QUICK = Limits(head_s=0.4, body_s=0.4, keepalive_s=5, client_stall_s=0.4, linger_s=1.0)
Script = Callable[[Exchange, ClientProtocol, "Log"], "asyncio.Future[None]"]


class Log:
    """What happened inside, in order; `wait` is for the test's thread."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        self.lines.append(line)

    def wait(self, line: str, within_s: float = 3.0) -> float:
        """Seconds until the line is there."""
        began = time.monotonic()
        while line not in self.lines:
            if time.monotonic() - began > within_s:
                raise AssertionError(f"{line!r} did not come: {self.lines}")
            time.sleep(0.005)
        return time.monotonic() - began


async def no_web(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    """Stands for the FastAPI part: lifespan, and a 404 with a body for the rest."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"web"})


class Running:
    """A server that runs: its port and log."""

    def __init__(self, port: int, log: Log) -> None:
        self.port = port
        self.log = log

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        return sock

    def talk(self, data: bytes) -> bytes:
        """Send, and read until the server closes."""
        with self.connect() as sock:
            with suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
            return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    out = b""
    try:
        while piece := sock.recv(65536):
            out += piece
    except ConnectionResetError:
        out += b"<reset>"
    return out


def read_answer(sock: socket.socket) -> bytes:
    """One answer with a Content-Length."""
    out = b""
    while b"\r\n\r\n" not in out:
        piece = sock.recv(65536)
        assert piece, out
        out += piece
    head, _, body = out.partition(b"\r\n\r\n")
    length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))[15:])
    while len(body) < length:
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


def post(body: bytes = b'{"model":"m"}', path: str = "/v1/chat/completions", extra: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


@contextmanager
def serving(
    script: Script, *, limits: Limits = QUICK, web: App = no_web, cors: tuple[str, ...] = (), other_body_s: float = 30.0
) -> Iterator[Running]:
    """Serve a script in a thread of its own loop (uvloop)."""
    log = Log()

    async def serve(x: Exchange, protocol: ClientProtocol) -> None:
        x.response_headers.append((b"x-request-id", b"req-1"))
        try:
            await script(x, protocol, log)
            log.add("done")
        except GatewayError as error:
            log.add(f"error {error.code}")
            await x.fail(error, protocol.error(error, in_stream=x.started))
        except asyncio.CancelledError:
            log.add("cancelled")
            raise
        except ConnectionError as error:
            log.add(type(error).__name__)

    app = EdgeApp(serve=serve, web=web, mint_id=lambda: "minted", cors_origins=cors, other_body_s=other_body_s)
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(server_config(app, limits, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield Running(sock.getsockname()[1], log)
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
        assert not thread.is_alive()
