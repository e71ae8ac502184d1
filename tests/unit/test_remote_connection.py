"""One connection on a transport and a clock of the test's own: timers, backpressure, a transport that is closing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from backends.core.errors import UpstreamProtocol, UpstreamTimeout
from backends.remote.connection import MAX_UNREAD_BYTES, ClosedUnanswered, Connection
from backends.remote.transport import Timeouts

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
TIMEOUTS = Timeouts(write_s=10, idle_s=30, total_s=100)


class Clock:
    """What a connection asks of its loop, with a time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.armed: list[tuple[float, Callable[[], None]]] = []
        self.calls = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Any:
        self.calls += 1
        entry = (when, callback)
        self.armed.append(entry)

        class Handle:
            def cancel(_: Any) -> None:
                self.armed.remove(entry)

        return Handle()

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def advance(self, seconds: float) -> None:
        """Move the time, running what falls due on the way."""
        until = self.now + seconds
        while due := [entry for entry in self.armed if entry[0] <= until]:
            first = min(due)
            self.armed.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = until


class Pipe:
    """A transport: what was written, what the kernel has not taken, whether reading is paused."""

    def __init__(self) -> None:
        self.written = b""
        self.writes = 0
        self.unsent = 0
        self.closing = self.aborted = self.paused = False

    def writelines(self, pieces: Iterable[bytes]) -> None:
        assert not self.closing
        self.written += b"".join(pieces)
        self.writes += 1

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        assert not self.closing
        self.paused = True

    def resume_reading(self) -> None:
        assert not self.closing
        self.paused = False

    def get_extra_info(self, name: str) -> None:
        return None


class Line:
    """A connection with its clock and pipe."""

    def __init__(self) -> None:
        self.clock, self.pipe = Clock(), Pipe()
        self.lost: list[Connection] = []
        self.connection = Connection(self.clock, self.lost.append)  # type: ignore[arg-type]
        self.connection.connection_made(self.pipe)  # type: ignore[arg-type]

    def begin(self, timeouts: Timeouts = TIMEOUTS) -> Any:
        return self.connection.begin(b"head ", b"body", timeouts, self.clock.now + timeouts.total_s)


async def test_a_request_is_one_write_and_reads_arm_no_timers() -> None:
    line = Line()
    exchange = line.begin()
    assert (line.pipe.written, line.pipe.writes) == (b"head body", 1)
    line.connection.data_received(HEAD)
    assert (await exchange.head()).status == 200
    armed = line.clock.calls
    for _ in range(1000):
        line.clock.now += 0.01
        line.connection.data_received(b"1\r\nx\r\n")
        assert await anext(exchange) == b"x"
    assert line.clock.calls <= armed + 1
    line.connection.data_received(b"0\r\n\r\n")
    with pytest.raises(StopAsyncIteration):
        await anext(exchange)
    assert exchange.reusable


async def test_an_idle_stream_fails_at_its_time_and_not_before() -> None:
    line = Line()
    exchange = line.begin()
    line.connection.data_received(HEAD + b"1\r\nx\r\n")
    await anext(exchange)
    line.clock.advance(20)
    line.connection.data_received(b"1\r\ny\r\n")
    await anext(exchange)
    line.clock.advance(29.9)
    assert not line.pipe.aborted
    line.clock.advance(0.2)
    assert line.pipe.aborted
    with pytest.raises(UpstreamTimeout) as caught:
        await anext(exchange)
    assert caught.value.detail == "idle"
    assert line.lost == [line.connection]


async def test_the_total_counts_from_the_beginning() -> None:
    line = Line()
    exchange = line.begin()
    line.connection.data_received(HEAD)
    for _ in range(9):
        line.connection.data_received(b"1\r\nx\r\n")
        line.clock.advance(11)
    assert not line.pipe.aborted
    line.clock.advance(1.1)
    assert await anext(exchange) == b"x" * 9
    with pytest.raises(UpstreamTimeout) as caught:
        await anext(exchange)
    assert caught.value.detail == "total"


async def test_writing_may_take_long_while_it_moves() -> None:
    line = Line()
    line.pipe.unsent = 1000
    exchange = line.begin()
    for left in (900, 800, 700):
        line.pipe.unsent = left
        line.clock.advance(10)
        assert not line.pipe.aborted
    line.clock.advance(10)
    assert line.pipe.aborted
    with pytest.raises(UpstreamTimeout) as caught:
        await exchange.head()
    assert caught.value.detail == "write"


async def test_a_request_that_was_taken_has_no_write_timeout() -> None:
    line = Line()
    line.pipe.unsent = 1000
    line.begin()
    line.pipe.unsent = 0
    line.clock.advance(99)
    assert not line.pipe.aborted
    line.clock.advance(1)
    assert line.pipe.aborted


@pytest.mark.parametrize(("status", "refused"), [(b"200", True), (b"413", False), (b"503", False)])
async def test_an_answer_to_a_request_that_is_not_sent(status: bytes, refused: bool) -> None:
    line = Line()
    exchange = line.begin()
    line.pipe.unsent = 1
    line.connection.data_received(b"HTTP/1.1 100 Continue\r\n\r\n")
    line.connection.data_received(b"HTTP/1.1 " + status + b" x\r\ncontent-length: 0\r\n\r\n")
    if refused:
        with pytest.raises(UpstreamProtocol):
            await exchange.head()
        return
    assert (await exchange.head()).status == int(status)
    with pytest.raises(StopAsyncIteration):
        await anext(exchange)
    assert not exchange.reusable


async def test_reading_pauses_above_the_bound_and_resumes_when_taken() -> None:
    line = Line()
    exchange = line.begin()
    line.connection.data_received(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * MAX_UNREAD_BYTES)
    assert not line.pipe.paused
    line.connection.data_received(b"x")
    assert line.pipe.paused
    line.clock.advance(60)  # our consumer is slow, not the server
    assert not line.pipe.aborted
    assert len(await anext(exchange)) == MAX_UNREAD_BYTES + 1
    assert not line.pipe.paused
    line.clock.advance(29)
    assert not line.pipe.aborted
    line.clock.advance(2)
    assert line.pipe.aborted


async def test_a_transport_that_is_closing_already_counts_as_closed_unanswered() -> None:
    line = Line()
    line.pipe.closing = True
    exchange = line.begin()
    with pytest.raises(ClosedUnanswered):
        await exchange.head()
    assert line.connection.closed


async def test_a_slow_consumer_of_a_transport_that_is_closing() -> None:
    line = Line()
    exchange = line.begin()
    line.connection.data_received(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_UNREAD_BYTES + 1))
    line.pipe.closing = True
    assert len(await anext(exchange)) == MAX_UNREAD_BYTES + 1  # does not ask it to read on


async def test_rest_ends_at_its_time() -> None:
    line = Line()
    exchange = line.begin()
    line.connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(StopAsyncIteration):
        await anext(exchange)
    line.connection.rest(line.clock.now + 4)
    line.clock.advance(3.9)
    assert not line.connection.expired(line.clock.now)
    line.clock.advance(0.2)
    assert line.connection.expired(line.clock.now)
    assert line.pipe.aborted
    assert line.clock.armed == []
