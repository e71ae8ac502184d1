"""From samples to figures, each beside its bar. Pure.

A figure's value is made of medians over the rounds; a ratio is the gateway's median over nginx's of the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.bench.rounds import Sample, Samples
from tests.bench.scenarios import SCENARIOS


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row. `bar`: what the first delivery must reach; `target`: what is aimed at; None where neither is set."""

    name: str
    unit: str
    value: float | None
    bar: float | None = None
    target: float | None = None
    better: Literal["less", "more"] = "less"
    note: str = ""

    def meets(self, limit: float | None) -> bool | None:
        """Whether a limit is met; None when there is none, or nothing was measured."""
        if limit is None or self.value is None:
            return None
        return self.value <= limit if self.better == "less" else self.value >= limit


_REDIS = "all that Redis does, the ledger's reader too"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What `memory.py` measured. PSS in KiB, of the worker and of the whole tree; `start_cpu_s`: CPU used until ready."""

    ready_s: float
    start_cpu_s: float
    idle_worker: int
    idle_tree: int
    loaded_worker: int
    loaded_tree: int
    per_stream: float
    streams: int


def median(samples: list[Sample], value: Callable[[Sample], float | None]) -> float | None:
    """The median over rounds; None when a round has none."""
    values = [value(sample) for sample in samples]
    known = [v for v in values if v is not None]
    return statistics.median(known) if known and len(known) == len(values) else None


def cpu_us(samples: Samples, scenario: str, target: str) -> float | None:
    """Median CPU microseconds per request or chunk; None when it was not run."""
    unit = SCENARIOS[scenario].unit
    return median(samples.get(scenario, {}).get(target, []), lambda s: s.cpu_us(unit))


def least_cpu_us(samples: Samples, scenario: str, target: str) -> float | None:
    """The round that others disturbed least; None when it was not run."""
    values = [s.cpu_us(SCENARIOS[scenario].unit) for s in samples.get(scenario, {}).get(target, [])]
    return min((v for v in values if v is not None), default=None)


def loaded(samples: Samples, scenario: str, target: str, field: str) -> float | None:
    """Median of one field of the load generator; None when it was not run."""
    return median(samples.get(scenario, {}).get(target, []), lambda s: float(s.load[field]))


def ratio(over: float | None, under: float | None) -> float | None:
    """None when either is unknown or nothing."""
    return over / under if over and under else None


def difference_ms(samples: Samples, scenario: str, other: str, field: str) -> float | None:
    """How much more than the other target's the gateway's microseconds are, ms."""
    ours, theirs = loaded(samples, scenario, "gateway", field), loaded(samples, scenario, other, field)
    return None if ours is None or theirs is None else (ours - theirs) / 1000


def errors(samples: Samples) -> list[str]:
    """A sentence for each run in which something went wrong."""
    return [
        f"{scenario}, {target}: {s.load['errors']} of {s.load['ok'] + s.load['errors']} answers were wrong "
        f"(status {s.load['e_status']}, marks {s.load['e_marks']}, no [DONE] {s.load['e_done']}, broken {s.load['e_conn']}; "
        f"last status {s.load['last_status']}: {s.load['errbody'][:160]})"
        for scenario, targets in samples.items()
        for target, rounds in targets.items()
        for s in rounds
        if s.load["errors"]
    ]


def _cpu_ratio(samples: Samples, scenario: str, name: str, bar: float | None, target: float | None) -> Figure:
    ours, anchor = cpu_us(samples, scenario, "gateway"), cpu_us(samples, scenario, "nginx")
    note = "" if ours is None else f"{ours:,.1f} µs" + ("" if anchor is None else f" to {anchor:,.1f} µs")
    least = ratio(least_cpu_us(samples, scenario, "gateway"), least_cpu_us(samples, scenario, "nginx"))
    note += "" if least is None else f"; of the best rounds {least:.1f}"
    return Figure(name=name, unit="x nginx", value=ratio(ours, anchor), bar=bar, target=target, note=note)


def speed(samples: Samples) -> list[Figure]:
    """The figures of CPU, throughput and latency, in the order of the tables; value None where nothing was run."""
    embedded, anchor = cpu_us(samples, "ns64", "embedded"), cpu_us(samples, "ns64", "nginx")
    requests, refused = loaded(samples, "ns64", "gateway", "rps"), loaded(samples, "deny64", "gateway", "rps")
    added_ttft = difference_ms(samples, "st1", "direct", "ttft_p50_us")
    added, gap = difference_ms(samples, "rate50", "direct", "p50_us"), difference_ms(samples, "pace64", "nginx", "gap_p99_us")
    pair = median(samples.get("ns64", {}).get("gateway", []), lambda s: s.redis_us)
    alone = median(samples.get("ns1", {}).get("gateway", []), lambda s: s.redis_us)
    return [
        _cpu_ratio(samples, "ns64", "CPU per request, 64 connections", 12, 5.5),
        _cpu_ratio(samples, "ns1", "CPU per request, 1 connection", None, None),
        Figure(
            name="the same at 64 without Redis (embedded mode)", unit="x nginx", value=ratio(embedded, anchor),
            note="" if embedded is None else f"{embedded:,.1f} µs",
        ),
        Figure(
            name="requests/s on one core, 64 connections", unit="1/s", value=requests, bar=5000, target=9400, better="more",
            note=_busy(samples, "ns64"),
        ),
        _cpu_ratio(samples, "st64", "CPU per chunk at full speed, 64 streams", 2.5, 1.3),
        _cpu_ratio(samples, "st1", "CPU per chunk at full speed, 1 stream", None, None),
        _cpu_ratio(samples, "pace256", "CPU per chunk paced at 20 ms, 256 streams", 3, 1.8),
        _cpu_ratio(samples, "pace64", "CPU per chunk paced at 20 ms, 64 streams", 4, 2.6),
        _cpu_ratio(samples, "pace1", "CPU per chunk paced at 20 ms, 1 stream", None, None),
        Figure(name="added time to first token, p50, 1 stream", unit="ms", value=added_ttft, bar=0.8, target=0.4),
        Figure(name="added latency, p50, 50 requests/s", unit="ms", value=added, bar=1.5, target=0.7),
        Figure(name="gap between paced chunks, p99, above nginx's", unit="ms", value=gap, bar=3, target=1),
        _cpu_ratio(samples, "big16", "CPU per request of 40 kB, 16 connections", 10, 5),
        Figure(
            name="refusals of unknown keys, 64 connections", unit="1/s", value=refused, bar=8000, target=18000, better="more",
            note=_busy(samples, "deny64"),
        ),
        Figure(name="Redis CPU per request, 4 rules, 64 connections", unit="µs", value=pair, bar=60, target=40, note=_REDIS),
        Figure(name="Redis CPU per request, 4 rules, 1 connection", unit="µs", value=alone),
    ]  # fmt: skip


def _busy(samples: Samples, scenario: str) -> str:
    """How much of its core the gateway got: below 1, others or the load generator were the bound."""
    busy, each = median(samples.get(scenario, {}).get("gateway", []), lambda s: s.busy), cpu_us(samples, scenario, "gateway")
    return "" if busy is None or each is None else f"with {busy:.2f} of the core; {1e6 / each:,.0f} per CPU second"


def memory(measured: Memory) -> list[Figure]:
    """The figures of memory and of the start."""
    return [
        Figure(
            name="memory of the worker, idle", unit="MiB PSS", value=measured.idle_worker / 1024,
            note=f"whole tree {measured.idle_tree / 1024:.0f} MiB",
        ),
        Figure(
            name="memory of the worker, after load", unit="MiB PSS", value=measured.loaded_worker / 1024, bar=90, target=40,
            note=f"whole tree {measured.loaded_tree / 1024:.0f} MiB",
        ),
        Figure(
            name="memory per open stream", unit="KiB", value=measured.per_stream, bar=60, target=30,
            note=f"{measured.streams:,} open streams: {measured.per_stream * measured.streams / 1024:.0f} MiB",
        ),
        Figure(
            name="start to ready, without a model", unit="s", value=measured.ready_s, bar=2, target=0.9,
            note=f"{measured.start_cpu_s:.2f} CPU seconds",
        ),
    ]  # fmt: skip
