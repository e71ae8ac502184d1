"""POST /v1/rerank and POST /v1/score: a query and documents to `Call`, scores to the list of them.

Rerank has the form that Jina and Cohere share and vLLM, llama.cpp and LiteLLM answer too: the best document first, its
place in the request in `index`. Score is vLLM's form, in the order of the request. Sources: Jina's and Cohere's API
references (2026), vLLM 0.32 `entrypoints/pooling/scoring/protocol.py`. What would cut documents short (`max_tokens_per_doc`,
`truncation`) is refused as any unknown name: a text that a model cannot hold is an error here, never a silent cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from backends.core.errors import BadRequest, GatewayError, UpstreamProtocol, UpstreamTruncated
from backends.core.events import Event, Score
from backends.core.fold import Fold
from backends.core.request import RerankRequest
from backends.core.usage import Usage
from gateway.protocols.contract import Call, Encoder, Identity, Options
from gateway.protocols.decoding import decoded
from gateway.protocols.json_text import quoted
from gateway.protocols.openai_errors import render
from gateway.protocols.openai_shared import size
from gateway.protocols.openai_wire import Body, Label, ModelName

#: Most documents of one request.
MAX_DOCUMENTS = 1000
Query = Annotated[str, Meta(min_length=1)]


class Document(Body, frozen=True, kw_only=True):
    """A document as an object."""

    text: str


class RerankBody(Body, frozen=True, kw_only=True):
    """POST /v1/rerank."""

    model: ModelName
    query: Query
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None
    user: Label | None = None


class ScoreBody(Body, frozen=True, kw_only=True):
    """POST /v1/score."""

    model: ModelName
    text_1: Query | Annotated[list[Query], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
    text_2: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
    user: Label | None = None


_rerank = msgspec.json.Decoder(RerankBody)
_score = msgspec.json.Decoder(ScoreBody)
_encode = msgspec.json.Encoder().encode


class Rerank:
    """The rerank protocol."""

    name = "rerank"
    id_prefix = "rerank-"

    def parse(self, body: bytes, /) -> Call:
        """The call that a body stands for.

        Raises:
            BadRequest: names the parameter.
        """
        asked = decoded(_rerank, body)
        documents = tuple(one if isinstance(one, str) else one.text for one in asked.documents)
        options = Options(top_n=asked.top_n or 0, return_documents=bool(asked.return_documents))
        return _call(RerankRequest(asked.model, asked.query, documents), options)

    def encoder(self, call: Call, identity: Identity) -> Encoder:
        """A fresh encoder for one answer."""
        return RerankUnary(call, identity)

    def error(self, error: GatewayError, /, *, in_stream: bool) -> bytes:
        """OpenAI's error envelope."""
        return render(error, in_stream=in_stream)


class Scoring:
    """The score protocol."""

    name = "score"
    id_prefix = "score-"

    def parse(self, body: bytes, /) -> Call:
        """The call that a body stands for.

        Raises:
            BadRequest: names the parameter; several different first texts, which are several requests here.
        """
        asked = decoded(_score, body)
        first = {asked.text_1} if isinstance(asked.text_1, str) else set(asked.text_1)
        if len(first) > 1:
            raise BadRequest("'text_1' must be one text here; send a request for each.", param="text_1")
        documents = (asked.text_2,) if isinstance(asked.text_2, str) else tuple(asked.text_2)
        if isinstance(asked.text_1, list) and len(asked.text_1) not in (1, len(documents)):
            raise BadRequest("'text_1' and 'text_2' differ in length.", param="text_1")
        return _call(RerankRequest(asked.model, first.pop(), documents), Options())

    def encoder(self, call: Call, identity: Identity) -> Encoder:
        """A fresh encoder for one answer."""
        return ScoreUnary(call, identity)

    def error(self, error: GatewayError, /, *, in_stream: bool) -> bytes:
        """OpenAI's error envelope."""
        return render(error, in_stream=in_stream)


def _call(job: RerankRequest, options: Options) -> Call:
    """Every document is read together with the query."""
    count = len(job.documents)
    text_bytes = size(job.query) * count + sum(map(size, job.documents))
    return Call(job=job, options=options, text_bytes=text_bytes, items=count)


class _Unary:
    """Gathers the scores of one answer. Single use."""

    content_type = "application/json"

    def __init__(self, call: Call, identity: Identity) -> None:
        assert isinstance(call.job, RerankRequest)
        self._identity = identity
        self._documents = call.job.documents
        self._options = call.options
        self._fold = Fold()

    def feed(self, events: Sequence[Event], /) -> bytes:
        """Take events; nothing comes out before `close`."""
        self._fold.feed(events)
        return b""

    def _scores(self) -> list[float]:
        """The score of each document.

        Raises:
            UpstreamTruncated: there are fewer scores than documents.
            UpstreamProtocol: scores that were not asked, that repeat, or that are no numbers.
        """
        items = self._fold.answer.items
        scores = {item.index: item.relevance for item in items if isinstance(item, Score)}
        count = len(self._documents)
        if len(scores) < len(items) or any(not 0 <= index < count for index in scores):
            raise UpstreamProtocol("The model answered with scores that were not asked for.")
        if len(scores) < count:
            raise UpstreamTruncated("The model answered with fewer scores than documents.")
        if not all(map(math.isfinite, scores.values())):
            raise UpstreamProtocol("The model answered with a score that is not finite.")
        return [scores[index] for index in range(count)]

    @property
    def _tokens(self) -> int:
        return (self._fold.answer.usage or Usage(0, 0)).input_tokens


class RerankUnary(_Unary):
    """The best documents first; of equal ones the earlier."""

    def close(self) -> bytes:
        """The whole body.

        Raises:
            UpstreamTruncated, UpstreamProtocol: scores and documents do not match.
        """
        scores = self._scores()
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        results = b",".join(self._result(index, scores[index]) for index in order[: self._options.top_n or len(order)])
        return b'{"id":%b,"object":"list","model":%b,"results":[%b],"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (
            quoted(self._identity.id),
            quoted(self._identity.model),
            results,
            self._tokens,
            self._tokens,
        )

    def _result(self, index: int, score: float) -> bytes:
        text = b""
        if self._options.return_documents:
            text = b',"document":{"text":%b}' % quoted(self._documents[index])
        return b'{"index":%d,"relevance_score":%b%b}' % (index, _encode(score), text)


class ScoreUnary(_Unary):
    """The scores in the order of the request."""

    def close(self) -> bytes:
        """The whole body.

        Raises:
            UpstreamTruncated, UpstreamProtocol: scores and documents do not match.
        """
        data = b",".join(
            b'{"index":%d,"object":"score","score":%b}' % (index, _encode(score)) for index, score in enumerate(self._scores())
        )
        return (
            b'{"id":%b,"object":"list","created":%d,"model":%b,"data":[%b],'
            b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":0}}'
        ) % (
            quoted(self._identity.id),
            self._identity.created_s,
            quoted(self._identity.model),
            data,
            self._tokens,
            self._tokens,
        )
