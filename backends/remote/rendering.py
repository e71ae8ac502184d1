"""Who renders a conversation for a dialect that takes only a prompt: a chat template on our side, or the server's own.

Servers parse special tokens in a prompt's text. So where the client's own text looks as if it held some, it is kept apart
from the template's and tokenised as plain text, by the server or by the model's tokenizer here, and the prompt is sent as
token ids. Where neither can be done, such texts are broken (`backends.templates.special`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from backends.core.contracts import Dialect, UpstreamRequest
from backends.core.errors import UnsupportedParameter, UpstreamProtocol
from backends.core.request import GenerationRequest, Job, Message, Prompt, Text, Tool
from backends.remote.transport import Response, Timeouts, Transport
from backends.templates.conversation import Marker
from backends.templates.jinja import ChatTemplate, Segment
from backends.templates.special import broken, broken_messages, broken_tools, looks_special

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


#: Makes token ids of a prompt in pieces; those that are not trusted as plain text.
Tokenise = Callable[[Sequence[Segment]], tuple[int, ...]]


class TemplateRenderer:
    """A chat template on our side.

    Args:
        template: the model's.
        tokenise: where the server takes token ids and the model's tokenizer is known here; None elsewhere.
    """

    def __init__(self, template: ChatTemplate, tokenise: Tokenise | None = None) -> None:
        self._template = template
        self._tokenise = tokenise

    def __call__(self, job: Job) -> Sequence[Prompt]:
        """The one prompt of a conversation.

        Raises:
            BadRequest: the template refuses these messages.
        """
        assert isinstance(job, GenerationRequest)
        if job.tools and not self._template.takes_tools:
            raise UnsupportedParameter("This model's chat template does not show tools to the model.", param="tools")
        if not looks_special(job.messages, job.tools):
            return (Prompt(self._template.render(job.messages, job.tools)),)
        pieces = self._template.render_segments(job.messages, job.tools)
        if self._tokenise is not None:
            return (Prompt(tokens=self._tokenise(pieces)),)
        return (Prompt("".join(one.text if one.trusted else broken(one.text) for one in joined(pieces))),)


def joined(pieces: Sequence[Segment]) -> list[Segment]:
    """The pieces, neighbours of one kind made one: a special text may be spread over several."""
    out: list[Segment] = []
    for piece in pieces:
        if out and out[-1].trusted == piece.trusted:
            out[-1] = Segment(out[-1].text + piece.text, piece.trusted)
        else:
            out.append(piece)
    return out


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
        if looks_special(job.messages, job.tools):
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
        marked = tuple(_marked(message, marker) for message in broken_messages(job.messages, contents=False))
        return segments((await self._applied(marked, broken_tools(job.tools))).text, marker)

    async def _as_tokens(self, pieces: Sequence[Segment]) -> Prompt:
        tokens: list[int] = []
        for number, piece in enumerate(joined(pieces)):
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
