"""What a worker's parts say of themselves as metrics: engines, the usage stream, breakers, refusals by limits."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from backends.core.errors import UpstreamTimeout, UpstreamUnavailable
from gateway.config.snapshot import Snapshot, Team
from gateway.domain.principal import LimitSpec
from gateway.domain.route import Deployment
from gateway.domain.settlement import Rule, RuleState
from gateway.figures import Looking, count_refusal, prepare, read_places, read_process
from gateway.limits.link import LinkDown
from gateway.limits.signals import labels
from gateway.limits.store import LimitExceeded
from gateway.limits.stream import StreamLook, StreamState, read_state
from gateway.limits.wire import ReplyError
from gateway.pipeline.clock import monotonic_us
from gateway.pipeline.tally import Tally
from gateway.routing.catalog import Place
from gateway.telemetry import families as f
from gateway.telemetry.metrics import Metrics


class Engine:
    def __init__(self, *answers: Mapping[str, object] | Exception) -> None:
        self.answers = list(answers)

    async def stats(self) -> Mapping[str, object]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def value(metrics: Metrics, family: f.Family, *labels: str) -> float:
    return metrics.dump()[family.name][labels][0]


async def test_an_engine_tells_its_figures_and_its_steps_only_grow() -> None:
    metrics = Metrics()
    figures = {"running": 2, "queued": 1, "slots": 4, "kv_tokens": 90, "kv_size": 800, "resident_bytes": 1 << 20}
    steps = [50, 60, 5]  # restarted before the third look
    engine = Engine(*({**figures, "steps": n, "prompt_tail": "x"} for n in steps), UpstreamUnavailable("gone"))
    looking = Looking(metrics, {"e": engine}, None, lambda: 0)
    for _ in steps:
        await looking.look()
    assert value(metrics, f.ENGINE_RUNNING, "e") == 2
    assert value(metrics, f.ENGINE_KV_SIZE, "e") == 800
    assert value(metrics, f.ENGINE_MEMORY, "e") == 1 << 20
    assert value(metrics, f.ENGINE_STEPS, "e") == 10 + 5
    await looking.look()
    assert value(metrics, f.ENGINE_RUNNING, "e") == value(metrics, f.ENGINE_MEMORY, "e") == 0


async def test_the_usage_stream_tells_rows_age_and_what_was_written() -> None:
    metrics, states = Metrics(), [StreamState(3, 5_000_000, 10), StreamState(0, 0, 25), StreamState(1, 9_000_000, 2)]

    async def stream() -> StreamState:
        if not states:
            raise LinkDown("gone", sent=False)
        return states.pop(0)

    looking = Looking(metrics, {}, stream, lambda: 9_000_000)
    await looking.look()
    assert value(metrics, f.STREAM_ROWS) == 3
    assert value(metrics, f.STREAM_LAG) == 4
    assert value(metrics, f.LEDGER_WRITTEN) == 0
    await looking.look()
    assert value(metrics, f.STREAM_LAG) == 0
    assert value(metrics, f.LEDGER_WRITTEN) == 15
    await looking.look()  # Redis lost its data: its counter began anew
    assert value(metrics, f.LEDGER_WRITTEN) == 17
    await looking.look()  # Redis is away: the last figures stay
    assert value(metrics, f.STREAM_ROWS) == 1


def test_an_answer_of_redis_is_read() -> None:
    first = [b"1700000000123-0", [b"r", b"row"]]
    reply = [b"length", 4, b"entries-added", 19, b"first-entry", first]
    assert read_state(reply) == StreamState(4, 1_700_000_000_123_000, 15)
    assert read_state([b"length", 0, b"first-entry", None]) == StreamState(0, 0, None)


async def test_a_stream_that_is_not_there_yet_is_empty_and_another_error_is_one() -> None:
    absent, wrong = StreamLook(), StreamLook()
    absent.answered(ReplyError("ERR no such key"))
    assert await absent.future == StreamState(0, 0, 0)
    wrong.answered(ReplyError("WRONGTYPE"))
    with pytest.raises(LinkDown):
        await wrong.future


def test_open_breakers_are_told_and_retired_deployments_are_not() -> None:
    metrics = Metrics()
    places = [Place(Deployment(id=name, model="m"), None, frozenset()) for name in ("a", "b")]  # type: ignore[arg-type]
    read_places(metrics, lambda: places)
    for _ in range(3):
        places[0].record(UpstreamTimeout("slow"), monotonic_us())
    assert metrics.dump()[f.BREAKER_OPEN.name] == {("a",): [1.0], ("b",): [0.0]}
    places.pop(0)
    assert metrics.dump()[f.BREAKER_OPEN.name] == {("b",): [0.0]}


def test_a_refusal_is_counted_by_scope_and_unit() -> None:
    metrics, tally = Metrics(), Tally("id", "openai_chat", 0, 0)
    rule = Rule("team:secret-team:tokens:60000", "rate", "tokens", 10, 60_000, 1)
    tally.fail(LimitExceeded("no", rule=rule, retry_after_ms=1), "refused")
    count_refusal(metrics, tally)
    assert metrics.dump()[f.LIMIT_REFUSALS.name] == {("team", "tokens"): [1.0]}


def test_every_kind_of_limit_in_the_file_has_its_series_from_the_start() -> None:
    """So that their number is what the configuration says, however late a limit is first met."""
    metrics = Metrics()
    limits = (
        LimitSpec("team:red", "tokens", 5, 60_000, model="chat"),
        LimitSpec("team:red", "slots", 5),
        LimitSpec("team:red", "nusd", 5, period="month", shadow=True),
    )
    everyone = (LimitSpec("gateway", "requests", 5, 1000),)
    team = Team("red", limits=limits)
    prepare(metrics, Snapshot("1", {}, {}, {}, teams={"red": team}, gateway_limits=everyone))
    dump = metrics.dump()
    assert set(dump[f.LIMIT_REFUSALS.name]) == {("team_model", "tokens"), ("team", "slots"), ("gateway", "requests")}
    assert set(dump[f.LIMIT_NEAR.name]) == {("team_model", "tokens"), ("team", "nusd"), ("gateway", "requests")}
    assert set(dump[f.LIMIT_SHADOW.name]) == {("team", "nusd")}
    refused = Rule("@chat team:red:tokens:60000", "rate", "tokens", 5, 60_000, 1)
    assert labels(RuleState(refused, 0, 0)) in dump[f.LIMIT_REFUSALS.name]


def test_a_process_tells_memory_descriptors_and_cpu() -> None:
    metrics = Metrics()
    read_process(metrics, "9.9")
    assert value(metrics, f.WORKER_MEMORY) > 1 << 20
    assert value(metrics, f.WORKER_FDS) >= 3
    assert value(metrics, f.WORKER_CPU) > 0
    assert value(metrics, f.BUILD, "9.9") == 1


async def test_vllms_own_figures_are_told_on_under_our_names() -> None:
    metrics = Metrics()
    own = [{"num_requests_running": 3.0, "generation_tokens_total": count, "unheard_of": 1.0} for count in (100.0, 130.0, 20.0)]
    engine = Engine(*({"vllm": one} for one in own), {"vllm": "no figures"})
    looking = Looking(metrics, {"e": engine}, None, lambda: 0)
    for _ in range(4):
        await looking.look()
    assert value(metrics, f.VLLM_GAUGES["num_requests_running"], "e") == 3
    made = f.VLLM_COUNTERS["generation_tokens_total"]
    assert made.name == "switchyard_vllm_generation_tokens_total"
    assert value(metrics, made, "e") == 30 + 20, "what it was before we looked is unknown, and a fall is a restart"
