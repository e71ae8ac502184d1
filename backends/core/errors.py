"""Every error that a client may see, as values with one set of fields.

    GatewayError                     status, type, code, param, message, retry_after_ms
    ├── BadRequest                   400  the request is wrong
    │   ├── ContextTooLong           400  context_length_exceeded
    │   └── UnsupportedParameter     400  unsupported_parameter (a deployment's `params: reject` rule)
    ├── BodyTooLarge                 413  (gateway.edge)
    ├── NotAuthenticated             401  (gateway.auth)
    ├── NotAllowed / UnknownModel    403 / 404  (gateway.domain.principal, gateway.config.snapshot)
    ├── LimitExceeded / QuotaExhausted  429  (gateway.limits)
    ├── Overloaded / NoDeployment / Draining  503  no place to run it now
    ├── InternalError                500  a bug of ours; its traceback goes to the log only
    └── BackendError                 what a deployment did; `retriable` says whether another may be tried
        ├── UpstreamRejected         its 4xx about the request, message kept
        ├── UpstreamRefused          502  401/403 to *us*: never the client's fault
        ├── UpstreamOverloaded       503  429, 503, loading
        ├── UpstreamUnavailable      502  refused, reset, unresolvable, 5xx
        ├── UpstreamProtocol         502  what it sent is not its protocol
        ├── UpstreamTruncated        502  it stopped before its terminator
        ├── UpstreamTimeout          504  connect, first_event, idle or total
        └── EngineCrashed            502  a local engine's process died

Messages are shown to clients: they never carry an upstream address, a secret or a traceback. `detail` is for the
log alone. Envelope and types: OpenAI API reference, "Error codes"; openai-openapi `Error` schema.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from backends.core.events import Failure


class GatewayError(Exception):
    """Base of all errors that reach a client.

    Args:
        message: one sentence for the client; no address, secret or traceback.
        param: the request parameter it is about, in the client's spelling.
        code: overrides the class's `code`.
        retry_after_ms: how long the client should wait, when that is known.
        detail: more, for the log only.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    retriable: ClassVar[bool] = False
    """Whether another deployment may be tried, before the first event."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_ms: int | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code
        self.retry_after_ms = retry_after_ms
        self.detail = detail


class BadRequest(GatewayError):
    """The request itself is wrong (400)."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class ContextTooLong(BadRequest):
    """The prompt, or prompt plus stated output, does not fit the model's context."""

    default_code = "context_length_exceeded"


class UnsupportedParameter(BadRequest):
    """A parameter that no eligible deployment supports and whose rule is `reject`."""

    default_code = "unsupported_parameter"


class Overloaded(GatewayError):
    """Every place that could serve is full, and the queue too (503 with Retry-After)."""

    status = 503
    default_code = "overloaded"
    retriable = True


class NoDeployment(GatewayError):
    """No deployment of the route is up (503)."""

    status = 503
    default_code = "no_deployment"


class Draining(GatewayError):
    """This gateway is shutting down (503, or an in-stream error)."""

    status = 503
    default_code = "draining"


class InternalError(GatewayError):
    """A bug of ours; the client sees only this sentence and the request id."""

    default_code = "internal_error"

    @classmethod
    def of(cls, bug: BaseException) -> InternalError:
        """The client's view of an unexpected exception: nothing of it."""
        return cls("The gateway failed to process this request.", detail=f"{type(bug).__name__}: {bug}")


class BackendError(GatewayError):
    """What went wrong at a deployment."""

    status = 502
    retriable = True
    kind: ClassVar[str] = "unavailable"

    @staticmethod
    def of(failure: Failure) -> BackendError:
        """The error that an in-stream `Failure` stands for."""
        kind = _BY_KIND[failure.kind]
        return kind(
            failure.message,
            param=failure.param,
            code=failure.code,
            retry_after_ms=failure.retry_after_ms,
            detail=failure.detail,
        )


class UpstreamRejected(BackendError):
    """A 4xx about the request: the client's to mend. Its own status and message are kept; in a stream it had no status, and
    is a 400, or a 404 where the model is not there.
    """

    type = "invalid_request_error"
    retriable = False
    kind = "rejected"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_ms: int | None = None,
        detail: str = "",
        status: int = 0,
    ) -> None:
        super().__init__(message, param=param, code=code, retry_after_ms=retry_after_ms, detail=detail)
        self.status = status or (404 if code == "model_not_found" else 400)  # type: ignore[misc]  # per instance: the upstream's own


class UpstreamRefused(BackendError):
    """The deployment refused our credentials (401, 403)."""

    default_code = "upstream_auth_failed"
    kind = "refused"


class UpstreamOverloaded(BackendError):
    """429, 503 or a loading model. A 429 from us always means the client's own limit, so this is a 503."""

    status = 503
    default_code = "upstream_overloaded"
    kind = "overloaded"


class UpstreamUnavailable(BackendError):
    """It could not be reached, closed early, or answered 5xx."""

    default_code = "upstream_unavailable"
    kind = "unavailable"


class UpstreamProtocol(BackendError):
    """It answered something that is not its protocol."""

    default_code = "upstream_protocol_error"
    kind = "protocol"


class UpstreamTruncated(BackendError):
    """Its answer ended before its own terminator: never a silent success."""

    default_code = "stream_truncated"
    kind = "truncated"


class UpstreamTimeout(BackendError):
    """One of connect, first_event, idle, total ran out."""

    status = 504
    default_code = "upstream_timeout"
    kind = "timeout"


class EngineCrashed(BackendError):
    """A local engine's process died under the request."""

    default_code = "engine_crashed"
    kind = "crashed"


_BY_KIND: dict[str, type[BackendError]] = {
    error.kind: error
    for error in (
        UpstreamRejected,
        UpstreamRefused,
        UpstreamOverloaded,
        UpstreamUnavailable,
        UpstreamProtocol,
        UpstreamTruncated,
        UpstreamTimeout,
        EngineCrashed,
    )
}
