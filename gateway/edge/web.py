"""What is not generation: models, health, metrics and the OpenAPI page, as a FastAPI app. Errors in OpenAI's shape.

`/docs` is one page of our own without scripts: FastAPI's would load its own from a CDN.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from backends.core.errors import GatewayError, InternalError
from gateway.config.snapshot import Snapshot
from gateway.domain.principal import Principal
from gateway.edge.exchange import retry_headers
from gateway.edge.openapi import docs_page, document
from gateway.protocols.openai_errors import envelope, render

VERSION = "0.1.0"
#: The one HTML page may run nothing, be framed by nobody and send nothing anywhere.
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Authenticates(Protocol):
    """Finds the principal of a request's headers."""

    async def authenticate(self, headers: Sequence[tuple[bytes, bytes]], now_us: int) -> Principal:
        """Raises NotAuthenticated (401) or BadRequest."""


@dataclass(frozen=True, kw_only=True)
class WebParts:
    """What the FastAPI part is given.

    `now_us`: Unix µs. `not_ready`: why this worker must get no traffic, by part; empty when it is ready.
    `failed_engines`: why local engines failed, by name; the others serve on.
    `routers`: further parts of the surface, such as the admin API.
    `metrics`: the Prometheus text, and `metrics_token` the bearer token that shows it; without both the path is a 404.
    """

    auth: Authenticates
    now_us: Callable[[], int]
    snapshot: Callable[[], Snapshot]
    not_ready: Callable[[], Mapping[str, str]]
    failed_engines: Callable[[], Mapping[str, str]] = dict
    metrics: Callable[[], Awaitable[bytes]] | None = None
    metrics_token: str = ""
    routers: Sequence[APIRouter] = ()


class MetricsUnavailable(GatewayError):
    """Whoever sums the metrics does not answer (503)."""

    status = 503
    default_code = "metrics_unavailable"


class ModelObject(BaseModel):
    """OpenAI's `Model`."""

    id: str
    object: str = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """OpenAI's `ListModelsResponse`."""

    object: str = "list"
    data: list[ModelObject]


class Health(BaseModel):
    """`status` is `ok` or `not_ready`; `reasons` by part. `engines`: those that failed and why, while the rest serves."""

    status: str
    reasons: dict[str, str] = {}
    engines: dict[str, str] | None = None


class Welcome(BaseModel):
    """What answers on `/`."""

    name: str = "switchyard"
    docs: str = "/docs"
    openapi: str = "/openapi.json"


def web_app(parts: WebParts) -> FastAPI:
    """The FastAPI part of a worker."""
    app = FastAPI(title="Switchyard", version=VERSION, docs_url=None, redoc_url=None, redirect_slashes=False)
    _models(app, parts)
    _health(app, parts)

    @app.get("/", tags=["about"])
    async def welcome() -> Welcome:
        """Where to look next."""
        return Welcome()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()), headers=_PAGE_HEADERS)

    for router in parts.routers:
        app.include_router(router)
    _errors(app)
    plain = app.openapi

    def with_generation() -> dict[str, Any]:
        return document(plain())

    app.openapi = with_generation  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def _models(app: FastAPI, parts: WebParts) -> None:
    async def principal(request: Request) -> Principal:
        return await parts.auth.authenticate(request.scope["headers"], parts.now_us())

    holding = Depends(principal)

    async def models(holder: Principal = holding) -> ModelList:
        """The models that the key may use, aliases among them."""
        snapshot = parts.snapshot()
        allowed = sorted(name for name, route in snapshot.models.items() if snapshot.allowed(route, holder))
        return ModelList(data=[_model(snapshot, name) for name in allowed])

    async def model(model: str, holder: Principal = holding) -> ModelObject:
        """One model, if the key may use it. Its name may contain slashes."""
        snapshot = parts.snapshot()
        snapshot.resolve(model, holder)
        return _model(snapshot, model)

    for prefix in ("/v1", ""):
        described = prefix == "/v1"
        app.get(f"{prefix}/models", tags=["models"], include_in_schema=described)(models)
        app.get(f"{prefix}/models/{{model:path}}", tags=["models"], include_in_schema=described)(model)


def _model(snapshot: Snapshot, name: str) -> ModelObject:
    route = snapshot.models[name]
    return ModelObject(id=name, created=route.created_s, owned_by=route.owned_by)


def _health(app: FastAPI, parts: WebParts) -> None:
    @app.get("/health/live", tags=["health"])
    async def live() -> Health:
        """The process answers."""
        return Health(status="ok")

    @app.get(
        "/health/ready",
        tags=["health"],
        response_model_exclude_none=True,
        responses={503: {"model": Health, "description": "Send no traffic here."}},
    )
    async def ready(response: Response) -> Health:
        """Whether this worker should get traffic."""
        reasons = dict(parts.not_ready())
        response.status_code = 503 if reasons else 200
        return Health(status="not_ready" if reasons else "ok", reasons=reasons, engines=dict(parts.failed_engines()) or None)

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Prometheus metrics; there is no such page without the configured token."""
        shown = request.headers.get("authorization", "").encode()
        wanted = b"Bearer " + parts.metrics_token.encode()
        if parts.metrics is None or not parts.metrics_token or not hmac.compare_digest(shown, wanted):
            raise HTTPException(404)
        try:
            text = await parts.metrics()
        except (OSError, TimeoutError):
            raise MetricsUnavailable("The metrics are not to be had at this moment.") from None
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _errors(app: FastAPI) -> None:
    def answer(error: GatewayError) -> Response:
        headers = {name.decode(): value.decode() for name, value in retry_headers(error)}
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        return Response(render(error, in_stream=False), error.status, headers, "application/json")

    @app.exception_handler(GatewayError)
    async def known(_request: Request, error: GatewayError) -> Response:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        what = f"{request.method[:16]} {request.scope['path'][:256]}"
        if error.status_code == 400:
            body = envelope("The request body is no valid JSON.", "invalid_request_error", code="invalid_json")
        elif error.status_code == 405:
            body = envelope(f"Not allowed: {what}.", "invalid_request_error", code="method_not_allowed")
        else:
            body = envelope(f"Unknown request URL: {what}.", "invalid_request_error", code="unknown_url")
        return Response(body, error.status_code, error.headers, "application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return Response(
                envelope("The request body is no valid JSON.", "invalid_request_error", code="invalid_json"),
                400,
                None,
                "application/json",
            )
        param = ".".join(str(part) for part in first["loc"][1:])[:256] or None
        words = f"{param}: {first['msg']}" if param else first["msg"]
        return Response(envelope(words, "invalid_request_error", param, "invalid_value"), 400, None, "application/json")

    @app.exception_handler(Exception)
    async def bug(_request: Request, error: Exception) -> Response:
        return answer(InternalError.of(error))
