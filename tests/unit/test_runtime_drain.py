"""The order of a worker's end, and of a dead process's return."""

from __future__ import annotations

import pytest

from gateway.runtime.backoff import Backoff
from gateway.runtime.control import CONFIG, DRAIN, Messages, frame
from gateway.runtime.drain import Drain, DrainTimes

TIMES = DrainTimes(delay_s=2, drain_s=10, cut_s=5, flush_s=3)


def test_the_whole_way_with_a_stream_that_ends() -> None:
    drain = Drain(TIMES)
    assert drain.look(0, 3, False) == []
    assert drain.begin(100) == ["unready"]
    assert drain.begin(100.5) == []
    assert drain.look(101.9, 3, False) == []
    assert drain.look(102, 3, False) == ["stop_accepting"]
    assert drain.look(105, 1, False) == []
    assert drain.look(106, 0, False) == ["flush"]
    assert drain.look(106.1, 0, False) == []
    assert drain.look(107, 0, True) == ["close"]
    assert drain.phase == "closed"
    assert drain.look(108, 0, True) == []


def test_a_stream_that_does_not_end_is_cut_and_a_flush_that_hangs_is_left() -> None:
    drain = Drain(TIMES)
    drain.begin(0)
    drain.look(2, 1, False)
    assert drain.look(11.9, 1, False) == []
    assert drain.look(12, 1, False) == ["cut"]
    assert drain.look(16.9, 1, False) == []
    assert drain.look(17, 1, False) == ["flush"]
    assert drain.look(19.9, 0, False) == []
    assert drain.look(20, 0, False) == ["close"]
    assert TIMES.longest_s == 20


def test_without_delay_and_requests_it_takes_two_looks() -> None:
    drain = Drain(DrainTimes())
    drain.begin(0)
    assert drain.look(0, 0, False) == ["stop_accepting", "flush"]
    assert drain.look(0, 0, True) == ["close"]


@pytest.mark.parametrize("at", ["serving", "announcing", "waiting"])
def test_hurry_skips_the_waiting_from_anywhere(at: str) -> None:
    drain = Drain(TIMES)
    if at != "serving":
        drain.begin(0)
    if at == "waiting":
        drain.look(2, 1, False)
    effects = drain.hurry(3)
    assert effects[-1] == "cut"
    assert ("stop_accepting" in effects) == (at != "waiting")
    assert drain.hurry(3) == []
    assert drain.look(4, 1, False) == ["flush"]


def test_backoff_doubles_is_capped_and_forgets() -> None:
    backoff = Backoff(first_s=0.2, cap_s=5, healthy_s=30)
    assert [backoff.died(1) for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    for _ in range(2000):
        backoff.died(0)
    assert backoff.died(0) == 5
    assert backoff.died(31) == 0.2


def test_control_messages_survive_any_split() -> None:
    data = frame(CONFIG, b"a: 1\n" * 100) + frame(DRAIN)
    for cut in range(0, len(data), 7):
        messages = Messages()
        assert messages.feed(data[:cut]) + messages.feed(data[cut:]) == [(CONFIG, b"a: 1\n" * 100), (DRAIN, b"")]
