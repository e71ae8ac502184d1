"""The effects of `lifecycle`: starts, drains, stops and kills engine hosts, and hears what they say. For the supervisor.

Nothing here waits: the supervisor's loop calls it with what its selector saw.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from backends.engines.launch import EngineLaunch, command
from backends.engines.status import Status, StatusLines
from gateway.domain.engines import EngineState, FailureCode
from gateway.runtime.lifecycle import Effect, Lifecycle
from gateway.runtime.process import Process, start_program

#: Exit statuses of a host (`backends.engines.host`).
_WORDS = {2: "its launch was refused", 3: "it could not load the model", 4: "the engine failed"}


class _Log(Protocol):
    def event(self, name: str, /, **fields: object) -> None: ...


class Unload(msgspec.Struct, frozen=True):
    """A worker's message: free this engine's memory."""

    name: str
    force: bool = False


class _Host:
    """One running host."""

    def __init__(self, name: str, process: Process, status_fd: int, now: float) -> None:
        self.name, self.process, self.status_fd, self.started = name, process, status_fd, now
        self.lines = StatusLines()
        self.reason = ""
        self.loaded = False


class EngineKeeper:
    """All engine hosts of a gateway.

    Args:
        launches: one for each engine; their descriptors are set here.

    Raises:
        ValueError: a launch cannot work, with a sentence saying why.
    """

    def __init__(self, launches: Sequence[EngineLaunch], lifecycle: Lifecycle, log: _Log) -> None:
        for launch in launches:
            if (problem := launch.problem()) is not None:
                raise ValueError(f"engine {launch.name}: {problem}")
        self._launches = {launch.name: launch for launch in launches}
        self._lifecycle, self._log = lifecycle, log
        self._hosts: dict[str, _Host] = {}
        self._unloads: list[Unload] = []
        self._told: list[EngineState] = []
        self._stopping = False

    @property
    def running(self) -> bool:
        """Whether there is a host process."""
        return bool(self._hosts)

    @property
    def descriptors(self) -> list[int]:
        """What a forked child must close."""
        return [host.status_fd for host in self._hosts.values()]

    @property
    def patience_s(self) -> float:
        """Seconds until the next turn at the latest."""
        return self._lifecycle.patience()

    def states(self) -> tuple[EngineState, ...]:
        """Every engine's state now."""
        return self._lifecycle.states(time.monotonic())

    def want(self, name: str) -> None:
        """A request waits for it, or a person loads it."""
        if name in self._lifecycle:
            self._lifecycle.want(name)

    def unload(self, wish: Unload) -> None:
        """Free its memory, at the next turn."""
        if wish.name in self._lifecycle:
            self._unloads.append(wish)

    def turn(self, selector: selectors.BaseSelector, alive_fd: int) -> bool:
        """Hear the hosts, reap them, and do what is due. Whether states have changed that others should know of."""
        for host in list(self._hosts.values()):
            self._hear(host, selector, alive_fd)
            self._reap(host, selector)
        now = time.monotonic()
        unloads, self._unloads = self._unloads, []
        for wish in unloads:
            self._carry_out(self._lifecycle.unload(wish.name, now, force=wish.force), selector, alive_fd)
        if not self._stopping:
            self._carry_out(self._lifecycle.look(now), selector, alive_fd)
        told, self._told = self._told, _worth_telling(self._lifecycle.states(now))
        return told != self._told

    def signal_all(self, number: int) -> None:
        """To every host; nothing is started any more."""
        self._stopping = True
        for host in self._hosts.values():
            host.process.signal(number)
            if number == signal.SIGKILL:
                self._log.event("process_killed", role=f"engine:{host.name}", child=host.process.pid)

    def close(self) -> None:
        """Kill what is left and close the pipes."""
        for host in self._hosts.values():
            host.process.signal(signal.SIGKILL)
            os.close(host.status_fd)
        self._hosts.clear()

    def _carry_out(self, effects: Sequence[Effect], selector: selectors.BaseSelector, alive_fd: int) -> None:
        for effect in effects:
            host = self._hosts.get(effect.name)
            if effect.do == "start":
                self._start(effect.name, selector, alive_fd)
            elif host is not None:
                self._log.event(f"engine_{effect.do}", engine=effect.name, child=host.process.pid)
                number = {"drain": signal.SIGUSR1, "stop": signal.SIGTERM, "kill": signal.SIGKILL}[effect.do]
                host.process.signal(number)

    def _start(self, name: str, selector: selectors.BaseSelector, alive_fd: int) -> None:
        now = time.monotonic()
        read, write = os.pipe()
        try:
            launch = msgspec.structs.replace(self._launches[name], parent_fd=alive_fd, status_fd=write)
            argv, data = command(launch)
            process = start_program(argv, data, (alive_fd, write))
        except OSError as error:
            os.close(read)
            self._log.event("process_not_started", role=f"engine:{name}", error=str(error))
            self._lifecycle.ended(name, now, 0.0, "load_failed", f"its process could not be started: {error.strerror}")
            return
        finally:
            os.close(write)
        os.set_blocking(read, False)
        host = self._hosts[name] = _Host(name, process, read, now)
        selector.register(read, selectors.EVENT_READ, host)
        self._log.event("process_started", role=f"engine:{name}", child=process.pid)

    def _hear(self, host: _Host, selector: selectors.BaseSelector, alive_fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(host.status_fd, 65_536):
                for status in host.lines.feed(data):
                    self._carry_out(self._heard(host, status), selector, alive_fd)
            with contextlib.suppress(KeyError):
                selector.unregister(host.status_fd)  # its end of file: it will be reaped

    def _heard(self, host: _Host, status: Status) -> Sequence[Effect]:
        now = time.monotonic()
        if status.event == "ready":
            host.loaded = True
            self._log.event("process_ready", role=f"engine:{host.name}", after_s=round(now - host.started, 3))
            self._lifecycle.ready(host.name, status.memory_mb, now)
            return ()
        if status.event == "failed":
            host.reason = status.reason
            return ()
        return self._lifecycle.alive(host.name, status.open, status.taken, status.step_s, now)

    def _reap(self, host: _Host, selector: selectors.BaseSelector) -> None:
        status = host.process.ended()
        if status is None:
            return
        with contextlib.suppress(KeyError):
            selector.unregister(host.status_fd)
        os.close(host.status_fd)
        del self._hosts[host.name]
        now = time.monotonic()
        lived_s = now - host.started
        code: FailureCode = "crashed" if host.loaded else "load_failed"
        self._lifecycle.ended(host.name, now, lived_s, code, host.reason or _told_by(status))
        fields = {"role": f"engine:{host.name}", "child": host.process.pid, "status": status, "lived_s": round(lived_s, 3)}
        (state,) = (one for one in self._lifecycle.states(now) if one.name == host.name)
        if self._stopping or state.state != "failed":
            self._log.event("process_ended", **fields)
        else:
            again = {"again_in_s": round(state.retry_ms / 1000, 3)} if state.retry_ms else {}
            self._log.event("engine_crashed", **fields, code=state.code, reason=" ".join(state.detail.split()), **again)


def _told_by(status: int) -> str:
    """What an exit status says."""
    if status >= 0:
        return _WORDS.get(status, f"its process ended with status {status}")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    return f"its process was ended by {name}" + (", perhaps for lack of memory" if -status == signal.SIGKILL else "")


def _worth_telling(states: Sequence[EngineState]) -> list[EngineState]:
    """Without what changes all the time."""
    return [msgspec.structs.replace(state, retry_ms=0, open=0) for state in states]
