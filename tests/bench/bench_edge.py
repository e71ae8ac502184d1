"""CPU microseconds of the connection layer alone, without sockets: a transport in memory, one connection, keep-alive.

The same work through uvicorn's own httptools protocol and plain ASGI is measured beside it. Run:
`python -m tests.bench.bench_edge`.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.edge.asgi import EdgeApp
from gateway.edge.limits import Limits
from gateway.pipeline.exchange import Exchange
from gateway.protocols.contract import ClientProtocol
from tests.edge_server_config import server_config

BODY = b'{"model":"chat","messages":[{"role":"user","content":"Say hello."}]}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer sk-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"
    b"Content-Type: application/json\r\nAccept: */*\r\nUser-Agent: bench\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
ANSWER = b"x" * 300
CHUNK = b"data: " + b"x" * 180 + b"\n\n"
CHUNKS = 128


class Memory:
    """A transport that throws away what is written."""

    def write(self, data: bytes) -> None:
        """Count nothing, keep nothing."""

    def get_extra_info(self, name: str) -> Any:
        """Nothing is known."""
        return None

    def is_closing(self) -> bool:
        """Never."""
        return False

    def set_write_buffer_limits(self, high: int) -> None:
        """Not needed."""

    def get_write_buffer_size(self) -> int:
        """Always drained."""
        return 0

    def close(self) -> None:
        """Nothing to close."""


async def whole(x: Exchange, _protocol: ClientProtocol) -> None:
    """A whole answer."""
    x.header(b"authorization")
    await x.body(1 << 20)
    await x.finish(ANSWER)


async def stream(x: Exchange, _protocol: ClientProtocol) -> None:
    """A stream."""
    await x.body(1 << 20)
    for _ in range(CHUNKS):
        await x.send(CHUNK)
    await x.finish(b"data: [DONE]\n\n")


async def asgi_whole(scope: Any, receive: Any, send: Any) -> None:
    """The same as `whole`, plain ASGI, with the second task that watches for the client's leaving."""
    await receive()
    watch = asyncio.get_running_loop().create_task(receive())
    headers = [(b"content-type", b"application/json"), (b"content-length", b"300")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})
    watch.cancel()


async def asgi_stream(scope: Any, receive: Any, send: Any) -> None:
    """The same as `stream`, plain ASGI."""
    await receive()
    watch = asyncio.get_running_loop().create_task(receive())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for _ in range(CHUNKS):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    watch.cancel()


async def measure(name: str, protocol: Any, state: ServerState, requests: int, each: int = 1) -> None:
    """Print the best of five rounds."""
    protocol.connection_made(Memory())
    best = float("inf")
    for _ in range(5):
        began = time.process_time_ns()
        for _ in range(requests):
            protocol.data_received(REQUEST)
            while state.tasks:
                await asyncio.sleep(0)
        best = min(best, (time.process_time_ns() - began) / requests / each / 1000)
    print(f"{name:36} {best:8.2f} µs")
    protocol.connection_lost(None)


async def main() -> None:
    """Print one line per case."""
    for name, serve, plain, each in (("whole answer", whole, asgi_whole, 1), ("chunk of 128", stream, asgi_stream, CHUNKS)):
        requests = 3000 if each == 1 else 100
        state = ServerState()
        config = server_config(EdgeApp(serve=serve, web=asgi_whole, mint_id=str), Limits(), log_config=None)
        config.load()
        await measure(f"edge, {name}", config.http_protocol_class(config, state, {}), state, requests, each)  # type: ignore[call-arg]
        state = ServerState()
        stock = uvicorn.Config(plain, interface="asgi3", access_log=False, log_config=None, proxy_headers=False)
        stock.load()
        await measure(f"uvicorn and ASGI, {name}", HttpToolsProtocol(stock, state, {}), state, requests, each)


if __name__ == "__main__":
    uvloop.run(main())
