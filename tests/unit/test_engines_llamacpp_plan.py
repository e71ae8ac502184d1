"""The scheduler's and the slots' promises, by example."""

from backends.engines.llamacpp.scheduler import Pace, Step, plan
from backends.engines.llamacpp.slots import WORTH, Slots, shared


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
    assert pace.budget(1) == 16, "before anything is known"
    pace.observe(0, 100, 0.1)  # 1 ms a token
    pace.observe(1, 0, 0.008)
    assert pace.budget(1) == 16  # 8 ms + 16 ms
    assert pace.budget(1, 2) == 40, "two wait for one: twice the stretch"
    pace.observe(8, 0, 0.1)
    assert pace.budget(8, 2) == 64
    assert pace.budget(8) == 64
    pace.observe(1, 0, 0.0001)
    for _ in range(50):
        pace.observe(1, 0, 0.0001)
    assert pace.budget(1) == 4, "progress is never given up"


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


def test_what_is_too_short_is_not_kept_and_forgotten_memory_is_named() -> None:
    slots = Slots(1)
    assert slots.take([1, 2, 3], True) == (0, 0)
    slots.give(0, [1, 2, 3])
    assert slots.take([1, 2, 3], True) == (0, 0)
    slots.give(0, [1, 2, 3])
    assert slots.forget() == [0]
    assert slots.forget() == []


def test_shared() -> None:
    assert shared([1, 2, 3], [1, 2, 4]) == 2
    assert shared([], [1]) == 0
    assert shared([5], [6]) == 0
    assert shared([1, 2], [1, 2, 3]) == 2
