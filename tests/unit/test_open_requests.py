"""Keep-alive comments, lease renewal and the end of a drain, over open requests."""

import asyncio

import pytest

from backends.core.errors import Draining
from backends.core.request import GenerationRequest
from gateway.domain.route import Deployment
from gateway.domain.settlement import Reservation, Rule
from gateway.pipeline.open_requests import KEEPALIVE_US, OpenRequests
from gateway.pipeline.tally import AttemptRecord, Tally
from gateway.protocols.contract import Call, Options
from tests.fakes import FakeExchange


def streaming(stream: bool = True, early_s: float | None = None) -> Tally:
    tally = Tally("id", "fake", 0, 0)
    tally.call = Call(GenerationRequest("m"), Options(stream=stream))
    tally.attempts.append(AttemptRecord(Deployment("d", "m", early_keepalive_s=early_s), 0))
    return tally


async def test_a_silent_stream_gets_a_comment_every_fifteen_seconds():
    open_requests, x = OpenRequests(), FakeExchange(b"")
    x.sent.append(b"begun")
    with open_requests.entered(streaming(), x):
        for second in range(1, 46):
            open_requests.keep_alive(second * 1_000_000)
    assert x.comments == 3
    assert KEEPALIVE_US == 15_000_000


@pytest.mark.parametrize(("stream", "early_s", "comments"), [(True, None, 0), (False, 1.0, 0), (True, 5.0, 1)])
async def test_before_the_first_event_only_a_deployment_that_says_so_gets_one(stream, early_s, comments):
    open_requests, x = OpenRequests(), FakeExchange(b"")
    with open_requests.entered(streaming(stream, early_s), x):
        open_requests.keep_alive(4_000_000)
        assert x.comments == 0
        open_requests.keep_alive(6_000_000)
    assert x.comments == comments


async def test_live_reservations_are_renewed_with_their_slots_and_progress():
    open_requests, tally = OpenRequests(), streaming()
    rules = (Rule("key:k:slots", "lease", "slots", 1, 0, 1), Rule("key:k:requests:60000", "rate", "requests", 9, 60_000, 1))
    tally.reservation = Reservation("id", 1, rules)
    tally.deltas = 7
    with open_requests.entered(tally, FakeExchange(b"")):
        (live,) = open_requests.progress()
        assert (live.id, live.slots, live.output_tokens) == ("id", ("key:k:slots",), 7)
        tally.settled = True
        assert open_requests.progress() == []
    assert len(open_requests) == 0


async def test_an_interruption_is_told_from_a_client_that_left():
    open_requests = OpenRequests()
    seen = []

    async def request() -> None:
        with open_requests.entered(streaming(), FakeExchange(b"")) as entry:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                seen.append(entry.interruption())

    async with asyncio.TaskGroup() as group:
        first = group.create_task(request())
        await asyncio.sleep(0)
        open_requests.interrupt(Draining("bye"))
        await asyncio.sleep(0)
        second = group.create_task(request())
        await asyncio.sleep(0)
        second.cancel()
    assert [type(one) for one in seen] == [Draining, type(None)]
    assert not first.cancelled()


async def test_a_stream_whose_model_is_being_loaded_begins_with_comments():
    open_requests, x = OpenRequests(), FakeExchange(b"")
    tally = streaming()
    with open_requests.entered(tally, x):
        open_requests.keep_alive(400_000, lambda _: True)
        assert x.comments == 0, "it may be loaded in a moment"
        for tenth in range(5, 36, 5):
            open_requests.keep_alive(tenth * 100_000, lambda _: True)
        assert x.comments == 4
        tally.first_event_us = tally.last_event_us = 3_600_000
        open_requests.keep_alive(6_000_000, lambda _: True)
        assert x.comments == 4, "once it answers, silence is measured as ever"
