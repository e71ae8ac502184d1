"""The language between workers and an engine host: length-prefixed msgpack frames over a Unix stream socket.

A frame is four bytes of length, big-endian, and that many bytes of one message. The worker speaks first, with
`Hello`; until its version and token have been accepted the host takes only small frames and answers nothing. Pure:
both sides are machines fed with bytes.

Jobs travel as JSON inside their message, because they carry raw JSON (schemas) that msgpack would take for its own.
"""

from __future__ import annotations

import hmac
import struct

import msgspec

from backends.core.errors import (
    BadRequest,
    ContextTooLong,
    GatewayError,
    InternalError,
    Overloaded,
    UnsupportedParameter,
    UpstreamOverloaded,
    UpstreamUnavailable,
)
from backends.core.events import Event
from backends.core.request import GenerationRequest, Job

VERSION = 2
#: `Ready.reason` of a host that takes nothing new and ends when its jobs have.
UNLOADING = "unloading"
#: Bytes of a frame's body, and of the first one from a peer that has not shown its token.
MAX_FRAME = 64 << 20
MAX_HELLO = 4096
_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """The peer broke the framing, the vocabulary or the handshake. The connection is of no further use."""


class Hello(msgspec.Struct, frozen=True, gc=False, tag="hello"):
    """Worker to host, first. `worker` is a name for the host's log."""

    version: int
    token: str
    worker: str = ""


class Submit(msgspec.Struct, frozen=True, gc=False, tag="submit"):
    """Worker to host: run this job. `job` is `pack_job`'s bytes; `id` is unique among all workers."""

    id: str
    job: bytes


class Cancel(msgspec.Struct, frozen=True, gc=False, tag="cancel"):
    """Worker to host: forget a job. Unknown ids are ignored."""

    id: str


class AskStats(msgspec.Struct, frozen=True, gc=False, tag="ask_stats"):
    """Worker to host: tell the engine's figures. Answered by `Stats` with the same number."""

    number: int


class Count(msgspec.Struct, frozen=True, gc=False, tag="count"):
    """Worker to host: how many tokens do this job's prompts have? Answered by `Counted` with the same number."""

    number: int
    job: bytes


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Host to worker: after `Hello`, and again when it changes.

    `ready` false with `failed` false: still loading. `description` is `Engine.describe()`; `reason` is for logs.
    """

    ready: bool
    failed: bool = False
    reason: str = ""
    description: dict[str, object] = {}
    version: int = VERSION


class Refused(msgspec.Struct, frozen=True, gc=False, tag="refused"):
    """Host to worker: this job did not begin. `error` names a class of `REFUSALS`."""

    id: str
    error: str
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_ms: int | None = None
    detail: str = ""


class Batch(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The events of one job from one step, encoded. `last`: nothing follows for this job."""

    id: str
    last: bool
    events: msgspec.Raw


class Events(msgspec.Struct, frozen=True, tag="events"):
    """Host to worker: what one engine step brought for this connection's jobs."""

    batches: tuple[Batch, ...]


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """Host to worker: the engine's figures now."""

    number: int
    figures: dict[str, object]


class Counted(msgspec.Struct, frozen=True, gc=False, tag="counted"):
    """Host to worker: so many tokens; None = that cannot be told."""

    number: int
    tokens: int | None


ToHost = Hello | Submit | Cancel | AskStats | Count
ToWorker = Ready | Refused | Events | Stats | Counted

_to_host = msgspec.msgpack.Decoder(ToHost)
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_events = msgspec.msgpack.Decoder(tuple[Event, ...])
_job: msgspec.json.Decoder[Job] = msgspec.json.Decoder(Job)
_encode = msgspec.msgpack.Encoder().encode
_EMPTY = msgspec.Raw(b"")
_NULL = msgspec.Raw(b"null")


def frame(message: ToHost | ToWorker) -> bytes:
    """One message, framed.

    Raises:
        FrameError: it is larger than MAX_FRAME.
    """
    body = _encode(message)
    if len(body) > MAX_FRAME:
        raise FrameError(f"a frame of {len(body)} bytes is over the bound of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def batch(id: str, events: tuple[Event, ...] | list[Event], last: bool) -> Batch:
    """Events of one job, encoded for `Events`."""
    return Batch(id, last, msgspec.Raw(_encode(events)))


def unpack_events(one: Batch) -> tuple[Event, ...]:
    """The events of a batch.

    Raises:
        FrameError: they are not events.
    """
    try:
        return _events.decode(one.events)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(f"events that cannot be read: {error}") from None


def pack_job(job: Job) -> bytes:
    """A job as JSON. An absent schema is written as null: empty raw JSON would not be JSON."""
    if isinstance(job, GenerationRequest) and not bytes(job.output.schema):
        job = msgspec.structs.replace(job, output=msgspec.structs.replace(job.output, schema=_NULL))
    return msgspec.json.encode(job)


def unpack_job(data: bytes) -> Job:
    """The job of `pack_job`'s bytes.

    Raises:
        FrameError: they are not a job.
    """
    try:
        job = _job.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(f"a job that cannot be read: {error}") from None
    if isinstance(job, GenerationRequest) and bytes(job.output.schema) == b"null":
        return msgspec.structs.replace(job, output=msgspec.structs.replace(job.output, schema=_EMPTY))
    return job


class Frames:
    """Bytes to frame bodies, for any split. `limit` holds for the next frame and may be raised between two."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Take bytes; `next` then gives the bodies."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next(self) -> bytes | None:
        """The next complete body, if there is one.

        Raises:
            FrameError: its length is over the limit.
        """
        begin = self._at + _LENGTH.size
        if len(self._buffer) < begin:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, self._at)
        if length > self.limit:
            raise FrameError(f"a frame of {length} bytes is over the bound of {self.limit}")
        if len(self._buffer) < begin + length:
            return None
        self._at = begin + length
        return bytes(memoryview(self._buffer)[begin : begin + length])

    @property
    def clean(self) -> bool:
        """Whether the bytes so far end with a frame."""
        return self._at == len(self._buffer)


class HostInbound:
    """What a host reads from one connection: the handshake, then messages. Single use."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._frames = Frames(MAX_HELLO)
        self.worker: str | None = None

    def feed(self, data: bytes) -> list[ToHost]:
        """Messages in order; the `Hello` itself is the first of them. `worker` is its name from then on.

        Raises:
            FrameError: bad framing, an unknown message, a wrong version or token, or a second `Hello`.
        """
        self._frames.feed(data)
        messages: list[ToHost] = []
        while (body := self._frames.next()) is not None:
            try:
                message = _to_host.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise FrameError(f"a message that cannot be read: {error}") from None
            if isinstance(message, Hello) is not (self.worker is None):
                raise FrameError("the first message, and no other, is hello")
            if isinstance(message, Hello):
                self._greet(message)
            messages.append(message)
        return messages

    def _greet(self, hello: Hello) -> None:
        if not hmac.compare_digest(hello.token.encode(), self._token):
            raise FrameError("wrong token")
        if hello.version != VERSION:
            raise FrameError(f"the worker speaks version {hello.version}, this host {VERSION}")
        self.worker = hello.worker
        self._frames.limit = MAX_FRAME


class WorkerInbound:
    """What a worker reads from a host. Single use."""

    def __init__(self) -> None:
        self._frames = Frames()

    def feed(self, data: bytes) -> list[ToWorker]:
        """The messages completed by these bytes.

        Raises:
            FrameError: bad framing, an unknown message or another version.
        """
        self._frames.feed(data)
        messages: list[ToWorker] = []
        while (body := self._frames.next()) is not None:
            try:
                message = _to_worker.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise FrameError(f"a message that cannot be read: {error}") from None
            if isinstance(message, Ready) and message.version != VERSION:
                raise FrameError(f"the host speaks version {message.version}, this worker {VERSION}")
            messages.append(message)
        return messages


#: What an engine may answer to `submit`; any other error becomes InternalError.
REFUSALS: dict[str, type[GatewayError]] = {
    error.__name__: error
    for error in (
        BadRequest,
        ContextTooLong,
        UnsupportedParameter,
        Overloaded,
        UpstreamOverloaded,
        UpstreamUnavailable,
        InternalError,
    )
}


def refuse(id: str, error: Exception) -> Refused:
    """The message for an error that `submit` raised."""
    known = error if isinstance(error, GatewayError) and type(error).__name__ in REFUSALS else InternalError.of(error)
    return Refused(id, type(known).__name__, known.message, known.code, known.param, known.retry_after_ms, known.detail)


def refusal(message: Refused) -> GatewayError:
    """The error that a `Refused` stands for."""
    kind = REFUSALS.get(message.error, InternalError)
    return kind(
        message.message,
        param=message.param,
        code=message.code,
        retry_after_ms=message.retry_after_ms,
        detail=message.detail,
    )
