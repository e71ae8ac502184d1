"""Which local engines have a process: a pure machine. Facts and the time go in, effects come out, `engine_keeper` acts.

    unloaded ─wanted→ waiting ─room→ loading ─→ ready ─idle, evicted, unloaded→ draining ─→ unloaded
                                        └────────┴─ its process died → failed ─backoff→ waiting

Who waits for memory gets it in order of arrival: first from engines that nobody uses, least recently used first; after
a hold also from one that is in use, which then answers what it has and takes nothing new. The hold is at least twice the
time that its load took, so that however requests alternate, no more than a third of the time goes into loading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from gateway.domain.engines import EngineKeep, EngineState, EngineStateName, FailureCode
from gateway.runtime.backoff import Backoff

#: An engine without work counts as unused after this: a burst of requests for it has all come by then.
UNUSED_S = 0.5
#: An engine that is in use is left to those who use it for so long before others may have its memory.
HOLD_S = 10.0
#: A host that has said nothing for so long is stuck as a whole. It speaks every half second.
SILENCE_S = 10.0
#: While a host loads, foreign code may hold the interpreter for longer.
LOADING_SILENCE_S = 120.0
#: Longer between two looks than this, and we were not running ourselves: nobody's silence counts for that time.
ASLEEP_S = 3.0


class Effect(msgspec.Struct, frozen=True):
    """`start` a process; `drain`: let it answer what it has and end; `stop`: let it end at once; `kill` it."""

    do: Literal["start", "drain", "stop", "kill"]
    name: str


class _Kept:
    """One engine."""

    def __init__(self, keep: EngineKeep) -> None:
        self.keep = keep
        self.state: EngineStateName = "unloaded"
        self.wanted = keep.eager
        self.asked = False  # by a request or a person: it may have the memory of others
        self.since = 0.0  # of the state
        self.heard = 0.0
        self.used = 0.0  # when it last had work
        self.load_s = 0.0
        self.open = 0
        self.taken = 0
        self.loads = 0
        self.measured_mb = 0
        self.code: FailureCode = ""
        self.detail = ""
        self.due = 0.0
        self.condemned = ""  # why we kill it
        self.backoff = Backoff()

    @property
    def memory_mb(self) -> int:
        return max(self.keep.memory_mb, self.measured_mb if self.keep.measured else 0)

    @property
    def running(self) -> bool:
        return self.state in ("loading", "ready", "draining")

    def enter(self, state: EngineStateName, now: float) -> None:
        self.state, self.since = state, now

    def unused(self, now: float) -> bool:
        """Ready, and without work for a while."""
        return self.state == "ready" and not self.open and now - max(self.used, self.since) >= UNUSED_S

    def held_long(self, now: float) -> bool:
        """Ready long enough for its users to have had their turn."""
        return self.state == "ready" and now - self.since >= max(HOLD_S, 2 * self.load_s)


class Lifecycle:
    """All engines of a gateway. Instants are seconds of one monotonic clock.

    Args:
        keeps: the engines, in the order in which eager ones are started.
        budget_mb: MiB that loaded engines may take together, None = any.
    """

    def __init__(self, keeps: Iterable[EngineKeep], budget_mb: int | None = None) -> None:
        self._all = {keep.name: _Kept(keep) for keep in keeps}
        self._queue: list[str] = []  # who waits for memory, in order of arrival
        self._budget_mb = budget_mb
        self._looked: float | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def states(self, now: float) -> tuple[EngineState, ...]:
        """Every engine's state."""
        return tuple(
            EngineState(
                name,
                one.state,
                one.code if one.state == "failed" else "",
                one.detail if one.state == "failed" else "",
                max(1, round(1000 * (one.due - now))) if one.state == "failed" and one.wanted else 0,
                one.memory_mb,
                one.open,
                one.loads,
            )
            for name, one in self._all.items()
        )

    # what people and requests want

    def want(self, name: str) -> None:
        """A request waits for it, or a person loads it. What cannot be given now is given when it can."""
        one = self._all[name]
        one.wanted = one.asked = True

    def unload(self, name: str, now: float, *, force: bool = False) -> list[Effect]:
        """Free its memory: when its open requests have ended, or with `force` at once. The next request loads it again."""
        one = self._all[name]
        one.wanted = one.asked = False
        if one.state in ("waiting", "failed"):
            self._settle(one, now)
        if one.running and force:
            one.enter("draining", now)
            return [Effect("stop", name)]
        if one.state == "ready":
            return [self._drain(one, now)]
        if one.state == "loading":
            one.enter("draining", now)
            return [Effect("stop", name)]
        return []

    # what hosts say, and what becomes of their processes

    def ready(self, name: str, memory_mb: int, now: float) -> None:
        """Its model is loaded; its process has this much resident memory."""
        one = self._all[name]
        one.heard, one.measured_mb = now, memory_mb
        if one.state == "loading":
            one.load_s = now - one.since
            one.asked = False
            one.enter("ready", now)

    def alive(self, name: str, open: int, taken: int, step_s: float, now: float) -> list[Effect]:
        """It spoke: jobs in its process, jobs it has taken so far, and how long its engine has been at its present step."""
        one = self._all[name]
        if open or taken != one.taken:
            one.used = now
        one.heard, one.open, one.taken = now, open, taken
        if one.state in ("ready", "draining") and step_s > one.keep.watchdog_s:
            return self._condemn(one, f"a step has taken {step_s:.0f} s (watchdog_s is {one.keep.watchdog_s:g})")
        return []

    def ended(self, name: str, now: float, lived_s: float, code: FailureCode, detail: str) -> None:
        """Its process is gone. `code` and `detail`: why, where nobody asked it to end."""
        one = self._all[name]
        one.open = 0
        if one.state == "draining" and not one.condemned:
            self._settle(one, now)
            return
        one.code, one.detail = ("hung", one.condemned) if one.condemned else (code, detail)
        one.condemned = ""
        loaded = one.state != "loading"
        one.due = now + one.backoff.died(lived_s if loaded else 0.0)
        one.wanted = one.wanted and (loaded or one.keep.eager)  # what does not load is tried again when it is asked for
        one.asked = one.wanted and loaded
        one.enter("failed", now)

    # time

    def look(self, now: float) -> list[Effect]:
        """What is to be done now."""
        if self._looked is not None and now - self._looked > ASLEEP_S:
            for one in self._all.values():
                one.heard += now - self._looked
        self._looked = now
        effects: list[Effect] = []
        for one in self._all.values():
            effects += self._watch(one, now)
            if (one.state == "unloaded" and one.wanted) or (one.state == "failed" and one.wanted and now >= one.due):
                self._line_up(one, now)
            elif one.unused(now) and 0 < one.keep.idle_unload_s <= now - max(one.used, one.since):
                one.wanted = False
                effects.append(self._drain(one, now))
        return effects + self._give_room(now)

    def patience(self) -> float:
        """Seconds until `look` has something to see at the latest; hosts that speak or end wake us sooner."""
        soon = self._queue or any(one.state == "failed" and one.wanted for one in self._all.values())
        return 0.1 if soon else 0.5

    def _watch(self, one: _Kept, now: float) -> list[Effect]:
        """Whether its process hangs."""
        if one.condemned or not one.running:
            return []
        silent_s = now - one.heard
        most_s = LOADING_SILENCE_S if one.state == "loading" else min(SILENCE_S, one.keep.watchdog_s)
        if silent_s > most_s:
            tight = f"; memory_limit_mb is {one.keep.memory_limit_mb}, perhaps too little for its libraries"
            hint = tight if one.state == "loading" and one.keep.memory_limit_mb else ""
            return self._condemn(one, f"its process has not spoken for {silent_s:.0f} s{hint}")
        if one.state == "loading" and now - one.since > one.keep.load_timeout_s:
            return self._condemn(one, f"loading took more than {one.keep.load_timeout_s:g} s (load_timeout_s)")
        return []

    def _condemn(self, one: _Kept, why: str) -> list[Effect]:
        if one.condemned:
            return []
        one.condemned = why
        return [Effect("kill", one.keep.name)]

    def _line_up(self, one: _Kept, now: float) -> None:
        if self._budget_mb is not None and one.memory_mb > self._budget_mb:
            one.code = "no_room"
            one.detail = f"it needs {one.memory_mb} MiB, and server.engine_memory_mb is {self._budget_mb}"
            one.wanted = one.asked = False
            one.enter("failed", now)
            return
        one.enter("waiting", now)
        self._queue.append(one.keep.name)

    def _settle(self, one: _Kept, now: float) -> None:
        """It has no process and is not to have one by itself."""
        if one.keep.name in self._queue:
            self._queue.remove(one.keep.name)
        one.enter("unloaded", now)

    def _drain(self, one: _Kept, now: float) -> Effect:
        one.enter("draining", now)
        return Effect("drain", one.keep.name)

    def _give_room(self, now: float) -> list[Effect]:
        """Start who waits and fits; make room for the first who does not. Nobody overtakes who was asked for earlier."""
        effects: list[Effect] = []
        for name in list(self._queue):
            one = self._all[name]
            if self._free_mb() >= one.memory_mb:
                self._queue.remove(name)
                one.heard, one.taken = now, 0
                one.loads += 1
                one.enter("loading", now)
                effects.append(Effect("start", name))
            elif not one.asked:  # nobody asked for it: eager ones take free memory only
                one.wanted = False
                self._settle(one, now)
            else:
                return effects + self._evict(one.memory_mb, one.since, now)
        return effects

    def _free_mb(self, without: Callable[[_Kept], bool] = lambda _: False) -> float:
        if self._budget_mb is None:
            return float("inf")
        return self._budget_mb - sum(one.memory_mb for one in self._all.values() if one.running and not without(one))

    def _evict(self, wanted_mb: int, waiting_since: float, now: float) -> list[Effect]:
        """Drain engines until the memory will do."""
        effects: list[Effect] = []
        unused = sorted((one for one in self._all.values() if one.unused(now)), key=lambda one: max(one.used, one.since))
        held = sorted((one for one in self._all.values() if one.held_long(now)), key=lambda one: one.since)
        patient = now - waiting_since >= HOLD_S
        for one in (*unused, *(held if patient else ())):
            if self._free_mb(lambda other: other.state == "draining") >= wanted_mb:
                break
            if one.state == "ready":
                one.wanted = False
                effects.append(self._drain(one, now))
        return effects
