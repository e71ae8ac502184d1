"""The soak's judgement: it finds leaks, and lets noise pass."""

from __future__ import annotations

from tests.soak.judge import MIB, Sample, judged, ledger_faults, slope


def samples(*, leak_mib: float = 0.0, descriptors: float = 0.0, series: float = 0.0, open_requests: int = 0) -> list[Sample]:
    """Ten minutes; growth is per second, after a warm-up that grows by itself."""
    out = []
    for second in range(600):
        warm = min(second, 200) / 200
        noise = (second * 7919 % 13) / 13
        resident = int((200 + 60 * warm + noise + leak_mib * second) * MIB)
        out.append(Sample(second, resident, int(100 + noise * 8 + descriptors * second), int(300 * warm + series * second), 0))
    return [*out[:-1], Sample(600, out[-1].resident, out[-1].descriptors, out[-1].series, open_requests)]


def test_a_steady_run_passes() -> None:
    assert judged(samples()) == []


def test_leaks_are_found() -> None:
    assert "memory grew" in judged(samples(leak_mib=0.03))[0]
    assert "descriptors grew" in judged(samples(descriptors=0.1))[0]
    assert "series grew" in judged(samples(series=0.1))[0]
    assert "requests are open" in judged(samples(open_requests=2))[0]


def test_the_slope_is_that_of_the_line() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == 2
    assert slope([(1, 1)]) == 0


def test_the_ledger_is_held_against_what_clients_know() -> None:
    rows = [("a", "ok", 5), ("b", "cancelled", 2), ("c", "ok", 7)]
    assert ledger_faults({"a": 5, "b": None}, {"a", "b", "c"}, rows) == []
    assert "no row" in ledger_faults({"d": 1}, {"a", "b", "c", "d"}, rows)[0]
    assert "of no request" in ledger_faults({}, {"a", "b"}, rows)[0]
    assert "other tokens" in ledger_faults({"a": 4}, {"a", "b", "c"}, rows)[0]
    assert "two rows" in ledger_faults({}, {"a"}, [rows[0], rows[0]])[0]
