"""The application: generation paths go straight to the pipeline, everything else to the FastAPI part.

It decides on the path alone, never on Host or a rebuilt URL. It needs `EdgeProtocol` under it, whose cycle gives it
bodies; what it hands on is plain ASGI. A POST whose target is a generation path as it stands comes without a scope.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

from backends.core.errors import GatewayError
from gateway.edge.cors import Cors, Pairs
from gateway.edge.cycle import EXTENSION, App, Cycle, Message, Receive, RequestTimeout, Send, Straight
from gateway.edge.exchange import HttpExchange
from gateway.pipeline.exchange import Exchange
from gateway.protocols.contract import ClientProtocol
from gateway.protocols.openai_errors import render
from gateway.protocols.registry import PATHS

#: What a request outside of the generation paths may bring: 1 MiB holds the longest admin body.
OTHER_BODY_BYTES = 1 << 20
#: How long all of it may take: it is read before anybody looks for a key, so a stranger's drip must end.
OTHER_BODY_S = 30.0
_PERCENT = ord("%")  # bytes in bytes first fails to be a number, at the price of twenty comparisons
Serve = Callable[[Exchange, ClientProtocol], Awaitable[None]]
Scope = MutableMapping[str, Any]


class MethodNotAllowed(GatewayError):
    """The path exists, the method does not (405)."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class EdgeApp:
    """The ASGI application of a worker.

    Args:
        serve: answers one exchange (`gateway.pipeline.serve` with its house).
        web: the FastAPI part.
        mint_id: a fresh request id for answers that are not the pipeline's.
        cors_origins: who may call from a browser.
        draining: whether streams must end now.
        paths: exact path to client protocol.
        other_body_s: seconds that the whole body of another path may take.
    """

    def __init__(
        self,
        *,
        serve: Serve,
        web: App,
        mint_id: Callable[[], str],
        cors_origins: Sequence[str] = (),
        draining: Callable[[], bool] = bool,
        paths: Mapping[str, ClientProtocol] = PATHS,
        other_body_s: float = OTHER_BODY_S,
    ) -> None:
        self._serve = serve
        self._web = web
        self._mint_id = mint_id
        self._cors = Cors(cors_origins)
        self._draining = draining
        self._paths = paths
        self.straight: Mapping[bytes, Straight] = {
            path.encode(): partial(self._generation, path, protocol) for path, protocol in paths.items()
        }
        """By request target: what answers a POST for it without a scope."""

        self._other_body_s = other_body_s

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """ASGI. A generation is the pipeline's own coroutine: no frame of this file stays under it."""
        if scope["type"] != "http":
            return self._web(scope, receive, send)
        path = scope["path"]
        protocol = self._paths.get(path)
        if protocol is None or _PERCENT in scope["raw_path"]:  # an encoded path is not the one that others compare with
            return self._other(scope, receive, send)
        headers = scope["headers"]
        if scope["method"] == "POST":
            return self._generation(path, protocol, scope["extensions"][EXTENSION], headers, dict(reversed(headers)))
        if scope["method"] == "OPTIONS":
            return self._answer(send, 204, self._cors.preflight(headers, b"POST"), b"")
        error = MethodNotAllowed(f"Not allowed to {scope['method']} on {path}: use POST.")
        told = [(b"content-type", b"application/json"), (b"allow", b"POST, OPTIONS"), *self._cors.headers(headers)]
        return self._answer(send, 405, told, render(error, in_stream=False))

    def _generation(
        self, path: str, protocol: ClientProtocol, cycle: Cycle, headers: Pairs, first: Mapping[bytes, bytes]
    ) -> Awaitable[None]:
        cycle.cancel_when_gone = True
        exchange = HttpExchange(cycle, path, headers, first, self._draining())
        if self._cors.configured:
            exchange.response_headers += self._cors.headers(headers)
        return self._serve(exchange, protocol)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "OPTIONS":
            await self._answer(send, 204, self._cors.preflight(scope["headers"], b"GET, HEAD"), b"")
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the cycle leaves the body out
        if scope["method"] not in ("GET", "HEAD"):
            try:
                body = await self._whole_body(scope)
            except GatewayError as error:
                json = [(b"content-type", b"application/json"), *self._cors.headers(scope["headers"])]
                await self._answer(send, error.status, json, render(error, in_stream=False))
                return
            receive = _replayed(body, receive)
        extra = [*self._cors.headers(scope["headers"]), (b"x-request-id", self._mint_id().encode())]

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        await self._web(scope, receive, with_headers)

    async def _whole_body(self, scope: Scope) -> bytes:
        """A body that is all there: what is cut short, malformed or too slow never reaches a handler.

        Raises:
            GatewayError: see `Cycle.read_body`.
            ConnectionError: the client left.
        """
        try:
            async with asyncio.timeout(self._other_body_s):
                whole: bytes = await scope["extensions"][EXTENSION].read_body(OTHER_BODY_BYTES)
        except TimeoutError:
            raise RequestTimeout("The request's body did not arrive in time.") from None
        return whole

    async def _answer(self, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        headers.append((b"x-request-id", self._mint_id().encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives this body first."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
