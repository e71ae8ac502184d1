"""Query and document as one input of a Hugging Face reranker: by the tokenizer's own form of a pair, or by a template.

What a client's text spells never becomes a control token, as with `Prompts`.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import msgspec

from backends.core.errors import BadRequest, ContextTooLong
from backends.core.request import RerankRequest
from backends.engines.pairs import filled

#: Longest token that is reckoned with before a text is tokenised at all, in bytes.
_LONGEST_TOKEN = 256


class Pair(msgspec.Struct, frozen=True):
    """One input: its tokens, and for models that know them the kind of each (0: query, 1: document)."""

    tokens: list[int]
    kinds: list[int] | None = None


class Pairs:
    """Makes inputs for one model."""

    def __init__(self, tokenizer: Any, context: int, *, template: str = "", separated: bool = True) -> None:
        """Take a tokenizer of transformers.

        Args:
            tokenizer: `PreTrainedTokenizer` or what looks like one.
            context: tokens that an input may have.
            template: text with `{query}` and `{document}`; "" = the tokenizer's own form.
            separated: without a template: as a pair; False = the one text behind the other.
        """
        self._tokenizer = copy.deepcopy(tokenizer)
        self._turn = threading.Lock()
        self._context = context
        self._template = template if template or separated else "{query}{document}"
        self._own = bool(template)
        self._special = tuple(str(text) for text in getattr(tokenizer, "all_special_tokens", ()))

    def of(self, job: RerankRequest) -> list[Pair]:
        """An input for each document. From any thread.

        Raises:
            ContextTooLong: says both numbers.
            BadRequest: nothing is left of a pair.
        """
        return [self._pair(job.query, document) for document in job.documents]

    def _pair(self, query: str, document: str) -> Pair:
        least = len((query + document).encode("utf-8", "replace")) // _LONGEST_TOKEN
        if least > self._context:
            raise self._too_long(f"at least {least}")
        with self._turn:
            pair = self._filled(query, document) if self._template else self._joined(query, document)
        if not pair.tokens:
            raise BadRequest("A document and the query are empty.", param="documents")
        if len(pair.tokens) > self._context:
            raise self._too_long(str(len(pair.tokens)))
        return pair

    def _joined(self, query: str, document: str) -> Pair:
        # as lists of one: an empty document alone would be taken for none
        found = self._tokenizer([query], [document], split_special_tokens=True, truncation=False)
        kinds = found.get("token_type_ids")
        return Pair(list(found["input_ids"][0]), list(kinds[0]) if kinds is not None else None)

    def _filled(self, query: str, document: str) -> Pair:
        """A text that spells a control token is read apart from the template; else all is read in one."""
        pieces = filled(self._template, query, document)
        if not any(special in text for special in self._special for text in (query, document)):
            pieces = [("".join(text for text, _ in pieces), True)]
        encode = self._tokenizer.encode
        tokens = [
            token
            for text, ours in pieces
            for token in encode(text, add_special_tokens=not self._own and len(pieces) == 1, split_special_tokens=not ours)
        ]
        return Pair(tokens)

    def _too_long(self, count: str) -> ContextTooLong:
        message = f"A document with the query has {count} tokens; the model's context is {self._context}."
        return ContextTooLong(message, param="documents")
