"""However the bytes of a connection are cut, the same answers come in the same order."""

import asyncio
from typing import Any

import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from gateway.edge.asgi import EdgeApp
from gateway.edge.limits import Limits
from gateway.pipeline.exchange import Exchange
from gateway.protocols.contract import ClientProtocol
from tests.edge_server_config import server_config

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
REQUESTS = [
    (POST + b"Content-Length: 5\r\n\r\nabcde", b"abcde"),
    (POST + b"Transfer-Encoding: chunked\r\nX-A: 1\r\n\r\n2\r\nab\r\n3;x=y\r\ncde\r\n0\r\nTrailer: 1\r\n\r\n", b"abcde"),
    (b"\r\nPOST /embeddings?a=b HTTP/1.1\r\nHOST: x\r\nContent-Length:0\r\n\r\n", b""),
    (POST + b"Content-Length: 300\r\n\r\n" + b"x" * 300, b"x" * 300),
]


class Memory:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str) -> Any:
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


async def echo(x: Exchange, _protocol: ClientProtocol) -> None:
    body = await x.body(1000)
    if len(body) > 100:
        await x.send(b"[")
    await x.finish(body)


async def no_web(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("no path of this test leads here")


def config() -> uvicorn.Config:
    made = server_config(EdgeApp(serve=echo, web=no_web, mint_id=str), Limits(), log_config=None)
    made.load()
    return made


async def talk(data: list[bytes]) -> bytes:
    settings_, state, transport = config(), ServerState(), Memory()
    protocol: Any = settings_.http_protocol_class(settings_, state, {}, asyncio.get_running_loop())  # type: ignore[call-arg]
    protocol.connection_made(transport)
    for piece in data:
        protocol.data_received(piece)
        await asyncio.sleep(0)
    while state.tasks:
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    assert not state.connections
    return transport.written


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=5), st.data())
def test_any_cut_gives_the_same_answers(requests: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    raw = b"".join(request for request, _ in requests)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=40)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    answers = asyncio.run(talk(pieces))
    expected = b""
    for _, body in requests:
        expected += b"HTTP/1.1 200 OK\r\n"
        if len(body) > 100:
            expected += (
                b"content-type: application/json\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
                b"transfer-encoding: chunked\r\n\r\n1\r\n[\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            )
        else:
            expected += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    assert answers == expected
