"""The flight record: what a worker writes is what is read when it is gone; and what a request came to by it."""

import os
from pathlib import Path

import pytest

from backends.core.usage import Usage
from gateway.domain.settlement import Rule
from gateway.limits.abandoned import by_flight, estimated_output, flown_charges
from gateway.limits.flights import MAX_FLIGHTS, Flights, Flown, left_behind, read_flights
from gateway.limits.outbox import pack_charges, unpack_charges
from tests.rows import row

RULES = (
    Rule("r", "quota", "requests", 9, 60_000, 1),
    Rule("i", "quota", "input_tokens", 9, 60_000, 5),
    Rule("o", "quota", "output_tokens", 9, 60_000, 5),
    Rule("t", "quota", "tokens", 9, 60_000, 5),
    Rule("u", "quota", "nusd", 9, 60_000, 5),
    Rule("l", "lease", "slots", 9, 0, 1),
)


def flown(**changes: object) -> Flown:
    return Flown(**{"id": "a", "text_bytes": 1, "items": 1, "attempts": 1, "deployment": "d", **changes})  # type: ignore[arg-type]


def of_a_dead_worker(folder: Path, name: str) -> Path:
    """A file as a worker leaves it that was killed: whole, and locked by nobody."""
    (path,) = folder.glob(f"flights-*-{name}.bin")
    copy = path.read_bytes()
    path.unlink()
    path.write_bytes(copy)
    return path


def test_what_was_written_last_is_read(tmp_path: Path) -> None:
    flights = Flights(tmp_path, "0", slots=4)
    one, two, _ = (flights.began(f"id-{n}", n == 2, n, 0, 2, 100 * n) for n in (1, 2, 3))
    one.tries(1, b"near")
    one.told(1, 10)
    one.told(7, 81)
    two.tries(2, b"x" * 128)
    two.reports(Usage(11, 12, 3, 4, "counted"))
    found = read_flights(next(tmp_path.glob("*.bin")).read_bytes())
    assert found == [
        Flown("id-1", 7, 81, None, False, 1, 0, 2, 100, 1, "near"),
        Flown("id-2", 0, 0, Usage(11, 12, 3, 4, "counted"), True, 2, 0, 2, 200, 2, "x" * 128),
        Flown("id-3", 0, 0, None, False, 3, 0, 2, 300, 0, ""),
    ]
    flights.close()
    assert not list(tmp_path.iterdir())


def test_numbers_that_no_column_holds_are_left_out(tmp_path: Path) -> None:
    flights = Flights(tmp_path, "0", slots=1)
    flights.began("id", False, 1, 0, 1, 0).reports(Usage(1, 10**30))
    (found,) = read_flights(next(tmp_path.glob("*.bin")).read_bytes())
    assert found.usage is None
    flights.close()


def test_slots_are_bounded_and_the_longest_ended_is_used_first(tmp_path: Path) -> None:
    flights = Flights(tmp_path, "0", slots=3)
    held = [flights.began(f"id-{n}", False, 0, 0, 0, 0) for n in range(3)]
    for _ in range(2):
        beyond = flights.began("too many", False, 0, 0, 0, 0)
        beyond.told(9, 9)
        beyond.ended()
    for flight in (held[1], held[0]):
        flight.told(5, 5)
        flight.ended()
    assert flights.began("next", False, 0, 0, 0, 0) is held[1]
    found = {one.id: one for one in read_flights(next(tmp_path.glob("*.bin")).read_bytes())}
    assert set(found) == {"id-0", "next", "id-2"}, "what ended is told until its slot is used again"
    assert (found["next"].deltas, found["id-0"].deltas) == (0, 5)
    flights.close()


def test_a_living_workers_record_is_nobodys_and_a_dead_ones_is_read_once(tmp_path: Path) -> None:
    alive = Flights(tmp_path, "alive", slots=1)
    dead = Flights(tmp_path, "dead", slots=1)
    alive.began("a", False, 0, 0, 0, 0)
    dead.began("d", False, 0, 0, 0, 0)
    path = of_a_dead_worker(tmp_path, "dead")
    with pytest.raises(ZeroDivisionError), left_behind(tmp_path) as found:
        assert [one.id for one in found] == ["d"]
        with left_behind(tmp_path) as nested:
            assert nested == [], "somebody sees to it"
        raise ZeroDivisionError
    assert path.exists(), "what could not be settled is found again"
    with left_behind(tmp_path) as found:
        assert [one.id for one in found] == ["d"]
    assert not path.exists()
    with left_behind(tmp_path) as found:
        assert found == []
    dead.close()
    alive.close()


@pytest.mark.parametrize("data", [b"", b"\0" * 4096, b"switchyard flights 1\n", b"switchyard flights 2\n" + b"a" * 4096])
def test_a_file_that_no_worker_wrote_tells_nothing_and_goes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "flights-1-x.bin").write_bytes(data)
    (tmp_path / "flights-1-y.draft").write_bytes(data)
    with left_behind(tmp_path) as found:
        assert found == []
    assert [path.name for path in tmp_path.iterdir()] == ["flights-1-y.draft"]


def test_the_file_has_its_room_from_the_beginning_and_is_its_owners(tmp_path: Path) -> None:
    flights = Flights(tmp_path, "0")
    (path,) = tmp_path.glob("*.bin")
    stat = path.stat()
    assert (stat.st_size, stat.st_mode & 0o777) == (272 * (MAX_FLIGHTS + 1), 0o600)
    assert stat.st_blocks * 512 >= stat.st_size or os.statvfs(path).f_flag, "allocated: no page can be missing later"
    flights.close()


def test_a_flight_says_what_a_settlement_of_a_cut_answer_would_have_said() -> None:
    cost = {"cost_of": lambda one: 10 * one.output_tokens}
    opening = row("a", input_tokens=99, deployment="")
    nothing, amounts = by_flight(RULES, opening, 7, flown(), **cost)
    assert (nothing.usage_source, nothing.input_tokens, nothing.output_tokens) == ("none", 0, 0)
    assert amounts == (1, 0, 0, 0, 0, 0)
    some, amounts = by_flight(RULES, opening, 7, flown(deltas=3, delta_bytes=40, cap=8), **cost)
    assert (some.outcome, some.admitted_us, some.deployment, some.attempts) == ("abandoned", 7, "d", 1)
    assert (some.usage_source, some.input_tokens, some.output_tokens, some.cost_nusd) == ("estimated", 5, 8, 80)
    assert amounts == (1, 5, 8, 13, 80, 0), "above what was reserved: it was used"
    counted, _ = by_flight(RULES, opening, 7, flown(deltas=3, counted=True), **cost)
    assert (counted.input_tokens, counted.output_tokens) == (99, 3)
    told, amounts = by_flight(RULES, opening, 7, flown(deltas=3, usage=Usage(5, 6, 2, 1)), **cost)
    assert (told.usage_source, told.cached_input_tokens, told.reasoning_tokens) == ("reported", 2, 1)
    assert amounts == (1, 5, 6, 11, 60, 0)


@pytest.mark.parametrize(
    ("deltas", "size", "cap", "output"),
    [(0, 0, 0, 0), (3, 4, 0, 3), (1, 41, 0, 11), (1, 41, 5, 5), (9, 41, 5, 9), (2, 3, 100, 2)],
)
def test_output_that_nobody_counted(deltas: int, size: int, cap: int, output: int) -> None:
    assert estimated_output(deltas, size, cap) == output


def test_stored_charges_become_what_was_used_but_those_without_a_unit() -> None:
    used = row("a", input_tokens=3, output_tokens=4, cost_nusd=50)
    charges = flown_charges(used, pack_charges(RULES, [rule.cost for rule in RULES]))
    assert [(one.name, one.amount) for one in unpack_charges(charges)] == [("r", 1), ("i", 3), ("o", 4), ("t", 7), ("u", 50)]
    import msgspec

    former = msgspec.msgpack.encode([["t", "quota", 60_000, 9, 5]])
    assert [one.amount for one in unpack_charges(flown_charges(used, former))] == [5]
