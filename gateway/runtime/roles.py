"""What the supervisor is told to keep alive: forked Python roles and exec'd hosts."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class ExecRole:
    """A program of its own.

    `command` gets the number of an inherited pipe whose end of file means that the supervisor is gone, and gives the
    argument list and the bytes for standard input.
    """

    name: str
    command: Callable[[int], tuple[list[str], bytes]]
    env: dict[str, str] = field(default_factory=dict)
    stage: Stage = "processes"


Role = ForkRole | ExecRole
