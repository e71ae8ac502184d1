"""The root of the process tree: starts the roles, starts them again when they die, ends them in order, and watches the
configuration file. A blocking loop over one selector, without threads and without asyncio, so that forking is safe.

Whoever dies, the supervisor goes on; when it dies itself, every child sees its pipe close and ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from gateway.config.watcher import Watcher, stamp_of
from gateway.runtime import control
from gateway.runtime.backoff import Backoff
from gateway.runtime.engine_keeper import EngineKeeper, Unload
from gateway.runtime.process import Process, start_fork
from gateway.runtime.roles import FATAL_EXIT, ForkRole, Stage

#: How often the configuration file is looked at.
WATCH_S = 0.2
#: What gate, ledger and hosts get to end after the workers have.
PROCESSES_S = 10.0
#: After a second signal, everything gets this long.
HURRY_S = 5.0

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Log(Protocol):
    """Where events go; never waits."""

    def event(self, name: str, /, **fields: object) -> None:
        """One event."""


@dataclass(frozen=True, kw_only=True)
class Reload:
    """A configuration file. `check` raises when its bytes may not be used, with a message for the user."""

    path: Path
    check: Callable[[bytes], object]


#: A process that was killed may take a moment to be gone: no turn after turn meanwhile.
_DYING_S = 0.02


class _Kept:
    """A role and its present process, if any."""

    def __init__(self, role: ForkRole) -> None:
        self.role = role
        self.process: Process | None = None
        self.backoff = Backoff()
        self.started = 0.0
        self.due: float | None = 0.0
        self.ready = False


class Supervisor:
    """Keeps a set of roles alive until told to stop.

    Args:
        roles: started in this order.
        engines: the local engines' hosts.
        requests_s: what the roles of the stage `requests` get to end in good order.
        reload: the file whose changes (and SIGHUP) are sent to the forked roles, after a check.
        on_ready: called once, when every role of the stage `requests` has said that it serves.
    """

    def __init__(
        self,
        roles: Sequence[ForkRole],
        log: Log,
        *,
        engines: EngineKeeper | None = None,
        requests_s: float = 75.0,
        reload: Reload | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._kept = [_Kept(role) for role in roles]
        self._engines = engines
        self._log, self._requests_s, self._reload, self._on_ready = log, requests_s, reload, on_ready
        self._selector = selectors.DefaultSelector()
        self._alive_r, self._alive_w = os.pipe()
        self._wake_r, self._wake_w = os.pipe()
        self._watcher = Watcher(stamp_of(reload.path) if reload else None)
        self._config: bytes | None = None
        self._refused: str | None = None
        self._status = 0
        self._stopping: Stage | None = None
        self._deadline = 0.0
        self._signals = 0
        self._announced = False
        self._began = time.monotonic()

    def run(self) -> int:
        """Until a signal ends it; returns the exit status: 0, or 78 when a role said that no restart can help."""
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._selector.register(self._wake_r, selectors.EVENT_READ, None)
        handlers = {number: signal.signal(number, _ignore) for number in _SIGNALS}
        wakeup = signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()
        self._log.event("supervisor_started", roles=[kept.role.name for kept in self._kept])
        try:
            while not self._ended():
                self._turn()
        finally:
            self._kill_all()
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._selector.close()
            if self._engines is not None:
                self._engines.close()
            for fd in (self._alive_r, self._alive_w, self._wake_r, self._wake_w):
                os.close(fd)
        self._log.event("supervisor_stopped", status=self._status)
        return self._status

    def _turn(self) -> None:
        """One turn: start what is due, wait for something, see to it."""
        if self._engines is not None and self._engines.turn(self._selector, self._alive_r):
            self._tell_all(self._engine_states())
        now = time.monotonic()
        for kept in self._kept:
            if kept.process is None and kept.due is not None and kept.due <= now and self._wanted(kept):
                self._start(kept)
        for key, mask in self._selector.select(self._patience(time.monotonic())):
            if key.data is None:
                self._woken()
            elif isinstance(key.data, _Kept):
                self._spoke(key.data, mask)
        self._reap()
        if self._reload is not None and self._stopping is None:
            changed = self._watcher.look(stamp_of(self._reload.path), int(time.monotonic() * 1000))
            if changed:
                self._load()
        self._advance()

    def _patience(self, now: float) -> float:
        """Seconds until something is due at the latest."""
        waits = [kept.due - now for kept in self._kept if kept.process is None and kept.due is not None and self._wanted(kept)]
        if self._stopping is not None:
            waits.append(max(self._deadline - now, _DYING_S))
        if self._reload is not None and self._stopping is None:
            waits.append(WATCH_S)
        if self._engines is not None:
            waits.append(self._engines.patience_s)
        return max(0.0, min([1.0, *waits]))

    def _wanted(self, kept: _Kept) -> bool:
        """Whether a role is to run: while requests end, what serves them still is."""
        return self._stopping is None or (self._stopping == "requests" and kept.role.stage == "processes")

    def _start(self, kept: _Kept) -> None:
        kept.due, kept.ready, kept.started = None, False, time.monotonic()
        try:
            kept.process = start_fork(kept.role, self._log, self._own_fds())
        except OSError as error:
            delay_s = kept.backoff.died(0.0)
            kept.due = time.monotonic() + delay_s
            self._log.event("process_not_started", role=kept.role.name, error=str(error), again_in_s=delay_s)
            return
        self._log.event("process_started", role=kept.role.name, child=kept.process.pid)
        if kept.process.channel is not None:
            self._selector.register(kept.process.channel, selectors.EVENT_READ, kept)
            if self._engines is not None:
                self._say(kept, self._engine_states())
            if self._config is not None:
                self._say(kept, control.frame(control.CONFIG, self._config))
            if self._refused is not None:
                self._say(kept, control.frame(control.REFUSED, self._refused.encode()))

    def _own_fds(self) -> list[int]:
        """What a forked child must close: the supervisor's own ends, or its death would go unnoticed."""
        channels = [k.process.channel.fileno() for k in self._kept if k.process is not None and k.process.channel is not None]
        pipes = self._engines.descriptors if self._engines is not None else []
        return [self._alive_r, self._alive_w, self._wake_r, self._wake_w, self._selector.fileno(), *channels, *pipes]

    def _engine_states(self) -> bytes:
        states = self._engines.states() if self._engines is not None else ()
        return control.frame(control.ENGINES, msgspec.json.encode(states))

    def _say(self, kept: _Kept, data: bytes) -> None:
        """Queue bytes for a forked role; what its socket does not take now goes when it does."""
        process = kept.process
        if process is None or process.channel is None:
            return
        process.unsent += data
        self._write(kept)

    def _write(self, kept: _Kept) -> None:
        process = kept.process
        assert process is not None
        assert process.channel is not None
        with contextlib.suppress(BlockingIOError):
            try:
                while process.unsent:
                    del process.unsent[: process.channel.send(process.unsent)]
            except (BrokenPipeError, ConnectionResetError):
                process.unsent.clear()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.unsent else 0)
        self._selector.modify(process.channel, events, kept)

    def _spoke(self, kept: _Kept, mask: int) -> None:
        """A child's channel is ready."""
        process = kept.process
        if process is None or process.channel is None:
            return
        if mask & selectors.EVENT_WRITE:
            self._write(kept)
        if not mask & selectors.EVENT_READ:
            return
        try:
            data = process.channel.recv(65536)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._selector.unregister(process.channel)
            process.channel.close()
            process.channel = None
            return
        for kind, payload in process.messages.feed(data):
            if kind == control.READY and not kept.ready:
                kept.ready = True
                self._log.event("process_ready", role=kept.role.name, after_s=round(time.monotonic() - kept.started, 3))
            elif kind == control.WANT and self._engines is not None:
                self._engines.want(payload.decode())
            elif kind == control.UNLOAD and self._engines is not None:
                self._engines.unload(msgspec.json.decode(payload, type=Unload))
        if not self._announced and all(k.ready for k in self._kept if k.role.stage == "requests"):
            self._announced = True
            self._log.event("ready", after_s=round(time.monotonic() - self._began, 3))
            self._on_ready()

    def _woken(self) -> None:
        """Signals arrived; their numbers are the bytes of the self-pipe."""
        for number in os.read(self._wake_r, 4096):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._signals += 1
                self._log.event("signal", name=signal.Signals(number).name, count=self._signals)
                if self._signals == 1:
                    self._stop("requests", self._requests_s)
                elif self._signals == 2:
                    self._hurry()
                else:
                    self._deadline = 0.0
            elif number == signal.SIGHUP:
                self._load()

    def _reap(self) -> None:
        """Notice who died; what is still wanted is due again after its backoff."""
        for kept in self._kept:
            process = kept.process
            if process is None or (status := process.ended()) is None:
                continue
            if process.channel is not None:
                self._selector.unregister(process.channel)
                process.channel.close()
            kept.process = None
            lived_s = time.monotonic() - kept.started
            fields = {"role": kept.role.name, "child": process.pid, "status": status, "lived_s": round(lived_s, 3)}
            if not self._wanted(kept):
                self._log.event("process_ended", **fields)
            elif status == FATAL_EXIT:
                self._log.event("process_fatal", **fields)
                self._status = FATAL_EXIT
                self._stop("requests", self._requests_s)
                self._hurry()
            else:
                delay_s = kept.backoff.died(lived_s)
                kept.due = time.monotonic() + delay_s
                self._log.event("process_died", **fields, again_in_s=delay_s)

    def _load(self) -> None:
        """Read the file, check it, send it on; a file that may not be used changes nothing but log and metric."""
        if self._reload is None:
            return
        try:
            data = self._reload.path.read_bytes()
            self._reload.check(data)
        except Exception as error:  # whatever a bad file makes the check raise, the old one stays in use
            self._refused = str(error) or type(error).__name__
            self._log.event("config_reload_failed", file=self._reload.path.name, error=self._refused)
            self._tell_all(control.frame(control.REFUSED, self._refused.encode()))
            return
        self._config, self._refused = data, None
        self._log.event("config_reloaded", file=self._reload.path.name)
        self._tell_all(control.frame(control.CONFIG, data))

    def _tell_all(self, data: bytes) -> None:
        for kept in self._kept:
            self._say(kept, data)

    def _stop(self, stage: Stage, patience_s: float) -> None:
        """Begin to end the roles of a stage."""
        if self._stopping == stage:
            return
        self._stopping = stage
        self._deadline = time.monotonic() + patience_s
        for kept in self._kept:
            if kept.role.stage == stage and kept.process is not None:
                self._say(kept, control.frame(control.DRAIN))
        if stage == "processes" and self._engines is not None:
            self._engines.signal_all(signal.SIGTERM)

    def _hurry(self) -> None:
        self._deadline = min(self._deadline, time.monotonic() + HURRY_S)
        self._tell_all(control.frame(control.HURRY))

    def _advance(self) -> None:
        """Go on to the next stage when one has ended, by force when its time is over."""
        if self._stopping is None:
            return
        running = [k for k in self._kept if k.process is not None and k.role.stage == self._stopping]
        hosts = self._engines if self._stopping == "processes" and self._engines is not None else None
        if (running or (hosts is not None and hosts.running)) and time.monotonic() >= self._deadline:
            for kept in running:
                assert kept.process is not None
                self._log.event("process_killed", role=kept.role.name, child=kept.process.pid)
                kept.process.signal(signal.SIGKILL)
            if hosts is not None:
                hosts.signal_all(signal.SIGKILL)
            self._deadline = time.monotonic() + 1.0
        elif not running and self._stopping == "requests":
            self._stop("processes", HURRY_S if self._signals > 1 else PROCESSES_S)

    def _ended(self) -> bool:
        hosts = self._engines is not None and self._engines.running
        return self._stopping == "processes" and not hosts and all(kept.process is None for kept in self._kept)

    def _kill_all(self) -> None:
        for kept in self._kept:
            if kept.process is not None:
                kept.process.signal(signal.SIGKILL)


def _ignore(number: int, frame: object) -> None:
    """The self-pipe has the number already; a handler must exist for it to be written."""
