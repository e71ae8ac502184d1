"""POST /v1/embeddings: body to `Call`, items to the list of vectors, as floats or base64 of float32 little-endian.

openai-python asks for base64 when its caller said nothing (3.52, `lib/_parsing/_embeddings.py`), so both are common.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

import msgspec

from backends.core.errors import BadRequest, GatewayError, UpstreamProtocol, UpstreamTruncated
from backends.core.events import Embedding, Event
from backends.core.fold import Fold
from backends.core.request import EmbeddingRequest, Prompt
from backends.core.usage import Usage
from gateway.protocols.contract import Call, Encoder, Identity, Options
from gateway.protocols.decoding import decoded
from gateway.protocols.json_text import quoted
from gateway.protocols.openai_errors import render
from gateway.protocols.openai_shared import size
from gateway.protocols.openai_wire import MAX_INPUTS, EmbeddingBody

_decoder = msgspec.json.Decoder(EmbeddingBody)
_encode = msgspec.json.Encoder().encode


class OpenAIEmbeddings:
    """The embeddings protocol."""

    name = "openai_embeddings"
    id_prefix = "embd-"

    def parse(self, body: bytes, /) -> Call:
        """The call that a body stands for.

        Raises:
            BadRequest: names the parameter.
        """
        asked = decoded(_decoder, body)
        inputs = _inputs(asked.input)
        return Call(
            job=EmbeddingRequest(asked.model, inputs, asked.dimensions),
            options=Options(encoding=asked.encoding_format or "float"),
            text_bytes=sum(size(one.text) for one in inputs),
            token_count=sum(len(one.tokens) for one in inputs if one.tokens is not None),
            items=len(inputs),
        )

    def encoder(self, call: Call, identity: Identity) -> Encoder:
        """A fresh encoder for one answer."""
        return EmbeddingsUnary(call, identity)

    def error(self, error: GatewayError, /, *, in_stream: bool) -> bytes:
        """OpenAI's error envelope."""
        return render(error, in_stream=in_stream)


def _inputs(value: str | list[str | int | list[int]]) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        return (Prompt(value),)
    kinds = {type(one) for one in value}
    if len(kinds) > 1:
        raise BadRequest("'input' mixes texts and token ids.", param="input", code="invalid_type")
    if kinds == {int}:
        return (Prompt(tokens=tuple(value)),)  # type: ignore[arg-type]  # all are int
    if len(value) > MAX_INPUTS:
        raise BadRequest(f"More than {MAX_INPUTS} inputs were given.", param="input")
    return tuple(Prompt(one) if isinstance(one, str) else Prompt(tokens=tuple(one)) for one in value)  # type: ignore[arg-type]


class EmbeddingsUnary:
    """The list of embeddings, in the order of the inputs. Single use."""

    content_type = "application/json"

    def __init__(self, call: Call, identity: Identity) -> None:
        self._model = quoted(identity.model)
        self._base64 = call.options.encoding == "base64"
        self._expected = call.items
        self._fold = Fold()

    def feed(self, events: Sequence[Event], /) -> bytes:
        """Take events; nothing comes out before `close`."""
        self._fold.feed(events)
        return b""

    def close(self) -> bytes:
        """The whole body.

        Raises:
            UpstreamTruncated: there are fewer vectors than inputs.
            UpstreamProtocol: vectors that were not asked, that repeat, or that are no numbers.
        """
        answer = self._fold.answer
        by_index = {item.index: item.vector for item in answer.items if isinstance(item, Embedding)}
        if len(by_index) < len(answer.items) or any(not 0 <= index < self._expected for index in by_index):
            raise UpstreamProtocol("The model answered with embeddings that were not asked for.")
        if len(by_index) < self._expected:
            raise UpstreamTruncated("The model answered with fewer embeddings than inputs.")
        vector = self._as_base64 if self._base64 else self._as_floats
        data = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector(by_index[index]))
            for index in range(self._expected)
        )
        usage = answer.usage or Usage(0, 0)
        return b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (
            data,
            self._model,
            usage.input_tokens,
            usage.input_tokens,
        )

    @staticmethod
    def _as_base64(vector: bytes) -> bytes:
        return b'"' + base64.b64encode(vector) + b'"'

    @staticmethod
    def _as_floats(vector: bytes) -> bytes:
        text = _encode(struct.unpack(f"<{len(vector) // 4}f", vector))
        if b"null" in text:
            raise UpstreamProtocol("The model answered with an embedding that is not finite.")
        return text
