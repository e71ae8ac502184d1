"""What a soak is judged by: pure, from samples and from what clients and ledger say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MIB = 1 << 20
#: The part of a run that counts as warming up: caches, pools and the allocator's arenas fill.
WARM_UP = 0.4
#: MiB that all processes together may grow by from the warm-up's end to the run's, and per hour's slope of a long run.
MOST_GROWTH_MIB = 6.0


@dataclass(frozen=True)
class Sample:
    """One look. `resident`: bytes of all processes of the gateway together."""

    at_s: float
    resident: int
    descriptors: int
    series: int
    open_requests: int


def judged(samples: Sequence[Sample]) -> list[str]:
    """What is wrong with the samples; empty when nothing is.

    Samples after the warm-up are compared: memory by the slope of a line through them, descriptors and series by their
    largest value in the first and in the last third.
    """
    warm = [one for one in samples if one.at_s >= samples[0].at_s + WARM_UP * (samples[-1].at_s - samples[0].at_s)]
    wrong = []
    grown = slope([(one.at_s, one.resident / MIB) for one in warm]) * (warm[-1].at_s - warm[0].at_s)
    if grown > MOST_GROWTH_MIB:
        wrong.append(f"memory grew by {grown:.1f} MiB after the warm-up")
    third = max(1, len(warm) // 3)
    early, late = warm[:third], warm[-third:]
    if max(one.series for one in late) > max(one.series for one in early):
        wrong.append(f"metric series grew from {max(one.series for one in early)} to {max(one.series for one in late)}")
    before, after = (sorted(one.descriptors for one in part)[len(part) // 2] for part in (early, late))
    if after > before + 10:
        wrong.append(f"file descriptors grew from {before} to {after}")
    if samples[-1].open_requests:
        wrong.append(f"{samples[-1].open_requests} requests are open though nobody asks")
    return wrong


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line of least squares."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def ledger_faults(admitted: Mapping[str, int | None], known: set[str], rows: Sequence[tuple[str, str, int]]) -> list[str]:
    """Where ledger and clients differ; empty when they do not.

    Args:
        admitted: request id → generated tokens as its client saw them, None where it cannot know.
        known: ids of every request that the gateway's log has.
        rows: (id, outcome, generated tokens) of the ledger.
    """
    wrong = []
    ids = [id for id, _, _ in rows]
    if len(set(ids)) != len(ids):
        wrong.append("a request has two rows")
    missing = admitted.keys() - set(ids)
    if missing:
        wrong.append(f"{len(missing)} of {len(admitted)} admitted requests have no row, for instance {min(missing)}")
    strange = set(ids) - known
    if strange:
        wrong.append(f"{len(strange)} rows are of no request, for instance {min(strange)}")
    differing = [
        id for id, outcome, tokens in rows if outcome == "ok" and (told := admitted.get(id)) is not None and told != tokens
    ]
    if differing:
        wrong.append(f"{len(differing)} rows have other tokens than their answers, for instance {differing[0]}")
    return wrong
