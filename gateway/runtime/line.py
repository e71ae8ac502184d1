"""A forked role's event loop and its ear for the supervisor: drain, hurry, new configuration, and the supervisor's death."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import uvloop

from gateway.runtime import control
from gateway.runtime.roles import Child

#: What a child whose supervisor died gets to settle what is open.
ORPHAN_S = 1.2


class Line:
    """The supervisor's line into a child. SIGTERM from anybody means the same as its `drain`."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.draining = asyncio.Event()
        self.hurried = asyncio.Event()
        self.woken = asyncio.Event()
        self._messages = control.Messages()
        self._config: bytes | None = None
        self._refused: str | None = None
        self._on_config: Callable[[bytes], None] | None = None
        self._on_refused: Callable[[str], None] | None = None
        self._engines: bytes | None = None
        self._on_engines: Callable[[bytes], None] | None = None
        self._loop = asyncio.get_running_loop()
        child.channel.setblocking(False)
        self._loop.add_reader(child.channel.fileno(), self._readable)
        self._loop.add_signal_handler(signal.SIGTERM, self._drain)

    def ready(self) -> None:
        """Tell the supervisor that this role serves."""
        self.say(control.READY)

    def say(self, kind: bytes, payload: bytes = b"") -> None:
        """Tell the supervisor something. It is lost when the supervisor does not read: whoever needs it says it again."""
        try:
            self.child.channel.send(control.frame(kind, payload))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return

    def watch_engines(self, on_engines: Callable[[bytes], None]) -> None:
        """Who hears of the engines' states from now on (JSON); what came before is told at once."""
        self._on_engines = on_engines
        if self._engines is not None:
            on_engines(self._engines)

    def listen(self, on_config: Callable[[bytes], None], on_refused: Callable[[str], None]) -> None:
        """Who hears of configurations from now on, and of refused ones; what came before is told at once."""
        self._on_config, self._on_refused = on_config, on_refused
        if self._config is not None:
            on_config(self._config)
        if self._refused is not None:
            on_refused(self._refused)

    def _readable(self) -> None:
        try:
            data = self.child.channel.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._orphaned()
            return
        for kind, payload in self._messages.feed(data):
            self._heard(kind, payload)

    def _heard(self, kind: bytes, payload: bytes) -> None:
        if kind == control.DRAIN:
            self._drain()
        elif kind == control.HURRY:
            self._hurry()
        elif kind == control.CONFIG:
            self._config, self._refused = payload, None
            if self._on_config is not None:
                self._on_config(payload)
        elif kind == control.ENGINES:
            self._engines = payload
            if self._on_engines is not None:
                self._on_engines(payload)
        elif kind == control.REFUSED:
            self._refused = payload.decode()
            if self._on_refused is not None:
                self._on_refused(self._refused)

    def _drain(self) -> None:
        self.draining.set()
        self.woken.set()

    def _hurry(self) -> None:
        self.hurried.set()
        self._drain()

    def _orphaned(self) -> None:
        """The supervisor is gone: settle quickly and go; nobody would restart or stop this process any more."""
        self._loop.remove_reader(self.child.channel.fileno())
        self._loop.call_later(ORPHAN_S, os._exit, 1)
        self._hurry()


def run_async(child: Child, main: Callable[[Line], Awaitable[None]]) -> int:
    """Run a role's coroutine on a uvloop of its own; it returns when `line.draining` told it to. Exit status 0."""

    async def run() -> None:
        await main(Line(child))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return 0
