"""The scheduler for any load: within its bounds, everyone's decode in every step, nobody starved."""

from hypothesis import given
from hypothesis import strategies as st

from backends.engines.llamacpp.scheduler import Pace, plan
from backends.engines.llamacpp.slots import Slots, shared

loads = st.integers(1, 16).flatmap(
    lambda slots: st.tuples(
        st.lists(st.integers(0, 300), min_size=slots, max_size=slots),  # prompt tokens left; 0 = decoding
        st.integers(slots, 256),  # batch
        st.integers(1, 128),  # budget
        st.integers(0, 1000),  # turn
    )
)


@given(loads)
def test_bounds(load: tuple[list[int], int, int, int]) -> None:
    left, batch, budget, turn = load
    decoding = [slot for slot, count in enumerate(left) if not count]
    prefilling = [(slot, count) for slot, count in enumerate(left) if count]
    step = plan(decoding, prefilling, batch, budget, turn, len(left))
    assert step.rows <= batch
    assert list(step.decode) == decoding
    taken = dict(step.prefill)
    assert len(taken) == len(step.prefill)
    assert sum(taken.values()) <= budget
    assert all(1 <= count <= left[slot] for slot, count in step.prefill)
    wanted = sum(left)
    assert sum(taken.values()) == min(wanted, budget, batch - len(decoding)), "no row is wasted"


@given(loads)
def test_nobody_starves(load: tuple[list[int], int, int, int]) -> None:
    left, batch, budget, turn = load
    left = list(left)
    batch += 1  # room for at least one prompt token beside the decodes
    waited = dict.fromkeys(range(len(left)), 0)
    for n in range(sum(left) + 1):
        prefilling = [(slot, count) for slot, count in enumerate(left) if count]
        if not prefilling:
            break
        step = plan([s for s, c in enumerate(left) if not c], prefilling, batch, budget, turn + n, len(left))
        moved = dict(step.prefill)
        for slot, _ in prefilling:
            waited[slot] = 0 if slot in moved else waited[slot] + 1
            assert waited[slot] < len(left)
        for slot, count in step.prefill:
            left[slot] -= count
    assert not any(left), "every prompt is done in as many steps as it has tokens"


@given(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 128), st.floats(0, 100)), max_size=40), st.integers(0, 16))
def test_any_history_gives_a_budget_within_bounds(history: list[tuple[int, int, float]], decoding: int) -> None:
    pace = Pace(alone=96, beside=48)
    for decode, prefill, seconds in history:
        pace.observe(decode, prefill, seconds)
    assert 1 <= pace.budget(decoding) <= 96
    assert decoding == 0 or pace.budget(decoding) <= 48


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40))
def test_shared_is_the_longest_common_beginning(one: list[int], other: list[int]) -> None:
    length = shared(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 2), min_size=1, max_size=40), st.booleans()), max_size=60))
def test_slots_never_hold_two(script: list[tuple[bool, list[int], bool]]) -> None:
    slots, taken = Slots(3), dict[int, list[int]]()
    for take, tokens, reuse in script:
        if take:
            found = slots.take(tokens, reuse)
            assert (found is None) == (len(taken) == 3)
            if found:
                assert found[0] not in taken
                assert found[1] < len(tokens)
                taken[found[0]] = tokens
        elif taken:
            slot, had = taken.popitem()
            slots.give(slot, had)
        assert slots.free == 3 - len(taken)
