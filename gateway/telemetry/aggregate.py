"""Several processes' metrics as one: pure sums, the form in which they travel, and the text that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.telemetry.families import FAMILIES, Family
from gateway.telemetry.metrics import Dump

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_Wire = dict[str, list[tuple[list[str], list[float]]]]
_decode = msgspec.msgpack.Decoder(_Wire).decode


def pack(dump: Dump) -> bytes:
    """A process's values as msgpack: family name → [label values, values]."""
    return msgspec.msgpack.encode({name: [(list(labels), v) for labels, v in s.items()] for name, s in dump.items()})


def unpack(payload: bytes) -> Dump:
    """The values of another process; families that this version does not know, or of another form, are left out.

    Raises:
        msgspec.DecodeError: it is not a dump.
    """
    out: Dump = {}
    for name, series in _decode(payload).items():
        family = FAMILIES.get(name)
        if family is None:
            continue
        width = len(family.zero())
        out[name] = {tuple(labels): v for labels, v in series if len(labels) == len(family.labels) and len(v) == width}
    return out


def merge(dumps: Iterable[Dump]) -> Dump:
    """One dump of many: each family by its rule (sum, or the largest)."""
    total: Dump = {}
    for dump in dumps:
        for name, series in dump.items():
            rule = FAMILIES[name].merge
            into = total.setdefault(name, {})
            for labels, values in series.items():
                have = into.get(labels)
                if have is None:
                    into[labels] = list(values)
                elif rule == "sum":
                    into[labels] = [a + b for a, b in zip(have, values, strict=True)]
                else:
                    into[labels] = [max(a, b) for a, b in zip(have, values, strict=True)]
    return total


def lasting(dump: Dump) -> Dump:
    """What outlives its process: counters and histograms; a dead process's gauges are nothing."""
    return {name: series for name, series in dump.items() if FAMILIES[name].kind != "gauge"}


class Fleet:
    """The workers' last known values. A dead one's counters stay in the sum, so that no counter ever falls.

    A worker is its index; `boot` tells its incarnations apart, so that one that only reconnects is not counted twice.
    """

    def __init__(self) -> None:
        self._live: dict[int, tuple[int, Dump]] = {}
        self._retired: Dump = {}

    def put(self, worker: int, boot: int, dump: Dump) -> None:
        """What a worker said now. A boot older than the known one is ignored."""
        known = self._live.get(worker)
        if known is not None and boot < known[0]:
            return
        if known is not None and known[0] != boot:
            self._retired = merge([self._retired, lasting(known[1])])
        self._live[worker] = (boot, dump)

    def gone(self, worker: int, boot: int) -> None:
        """A worker's connection is closed: its gauges are nothing until it comes back."""
        known = self._live.get(worker)
        if known is not None and known[0] == boot:
            self._live[worker] = (boot, lasting(known[1]))

    def total(self) -> Dump:
        """All workers that ever were."""
        return merge([self._retired, *(dump for _, dump in self._live.values())])


class _Snapshot(Collector):
    """A dump as prometheus_client collects it."""

    def __init__(self, dump: Dump) -> None:
        self._dump = dump

    def collect(self) -> Iterator[Metric]:
        """Each family with its series, in the catalogue's order."""
        for family in FAMILIES.values():
            series = self._dump.get(family.name)
            if series:
                yield _metric(family, series)


def _metric(family: Family, series: dict[tuple[str, ...], list[float]]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, values in sorted(series.items()):
            running = 0.0
            buckets: list[tuple[str, float]] = []
            for bound, count in zip([*map(repr, family.bounds), "+Inf"], values[:-1], strict=True):
                running += count
                buckets.append((bound, running))
            histogram.add_metric(labels, buckets, values[-1])
        return histogram
    simple = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = simple(family.name, family.help, labels=family.labels)
    for labels, values in sorted(series.items()):
        metric.add_metric(labels, values[0])
    return metric


def exposition(dump: Dump) -> bytes:
    """The Prometheus text format 0.0.4 of a dump."""
    return generate_latest(_Snapshot(dump))
