"""CPU microseconds of the upstream pool alone, per request and per chunk, against a small server process.

    python -m tests.bench.transport_cpu [--connections 64] [--requests 6400]

The server runs in a process of its own; only this process's CPU time is counted. Not run by pytest.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection as Pipe

import uvloop

from backends.core.contracts import UpstreamRequest
from backends.remote.origin import Credential, Origin
from backends.remote.pool import HttpPool
from backends.remote.transport import Timeouts

FIELDS = b"date: Sat, 21 Nov 2026 08:31:03 GMT\r\nserver: bench\r\n"
ANSWER = b'{"x":"' + b"a" * 600 + b'"}'
UNARY = b"HTTP/1.1 200 OK\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (FIELDS, len(ANSWER), ANSWER)
STREAM = b"HTTP/1.1 200 OK\r\n%scontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" % FIELDS
EVENT = b"data: " + b"z" * 180 + b"\n\n"
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
END = b"0\r\n\r\n"
BURST_CHUNKS = 128
PACED_CHUNKS = 50
PACE_S = 0.02
REQUEST = UpstreamRequest("POST", "/chat/completions", {"content-type": "application/json"}, b"x" * 400 + b"END")


class Server(asyncio.Protocol):
    """Answers each request whose body ends in END, in the given manner."""

    def __init__(self, manner: str) -> None:
        self._manner = manner
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._tail = self._tail[-3:] + data
        if not self._tail.endswith(b"END"):
            return
        if self._manner == "unary":
            self._transport.write(UNARY)
        elif self._manner == "burst":
            self._transport.write(STREAM + CHUNK * BURST_CHUNKS + END)
        else:
            self._transport.write(STREAM)
            self._paced(PACED_CHUNKS)

    def _paced(self, left: int) -> None:
        self._transport.write(CHUNK if left else END)
        if left:
            asyncio.get_running_loop().call_later(PACE_S, self._paced, left - 1)


def serve(pipe: Pipe, manner: str) -> None:
    """The server process."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Server(manner), "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


async def measure(port: int, manner: str, requests: int, connections: int) -> str:
    """Run `requests` over `connections`, after one warm-up request each."""
    pool = HttpPool(Origin.parse(f"http://127.0.0.1:{port}/v1"), credential=Credential("sk-bench"))
    timeouts = Timeouts()
    reads = chunks = 0

    async def worker(number: int) -> None:
        nonlocal reads, chunks
        for _ in range(number):
            async with pool.send(REQUEST, timeouts) as response:
                async for piece in response.chunks:
                    reads += 1
                    chunks += piece.count(b"data: ")

    await asyncio.gather(*(worker(1) for _ in range(connections)))
    reads = chunks = 0
    each = max(1, requests // connections)
    cpu = time.process_time()
    await asyncio.gather(*(worker(each) for _ in range(connections)))
    cpu = time.process_time() - cpu
    await pool.aclose()
    done = each * connections
    told = f"{manner:6} {connections:3} connections: {cpu / done * 1e6:8.1f} us/request"
    return told + (f" {cpu / chunks * 1e6:6.2f} us/chunk ({chunks / reads:.1f} chunks a read)" if chunks else "")


def main() -> None:
    """Print one line per manner."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--requests", type=int, default=6400)
    asked = parser.parse_args()
    for manner, share, connections in (
        ("unary", 1, asked.connections),
        ("unary", 4, 1),
        ("burst", 10, asked.connections),
        ("paced", 50, asked.connections),
    ):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=serve, args=(theirs, manner), daemon=True)
        process.start()
        print(uvloop.run(measure(ours.recv(), manner, asked.requests // share, connections)))
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()
