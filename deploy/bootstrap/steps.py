"""Long steps told as they happen: what begins, how far it is, how many seconds it took, and its log when it fails.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Seconds between two lines of progress of one step.
PROGRESS_S = 20.0
_NINJA = re.compile(rb"^\[(\d+)/(\d+)\]")


class StepFailed(Exception):
    """A step cannot go on; the text says what to do."""


class Steps:
    """Runs commands with their output in log files, and says on standard output what happens."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def say(self, text: str) -> None:
        """One line, with the seconds since the start."""
        with self._lock:
            print(f"[{time.monotonic() - self._began:4.0f} s] {text}", flush=True)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Says that a step begins, and how long it took when it ends well."""
        began = time.monotonic()
        self.say(f"{what} ...")
        yield
        self.say(f"{what}: done in {time.monotonic() - began:.0f} s")

    def run(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """Run a command; its output goes to `<logs>/<name>.log`.

        Raises:
            StepFailed: it ended with an error; the text has the log's last lines.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        told = time.monotonic()
        with log.open("wb") as out:
            process = self._start([str(part) for part in command], environment)
            try:
                if process.stdout is None:
                    raise StepFailed(f"{name}: no output to read")
                for line in process.stdout:
                    out.write(line)
                    out.flush()
                    found = _NINJA.match(line)
                    if found and time.monotonic() - told > PROGRESS_S:
                        told = time.monotonic()
                        self.say(f"  {name}: {int(found[1])} of {int(found[2])} files")
                code = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
        if code != 0:
            raise StepFailed(f"{name} failed (exit {code}); the end of {log}:\n{tail(log)}")

    def stop(self) -> None:
        """End every command that still runs, with its children."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)

    def _start(self, command: list[str], environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise StepFailed("stopped")
            process = subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
            return process


def tail(log: Path, lines: int = 25) -> str:
    """The last lines of a log, indented."""
    text = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in text)


class Stamps:
    """Which steps are done, each with the inputs that it was done for: an interrupted install goes on where it was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def done(self, name: str, inputs: str) -> bool:
        """Whether a step was done for these inputs."""
        return self.inputs(name) == inputs

    def inputs(self, name: str) -> str | None:
        """What a step was last done for; None = never."""
        try:
            return (self._folder / name).read_text(encoding="utf-8")
        except OSError:
            return None

    def mark(self, name: str, inputs: str) -> None:
        """A step is done. Atomic."""
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f".{name}"
        draft.write_text(inputs, encoding="utf-8")
        draft.replace(self._folder / name)

    def forget(self, name: str) -> None:
        """A step is to be done again."""
        (self._folder / name).unlink(missing_ok=True)
