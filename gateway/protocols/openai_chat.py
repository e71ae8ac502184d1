"""POST /v1/chat/completions: body to `Call`. The answer's side is in `openai_chat_encoder`."""

from __future__ import annotations

from operator import attrgetter

import msgspec
from msgspec import UNSET

from backends.core.errors import BadRequest, GatewayError
from backends.core.request import GenerationRequest
from gateway.protocols.contract import Call, Encoder, Identity
from gateway.protocols.decoding import decoded, decoded_part, stated
from gateway.protocols.openai_chat_encoder import ChatStream, ChatUnary
from gateway.protocols.openai_errors import render
from gateway.protocols.openai_forms import output
from gateway.protocols.openai_messages import conversation, tool_choice, tools
from gateway.protocols.openai_shared import options, output_cap, sampling, size
from gateway.protocols.openai_wire import MAX_SMALL_BYTES, REFUSED, ChatBody, Metadata

_decoder = msgspec.json.Decoder(ChatBody)
_metadata: msgspec.json.Decoder[dict[str, str]] = msgspec.json.Decoder(Metadata)

_examined = attrgetter(*REFUSED, "metadata", "modalities", "verbosity")
_NONE_TOLD = (UNSET,) * (len(REFUSED) + 1) + (None,) * 2


class OpenAIChat:
    """The chat completions protocol."""

    name = "openai_chat"
    id_prefix = "chatcmpl-"

    def parse(self, body: bytes, /) -> Call:
        """The call that a body stands for.

        Raises:
            BadRequest: names the parameter.
        """
        chat = decoded(_decoder, body)
        _refused(chat)
        talk = conversation(chat.messages)
        functions = tools(chat) if chat.tools else ()
        form = output(chat)
        cap = output_cap(chat.max_completion_tokens, chat.max_tokens, chat.n_predict)
        job = GenerationRequest(
            model=chat.model,
            messages=talk.messages,
            tools=functions,
            tool_choice=None if chat.tool_choice is None else tool_choice(chat),
            parallel_tool_calls=chat.parallel_tool_calls,
            sampling=sampling(chat, cap),
            output=form,
            reasoning_effort=chat.reasoning_effort,
            n=chat.n or 1,
            top_logprobs=_logprobs(chat),
            stream=bool(chat.stream),
        )
        extra = len(bytes(form.schema)) + size(form.grammar) if form.kind != "text" else 0
        for tool in functions:
            extra += len(tool.name) + size(tool.description) + len(bytes(tool.parameters))
        return Call(
            job=job,
            options=options(chat, stated_cap=cap is not None),
            text_bytes=talk.text_bytes + extra,
            items=len(talk.messages),
        )

    def encoder(self, call: Call, identity: Identity) -> Encoder:
        """A fresh encoder for one answer."""
        return ChatStream(call, identity) if call.options.stream else ChatUnary(call, identity)

    def error(self, error: GatewayError, /, *, in_stream: bool) -> bytes:
        """OpenAI's error envelope."""
        return render(error, in_stream=in_stream)


def _refused(chat: ChatBody) -> None:
    if _examined(chat) == _NONE_TOLD:  # nearly all
        return
    if chat.metadata is not UNSET:
        decoded_part(_metadata, chat.metadata, "metadata", MAX_SMALL_BYTES)
    for name in REFUSED:
        if (value := getattr(chat, name)) is not UNSET and stated(value) is not None:
            hint = "; use 'tools' and 'tool_choice'" if name.startswith("function") else ""
            raise BadRequest(f"'{name}' is not supported{hint}.", param=name, code="unsupported_parameter")
    if chat.modalities is not None and "audio" in chat.modalities:
        raise BadRequest("Only the modality 'text' is supported.", param="modalities", code="unsupported_parameter")
    if chat.verbosity not in (None, "medium"):
        raise BadRequest("Only the verbosity 'medium' is supported.", param="verbosity", code="unsupported_parameter")


def _logprobs(chat: ChatBody) -> int | None:
    if not chat.logprobs:
        if chat.top_logprobs is not None:
            raise BadRequest("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
        return None
    return chat.top_logprobs or 0
