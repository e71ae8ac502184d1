"""vLLM's own parsers of tool calls and thoughts as readers of a choice's text.

vLLM gives each request a `Parser` (`vllm/parser/abstract_parser.py`), which also says how the request must be changed: a
structural tag that holds a forced call to its form, control tokens that must be shown. It reads deltas of text and token
ids into `DeltaMessage`s. Its request type is that of vLLM's OpenAI server, made from our own encoding of the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from backends.core.events import Event, ReasoningDelta, TextDelta
from backends.core.request import GenerationRequest
from backends.dialects.openai_compatible import OpenAICompatible, Quirks
from backends.engines.options import EngineLoadFailed
from backends.engines.vllm import library
from backends.parsing.callpieces import CallIds, CallPieces

_WIRE = OpenAICompatible(Quirks("vllm", chat_cap="max_completion_tokens", schema_field=("structured_outputs", "json")))


class Parsers:
    """Makes vLLM's parsers for one model."""

    def __init__(self, tokenizer: Any, model_config: Any, *, tools: str, reasoning: str) -> None:
        """`tools`, `reasoning`: names of vLLM's parsers, "" = none.

        Raises:
            EngineLoadFailed: there is no such parser, or the model's tokenizer lacks what it needs; the known are named.
        """
        from vllm.parser import ParserManager

        self._tokenizer = tokenizer
        self._model_config = model_config
        self.reads_tools = bool(tools)
        try:
            self._kind = ParserManager.get_parser(
                tool_parser_name=tools or None,
                reasoning_parser_name=reasoning or None,
                enable_auto_tools=bool(tools),
                model_name=str(model_config.model),
                is_harmony=getattr(model_config.hf_config, "model_type", "") == "gpt_oss",
                tokenizer=tokenizer,
            )
        except Exception as error:  # whatever a parser's constructor raises
            raise EngineLoadFailed(f"vLLM's parser cannot be used: {error}; {_known()}") from None

    def of(self, job: GenerationRequest) -> Conversation | None:
        """The parsers of one job; None for what has no messages.

        Raises:
            BadRequest: vLLM's words on what is wrong with it.
        """
        if self._kind is None or job.prompts:
            return None
        try:
            return Conversation(self, job)
        except Exception as error:
            if not library.is_refusal(error):
                raise
            raise library.refused(error, job.output) from None

    def request(self, job: GenerationRequest) -> Any:
        """The job as vLLM's own chat request."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        return ChatCompletionRequest.model_validate_json(_WIRE.encode(_strict(job)).body)

    def parser(self, request: Any) -> Any:
        """A fresh parser for one choice."""
        assert self._kind is not None
        return self._kind(self._tokenizer, request.tools, chat_template_kwargs={}, model_config=self._model_config)


class Conversation:
    """One job's parsers. `constraint` and `show_special` are what its sampling must be changed to."""

    def __init__(self, parsers: Parsers, job: GenerationRequest) -> None:
        self._parsers = parsers
        self._first_id = sum(len(message.tool_calls) for message in job.messages)
        self._ids = CallIds(self._first_id)
        request = parsers.request(job)
        self._request = parsers.parser(request).adjust_request(request)
        made = self._request.to_sampling_params(max_tokens=1, default_sampling_params={})
        self.constraint: Any = made.structured_outputs
        self.show_special = not made.skip_special_tokens

    def reader(self, choice: int) -> ParsedChoice:
        """For one choice."""
        return ParsedChoice(self._parsers.parser(self._request), self._request, choice, self._ids)

    def reasoning(self, prompt: Sequence[int]) -> dict[str, Any]:
        """Keyword arguments of `AsyncLLM.generate`: whether constraints hold from the start or after the thoughts."""
        parser = self._parsers.parser(self._request)
        if parser.reasoning_parser is None:
            return {}
        ended = self._request.resolve_reasoning_ended(parser, list(prompt))
        return {"reasoning_ended": ended, "reasoning_parser_kwargs": {"chat_template_kwargs": {}}}


class ParsedChoice:
    """A `Reader` over vLLM's parser."""

    def __init__(self, parser: Any, request: Any, choice: int, ids: CallIds) -> None:
        self._parser = parser
        self._request = request
        self._choice = choice
        self._calls = CallPieces(choice, ids)
        self._tokens: list[int] = []

    @property
    def called(self) -> bool:
        """Whether it has told of a tool call."""
        return self._calls.count > 0

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of thoughts so far."""
        return int(self._parser.count_reasoning_tokens(tuple(self._tokens))) if self._parser.reasoning_parser else 0

    def read(self, text: str, tokens: Sequence[int], prompt: Sequence[int], finished: bool) -> list[Event]:
        """The events of a delta."""
        self._tokens += tokens
        if not (text or tokens or finished):
            return []
        delta = self._parser.parse_delta(text, list(tokens), self._request, prompt_token_ids=list(prompt), finished=finished)
        if delta is None:
            return []
        events: list[Event] = []
        if delta.reasoning:
            events.append(ReasoningDelta(delta.reasoning, self._choice))
        if delta.content:
            events.append(TextDelta(delta.content, self._choice))
        for call in delta.tool_calls or ():
            function = call.function
            piece = self._calls.feed(
                call.index, call.id or "", (function and function.name) or "", (function and function.arguments) or ""
            )
            if piece is not None:
                events.append(piece)
        return events


def _strict(job: GenerationRequest) -> GenerationRequest:
    """A forced call keeps to its function's schema unless the client says that it need not: vLLM holds strict ones only."""
    forced = job.tool_choice is not None and job.tool_choice.mode in ("required", "function")
    tools = tuple(msgspec.structs.replace(tool, strict=True) if forced and tool.strict is None else tool for tool in job.tools)
    return msgspec.structs.replace(job, stream=True, tools=tools)


def _known() -> str:
    """The names that vLLM knows, for the operator."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    tools = ", ".join(sorted(ToolParserManager.list_registered()))
    return f"tool_call_parser: {tools}; reasoning_parser: {', '.join(sorted(ReasoningParserManager.list_registered()))}"
