"""A job's prompts as token ids of a Hugging Face tokenizer: the chat template, and what clients may and may not spell.

Shared by the engines that read Hugging Face folders. A conversation is rendered by our own sandboxed template machine,
from the template that the model carries or the configuration names; where a client's text spells a control token, that
text alone is tokenised with `split_special_tokens`, so that it never becomes one.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from backends.core.errors import BadRequest, ContextTooLong, UnsupportedParameter
from backends.core.request import GenerationRequest, ImageInput, Prompt, Text
from backends.engines.options import EngineLoadFailed
from backends.templates.conversation import holds
from backends.templates.jinja import ChatTemplate

#: Longest token that is reckoned with before a prompt is tokenised at all, in bytes.
_LONGEST_TOKEN = 256


class Prompts:
    """Makes prompts for one model."""

    def __init__(
        self,
        tokenizer: Any,
        context: int,
        *,
        vocabulary: int,
        template: str = "",
        variables: Mapping[str, object] | None = None,
        generates: bool = True,
    ) -> None:
        """Take a tokenizer of transformers.

        Args:
            tokenizer: `PreTrainedTokenizer` or what looks like one.
            context: tokens that prompt and answer may have together.
            vocabulary: token ids are below it.
            template: Jinja source to use instead of the model's own.
            variables: further variables of the template (`enable_thinking` ...).
            generates: whether an answer must fit too.

        Raises:
            EngineLoadFailed: a chat template is broken.
        """
        # A copy of our own, and one thread at it: setting how it treats special tokens while another thread decodes with it
        # is an error of the library's.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._turn = threading.RLock()
        self._context = context
        self._vocabulary = vocabulary
        self._generates = generates
        self._special = tuple(str(text) for text in getattr(tokenizer, "all_special_tokens", ()))
        self._variables = variables or {}
        self._plain = self._template(template or self._own(tools=False))
        self._tools = self._plain if template else self._template(self._own(tools=True))

    @property
    def chats(self) -> bool:
        """Whether there is a chat template."""
        return self._plain is not None

    @property
    def tail(self) -> str:
        """How the prompt of a conversation ends; "" without a template."""
        return self._plain.tail if self._plain is not None else ""

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        return self._tools is not None and self._tools.takes_tools

    def of(self, job: GenerationRequest) -> list[list[int]]:
        """The tokens of each prompt; at least one each, and fewer than the context. From any thread.

        Raises:
            ContextTooLong: says both numbers.
            BadRequest, UnsupportedParameter: what this model cannot be given.
        """
        with self._turn:
            if job.prompts:
                return [self.plain(prompt, "prompt") for prompt in job.prompts]
            return [self._checked(self._chat(job), "messages")]

    def plain(self, prompt: Prompt, param: str) -> list[int]:
        """The tokens of a plain prompt. Its author writes all of it, so spelled special tokens count.

        Raises:
            ContextTooLong, BadRequest: as `of`.
        """
        if prompt.tokens is not None:
            if not all(0 <= token < self._vocabulary for token in prompt.tokens):
                raise BadRequest("A token id is outside the model's vocabulary.", param=param)
            return self._checked(list(prompt.tokens), param)
        self._check_size(prompt.text, param)
        with self._turn:
            return self._checked(list(self._tokenizer.encode(prompt.text, add_special_tokens=True)), param)

    def _chat(self, job: GenerationRequest) -> list[int]:
        template = self._tools if job.tools else self._plain
        if template is None:
            raise BadRequest("This model has no chat template; use the completions endpoint.", param="model")
        if job.tools and not template.takes_tools:
            raise UnsupportedParameter("This model's chat template does not show tools to the model.", param="tools")
        for message in job.messages:
            if any(isinstance(part, ImageInput) for part in message.parts):
                raise UnsupportedParameter("This model takes no images.", param="messages")
            for part in message.parts:
                if isinstance(part, Text):
                    self._check_size(part.text, "messages")
        if not holds(job.messages, job.tools, self._special):
            return self._encode(template.render(job.messages, job.tools), trusted=True)
        tokens: list[int] = []
        for segment in template.render_segments(job.messages, job.tools):
            tokens += self._encode(segment.text, trusted=segment.trusted)
        return tokens

    def _encode(self, text: str, *, trusted: bool) -> list[int]:
        """The template writes the beginning itself, so the tokenizer adds nothing."""
        return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not trusted))

    def _own(self, *, tools: bool) -> str:
        """The model's own template, the one for tools where it has several."""
        found = getattr(self._tokenizer, "chat_template", None)
        if isinstance(found, Mapping):
            names: Sequence[str] = ("tool_use", "default") if tools else ("default",)
            found = next((found[name] for name in names if name in found), None)
        return found if isinstance(found, str) else ""

    def _template(self, source: str) -> ChatTemplate | None:
        if not source:
            return None
        named = {
            name: str(token)
            for name, token in getattr(self._tokenizer, "special_tokens_map", {}).items()
            if isinstance(token, str)
        }
        bos, eos = named.pop("bos_token", ""), named.pop("eos_token", "")
        try:
            return ChatTemplate(source, bos, eos, clock=datetime.now, extra={**named, **self._variables})
        except ValueError as error:
            raise EngineLoadFailed(f"the model's own {error}") from None

    def _check_size(self, text: str, param: str) -> None:
        """Refuse what surely does not fit without tokenising it."""
        least = len(text.encode("utf-8", "replace")) // _LONGEST_TOKEN
        if least > self._context:
            raise self._too_long(f"at least {least}", param)

    def _checked(self, tokens: list[int], param: str) -> list[int]:
        if not tokens:
            raise BadRequest("The prompt is empty.", param=param)
        if len(tokens) > self._context - self._generates:
            raise self._too_long(str(len(tokens)), param)
        return tokens

    def _too_long(self, count: str, param: str) -> ContextTooLong:
        rest = "must hold them and the answer" if self._generates else "must hold them"
        return ContextTooLong(f"The prompt has {count} tokens; the model's context of {self._context} {rest}.", param=param)
