"""What a model that makes no text is asked: vectors of inputs, or scores of documents. Each input is one sequence.

A reranker reads query and document together, as llama.cpp's own server puts them: by the file's template `rerank` where it
has one, else with the tokens that its vocabulary says stand at the beginning, between and at the end (`tools/server`,
`format_prompt_rerank`, as vendored in llama-cpp-python 0.3.36).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import llama_cpp as llama
import numpy as np

from backends.core.errors import BadRequest, ContextTooLong, UnsupportedParameter
from backends.core.events import Embedding, Item, Score
from backends.core.request import EmbeddingRequest, Job, Prompt, RerankRequest
from backends.engines.llamacpp.context import Context
from backends.engines.llamacpp.model import Model
from backends.engines.llamacpp.settings import LlamaOptions
from backends.engines.options import EngineLoadFailed
from backends.engines.pairs import filled, sigmoid

_POOLINGS = {"mean": 1, "cls": 2, "last": 3}
_NO_POOLING, _RANK = 0, 4
_FROM_FILE = -1
_NO_TOKEN = -1


class Kind(Protocol):
    """One kind of work."""

    capabilities: tuple[str, ...]
    #: llama.cpp's number of the pooling.
    pooling: int
    #: Numbers of one output.
    width: int

    def check(self, context: Context) -> None:
        """Raises EngineLoadFailed: the file is for other work."""

    def inputs(self, job: Job) -> list[list[int]]:
        """The tokens of each input.

        Raises:
            BadRequest, ContextTooLong, UnsupportedParameter: what this model cannot be given.
        """

    def item(self, index: int, found: Any) -> Item:
        """What llama.cpp computed for input number `index`; `found` points at `width` floats."""


class Vectors:
    """Embeddings of length 1 (L2)."""

    capabilities: tuple[str, ...] = ("dimensions", "embeddings", "token_input")

    def __init__(self, model: Model, context_size: int, options: LlamaOptions) -> None:
        """Raises EngineLoadFailed."""
        if options.pooling is not None and options.pooling not in _POOLINGS:
            raise EngineLoadFailed(f"pooling must be one of {', '.join(_POOLINGS)}, not {options.pooling!r}")
        self._model = model
        self._context_size = context_size
        self.pooling = _FROM_FILE if options.pooling is None else _POOLINGS[options.pooling]
        self.width = model.width

    def check(self, context: Context) -> None:
        """As `Kind`."""
        kind = llama.llama_pooling_type(context.handle)
        if kind == _NO_POOLING:
            raise EngineLoadFailed("the model's file names no pooling; set the option `pooling`")
        if kind == _RANK:
            raise EngineLoadFailed("the model's file is a reranker's: write rerank: true in place of embedding")

    def inputs(self, job: Job) -> list[list[int]]:
        """As `Kind`."""
        if not isinstance(job, EmbeddingRequest):
            raise BadRequest("This model makes embeddings, nothing else.", param="model")
        if job.dimensions not in (None, self.width):
            message = f"This model's vectors have {self.width} dimensions; no other number can be asked."
            raise UnsupportedParameter(message, param="dimensions")
        return [self._tokens(one) for one in job.inputs]

    def item(self, index: int, found: Any) -> Item:
        """As `Kind`."""
        vector = np.ctypeslib.as_array(found, (self.width,)).astype("<f4")
        norm = float(np.linalg.norm(vector))
        return Item(Embedding(index, (vector / norm if norm else vector).astype("<f4").tobytes()))

    def _tokens(self, prompt: Prompt) -> list[int]:
        if prompt.tokens is not None:
            if not all(0 <= token < self._model.size for token in prompt.tokens):
                raise BadRequest("A token id is outside the model's vocabulary.", param="input")
            tokens = list(prompt.tokens)
        else:
            _check_size(self._model, (prompt.text,), self._context_size, "An input", "input")
            tokens = self._model.tokens(prompt.text, begin=True, special=False)
        if not tokens:
            raise BadRequest("An input is empty.", param="input")
        _check_count(len(tokens), self._context_size, "An input", "input")
        return tokens


class Ranks:
    """Scores from 0 to 1. Files with one output tell a logit, whose sigmoid it is; those with several a softmax, yes first."""

    capabilities: tuple[str, ...] = ("rerank",)

    def __init__(self, model: Model, context_size: int, options: LlamaOptions) -> None:
        self._model = model
        self._context_size = context_size
        self.pooling = _FROM_FILE if options.pooling is None else _RANK
        self.width = int(llama.llama_model_n_cls_out(model.handle))
        own = llama.llama_model_chat_template(model.handle, b"rerank")
        self._template = options.rerank_template or (own.decode("utf-8", "replace") if own else "")
        vocab = model.vocab
        end = llama.llama_vocab_eos(vocab)
        end = llama.llama_vocab_sep(vocab) if end == _NO_TOKEN else end
        ends = [end] if llama.llama_vocab_get_add_eos(vocab) else []
        self._begin = [llama.llama_vocab_bos(vocab)] if llama.llama_vocab_get_add_bos(vocab) else []
        self._between = ends + ([llama.llama_vocab_sep(vocab)] if llama.llama_vocab_get_add_sep(vocab) else [])
        self._end = ends

    def check(self, context: Context) -> None:
        """As `Kind`."""
        if llama.llama_pooling_type(context.handle) != _RANK:
            raise EngineLoadFailed("the model's file is no reranker's (its pooling is not `rank`)")

    def inputs(self, job: Job) -> list[list[int]]:
        """As `Kind`."""
        if not isinstance(job, RerankRequest):
            raise BadRequest("This model scores documents, nothing else.", param="model")
        pair = self._templated if self._template else self._joined
        return pair(job.query, job.documents)

    def item(self, index: int, found: Any) -> Item:
        """As `Kind`."""
        score = float(found[0])
        return Item(Score(index, sigmoid(score) if self.width == 1 else score))

    def _joined(self, query: str, documents: Sequence[str]) -> list[list[int]]:
        self._check_size(query)
        begin = [*self._begin, *self._model.tokens(query, begin=False, special=False), *self._between]
        pairs = []
        for document in documents:
            self._check_size(query, document)
            pairs.append(self._checked([*begin, *self._model.tokens(document, begin=False, special=False), *self._end]))
        return pairs

    def _templated(self, query: str, documents: Sequence[str]) -> list[list[int]]:
        """A text that spells a special token is read apart from the template, so that it never becomes one."""
        pairs = []
        for document in documents:
            self._check_size(query, document)
            pieces = filled(self._template, query, document)
            if any(self._model.has_special_text(text) for text, ours in pieces if not ours):
                tokens = [id for text, ours in pieces for id in self._model.tokens(text, begin=False, special=ours)]
            else:
                tokens = self._model.tokens("".join(text for text, _ in pieces), begin=False, special=True)
            pairs.append(self._checked(tokens))
        return pairs

    def _check_size(self, *texts: str) -> None:
        _check_size(self._model, texts, self._context_size, "A document with the query", "documents")

    def _checked(self, tokens: list[int]) -> list[int]:
        _check_count(len(tokens), self._context_size, "A document with the query", "documents")
        return tokens


def _check_size(model: Model, texts: Sequence[str], context: int, what: str, param: str) -> None:
    """Refuse what surely does not fit without tokenising it."""
    least = sum(len(text.encode("utf-8", "replace")) for text in texts) // model.longest_token
    if least > 4 * context:
        raise _too_long(f"at least {least}", context, what, param)


def _check_count(count: int, context: int, what: str, param: str) -> None:
    if count > context:
        raise _too_long(str(count), context, what, param)


def _too_long(count: str, context: int, what: str, param: str) -> ContextTooLong:
    return ContextTooLong(f"{what} has {count} tokens; the model's context is {context}.", param=param)
