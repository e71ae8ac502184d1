"""Which engines have a process: every decision of the machine, with a clock of its own and hosts that are played."""

from __future__ import annotations

from gateway.domain.engines import EngineKeep
from gateway.runtime.lifecycle import HOLD_S, LOADING_SILENCE_S, SILENCE_S, UNUSED_S, Lifecycle

LAZY = {"eager": False, "measured": False}


class Played:
    """A lifecycle with hosts that load in `load_s` and obey, and requests that wait for their engine.

    `work`: seconds of requests that each engine still has to answer, one after the other.
    """

    def __init__(self, keeps: list[EngineKeep], budget_mb: int | None = None, load_s: float = 2.0) -> None:
        self.machine = Lifecycle(keeps, budget_mb)
        self.now = 0.0
        self.load_s = load_s
        self.loading: dict[str, float] = {}
        self.up: set[str] = set()
        self.draining: set[str] = set()
        self.work: dict[str, float] = {keep.name: 0.0 for keep in keeps}
        self.asked: dict[str, float] = {keep.name: 0.0 for keep in keeps}
        self.taken: dict[str, int] = {keep.name: 0 for keep in keeps}
        self.starts: list[str] = []
        self.killed: list[str] = []
        self.stuck: set[str] = set()
        self.silent: set[str] = set()
        self.most_mb = 0

    def request(self, name: str, seconds: float = 0.3) -> None:
        self.asked[name] += seconds
        self.machine.want(name)

    def state(self, name: str) -> str:
        return {one.name: one.state for one in self.machine.states(self.now)}[name]

    def run(self, seconds: float, tick_s: float = 0.1) -> Played:
        end = self.now + seconds
        while self.now < end:
            self.now += tick_s
            self._hosts(tick_s)
            self._do(self.machine.look(self.now))
            running = [one for one in self.machine.states(self.now) if one.state in ("loading", "ready", "draining")]
            self.most_mb = max(self.most_mb, sum(one.memory_mb for one in running))
        return self

    def until_killed(self, within_s: float) -> float:
        """Run until a process is killed; after how long."""
        began = self.now
        while not self.killed and self.now - began < within_s:
            self.run(0.1)
        return self.now - began

    def _hosts(self, tick_s: float) -> None:
        for name, since in list(self.loading.items()):
            if name not in self.silent and self.now - since >= self.load_s:
                del self.loading[name]
                self.up.add(name)
                self.machine.ready(name, 100, self.now)
        for name in list(self.up):
            if self.state(name) == "ready" and self.asked[name]:
                self.work[name] += self.asked[name]
                self.asked[name] = 0.0
                self.taken[name] += 1
            self.work[name] = max(0.0, self.work[name] - tick_s)
            if name not in self.silent:
                step_s = 100.0 if name in self.stuck else 0.0
                self._do(self.machine.alive(name, int(self.work[name] > 0), self.taken[name], step_s, self.now))
            if name in self.draining and not self.work[name]:
                self.end(name)
        for name, waiting in self.asked.items():
            if waiting:
                self.machine.want(name)

    def _do(self, effects) -> None:
        for effect in effects:
            if effect.do == "start":
                self.starts.append(effect.name)
                self.loading[effect.name] = self.now
                self.taken[effect.name] = 0
            elif effect.do == "drain":
                self.draining.add(effect.name)
            else:
                self.killed.append(f"{effect.do} {effect.name}")
                self.end(effect.name)

    def end(self, name: str, code="crashed", detail: str = "it died", lived_s: float = 1.0) -> None:
        self.up.discard(name)
        self.loading.pop(name, None)
        self.draining.discard(name)
        self.work[name] = 0.0
        self.machine.ended(name, self.now, lived_s, code, detail)


def lazy(*names: str, **more) -> list[EngineKeep]:
    return [EngineKeep(name, memory_mb=100, **{**LAZY, **more}) for name in names]


def test_eager_ones_load_at_the_start_and_lazy_ones_when_they_are_asked_for():
    play = Played([EngineKeep("a"), *lazy("b")]).run(5)
    assert (play.state("a"), play.state("b")) == ("ready", "unloaded")
    play.request("b")
    play.run(3)
    assert play.state("b") == "ready"
    assert play.starts == ["a", "b"]


def test_a_burst_over_three_models_of_which_one_fits_loads_each_once():
    play = Played(lazy("a", "b", "c"), budget_mb=100)
    for name in ("a", "b", "c", "a", "b", "c"):
        play.request(name)
        play.run(0.1)
    play.run(30)
    assert play.starts == ["a", "b", "c"]
    assert not any(play.asked.values()), "everybody was answered"
    assert play.most_mb <= 100


def test_two_that_fit_stay_and_the_one_used_longest_ago_goes():
    play = Played(lazy("a", "b", "c"), budget_mb=200)
    for name in ("a", "b", "a"):
        play.request(name)
        play.run(5)
    play.request("c")
    play.run(5)
    assert (play.state("a"), play.state("b"), play.state("c")) == ("ready", "unloaded", "ready")


def test_who_is_in_use_is_held_for_a_while_and_then_only_finishes_what_it_has():
    play = Played(lazy("a", "b"), budget_mb=100)
    play.request("a", 25.0)
    play.run(4)
    play.request("b")
    play.run(HOLD_S - 2)
    assert play.state("a") == "ready", "its turn is not over"
    play.run(4)
    assert (play.state("a"), play.state("b")) == ("draining", "waiting"), "it answers what it has"
    play.request("a")
    play.run(25)
    assert play.starts[:2] == ["a", "b"]
    play.run(20)
    assert play.starts == ["a", "b", "a"], "who came while it was draining has the next turn"
    assert play.killed == []


def test_two_that_are_always_asked_for_take_long_turns():
    play = Played(lazy("a", "b"), budget_mb=100, load_s=6.0)
    for _ in range(1000):
        play.request("a", 0.2)
        play.request("b", 0.2)
        play.run(0.2)
    assert len(play.starts) <= 200 / (6.0 + 2 * 6.0) + 2, "at most a third of the time is loading"
    assert {"a", "b"} == set(play.starts)


def test_an_idle_one_is_unloaded_and_the_next_request_loads_it():
    play = Played(lazy("a", idle_unload_s=10.0))
    play.request("a")
    play.run(9)
    assert play.state("a") == "ready"
    play.run(8)
    assert play.state("a") == "unloaded"
    play.request("a")
    play.run(4)
    assert play.starts == ["a", "a"]


def test_an_eager_one_that_does_not_fit_waits_for_a_request():
    play = Played([EngineKeep("a", memory_mb=80), EngineKeep("b", memory_mb=80)], budget_mb=100).run(10)
    assert play.starts == ["a"]
    play.request("b")
    play.run(10)
    assert (play.state("a"), play.state("b")) == ("unloaded", "ready")


def test_one_that_can_never_fit_says_so():
    play = Played([EngineKeep("a", memory_mb=300, eager=False)], budget_mb=100)
    play.request("a")
    play.asked["a"] = 0.0
    play.run(1)
    (state,) = play.machine.states(play.now)
    assert (state.state, state.code, state.retry_ms) == ("failed", "no_room", 0)
    assert "300" in state.detail and "100" in state.detail


def test_the_memory_that_was_measured_counts():
    play = Played([EngineKeep("a", memory_mb=10), *lazy("b")], budget_mb=150).run(5)
    play.request("b")
    play.run(10)
    assert (play.state("a"), play.state("b")) == ("unloaded", "ready"), "a was measured at 100"


def test_unloading_waits_for_what_is_open_and_by_force_does_not():
    play = Played(lazy("a"))
    play.request("a", 10.0)
    play.run(4)
    play._do(play.machine.unload("a", play.now))
    play.run(1)
    assert play.state("a") == "draining"
    play.run(12)
    assert play.state("a") == "unloaded"
    play.request("a", 10.0)
    play.run(4)
    play._do(play.machine.unload("a", play.now, force=True))
    assert play.state("a") == "unloaded"
    assert play.killed == ["stop a"]


def waits(play: Played, count: int) -> list[float]:
    """Seconds before each of these restarts."""
    found = []
    for _ in range(count):
        play.end("a")
        (state,) = play.machine.states(play.now)
        found.append(round(state.retry_ms / 1000, 1))
        play.run(found[-1] + 0.2)
        assert play.state("a") == "loading"
        play.run(3)
    return found


def test_a_crash_is_followed_by_a_restart_each_time_later():
    play = Played(lazy("a"))
    play.request("a")
    play.run(4)
    assert waits(play, 3) == [0.2, 0.4, 0.8]


def test_a_lazy_one_that_does_not_load_is_tried_again_when_it_is_asked_for():
    play = Played(lazy("a"))
    play.request("a")
    play.asked["a"] = 0.0
    play.run(1)
    play.end("a", "load_failed", "a bad file")
    play.run(60)
    assert play.starts == ["a"]
    (state,) = play.machine.states(play.now)
    assert (state.code, state.detail, state.retry_ms) == ("load_failed", "a bad file", 0)
    play.machine.want("a")
    play.run(3)
    assert play.state("a") == "ready"


def test_an_eager_one_that_does_not_load_is_tried_again_by_itself():
    play = Played([EngineKeep("a")]).run(1)
    play.end("a", "load_failed")
    play.run(5)
    assert play.state("a") == "ready"


def test_a_step_that_does_not_end_and_a_host_that_is_silent_are_killed():
    for flaw in ("stuck", "silent"):
        play = Played([EngineKeep("a", watchdog_s=30.0)]).run(4)
        getattr(play, flaw).add("a")
        play.until_killed(SILENCE_S + 2)
        assert play.killed == ["kill a"], flaw
        (state,) = play.machine.states(play.now)
        assert state.code == "hung"
        getattr(play, flaw).clear()
        play.run(4)
        assert play.state("a") == "ready", "and restarted"


def test_a_load_that_falls_silent_under_a_memory_limit_says_so():
    play = Played([EngineKeep("a", memory_limit_mb=150)], load_s=1e9).run(1)
    play.silent.add("a")
    play.until_killed(LOADING_SILENCE_S + 2)
    (state,) = play.machine.states(play.now)
    assert state.code == "hung" and "memory_limit_mb is 150" in state.detail


def test_silence_while_nobody_ran_is_no_silence():
    play = Played([EngineKeep("a")]).run(4)
    play.now += 3600  # the machine slept
    play.run(1)
    assert play.killed == []


def test_a_load_that_takes_too_long_is_killed():
    play = Played([EngineKeep("a", load_timeout_s=20.0)], load_s=1e9)
    assert 20 <= play.until_killed(25) < 22
    assert play.killed == ["kill a"]
    (state,) = play.machine.states(play.now)
    assert "load_timeout_s" in state.detail


def test_unused_means_no_work_for_a_moment():
    assert UNUSED_S < HOLD_S
    play = Played(lazy("a", "b"), budget_mb=100)
    for _ in range(20):  # short requests, each over before the next heartbeat
        play.taken["a"] += 1
        play.machine.want("a")
        play.run(0.2)
    play.request("b")
    for _ in range(20):
        play.taken["a"] += 1
        play.run(0.2)
    assert play.state("a") == "ready", "it was used all the time"


def test_states_tell_what_people_ask():
    play = Played([EngineKeep("a")]).run(4)
    (state,) = play.machine.states(play.now)
    assert (state.name, state.state, state.loads, state.memory_mb, state.code) == ("a", "ready", 1, 100, "")
