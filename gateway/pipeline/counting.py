"""Prompts counted with the model's own tokenizer: an upper bound that a chat template makes exact; and answers.

With the model's template the rendered conversation is counted. Without one its texts are, and what templates add is
bounded by constants. Text of the client that spells a special token is counted as one token for each of its bytes
beside: some servers read it as the token, others as text, and the bound must hold for both.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from backends.core.errors import BadRequest
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, Prompt, RerankRequest
from backends.core.usage import Usage
from backends.templates.jinja import ChatTemplate
from gateway.domain.route import Route
from gateway.protocols.contract import Call

#: Up to so many bytes of text are counted on the event loop, some 2 ms; longer ones in a thread (the library lets go).
INLINE_BYTES = 2048
#: What a template adds: around each message, to the whole (a system prompt of its own), with tools, and for each tool.
PER_MESSAGE, PER_PROMPT, WITH_TOOLS, PER_TOOL = 8, 48, 192, 24
#: Tokens of one image: more than the vision models of 2025 take of a picture of usual size (documented).
PER_IMAGE = 2048


class Tokenizes(Protocol):
    """What is used of `tokenizers.Tokenizer`. `encode_special_tokens`: special tokens in a text are plain text."""

    encode_special_tokens: bool

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        """An encoding: its length is the number of tokens."""

    def get_added_tokens_decoder(self) -> Mapping[int, Any]:
        """Special tokens: each has its text in `content`."""


class Counter:
    """Counts the prompts and answers of one model.

    Args:
        tokenizer: the model's.
        template: its chat template, when it is known.
    """

    def __init__(self, tokenizer: Tokenizes, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        special = sorted((token.content for token in tokenizer.get_added_tokens_decoder().values()), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None

    async def bound(self, call: Call) -> int:
        """No fewer tokens than the prompt has."""
        if call.text_bytes <= INLINE_BYTES:
            return self.count(call.job)
        return await asyncio.to_thread(self.count, call.job)

    def usage(self, call: Call, kept: Iterable[tuple[int, str]], prompt: int = 0) -> Usage:
        """Usage that no backend reported, in this thread: what was generated as this tokenizer cuts it, at most the cap.

        Args:
            call: as it was sent.
            kept: the pieces of text of the answer, by choice.
            prompt: its tokens, where they were counted at the admission; 0 = they were not.
        """
        job = call.job
        if not isinstance(job, GenerationRequest):
            return Usage(prompt or self.count(job), 0, source="counted")
        texts: dict[int, list[str]] = {}
        for choice, text in kept:
            texts.setdefault(choice, []).append(text)
        cut = sum(len(self._tokenizer.encode("".join(pieces), add_special_tokens=False)) for pieces in texts.values())
        if job.sampling.max_tokens is not None:
            cut = min(cut, job.sampling.max_tokens * job.choices)
        return Usage(prompt or self.count(job), cut, source="counted")

    def count(self, job: Job) -> int:
        """The same, in this thread."""
        if isinstance(job, EmbeddingRequest):
            return sum(self._prompt(prompt) for prompt in job.inputs)
        if isinstance(job, RerankRequest):
            query = self._text(job.query) + PER_MESSAGE
            return sum(query + self._text(document) for document in job.documents)
        if job.prompts:
            beside = self._text(job.suffix) + PER_MESSAGE if job.suffix else 0
            return sum(self._prompt(prompt) for prompt in job.prompts) + beside
        return self._conversation(job) + job.images * PER_IMAGE

    def _conversation(self, job: GenerationRequest) -> int:
        if self._template is not None:
            try:
                text = self._template.render(job.messages, job.tools)
            except BadRequest:
                pass  # the backend's template may take what ours does not: bounded by its texts
            else:
                spelt = sum(self._spelt(piece) for piece in _texts(job))
                return len(self._tokenizer.encode(text, add_special_tokens=False)) + spelt + 1  # some add one before it
        tools = WITH_TOOLS + PER_TOOL * len(job.tools) if job.tools else 0
        return sum(self._text(piece) for piece in _texts(job)) + PER_MESSAGE * len(job.messages) + PER_PROMPT + tools

    def _prompt(self, prompt: Prompt) -> int:
        if prompt.tokens is not None:
            return len(prompt.tokens)
        return len(self._tokenizer.encode(prompt.text, add_special_tokens=True)) + self._spelt(prompt.text) + 1

    def _text(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False)) + self._spelt(text)

    def _spelt(self, text: str) -> int:
        """The bytes of special tokens that a client's text spells."""
        if self._special is None:
            return 0
        return sum(len(found.encode()) for found in self._special.findall(text))


def load_counters(
    routes: Iterable[Route], load: Callable[[str], Tokenizes], before: Mapping[str, Counter]
) -> dict[str, Counter]:
    """A counter for each route that names a tokenizer, by the route's name; those of unchanged routes are taken over.

    Args:
        routes: of one configuration.
        load: reads a tokenizer.json.
        before: the counters of the former configuration, by `key_of`.

    Raises:
        Exception: a file is no tokenizer, or a template is broken: whatever `load` and `ChatTemplate` raise.
    """
    found: dict[str, Counter] = {}
    for route in routes:
        key = key_of(route)
        if route.tokenizer and key not in found:
            template = ChatTemplate(route.chat_template) if route.chat_template else None
            found[key] = before.get(key) or Counter(load(route.tokenizer), template)
    return found


def key_of(route: Route) -> str:
    """What makes two routes count alike: file and template."""
    return f"{route.tokenizer}\0{route.chat_template}"


def load_tokenizer(path: str) -> Tokenizes:
    """A Hugging Face tokenizer.json, without the truncation and padding that it may ask for.

    Raises:
        ModuleNotFoundError: the extra `tokenizers` is not installed.
        Exception: it cannot be read (the library raises nothing narrower).
    """
    from tokenizers import Tokenizer  # an extra

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer  # type: ignore[no-any-return, unused-ignore]


def _texts(job: GenerationRequest) -> Iterator[str]:
    """Every text of a conversation that a template may write."""
    for message in job.messages:
        yield message.text
        for beside in (message.name, message.tool_call_id, message.reasoning):
            if beside:
                yield beside
        for call in message.tool_calls:
            yield from (call.id, call.name, call.arguments)
    for tool in job.tools:
        yield from (tool.name, tool.description, bytes(tool.parameters).decode())
    if job.output.schema:
        yield bytes(job.output.schema).decode()
