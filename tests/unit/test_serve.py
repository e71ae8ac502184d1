"""The way of a request through the pipeline, over fakes: every way out settles exactly once."""

import asyncio
import json

import msgspec
import pytest

from backends.core.errors import Draining, GatewayError, Overloaded, UpstreamRejected, UpstreamTruncated, UpstreamUnavailable
from backends.core.events import Failure, Finish, Started, TextDelta
from backends.core.usage import Usage
from gateway.domain.principal import LimitSpec, Principal
from gateway.domain.route import Deployment, Price, Timeouts
from gateway.domain.settlement import RuleState
from gateway.limits.store import LimitExceeded, PeriodOver
from gateway.pipeline.serve import serve
from tests.fakes import FakeBackend, FakeExchange, FakeHouse, FakeProtocol

HELLO = ([Started("up")], [TextDelta("Hel")], [TextDelta("lo"), Finish("stop")], [Usage(5, 2)])


def place(*batches, id="d", **changes):
    return (Deployment(id, f"up-{id}", **changes), FakeBackend(*batches))


def body(**fields):
    return json.dumps({"model": "m", **fields}).encode()


async def run(house, **fields):
    x, before = FakeExchange(body(**fields)), len(house.seen)
    await serve(x, FakeProtocol(), house.house)
    assert len(house.seen) == before + 1, "every way out is observed exactly once"
    assert len(house.store.settled) == len(house.store.admitted), "every admission is settled exactly once"
    assert house.gate.held == 0
    assert len(house.open_requests) == 0
    assert all(one.busy == 0 for one in house.catalog.places.values())
    return x


async def test_a_unary_answer():
    house = FakeHouse([[place(*HELLO)]])
    x = await run(house)
    assert (x.sent, x.finished, x.error) == ([], b"Hello<usage><end>", None)
    row = house.store.settled[0].row
    assert (row.outcome, row.status, row.input_tokens, row.output_tokens, row.usage_source) == ("ok", 200, 5, 2, "reported")
    assert dict(x.response_headers)[b"x-request-id"].decode() == row.id == house.seen[0].id


async def test_a_key_without_the_scope_inference_is_a_403_before_its_body_is_read():
    house = FakeHouse([[place(*HELLO)]], principal=Principal("k", scopes=frozenset({"viewer", "admin"})))
    x = await run(house)
    assert (x.error.status, x.error.code) == (403, "permission_denied")
    assert "inference" in x.error.message
    assert house.store.admitted == [] and house.seen[0].call is None


async def test_a_streamed_answer_is_sent_batch_by_batch():
    house = FakeHouse([[place(*HELLO)]])
    x = await run(house, stream=True)
    assert x.sent == [b"Hel", b"lo", b"<usage>"]
    assert x.finished == b"<end>"
    assert house.seen[0].deltas == 2


async def test_the_upstream_name_of_the_model_goes_upstream():
    house = FakeHouse([[place(*HELLO)]])
    await run(house)
    assert house.catalog.places["d"].backend.jobs[0].model == "up-d"


async def test_the_next_deployment_is_tried_before_the_first_event():
    ill = place(UpstreamUnavailable("down"), id="a")
    polite = place([Started("x")], [Failure("overloaded", "busy")], id="b")
    house = FakeHouse([[ill], [polite], [place(*HELLO, id="c")]])
    x = await run(house)
    assert x.finished == b"Hello<usage><end>"
    assert [attempt.deployment.id for attempt in house.seen[0].attempts] == ["a", "b", "c"]
    assert house.store.settled[0].row.deployment == "c"
    assert polite[1].closed == ill[1].closed == 1


async def test_a_failure_after_a_beginning_without_content_is_an_event_of_a_stream_when_nobody_else_answers():
    broken = ([Started("x")], [Failure("unavailable", "rpc error")])
    house = FakeHouse([[place(*broken, id="a")], [place(*broken, id="b")]])
    x = await run(house, stream=True)
    assert (x.comments, x.sent, x.error_body) == (1, [], b"event:upstream_unavailable")
    assert [attempt.deployment.id for attempt in house.seen[0].attempts] == ["a", "b"]
    whole = await run(FakeHouse([[place(*broken)]]))
    assert (whole.comments, whole.error.status) == (0, 502)
    first = await run(FakeHouse([[place(*broken[1:])]]), stream=True)
    assert (first.comments, first.error.status) == (0, 502)


async def test_a_request_the_backend_rejects_is_not_tried_elsewhere():
    second = place(*HELLO, id="b")
    house = FakeHouse([[place(UpstreamRejected("bad schema", param="tools"), id="a")], [second]])
    x = await run(house)
    assert (x.error.status, x.error.param) == (400, "tools")
    assert second[1].jobs == []
    assert house.store.settled[0].row.outcome == "client_error"
    assert house.store.settled[0].row.output_tokens == 0


async def test_an_engine_whose_queue_is_full_lets_the_next_place_try():
    house = FakeHouse([[place(Overloaded("queue full", retry_after_ms=1000), id="a")], [place(*HELLO, id="b")]])
    x = await run(house)
    assert x.finished == b"Hello<usage><end>"


async def test_a_failure_after_the_first_event_is_an_event_of_the_stream():
    second = place(*HELLO, id="b")
    house = FakeHouse([[place([TextDelta("par")], [TextDelta("t"), Failure("truncated", "cut")], id="a")], [second]])
    x = await run(house, stream=True)
    assert x.sent == [b"par", b"t"]
    assert x.finished is None
    assert x.error_body == b"event:stream_truncated"
    assert second[1].jobs == []
    row = house.store.settled[0].row
    assert (row.outcome, row.output_tokens, row.usage_source) == ("upstream_error", 2, "estimated")


async def test_a_unary_answer_that_breaks_off_is_a_real_status():
    house = FakeHouse([[place([TextDelta("par")], UpstreamTruncated("cut"))]])
    x = await run(house)
    assert (x.started, x.error.status) == (False, 502)


async def test_an_end_without_finish_is_no_success():
    house = FakeHouse([[place([TextDelta("par")])]])
    x = await run(house, stream=True)
    assert (x.finished, x.error_body) == (None, b"event:stream_truncated")


async def test_usage_that_no_backend_reported_is_estimated():
    house = FakeHouse([[place([TextDelta("a" * 40), Finish("stop")])]])
    x = await run(house)
    row = house.store.settled[0].row
    assert (row.output_tokens, row.usage_source) == (10, "estimated")
    assert b"<usage>" in x.finished


async def test_silence_before_the_first_event_times_out_and_falls_back():
    slow = place(5.0, *HELLO, id="a", timeouts=Timeouts(first_event_s=0.01))
    house = FakeHouse([[slow], [place(*HELLO, id="b")]])
    x = await run(house)
    assert x.finished == b"Hello<usage><end>"
    assert house.seen[0].attempts[0].error.code == "upstream_timeout"
    assert slow[1].closed == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_and_is_billed_for_what_was_made(stream):
    backend = place([TextDelta("one ")], [TextDelta("two ")], 30.0, [Finish("stop")])
    house = FakeHouse([[backend]])
    x = FakeExchange(body(stream=stream))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(serve(x, FakeProtocol(), house.house))
        await asyncio.sleep(0.02)
        task.cancel()
        task.cancel()
    assert task.cancelled()
    row = house.store.settled[0].row
    assert len(house.store.settled) == len(house.seen) == 1
    assert (row.outcome, row.status, row.output_tokens, row.usage_source) == ("cancelled", 499, 2, "estimated")
    assert backend[1].closed == 1
    assert x.error is None


async def test_a_client_that_leaves_while_admission_waits_is_voided():
    house = FakeHouse([[place(*HELLO)]])
    house.store.delay_s = 30
    x = FakeExchange(body())
    async with asyncio.TaskGroup() as group:
        task = group.create_task(serve(x, FakeProtocol(), house.house))
        await asyncio.sleep(0.01)
        task.cancel()
    assert house.store.voided == [house.seen[0].id]
    assert house.store.settled == []


async def test_a_reader_that_is_gone_is_cancelled_quietly():
    def gone(data):
        raise ConnectionError

    house = FakeHouse([[place(*HELLO)]])
    x = FakeExchange(body(stream=True), on_send=gone)
    await serve(x, FakeProtocol(), house.house)
    assert house.store.settled[0].row.outcome == "cancelled"
    assert house.bugs == []


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_before_the_last_bytes_of_a_settled_answer_changes_nothing(stream):
    """The row is written by then: metrics and log must not tell another outcome."""

    class Gone(FakeExchange):
        async def finish(self, data):
            raise ConnectionResetError

    house = FakeHouse([[place(*HELLO)]])
    await serve(Gone(body(stream=stream)), FakeProtocol(), house.house)
    row, seen = house.store.settled[0].row, house.seen[0]
    assert (row.outcome, row.status) == (seen.outcome, seen.status) == ("ok", 200)


async def test_a_drain_ends_a_silent_stream_with_an_event():
    house = FakeHouse([[place([TextDelta("one ")], 30.0)]])
    x = FakeExchange(body(stream=True))
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(x, FakeProtocol(), house.house))
        await asyncio.sleep(0.01)
        house.open_requests.interrupt(Draining("bye"))
        house.open_requests.interrupt(Draining("bye"))
    assert x.error_body == b"event:draining"
    assert house.store.settled[0].row.outcome == "drained"


async def test_a_bug_is_a_500_without_its_text():
    house = FakeHouse([[place(RuntimeError("secret path /x"))]])
    x = await run(house)
    assert (x.error.status, "secret" in x.error.message) == (500, False)
    assert isinstance(house.bugs[0], RuntimeError)
    assert house.store.settled[0].row.outcome == "gateway_error"


async def test_refusals_cost_nothing():
    house = FakeHouse([[place(*HELLO)]])
    x = await run(house, model="other")
    assert (x.error.status, x.error.code) == (404, "model_not_found")
    assert house.store.admitted == []


async def test_a_full_gate_returns_the_request_charge():
    principal = Principal("k", limits=(LimitSpec("key:k", "requests", 5, 60_000),))
    house = FakeHouse([[place(*HELLO, max_in_flight=1)]], principal)
    house.gate.refuse = Overloaded("full", retry_after_ms=1000)
    x = await run(house)
    assert x.error.status == 503
    assert house.store.settled[0].actual == (0,)


async def test_a_gated_deployment_holds_a_slot_while_it_streams():
    seen = []
    house = FakeHouse([[place(*HELLO, max_in_flight=1)]])
    x = FakeExchange(body(stream=True), on_send=lambda _: seen.append(house.gate.held))
    await serve(x, FakeProtocol(), house.house)
    assert seen == [1, 1, 1]
    assert house.gate.held == 0


TPM = Principal("k", limits=(LimitSpec("key:k", "tokens", 500, 60_000),))


async def test_our_cap_fits_the_limit_goes_upstream_and_is_told():
    house = FakeHouse([[place(*HELLO)]], TPM)
    x = await run(house)
    cap = house.catalog.places["d"].backend.jobs[0].sampling.max_tokens
    rule = house.store.admitted[0][1][0]
    assert rule.cost <= 500
    assert dict(x.response_headers)[b"x-switchyard-output-cap"] == str(cap).encode()
    assert house.store.settled[0].actual == (7,)


async def test_our_cap_is_lowered_once_to_what_is_left():
    house = FakeHouse([[place(*HELLO)]], TPM)

    def refuse(rules):
        rule = rules[0]
        if rule.cost > 60:
            return LimitExceeded("no", rule=rule, retry_after_ms=1, states=(RuleState(rule, 60, 1),))
        return None

    house.store.refuse = refuse
    await run(house)
    assert house.store.admitted[0][1][0].cost == 60


async def test_a_stated_cap_is_never_changed():
    house = FakeHouse([[place(*HELLO)]], TPM)
    x = await run(house, cap=20)
    assert house.catalog.places["d"].backend.jobs[0].sampling.max_tokens == 20
    assert b"x-switchyard-output-cap" not in dict(x.response_headers)
    house.store.refuse = lambda rules: LimitExceeded(
        "no", rule=rules[0], retry_after_ms=1500, states=(RuleState(rules[0], 60, 1),)
    )
    house.seen.clear()
    x = FakeExchange(body(cap=400))
    await serve(x, FakeProtocol(), house.house)
    assert (x.error.status, x.error.retry_after_ms) == (429, 1500)


def only_left(store, left):
    """The first rule refuses what is above `left`."""

    def refuse(rules):
        if rules[0].cost <= left:
            return None
        return LimitExceeded("no", rule=rules[0], retry_after_ms=1, states=(RuleState(rules[0], left, 1),))

    store.refuse = refuse


def sent_cap(house):
    return house.catalog.places["d"].backend.jobs[-1].sampling.max_tokens


async def test_a_stated_cap_is_clamped_where_the_limit_says_so_and_told():
    spec = LimitSpec("key:k", "output_tokens", 500, 60_000, on_insufficient="clamp")
    house = FakeHouse([[place(*HELLO)]], Principal("k", limits=(spec,)))
    x = await run(house, cap=9000)  # above the whole limit: not even that is a 400
    assert (sent_cap(house), dict(x.response_headers)[b"x-switchyard-output-cap"]) == (500, b"500")
    only_left(house.store, 70)
    x = await run(house, cap=400)
    assert (sent_cap(house), dict(x.response_headers)[b"x-switchyard-output-cap"]) == (70, b"70")
    x = await run(house, cap=60)
    assert (sent_cap(house), b"x-switchyard-output-cap" in dict(x.response_headers)) == (60, False)
    only_left(house.store, 15)  # less than 16 is no answer
    x = await run(house, cap=400)
    assert x.error.status == 429


async def test_a_clamping_limit_does_not_weaken_one_that_rejects():
    specs = (
        LimitSpec("key:k", "tokens", 500, 60_000),
        LimitSpec("key:k", "output_tokens", 500, 60_000, on_insufficient="clamp"),
    )
    house = FakeHouse([[place(*HELLO)]], Principal("k", limits=specs))
    only_left(house.store, 100)
    x = await run(house, cap=300)
    assert x.error.status == 429


async def test_money_bounds_our_cap_by_the_highest_price_of_the_route():
    spec = LimitSpec("team:t", "nusd", 10_000_000, 60_000)
    cheap, dear = Price(1_000, 1_000, 1_000), Price(2_000_000, 1_000_000, 10_000_000)
    house = FakeHouse([[place(*HELLO, price=cheap)], [place(*HELLO, id="other", price=dear)]], Principal("k", limits=(spec,)))
    await run(house)
    ((_, (rule,)),) = house.store.admitted
    assert rule.cost <= rule.limit
    assert rule.cost > rule.limit - 10_000  # the largest cap that the budget pays at the highest price
    assert house.store.settled[0].actual == (house.store.settled[0].row.cost_nusd,)


async def test_the_models_own_limits_count_whoever_asks():
    house = FakeHouse([[place(*HELLO)]], limits=(LimitSpec("model:m", "requests", 5, 60_000),))
    await run(house)
    assert [rule.name for rule in house.store.admitted[0][1]] == ["model:m:requests:60000"]


async def test_a_period_that_ends_under_way_is_charged_anew():
    house = FakeHouse([[place(*HELLO)]], Principal("k", limits=(LimitSpec("key:k", "requests", 5, period="day"),)))
    times = iter([1_800_000_000_000_000, 1_800_100_000_000_000])
    house.store.now_us = lambda: next(times)
    seen = []

    def refuse(rules):
        seen.append(rules[0].name)
        return PeriodOver() if len(seen) == 1 else None

    house.store.refuse = refuse
    house.store.delay_s = 0.01
    await run(house)
    assert seen == ["key:k:requests:2027-01-15", "key:k:requests:2027-01-16"]
    assert house.store.waited_us[0] == 0 and house.store.waited_us[1] >= 10_000, "its tries share one patience"
    assert len(house.store.settled) == 1


async def test_periods_that_end_without_end_are_an_outage_not_a_hang():
    house = FakeHouse([[place(*HELLO)]], Principal("k", limits=(LimitSpec("key:k", "requests", 5, period="day"),)))
    house.store.refuse = lambda rules: PeriodOver()
    x = await run(house)
    assert (x.error.status, x.error.code) == (503, "limits_unavailable")
    assert house.store.settled == house.store.voided == []


async def test_a_backend_that_refuses_the_cap_we_chose_is_a_502_and_another_is_tried():
    rejection = UpstreamRejected("max_tokens is too large", param="max_tokens")
    house = FakeHouse([[place(rejection)]], TPM)
    x = await run(house)
    assert (x.error.status, x.error.code) == (502, "output_cap_refused")
    assert house.store.settled[0].actual == (0,)
    x = await run(house, cap=20)
    assert (x.error.status, x.error.param) == (400, "max_tokens")
    house = FakeHouse([[place(rejection)], [place(*HELLO, id="other")]], TPM)
    assert (await run(house)).error is None


class Seven:
    """A counter that finds seven tokens in every prompt."""

    def __init__(self):
        self.asked = 0

    async def bound(self, call):
        self.asked += 1
        return 7

    def usage(self, call, kept, prompt=0):
        assert isinstance(prompt, int)
        return Usage(prompt or 9, sum(len(text) for _, text in kept), source="counted")


async def test_a_model_with_a_tokenizer_has_its_prompts_counted_where_a_limit_asks():
    counter = Seven()
    tpm = FakeHouse([[place([TextDelta("Hel")], [TextDelta("lo"), Finish("stop")])]], TPM, tokenizer="t.json")
    tpm.count_with(counter)
    await run(tpm)
    ((_, (rule,)),) = tpm.store.admitted
    assert (counter.asked, rule.cost) == (1, 500)  # all that the limit leaves beside the seven
    assert sent_cap(tpm) == 493
    row = tpm.store.settled[0].row  # the backend told no usage
    assert (row.input_tokens, row.output_tokens, row.usage_source) == (7, 5, "counted")
    free = FakeHouse([[place(*HELLO)]], tokenizer="t.json")
    free.count_with(counter)
    await run(free)
    assert counter.asked == 1


async def test_a_model_of_local_engines_has_its_prompts_counted_by_them():
    told: list[int | None] = [5, None]

    async def ask(route, job):
        assert route.name == "m"
        return told.pop(0)

    local = (Deployment("d", "up-d", engine="e"), FakeBackend(*HELLO))
    house = FakeHouse([[local]], TPM, context=100)
    house.view = msgspec.structs.replace(house.view, ask_engines=ask)
    for prompt in (5, 99):  # what it says; else no more than its context holds
        await run(house, cap=20)
        ((_, (rule,)),) = house.store.admitted[-1:]
        assert rule.cost == prompt + 20
        assert house.seen[-1].input_counted is (prompt == 5)
    remote = FakeHouse([[local], [place(*HELLO, id="r")]], TPM, context=100)
    remote.view = msgspec.structs.replace(remote.view, ask_engines=ask)
    await run(remote, cap=20)
    assert told == [], "not asked where a server may answer too"


async def test_a_cut_answer_is_counted_with_the_models_tokenizer_and_a_long_one_in_its_own_time():
    for text in ("short", "long " * 2000):
        house = FakeHouse([[place([TextDelta(text)], UpstreamTruncated("gone"))]], tokenizer="t.json")
        house.count_with(Seven())
        settler = house.house.settler
        running = asyncio.get_running_loop().create_task(settler.run())
        await asyncio.sleep(0)
        x = FakeExchange(body(stream=True))
        await serve(x, FakeProtocol(), house.house)
        assert len(house.store.settled) == len(house.seen) == (1 if text == "short" else 0)
        async with asyncio.timeout(20):
            while not house.seen:
                await asyncio.sleep(0.001)
        row = house.store.settled[0].row
        assert (row.outcome, row.input_tokens, row.output_tokens, row.usage_source) == (
            "upstream_error",
            9,
            len(text),
            "counted",
        )
        running.cancel()


async def test_what_waits_to_be_counted_at_the_end_is_settled_by_flush():
    house = FakeHouse([[place([TextDelta("long " * 2000)], UpstreamTruncated("gone"))]], tokenizer="t.json")
    house.count_with(Seven())
    running = asyncio.get_running_loop().create_task(house.house.settler.run())
    await asyncio.sleep(0)
    running.cancel()  # the worker ends
    await serve(FakeExchange(body(stream=True)), FakeProtocol(), house.house)
    assert house.store.settled == []
    house.house.settler.flush()
    assert house.store.settled[0].row.usage_source == "counted" and len(house.seen) == 1


async def test_near_limits_and_a_degraded_store_are_told():
    house = FakeHouse([[place(*HELLO)]], Principal("k", limits=(LimitSpec("key:k", "requests", 1, 60_000),)))
    x = await run(house)
    told = dict(x.response_headers)
    assert told[b"x-switchyard-limit-near"] == b"key;unit=requests;limit=1;remaining=0;reset=1s"
    assert b"x-switchyard-limits" not in told
    assert house.signals == [("near", "key:k:requests:60000")]
    house.store.degraded = True
    x = await run(house)
    assert dict(x.response_headers)[b"x-switchyard-limits"] == b"degraded"


async def test_a_shadow_limit_lets_through_and_is_counted():
    spec = LimitSpec("key:k", "requests", 0, 60_000, shadow=True)
    house = FakeHouse([[place(*HELLO)]], Principal("k", limits=(spec,)))
    x = await run(house)
    assert x.error is None
    assert house.signals == [("shadow", "key:k:requests:60000")]


async def test_no_cap_is_imposed_where_nothing_asks_for_one():
    house = FakeHouse([[place(*HELLO)]])
    await run(house)
    assert house.catalog.places["d"].backend.jobs[0].sampling.max_tokens is None


async def test_the_price_of_the_deployment_that_answered_counts():
    house = FakeHouse([[place(*HELLO, price=Price(input=2_000_000, output=10_000_000))]])
    await run(house)
    assert house.store.settled[0].row.cost_nusd == 5 * 2000 + 2 * 10_000


async def test_an_unauthenticated_client_is_refused_before_its_body_is_read():
    class Refusal(GatewayError):
        status = 401

    house = FakeHouse([[place(*HELLO)]])
    house.auth.error = Refusal("no")
    x = FakeExchange(b"not json")
    await serve(x, FakeProtocol(), house.house)
    assert x.error.status == 401
    assert house.seen[0].outcome == "refused"


async def test_a_place_without_a_bound_is_taken_when_the_bounded_ones_of_its_tier_are_full():
    full, free, last = place(*HELLO, id="a", max_in_flight=1), place(*HELLO, id="b"), place(*HELLO, id="c")
    house = FakeHouse([[full, free], [last]])
    house.gate.refuse = Overloaded("full", retry_after_ms=1000)
    for _ in range(2):  # whichever of the tier comes first
        x = await run(house)
        assert x.finished == b"Hello<usage><end>"
        assert house.store.settled[-1].row.deployment == "b"
    assert house.gate.waits_s == [0.0], "nobody waits for a slot beside a place that has none to give"


async def test_a_tier_of_bounded_places_only_is_waited_for():
    house = FakeHouse([[place(*HELLO, id="a", max_in_flight=1), place(*HELLO, id="b", max_in_flight=1)]])
    await run(house)
    assert house.gate.waits_s == [30.0]
