"""What an engine did, step by step, as JSON lines: for tests and for looking at a scheduler at work.

Lines carry `t`, the machine's monotonic clock in seconds, so that another process of it can compare. `event` is one
of `submit`, `refuse`, `cancel` (with `was`: queued, prefill or decode), `finish`, `fail` with an `id`, or `step` with
`rows` (tokens in the batch by job id), `prefill` and `decode` (their sums), `step_s` and `model_s` (seconds of the
whole step and inside the model).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec


class Journal:
    """Two optional files: `lifecycle` takes the jobs' lines, `steps` takes those and the steps'."""

    def __init__(self, steps: str | None = None, lifecycle: str | None = None) -> None:
        """Open for appending, unbuffered: a killed process loses no line.

        Raises:
            OSError: a path cannot be opened.
        """
        self._steps = _open(steps)
        self._lifecycle = _open(lifecycle)
        self.on = self._steps is not None or self._lifecycle is not None

    def job(self, event: str, id: str, **fields: object) -> None:
        """A line about one job."""
        if self.on:
            line = msgspec.json.encode({"t": time.monotonic(), "event": event, "id": id, **fields}) + b"\n"
            for file in (self._steps, self._lifecycle):
                if file is not None:
                    file.write(line)

    def step(self, rows: Mapping[str, int], prefill: int, decode: int, step_s: float, model_s: float) -> None:
        """A line about one step."""
        if self._steps is not None:
            line = {
                "t": time.monotonic(),
                "event": "step",
                "rows": rows,
                "prefill": prefill,
                "decode": decode,
                "step_s": step_s,
                "model_s": model_s,
            }
            self._steps.write(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        """Close the files."""
        for file in (self._steps, self._lifecycle):
            if file is not None:
                file.close()


def _open(path: str | None) -> BinaryIO | None:
    return Path(path).open("ab", buffering=0) if path else None
