"""Whatever is asked and whatever dies: the budget holds, who is asked for gets its turn, and nothing is started twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.engines import EngineKeep
from gateway.runtime.lifecycle import Effect, Lifecycle

NAMES = ("a", "b", "c", "d")
DOINGS = st.lists(
    st.tuples(st.sampled_from(("want", "unload", "force", "ready", "work", "rest", "die", "wait")), st.sampled_from(NAMES)),
    max_size=120,
)
SIZES = st.tuples(*[st.integers(1, 100) for _ in NAMES])


class World:
    """Processes that do as the machine says, and now and then die."""

    def __init__(self, sizes: tuple[int, ...], budget: int) -> None:
        self.budget = budget
        self.size = dict(zip(NAMES, sizes, strict=True))
        self.machine = Lifecycle(
            [EngineKeep(name, eager=name == "a", memory_mb=self.size[name], measured=False) for name in NAMES], budget
        )
        self.now = 0.0
        self.up: dict[str, bool] = {}  # a process, and whether it is to end
        self.working: set[str] = set()

    def act(self, effects: list[Effect]) -> None:
        for effect in effects:
            if effect.do == "start":
                assert effect.name not in self.up, "one process each"
                self.up[effect.name] = False
                assert sum(self.size[name] for name in self.up) <= self.budget
            elif effect.do == "drain":
                self.up[effect.name] = True
            else:
                self.gone(effect.name)

    def gone(self, name: str) -> None:
        if self.up.pop(name, None) is not None:
            self.working.discard(name)
            self.machine.ended(name, self.now, 1.0, "crashed", "")

    def beat(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds / 0.5))):
            self.now += 0.5
            for name in list(self.up):
                if self.up[name] and name not in self.working:
                    self.gone(name)
                else:
                    self.act(self.machine.alive(name, int(name in self.working), 0, 0.0, self.now))
            self.act(self.machine.look(self.now))

    def do(self, what: str, name: str) -> None:
        loading = {one.name for one in self.machine.states(self.now) if one.state == "loading"}
        if what == "want":
            self.machine.want(name)
        elif what in ("unload", "force"):
            self.act(self.machine.unload(name, self.now, force=what == "force"))
        elif what == "ready" and name in loading:
            self.machine.ready(name, 1, self.now)
        elif what == "work" and name in self.up and not self.up[name]:
            self.working.add(name)
        elif what == "rest":
            self.working.discard(name)
        elif what == "die":
            self.gone(name)
        self.beat(3.0 if what == "wait" else 0.5)


@given(SIZES, st.integers(100, 250), DOINGS)
def test_the_budget_holds_and_everybody_is_loaded_in_the_end(
    sizes: tuple[int, ...], budget: int, doings: list[tuple[str, str]]
) -> None:
    world = World(sizes, budget)
    for what, name in doings:
        world.do(what, name)
    world.working.clear()
    for name in NAMES:  # calm: each that is asked for is loaded, one after the other
        world.machine.want(name)
        for _ in range(200):
            world.beat(0.5)
            states = {one.name: one.state for one in world.machine.states(world.now)}
            for one, state in states.items():
                if state == "loading":
                    world.machine.ready(one, 1, world.now)
            if states[name] == "ready":
                break
            world.machine.want(name)
        assert states[name] == "ready", states
