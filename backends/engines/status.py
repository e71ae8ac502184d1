"""What a host tells its supervisor over an inherited pipe: JSON lines, each short enough to be written whole or not at all.

The host speaks every half second, so that its silence means something; a line that the pipe has no room for is left
out, because a supervisor that does not read has no use for an old one.
"""

from __future__ import annotations

import contextlib
import os
from typing import Literal

import msgspec

#: Seconds between two `alive` lines.
EVERY_S = 0.5
#: Characters of a reason; with the rest of its line it stays below PIPE_BUF (4096 bytes).
MAX_REASON = 900


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """`ready`: loaded, with this much resident memory. `failed`: it ends, and why. `alive`: it runs.

    `open`: jobs that workers have in it; `taken`: jobs it has taken since its start; `step_s`: how long the engine
    thread has been at what it is doing, 0 when it waits for work.
    """

    event: Literal["ready", "failed", "alive"]
    open: int = 0
    taken: int = 0
    step_s: float = 0.0
    memory_mb: int = 0
    reason: str = ""


_read = msgspec.json.Decoder(Status).decode


class StatusPipe:
    """The host's end; nothing is written where there is no pipe."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_blocking(fd, False)

    def tell(self, status: Status) -> None:
        """Write it, unless the pipe is full or nobody is there."""
        if self._fd is not None:
            cut = msgspec.structs.replace(status, reason=status.reason[:MAX_REASON])
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self._fd, msgspec.json.encode(cut) + b"\n")


class StatusLines:
    """Bytes of the pipe to statuses, any split. A line that cannot be read is left out: another follows soon."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Status]:
        """The statuses completed by these bytes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        found: list[Status] = []
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                found.append(_read(line))
        return found
