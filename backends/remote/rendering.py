"""Who renders a conversation for a dialect that takes only a prompt: a chat template on our side, or the server's own.

A llama.cpp server parses special tokens in a prompt's text. So where the client's own text looks as if it held some,
it is kept apart from the template's, tokenised by the server as plain text, and the prompt is sent as token ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import msgspec

from backends.core.contracts import Dialect, UpstreamRequest
from backends.core.errors import UnsupportedParameter, UpstreamProtocol
from backends.core.request import GenerationRequest, Job, Message, Prompt, Text, Tool
from backends.remote.transport import Response, Timeouts, Transport
from backends.templates.conversation import Marker
from backends.templates.jinja import ChatTemplate, Segment

#: What special tokens look like in the vocabularies of the known model families.
_SPECIAL = re.compile(
    r"<\|[^|>\s]{1,64}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_\w{1,32}>|<(?:bos|eos|pad|unk)>|<\uff5c[^\uff5c>]{1,64}\uff5c>"
)
_MAX_ANSWER = 8 << 20


class PromptServer(Protocol):
    """A dialect's requests for templating and tokenising, and how to read their answers; pure."""

    def template_request(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> UpstreamRequest:
        """Render a conversation by the server's own template."""

    def templated_prompt(self, body: bytes) -> Prompt:
        """Raises UpstreamProtocol."""

    def tokenize_request(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> UpstreamRequest:
        """Tokenise a text."""

    def tokens_of(self, body: bytes) -> tuple[int, ...]:
        """Raises UpstreamProtocol."""


def looks_special(job: GenerationRequest) -> bool:
    """Whether the client's text holds what could become a control token of some model."""
    return any(isinstance(part, Text) and _SPECIAL.search(part.text) for message in job.messages for part in message.parts)


class TemplateRenderer:
    """A chat template on our side, for servers that cannot tokenise for us: what looks special is sent as it is."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def __call__(self, job: Job) -> Sequence[Prompt]:
        """The one prompt of a conversation.

        Raises:
            BadRequest: the template refuses these messages.
        """
        assert isinstance(job, GenerationRequest)
        if job.tools and not self._template.takes_tools:
            raise UnsupportedParameter("This model's chat template does not show tools to the model.", param="tools")
        return (Prompt(self._template.render(job.messages, job.tools)),)


class ServerRenderer:
    """Asks the deployment's own server: `/apply-template` unless there is a template here, `/tokenize` where it matters."""

    def __init__(
        self, server: PromptServer, dialect: Dialect, transport: Transport, timeouts: Timeouts, template: ChatTemplate | None
    ) -> None:
        self._server = server
        self._dialect = dialect
        self._transport = transport
        self._timeouts = timeouts
        self._template = template

    async def __call__(self, job: Job) -> Sequence[Prompt]:
        """The one prompt of a conversation.

        Raises:
            BadRequest: the template refuses these messages.
            BackendError: the server's, or the transport's.
        """
        assert isinstance(job, GenerationRequest)
        if looks_special(job):
            return (await self._as_tokens(await self._segments(job)),)
        if self._template is not None:
            return (Prompt(self._template.render(job.messages, job.tools)),)
        return (await self._applied(job.messages, job.tools),)

    async def _applied(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Prompt:
        return self._server.templated_prompt(await self._ask(self._server.template_request(messages, tools)))

    async def _segments(self, job: GenerationRequest) -> Sequence[Segment]:
        if self._template is not None:
            return self._template.render_segments(job.messages, job.tools)
        marker = Marker.absent_from("".join(message.text for message in job.messages))
        marked = tuple(_marked(message, marker) for message in job.messages)
        return segments((await self._applied(marked, job.tools)).text, marker)

    async def _as_tokens(self, pieces: Sequence[Segment]) -> Prompt:
        tokens: list[int] = []
        for number, piece in enumerate(pieces):
            request = self._server.tokenize_request(piece.text, add_special=number == 0, parse_special=piece.trusted)
            tokens += self._server.tokens_of(await self._ask(request))
        return Prompt(tokens=tuple(tokens))

    async def _ask(self, request: UpstreamRequest) -> bytes:
        async with self._transport.send(request, self._timeouts) as response:
            body = await _body(response)
            if not 200 <= response.status < 300:
                raise self._dialect.failure(response.status, response.headers, body)
            return body


def segments(marked: str, marker: Marker) -> list[Segment]:
    """A rendered conversation whose untrusted texts were wrapped in the marker, taken apart.

    Raises:
        UpstreamProtocol: the template changed the marked texts, so that they cannot be told apart.
    """
    outer = marked.split(marker.begin)
    found = [Segment(outer[0], trusted=True)]
    for piece in outer[1:]:
        inside, end, after = piece.partition(marker.end)
        if not end:
            raise UpstreamProtocol("The model's chat template cannot carry these messages safely.")
        found += [Segment(inside, trusted=False), Segment(after, trusted=True)]
    return [piece for piece in found if piece.text]


def _marked(message: Message, marker: Marker) -> Message:
    parts = tuple(Text(marker.around(part.text)) if isinstance(part, Text) else part for part in message.parts)
    return msgspec.structs.replace(message, parts=parts)


async def _body(response: Response) -> bytes:
    body = bytearray()
    async for piece in response.chunks:
        body += piece
        if len(body) > _MAX_ANSWER:
            raise UpstreamProtocol("The deployment's answer is too large.", detail="over the body limit")
    return bytes(body)
