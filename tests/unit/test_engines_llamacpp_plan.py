"""The scheduler's and the slots' promises, by example."""

from backends.engines.llamacpp.scheduler import Pace, Step, plan
from backends.engines.llamacpp.slots import WORTH, Held, Kept, Slots, shared


def test_a_new_prompt_joins_the_running_batch() -> None:
    assert plan([0, 2], [(1, 100)], batch=64, budget=16, turn=0, slots=16) == Step((0, 2), ((1, 16),))


def test_prompts_share_the_budget_evenly_and_pass_on_what_they_do_not_need() -> None:
    assert plan([], [(0, 3), (1, 100), (2, 100)], batch=64, budget=31, turn=0, slots=16).prefill == ((0, 3), (1, 14), (2, 14))
    assert plan([], [(0, 5)], batch=64, budget=31, turn=0, slots=16).prefill == ((0, 5),)


def test_a_budget_below_the_number_of_prompts_goes_round() -> None:
    seen = [plan([9], [(0, 5), (1, 5), (2, 5)], batch=64, budget=1, turn=t, slots=16).prefill for t in range(3)]
    assert seen == [((0, 1),), ((1, 1),), ((2, 1),)]


def test_a_full_batch_of_decodes_leaves_nothing() -> None:
    assert plan([0, 1], [(2, 5)], batch=2, budget=16, turn=0, slots=16) == Step((0, 1), ())


def test_alone_the_pace_never_varies() -> None:
    pace = Pace(alone=128, beside=64)
    for seconds in (0.1, 5.0, 0.001):
        pace.observe(0, 128, seconds)
        assert pace.budget(0) == 128


def test_beside_decodes_a_step_is_stretched_no_further_than_said() -> None:
    pace = Pace(alone=128, beside=64, stretch=3.0)
    assert pace.budget(1) == Pace.FIRST, "before anything is known"
    pace.observe(0, 100, 0.1)  # 1 ms a token of a large batch
    pace.observe(1, 0, 0.008)
    assert pace.budget(1) == 8, "a row beside others is taken for twice as dear"
    for _ in range(40):
        pace.observe(1, 8, 0.01599)  # 1 ms a token here too
    assert pace.budget(1) == 16  # 8 ms + 16 ms
    assert pace.budget(1, 1) == 16
    assert pace.budget(1, 2) == 40, "two short ones wait for one: twice the stretch"
    pace.observe(8, 0, 0.1)
    assert pace.budget(8, 2) == 64
    assert pace.budget(8) == 64
    for _ in range(50):
        pace.observe(1, 0, 0.0001)
    assert pace.budget(1) == 1, "progress is never given up"


def test_one_step_that_seems_short_lets_no_crowd_in() -> None:
    pace = Pace(alone=128, beside=128, stretch=2.5)
    pace.observe(1, 0, 0.014)
    pace.observe(1, 2, 0.030)  # 8 ms a token
    assert pace.budget(1) == 2
    for seconds in (0.001, 0.014, 0.0):
        pace.observe(1, 2, seconds)
        assert pace.budget(1) <= 3
    for _ in range(40):
        pace.observe(1, 2, 0.0141)
    assert pace.budget(1) == 128, "but what is always short is believed"


def test_a_long_prompt_keeps_a_running_stream_within_three_times_its_gap() -> None:
    """A machine whose rows cost as these did on a CPU: a row alone 14 ms, a further one 8 ms, 6 ms in a large batch."""

    def takes(decode: int, prefill: int) -> float:
        rows = decode + prefill
        return 0.006 * rows if not decode else 0.006 + 0.008 * rows

    pace = Pace(alone=128, beside=128)
    pace.observe(0, 128, takes(0, 128))
    for _ in range(10):
        pace.observe(1, 0, takes(1, 0))
    left, steps = 4096, []
    while left > 0:
        took = min(left, pace.budget(1, 0))
        steps.append(takes(1, took))
        pace.observe(1, took, steps[-1])
        left -= took
    assert max(steps) <= 3 * takes(1, 0)


def test_slots_are_given_once_each_and_come_back() -> None:
    slots = Slots(2)
    assert {slots.take([1], True), slots.take([1], True)} == {(0, 0), (1, 0)}
    assert slots.take([1], True) is None
    slots.give(1, [])
    assert slots.take([1], True) == (1, 0)


def test_a_shared_beginning_is_found_again() -> None:
    slots = Slots(2)
    tokens = list(range(WORTH * 2))
    first = slots.take(tokens, True)
    assert first is not None
    slots.give(first[0], tokens)
    assert slots.take([*tokens[:WORTH], 99, 98], True) == (first[0], WORTH)
    slots.give(first[0], tokens)
    assert slots.take(tokens, True) == (first[0], len(tokens) - 1), "the last token's logits are wanted"
    slots.give(first[0], tokens)
    assert slots.take(tokens, False) == (1 - first[0], 0), "no reuse asked: an empty slot"


def test_what_is_too_short_is_not_reused_and_what_is_held_is_lifted_once() -> None:
    slots = Slots(1)
    assert slots.take([1, 2, 3], True) == (0, 0)
    slots.give(0, [1, 2, 3], "sql")
    assert slots.holding() == [0]
    assert slots.take([1, 2, 3], True) == (0, 0)
    assert slots.lift(0) == Held([1, 2, 3], "sql")
    slots.give(0, [])
    assert slots.holding() == []


def numbered(first: int, count: int = 2 * WORTH) -> list[int]:
    """Tokens that share nothing with those of another first one."""
    return list(range(first * 1000, first * 1000 + count))


def test_what_was_moved_out_is_found_by_its_longest_beginning() -> None:
    kept: Kept[str] = Kept(1000)
    one, other = numbered(1), numbered(2)
    kept.put(Held(one, ""), "one")
    kept.put(Held([*one[:WORTH], *other], ""), "branch")
    assert kept.find(Held([*one[:-1], 9, 9], "")) == ("one", 2 * WORTH - 1)
    assert kept.find(Held([*one[:WORTH], *other[:5], 9], "")) == ("branch", WORTH + 5)
    assert kept.find(Held(one, "")) == ("one", 2 * WORTH - 1), "the last token's logits are wanted"
    assert kept.find(Held([*one, 9], ""), beyond=2 * WORTH) is None, "no more than is there already"
    assert kept.find(Held([*one[: WORTH - 1], 9, 9], "")) is None, "not worth it"
    assert kept.find(Held([*one, 9], "sql")) is None, "another adapter's numbers"


def test_moved_out_what_is_part_of_more_goes_and_then_what_is_longest_unused() -> None:
    kept: Kept[str] = Kept(6 * WORTH)
    kept.put(Held(numbered(1), ""), "one")
    kept.put(Held(numbered(2), ""), "two")
    kept.put(Held(numbered(1, 3 * WORTH), ""), "more of one")
    assert kept.tokens == 5 * WORTH
    assert (
        kept.knows(Held(numbered(1), "")) and not kept.knows(Held(numbered(3), "")) and not kept.knows(Held(numbered(1), "sql"))
    )
    assert kept.find(Held(numbered(2), "")) == ("two", 2 * WORTH - 1)
    kept.put(Held(numbered(3), ""), "three")
    assert kept.find(Held(numbered(1), "")) is None, "it was unused for longest"
    assert kept.find(Held(numbered(2), "")) is not None
    assert kept.tokens == 4 * WORTH
    assert not kept.takes(6 * WORTH + 1) and not kept.takes(WORTH - 1) and kept.takes(WORTH)


def test_shared() -> None:
    assert shared([1, 2, 3], [1, 2, 4]) == 2
    assert shared([], [1]) == 0
    assert shared([5], [6]) == 0
    assert shared([1, 2], [1, 2, 3]) == 2
