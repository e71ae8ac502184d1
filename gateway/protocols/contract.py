"""What a client API is to the rest: parse a body into a `Call`, encode events into bytes, render an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from backends.core.errors import GatewayError
from backends.core.events import Event
from backends.core.request import Job


class Options(msgspec.Struct, frozen=True, gc=False):
    """What the client wants of the answer's form, not of the work.

    `stated_cap`: the client stated an output cap itself. `echo`: completions repeat the prompt.
    `usage_on_finish`: a stream's usage stands on its last finish chunk, whether asked or not.
    `encoding`: of embeddings, `float` or `base64`. `top_n`: of scored documents only the best so many, 0 = all;
    `return_documents`: with their texts.
    """

    stream: bool = False
    include_usage: bool = False
    usage_on_finish: bool = False
    stated_cap: bool = False
    echo: bool = False
    encoding: str = "float"
    top_n: int = 0
    return_documents: bool = False


class Call(msgspec.Struct, frozen=True, gc=False):
    """A parsed request. `text_bytes` and `messages` size the prompt for the admission estimate.

    `text_bytes`: UTF-8 bytes of all prompt text, tools and schemas. `token_count`: prompt tokens given as ids.
    """

    job: Job
    options: Options
    text_bytes: int = 0
    token_count: int = 0
    items: int = 1

    def wished(self, *, usage_on_finish: bool) -> Call:
        """The call with what its key, not its body, says of the answer's form."""
        if not usage_on_finish:
            return self
        return msgspec.structs.replace(self, options=msgspec.structs.replace(self.options, usage_on_finish=True))


class Identity(msgspec.Struct, frozen=True, gc=False):
    """What we mint once per answer and repeat on every chunk. `model` is the name that the client asked for."""

    id: str
    created_s: int
    model: str


class Encoder(Protocol):
    """Events to the client's bytes. Single use. A `Failure` is never fed to it: the pipeline raises it instead.

    Streamed: `feed` returns zero or more complete SSE events in one piece, `close` the last ones with `[DONE]`.
    Unary: `feed` returns b"" and `close` the whole body.
    """

    content_type: str

    def feed(self, events: Sequence[Event], /) -> bytes:
        """Bytes for these events."""

    def close(self) -> bytes:
        """The last bytes."""


class ClientProtocol(Protocol):
    """A client API, pure. `id_prefix` begins the id of each of its answers (`chatcmpl-`)."""

    name: str
    id_prefix: str

    def parse(self, body: bytes, /) -> Call:
        """The call that a body stands for.

        Raises:
            BadRequest: names the parameter.
        """

    def encoder(self, call: Call, identity: Identity) -> Encoder:
        """A fresh encoder for one answer."""

    def error(self, error: GatewayError, /, *, in_stream: bool) -> bytes:
        """The error in this API's envelope: a JSON body, or one in-stream event."""
