"""Answer one exchange. Every path out hands its tally to the settler exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence

from backends.core.errors import (
    BackendError,
    BadRequest,
    Draining,
    GatewayError,
    InternalError,
    UpstreamRejected,
    UpstreamTruncated,
)
from backends.core.events import Event
from backends.core.request import GenerationRequest
from gateway.domain.settlement import Outcome, Reservation
from gateway.limits.headers import limit_headers
from gateway.limits.signals import NEAR_HEADER, near_header, signals
from gateway.pipeline.admission import admit
from gateway.pipeline.attempts import Attempts
from gateway.pipeline.clock import monotonic_us, wall_us
from gateway.pipeline.exchange import BodyTooLarge, Exchange
from gateway.pipeline.house import House
from gateway.pipeline.open_requests import Entry
from gateway.pipeline.rows import takes_long, unreported
from gateway.pipeline.tally import Tally
from gateway.protocols.contract import ClientProtocol, Identity

#: What a client may call its request, for our log.
CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


async def serve(x: Exchange, protocol: ClientProtocol, house: House) -> None:
    """Answer one exchange: a status and body, or a stream, or an error in the protocol's envelope.

    Cancelling the task means that the client left; `OpenRequests.interrupt` ends it with an error instead.
    """
    now_wall_us = wall_us()
    tally = Tally(house.mint_id(now_wall_us), protocol.name, monotonic_us(), now_wall_us)
    x.response_headers.append((b"x-request-id", tally.id.encode()))
    try:
        with house.open_requests.entered(tally, x) as entry:
            x.when_gone(entry.left)
            try:
                await _answer(x, protocol, house, tally, entry)
            except asyncio.CancelledError:
                if (interruption := entry.interruption()) is None:
                    raise
                raise interruption from None
    except GatewayError as error:
        if tally.leaving.gone:  # it broke off because it was asked to
            tally.cancel()
        else:
            tally.fail(error, outcome_of(error))
            await _fail(x, protocol, error, tally)
    except (asyncio.CancelledError, ConnectionError) as gone:
        tally.cancel()
        if isinstance(gone, asyncio.CancelledError):
            raise
    except Exception as bug:
        house.report_bug(tally.id, bug)
        internal = InternalError.of(bug)
        tally.fail(internal, "gateway_error")
        await _fail(x, protocol, internal, tally)
    finally:
        tally.ended_us = monotonic_us()
        house.settler.submit(tally)


async def _answer(x: Exchange, protocol: ClientProtocol, house: House, tally: Tally, entry: Entry) -> None:
    """The way of a request, in one direction: key, body, route, deposit, attempts, stream, settlement."""
    if x.draining:
        raise Draining("The gateway is shutting down; try again.", retry_after_ms=1000)
    view = house.view()  # pinned: the configuration never moves under a stream
    theirs = x.header(b"x-request-id")
    if theirs is not None and CLIENT_ID.fullmatch(theirs):
        tally.client_request_id = theirs
    principal = tally.principal = await house.auth.authenticate(x.headers, tally.began_wall_us)  # 401, before the body
    principal.need("inference")  # 403
    call = protocol.parse(await x.body(view.max_body_bytes))  # 400 | 413
    tally.call = call = call.wished(usage_on_finish=principal.usage_on_finish)
    route = tally.route = view.snapshot.resolve(call.job.model, principal)  # 404, before anything is charged
    tiers = view.catalog.plan(route, call.job, tally.began_us)  # 400: no deployment can
    tally.call = call = await admit(house, view, call, tally)  # 429
    if tally.reservation is not None:
        x.response_headers += limit_headers(tally.reservation.states)
        _signals(x, house, tally.reservation)
    if tally.imposed_cap:
        x.response_headers.append((b"x-switchyard-output-cap", str(tally.imposed_cap).encode()))
    async with Attempts(call.job, tiers, house.gate, tally, entry.task, view.max_wait_s) as stream:
        id = protocol.id_prefix + tally.id.replace("-", "")
        encoder = protocol.encoder(call, Identity(id, tally.began_wall_us // 1_000_000, call.job.model))
        x.content_type = encoder.content_type.encode()
        batch: Sequence[Event] | None = stream.first
        while batch is not None:
            failure = tally.observe(batch, monotonic_us())
            if not tally.leaving.gone:  # else nobody is there to read it: it is counted
                if data := encoder.feed(batch[:-1] if failure else batch):
                    try:
                        await x.send(data)
                    except ConnectionError:
                        if not entry.left():
                            raise
                if failure and not tally.leaving.gone:
                    raise BackendError.of(failure)
            batch = await stream.following()
        if tally.leaving.gone:
            raise ConnectionResetError("the client left")
        if isinstance(call.job, GenerationRequest) and tally.finished_choices < call.job.choices:
            raise UpstreamTruncated("The model's answer ended early.")
        if tally.usage is None:
            tally.usage = await asyncio.to_thread(unreported, tally, call) if takes_long(tally) else unreported(tally, call)
            encoder.feed((tally.usage,))
        last = encoder.close()
        if (written := house.settler.settled(tally)) is not None:
            await written  # the slot is back before the client knows
        await x.finish(last)


def _signals(x: Exchange, house: House, reservation: Reservation) -> None:
    """Tell the client, and count, what an admission told beside yes."""
    if reservation.degraded:
        x.response_headers.append((b"x-switchyard-limits", b"degraded"))
    close, over = signals(reservation.states)
    if close:
        x.response_headers.append((NEAR_HEADER, near_header(close)))
    if close or over:
        house.signal(close, over)


async def _fail(x: Exchange, protocol: ClientProtocol, error: GatewayError, tally: Tally) -> None:
    """Tell the client, unless it is gone. OpenAI's SDKs heed `x-should-retry` before they repeat a request."""
    if len(tally.attempts) > 1 and error.retry_after_ms is None:
        x.response_headers.append((b"x-should-retry", b"false"))  # every deployment was tried already
    states = getattr(error, "states", ())
    if states:
        x.response_headers += limit_headers(states)
    with contextlib.suppress(ConnectionError):
        if tally.attempts and tally.attempts[-1].begun and _streamed(tally) and isinstance(error, BackendError):
            x.content_type = b"text/event-stream"  # the last deployment had begun its stream: this one begins, and fails
            x.comment()
        await x.fail(error, protocol.error(error, in_stream=x.started))


def _streamed(tally: Tally) -> bool:
    return tally.call is not None and tally.call.options.stream


def outcome_of(error: GatewayError) -> Outcome:
    """How an error is counted."""
    if isinstance(error, Draining):
        return "drained"
    if isinstance(error, (BadRequest, BodyTooLarge, UpstreamRejected)):
        return "client_error"
    if isinstance(error, BackendError):
        return "upstream_error"
    return "refused" if error.status < 500 else "gateway_error"
