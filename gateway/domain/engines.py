"""What is known of a local engine from outside: how it is to be kept, and the state it is in."""

from __future__ import annotations

from typing import Literal

import msgspec

#: unloaded: no process. waiting: wanted, and there is no room in the memory budget yet. loading: its process has begun.
#: draining: it answers what it has and takes nothing new, then its process ends. failed: its process died.
EngineStateName = Literal["unloaded", "waiting", "loading", "ready", "draining", "failed"]
#: Why an engine failed, in a word that anyone may see.
FailureCode = Literal["", "load_failed", "crashed", "hung", "no_room"]


class EngineKeep(msgspec.Struct, frozen=True):
    """How one engine is kept.

    `memory_mb`: what it counts for in the budget; with `measured` the resident memory of its loaded process takes that
    place where it is more. `idle_unload_s` 0 = never. `watchdog_s`: a step, and `load_timeout_s`: a load, may take so long.
    `memory_limit_mb`: of its process' data, 0 = none.
    """

    name: str
    eager: bool = True
    idle_unload_s: float = 0.0
    memory_mb: int = 0
    measured: bool = True
    watchdog_s: float = 60.0
    load_timeout_s: float = 600.0
    memory_limit_mb: int = 0


class EngineState(msgspec.Struct, frozen=True):
    """One engine now.

    `code` and `detail` say why it failed (`detail` is for administrators: it may hold paths); `retry_ms`: until it is
    started again, 0 when that waits for a request. `open`: jobs in its process as last told. `loads`: processes so far.
    """

    name: str
    state: EngineStateName
    code: FailureCode = ""
    detail: str = ""
    retry_ms: int = 0
    memory_mb: int = 0
    open: int = 0
    loads: int = 0
