"""Metrics: what a request adds, how processes are summed, and that Prometheus can read the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backends.core.errors import Overloaded, UpstreamTimeout
from backends.core.events import TextDelta
from backends.core.usage import Usage
from gateway.domain.route import Deployment, Route
from gateway.pipeline.tally import ITL_BOUNDS_US, AttemptRecord, Tally
from gateway.telemetry import families as f
from gateway.telemetry.aggregate import Fleet, exposition, merge, pack, unpack
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.reference import page

D1, D2 = Deployment(id="d1", model="m"), Deployment(id="d2", model="m")
ROUTE = Route(name="chat", tiers=((D1,), (D2,)))


def ended(*, deltas: int = 3, error: Exception | None = None) -> Tally:
    tally = Tally("id", "openai_chat", 1_000_000, 0)
    tally.route = ROUTE
    tally.limiter_us, tally.queue_us = 400, 20_000
    failed = AttemptRecord(D1, 1_021_000)
    failed.ended_us, failed.error = 1_121_000, UpstreamTimeout("slow")
    good = AttemptRecord(D2, 1_121_000)
    good.ended_us = 2_021_000
    tally.attempts = [failed, good]
    for n in range(deltas):
        tally.observe([TextDelta("x")], 1_500_000 + n * 30_000)
    tally.usage = Usage(100, 3, cached_input_tokens=40)
    tally.ended_us = 2_022_000
    return tally


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    out = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            out[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return out


def test_bounds_agree_with_the_tally() -> None:
    assert tuple(round(b * 1e6) for b in f.ITL_BOUNDS_S) == ITL_BOUNDS_US


def test_one_request() -> None:
    metrics = Metrics()
    metrics.observe(ended())
    got = samples(exposition(metrics.dump()))
    where = (("deployment", "d2"), ("model", "chat"))
    assert got["switchyard_requests_total", (("deployment", "d2"), ("model", "chat"), ("outcome", "ok"))] == 1
    assert got["switchyard_time_to_first_token_seconds_sum", where] == pytest.approx(0.5)
    assert got["switchyard_request_duration_seconds_sum", where] == pytest.approx(1.022)
    assert got["switchyard_inter_token_latency_seconds_count", where] == 2
    assert got["switchyard_inter_token_latency_seconds_sum", where] == pytest.approx(0.06)
    assert got["switchyard_inter_token_latency_seconds_bucket", (*where[:1], ("le", "0.02"), *where[1:])] == 0
    assert got["switchyard_inter_token_latency_seconds_bucket", (*where[:1], ("le", "0.04"), *where[1:])] == 2
    assert got["switchyard_input_tokens_total", where] == 100
    assert got["switchyard_cached_input_tokens_total", where] == 40
    assert got["switchyard_output_tokens_total", where] == 3
    assert got["switchyard_queue_wait_seconds_sum", where] == pytest.approx(0.02)
    assert got["switchyard_limiter_seconds_sum", ()] == pytest.approx(0.0004)
    assert got["switchyard_overhead_seconds_sum", ()] == pytest.approx(0.002)
    assert got["switchyard_attempts_total", (("deployment", "d1"), ("outcome", "timeout"))] == 1
    assert got["switchyard_attempts_total", (("deployment", "d2"), ("outcome", "ok"))] == 1
    assert got["switchyard_fallbacks_total", (("model", "chat"),)] == 1


def test_an_unknown_model_is_other_and_a_refusal_has_its_reason() -> None:
    metrics = Metrics()
    tally = Tally("id", "openai_chat", 1, 0)
    tally.fail(Overloaded("full", code="not-a-label"), "refused")
    tally.ended_us = 10
    metrics.observe(tally)
    got = samples(exposition(metrics.dump()))
    assert got["switchyard_requests_total", (("deployment", "other"), ("model", "other"), ("outcome", "refused"))] == 1
    assert got["switchyard_refusals_total", (("model", "other"), ("outcome", "overloaded"))] == 1
    assert b"not-a-label" not in exposition(metrics.dump())


def test_labels_are_of_a_fixed_set() -> None:
    labels = {label for family in f.FAMILIES.values() for label in family.labels}
    assert labels == {"model", "deployment", "engine", "outcome", "scope", "unit", "version"}
    assert all(name.startswith("switchyard_") for name in f.FAMILIES)


def test_gauges_are_read_at_the_scrape() -> None:
    metrics, now = Metrics(), [3]
    metrics.read(f.LEDGER_QUEUE, lambda: now[0])
    metrics.set(f.OPEN_STREAMS, 2)
    metrics.add(f.OPEN_STREAMS, by=-1)
    now[0] = 7
    got = samples(exposition(metrics.dump()))
    assert got["switchyard_ledger_queue_rows", ()] == 7
    assert got["switchyard_open_streams", ()] == 1


def test_a_wrong_number_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="labels"):
        Metrics().child(f.REQUESTS, "chat")


def test_sum_over_processes() -> None:
    one, two = Metrics(), Metrics()
    one.observe(ended())
    two.observe(ended())
    two.observe(ended(deltas=10))
    one.set(f.OPEN_STREAMS, 3)
    two.set(f.OPEN_STREAMS, 4)
    one.set(f.CONFIG_FAILED, 1)
    two.set(f.CONFIG_FAILED, 1)
    total = merge(unpack(pack(m.dump())) for m in (one, two))
    assert total[f.REQUESTS.name]["chat", "d2", "ok"] == [3.0]
    assert sum(total[f.ITL.name]["chat", "d2"][:-1]) == 2 + 2 + 9
    assert total[f.OPEN_STREAMS.name][()] == [7.0]
    assert total[f.CONFIG_FAILED.name][()] == [1.0]


def test_a_dead_worker_keeps_its_counters_and_loses_its_gauges() -> None:
    fleet = Fleet()

    def worker(requests: int) -> Metrics:
        made = Metrics()
        for _ in range(requests):
            made.observe(ended())
        made.set(f.OPEN_STREAMS, 5)
        return made

    fleet.put(0, 1, worker(2).dump())
    fleet.put(1, 1, worker(3).dump())
    fleet.put(1, 1, worker(4).dump())
    assert fleet.total()[f.REQUESTS.name]["chat", "d2", "ok"] == [6.0]
    fleet.gone(1, 1)
    assert fleet.total()[f.REQUESTS.name]["chat", "d2", "ok"] == [6.0]
    assert fleet.total()[f.OPEN_STREAMS.name][()] == [5.0]
    fleet.put(1, 1, worker(5).dump())  # it only reconnected
    assert fleet.total()[f.REQUESTS.name]["chat", "d2", "ok"] == [7.0]
    fleet.gone(1, 1)
    fleet.put(1, 2, worker(1).dump())  # a new one in its place
    assert fleet.total()[f.REQUESTS.name]["chat", "d2", "ok"] == [8.0]
    fleet.put(1, 1, worker(9).dump())  # a late word of the old one
    assert fleet.total()[f.REQUESTS.name]["chat", "d2", "ok"] == [8.0]


def test_a_dump_of_another_version_is_read_as_far_as_it_is_known() -> None:
    dump = Metrics().dump()
    dump["switchyard_future_total"] = {(): [1.0]}
    dump[f.REQUESTS.name] = {("too", "few"): [1.0]}
    assert unpack(pack(dump)) == {**Metrics().dump(), f.REQUESTS.name: {}}


def test_the_page_of_metrics_is_up_to_date() -> None:
    committed = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    assert committed == page(), "run: python -m gateway.telemetry.reference > docs/metrics.md"
