"""What the supervisor is told to keep alive beside the engines: Python functions, each in a forked process."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

#: A role's exit status that says: a restart cannot mend this, end the whole gateway (sysexits.h EX_CONFIG).
FATAL_EXIT = 78

#: When a role ends at a shutdown: those that hold requests first, those that serve them after.
Stage = Literal["requests", "processes"]


@dataclass(frozen=True)
class Child:
    """What a forked role gets. `boot` (ns) grows with each incarnation; `channel` speaks `control`."""

    name: str
    boot: int
    channel: socket.socket


@dataclass(frozen=True, kw_only=True)
class ForkRole:
    """A Python function in a process of its own; returns the exit status. It shares what was imported before."""

    name: str
    run: Callable[[Child], int]
    stage: Stage = "processes"
