"""One connection to Redis for everything that a worker says to it: all commands of one event-loop turn in one write.

Commands queue until the end of the turn, are packed together, and are answered in order; a command that has nobody to
share a write with, so far as the last write tells, is written at once. Several turns may be on the way at once. A turn
that is not answered in time closes the connection and fails everything that was unanswered on it alike; the connection
is then made again in the background, and that is the breaker's probe. NOSCRIPT loads the scripts once and repeats the
command. redis-py is not used on this path: per command it costs seven times as much.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

from gateway.limits.breaker import Breaker
from gateway.limits.commands import Args
from gateway.limits.scripts import Script
from gateway.limits.wire import ReplyError, Wire, connect, pack

log = logging.getLogger(__name__)
#: How long a turn that is past its time is given to be read, when the loop itself was late.
_GRACE_S = 0.002
#: How long a probe may take to connect (TLS, another region): nobody waits for it.
_PROBE_S = 1.0
#: Replies that say: this server cannot serve now; another connection may reach one that can.
_AWAY = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN")


class LinkDown(Exception):
    """A command was not answered. `sent`: it may have been carried out all the same."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class Command:
    """Something to say. Exactly one of `answered` and `failed` is called, once."""

    __slots__ = ("due", "reloaded")
    scripted: ClassVar[bool] = True

    def __init__(self) -> None:
        self.due = 0.0
        self.reloaded = False

    def args(self, server_us: int) -> Args:
        """The command's words; `server_us` is the server's clock at which its time is over."""
        raise NotImplementedError

    def answered(self, reply: Any) -> None:
        """The reply: bytes, int, list, None or `wire.ReplyError`."""
        raise NotImplementedError

    def failed(self, error: LinkDown) -> None:
        """No reply came, nor will one."""
        raise NotImplementedError


class _Load(Command):
    """SCRIPT LOAD in front of what is repeated; its own answer tells nothing new."""

    __slots__ = ("_script",)
    scripted = False

    def __init__(self, script: Script) -> None:
        super().__init__()
        self._script = script

    def args(self, server_us: int) -> Args:  # noqa: ARG002
        return ("SCRIPT", "LOAD", self._script.text)

    def answered(self, reply: Any) -> None:
        pass

    def failed(self, error: LinkDown) -> None:
        pass


class Link:
    """The connection, kept up by `keep`.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads it.
        scripts: loaded at each connect.
        timeout_s: within which each command is answered or failed.
        on_up: called after each connect.
    """

    def __init__(self, url: str, scripts: Sequence[Script], timeout_s: float, on_up: Callable[[], None]) -> None:
        self._url = url
        self._scripts = scripts
        self._timeout_s = timeout_s
        self._on_up = on_up
        self.breaker = Breaker()
        self._wire: Wire | None = None
        self._queue: list[Command] = []
        self._unanswered: deque[Command] = deque()
        self._flushing = False
        self._shared = False  # whether the last write carried several commands
        self._writing: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._down = asyncio.Event()
        self._down.set()
        self._closed = False
        self.offset_us = 0
        """Server clock minus this loop's clock, learnt from replies; never above the truth by more than its drift."""
        self.known_offset = False
        self.outages = 0
        """How often the breaker opened."""

    @property
    def up(self) -> bool:
        """Whether a connection stands."""
        return self._wire is not None

    @property
    def idle(self) -> bool:
        """Whether everything that was said has been answered."""
        return not self._queue and not self._unanswered

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it runs in, asked for once: `get_running_loop` asks the kernel for the process each time."""
        return asyncio.get_running_loop()

    def now_us(self) -> int:
        """The server's clock."""
        return self.server_us(self.loop.time())

    def server_us(self, loop_s: float) -> int:
        """The server's clock at an instant of the loop's."""
        return int(loop_s * 1_000_000) + self.offset_us

    def learn(self, server_us: int) -> None:
        """A reply carried the server's clock: it had read it before now, so this errs towards earlier deadlines."""
        offset = server_us - int(self.loop.time() * 1_000_000)
        behind = self.offset_us - offset
        if not self.known_offset or behind < 0 or behind > 500_000:
            self.offset_us, self.known_offset = offset, True
        else:
            self.offset_us -= behind >> 4

    def send(self, command: Command, waited_s: float = 0.0) -> bool:
        """Queue a command for the end of this turn, or write it when it is alone; False, and nothing done, while the breaker is
        not closed, or when who sends it has `waited_s` already and his time is over.
        """
        if self._closed or self.breaker.state != "closed" or waited_s >= self._timeout_s:
            return False
        loop = self.loop
        command.due = loop.time() + self._timeout_s - waited_s
        self._queue.append(command)
        if not self._flushing:
            wire = self._wire
            if wire is not None and wire.prompt and not self._shared and not self._unanswered:
                self._write(wire)
            else:
                self._flushing = True
                loop.call_soon(self._flush)
        if self._timer is None or waited_s:
            self._arm(command.due)
        return True

    def send_again(self, command: Command) -> bool:
        """Queue a command that was answered once more, in what is left of its time; False, and nothing done, as `send`."""
        left_s = command.due - self.loop.time()
        return left_s > 0 and self.send(command, self._timeout_s - left_s)

    def _arm(self, at: float) -> None:
        """Look at this instant, or earlier if that is due."""
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self.loop.call_at(at, self._overdue)

    def written(self) -> asyncio.Future[None] | None:
        """Done when what is queued was written, or cannot be; None when nothing is."""
        if not self._flushing:
            return None
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._writing.append(waiter)
        return waiter

    def forget(self, command: Command) -> bool:
        """Take back a command that was not written yet; False when it was."""
        try:
            self._queue.remove(command)
        except ValueError:
            return False
        return True

    async def keep(self) -> None:
        """Connect, and connect again whenever the connection is lost, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._down.wait()
            pause = self.breaker.probe_in(loop.time())
            if pause > 0:
                await asyncio.sleep(pause)
            if not self.breaker.probe(loop.time()):
                continue
            try:
                await self._connect()
            except (OSError, TimeoutError) as error:
                timed_out = isinstance(error, TimeoutError)
                self._lost(f"connect: {type(error).__name__}: {error}", timed_out=timed_out)
                if self.breaker.closed:
                    await asyncio.sleep(0.001)

    def close(self) -> None:
        """Fail what is unanswered and close for good."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        self._fail_all("closed")

    async def _connect(self) -> None:
        """One connection, or OSError or TimeoutError. The first try is a request's own time, a probe's may be longer."""
        limit_s = max(self._timeout_s, _PROBE_S) if self.breaker.state == "probing" else self._timeout_s
        async with asyncio.timeout(limit_s):
            wire, server_us = await connect(self._url, self._scripts)
        wire.on_reply, wire.on_lost = self._reply, self._gone
        self._wire = wire
        self._down.clear()
        self.learn(server_us)
        if self.breaker.state != "closed":
            log.warning("limits_redis_back")
        self.breaker.succeeded()
        self._flush()
        self._on_up()

    def _flush(self) -> None:
        self._flushing = False
        if self._wire is not None and self._queue:
            self._write(self._wire)
        if self._writing:
            writing, self._writing = self._writing, []
            for waiter in writing:
                if not waiter.done():
                    waiter.set_result(None)

    def _write(self, wire: Wire) -> None:
        queue, self._queue = self._queue, []
        self._shared = len(queue) > 1
        due, until_us = 0.0, 0
        packed = []
        for command in queue:
            if command.due != due:  # one turn's commands share it
                due = command.due
                until_us = self.server_us(due)
            packed.append(pack(command.args(until_us)))
        wire.write(b"".join(packed))
        self._unanswered.extend(queue)

    def _reply(self, reply: Any) -> None:
        command = self._unanswered.popleft()
        if isinstance(reply, ReplyError):
            text = str(reply)
            if text.startswith("NOSCRIPT") and command.scripted and not command.reloaded:
                self._reload(command)
                return
            if text.startswith(_AWAY):
                command.failed(LinkDown(text[:64], sent=False))
                self._lost(text[:64], timed_out=True)
                return
        command.answered(reply)

    def _reload(self, command: Command) -> None:
        """Repeat a command after loading the scripts; those of one turn share one loading."""
        command.reloaded = True
        if not any(isinstance(queued, _Load) for queued in self._queue):
            for script in self._scripts:
                load = _Load(script)
                load.due = command.due
                self._queue.append(load)
        self._queue.append(command)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _overdue(self) -> None:
        """The oldest command's time may be over: give the loop one more look at the socket, then fail."""
        self._timer = None
        loop = asyncio.get_running_loop()
        oldest = self._oldest()
        if oldest is None:
            return
        left = oldest + _GRACE_S - loop.time()
        if left > 0:
            self._timer = loop.call_at(oldest + _GRACE_S, self._overdue)
        elif self._wire is not None:
            self._lost("timeout", timed_out=True)
        else:
            self._fail_queued(loop.time())

    def _oldest(self) -> float | None:
        # not those at the heads alone: a command that is sent again has less time than those before it
        return min((command.due for queue in (self._unanswered, self._queue) for command in queue), default=None)

    def _fail_queued(self, now: float) -> None:
        """Not connected: what has waited its whole time is failed; what came later waits on."""
        late = [command for command in self._queue if command.due <= now]
        self._queue = [command for command in self._queue if command.due > now]
        if (oldest := self._oldest()) is not None:
            self._timer = asyncio.get_running_loop().call_at(oldest, self._overdue)
        for command in late:
            command.failed(LinkDown("not connected", sent=False))

    def _gone(self) -> None:
        self._lost("connection lost", timed_out=False)

    def _lost(self, reason: str, *, timed_out: bool) -> None:
        """The connection is of no use any more. What was unanswered fails; what waits goes on when the breaker lets it."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        before = self.breaker.state
        self.breaker.failed(asyncio.get_running_loop().time(), timed_out=timed_out)
        if before == "closed" and self.breaker.state == "open":
            self.outages += 1
            log.warning("limits_redis_out", extra={"reason": reason})
        self._down.set()
        self._fail_all(reason, queued=not self.breaker.closed)

    def _fail_all(self, reason: str, *, queued: bool = True) -> None:
        unanswered, self._unanswered = self._unanswered, deque()
        for command in unanswered:
            command.failed(LinkDown(reason, sent=True))
        if queued:
            waiting, self._queue = self._queue, []
            for command in waiting:
                command.failed(LinkDown(reason, sent=command.reloaded))
