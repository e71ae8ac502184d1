"""The one thread that owns a host's engine. Commands come by a queue; what happened is posted to the event loop."""

from __future__ import annotations

import importlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import msgspec

from backends.core.contracts import CountsPrompts, Engine
from backends.core.events import Event
from backends.core.request import Job
from backends.core.usage import Usage
from backends.engines.launch import EngineLaunch
from backends.engines.options import EngineLoadFailed

Stepped = Sequence[tuple[str, Sequence[Event]]]
Command = Callable[[], None]
Post = Callable[..., None]


class Report(Protocol):
    """What the thread has to tell; always called on the loop."""

    def loaded(self, description: dict[str, object]) -> None:
        """The model is up."""

    def load_failed(self, reason: str) -> None:
        """The model did not load; the thread has ended."""

    def engine_failed(self, reason: str) -> None:
        """The engine raised out of a step; the thread has ended."""

    def refuse(self, id: str, error: Exception) -> None:
        """The engine did not take a job."""

    def deliver(self, stepped: Stepped) -> None:
        """Events of one step."""

    def cancelled(self, id: str, made: Usage | None) -> None:
        """The engine has forgotten a job, which had come to so much, where it can tell."""


class EngineThread:
    """The one thread that touches the engine. Its `tell` callables run on it and must post back to the loop."""

    def __init__(self, launch: EngineLaunch, post: Post, report: Report) -> None:
        self._launch = launch
        self._post = post
        self._report = report
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._engine: Engine | None = None
        self._busy_since: float | None = None

    @property
    def step_s(self) -> float:
        """Seconds that the thread has been at its present step or command, or that it waits for who computes; else 0."""
        since, engine = self._busy_since, self._engine
        own = 0.0 if since is None else time.monotonic() - since
        return own if engine is None else max(own, engine.waiting_s())

    def start(self) -> None:
        """Load the model and then run, on the thread."""
        self._thread.start()

    def submit(self, id: str, job: Job) -> None:
        """Give the engine a job."""
        self._give(partial(self._submit, id, job))

    def cancel(self, id: str) -> None:
        """Have the engine forget a job, in the middle of a long step if need be."""
        self._give(partial(self._cancel, id))
        if self._engine is not None:
            self._engine.hurry()

    def figures(self, tell: Callable[[dict[str, object]], None]) -> None:
        """Have the engine's figures told."""
        self._give(lambda: tell(dict(self._loaded.describe())))

    def prompt_tokens(self, job: Job) -> int | None:
        """How many tokens a job's prompts have; None where the engine cannot tell. Not on its thread, which computes."""
        engine = self._engine
        if not isinstance(engine, CountsPrompts):
            return None
        try:
            return engine.prompt_tokens(job)
        except Exception:  # whatever it says to the job, it says when it is given it
            return None

    def stop(self, wait_s: float) -> bool:
        """End after the current step. Whether it did within the time."""
        self._give(None)
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _give(self, command: Command | None) -> None:
        self._commands.put(command)
        if self._engine is not None:
            self._engine.nudge()

    @property
    def _loaded(self) -> Engine:
        assert self._engine is not None, "commands are given after loading"
        return self._engine

    def _main(self) -> None:
        try:
            self._engine = load_engine(self._launch)
        except EngineLoadFailed as error:
            self._post(self._report.load_failed, str(error))
            return
        except Exception as error:  # whatever a foreign loader raises: the process reports and ends
            self._post(self._report.load_failed, f"{type(error).__name__}: {error}")
            return
        self._post(self._report.loaded, dict(self._engine.describe()))
        try:
            while self._take_commands():
                self._busy_since = time.monotonic()
                if events := self._engine.step():
                    self._post(self._report.deliver, events)
        except Exception as error:  # the engine is in an unknown state: its process is given up
            self._post(self._report.engine_failed, f"{type(error).__name__}: {error}")
        else:
            self._engine.close()

    def _take_commands(self) -> bool:
        """Run what is waiting; sleep for a command while the engine is idle. False: stop."""
        while True:
            self._busy_since = None
            try:
                command = self._commands.get(block=not self._loaded.busy())
            except queue.Empty:
                return True
            if command is None:
                return False
            self._busy_since = time.monotonic()
            command()

    def _submit(self, id: str, job: Job) -> None:
        try:
            self._loaded.submit(job, id)
        except Exception as error:  # only this request fails
            self._post(self._report.refuse, id, error)

    def _cancel(self, id: str) -> None:
        self._post(self._report.cancelled, id, self._loaded.cancel(id))


def load_engine(launch: EngineLaunch) -> Engine:
    """The engine that the launch names.

    Raises:
        EngineLoadFailed: there is no such class, or the engine said why it cannot start.
    """
    module, _, name = launch.engine.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, OSError) as error:
        raise EngineLoadFailed(f"engine {launch.engine!r} cannot be imported: {error}") from None
    engine: Engine = kind(msgspec.structs.replace(launch, token=""))
    return engine
