"""A job's prompts as tokens: the chat template, and what clients may and may not spell."""

from __future__ import annotations

from backends.core.errors import BadRequest, ContextTooLong, UnsupportedParameter
from backends.core.request import GenerationRequest, ImageInput, Prompt
from backends.engines.llamacpp.model import Model
from backends.engines.options import EngineLoadFailed
from backends.templates.jinja import ChatTemplate
from backends.templates.probe import examine
from backends.templates.special import texts


class Prompts:
    """Makes prompts for one model. `context`: tokens that prompt and answer may have together."""

    def __init__(self, model: Model, context: int, template: str = "") -> None:
        """`template`: a jinja source in place of the model's own. Raises EngineLoadFailed when the chat template is broken."""
        self._model = model
        self._context = context
        self._template: ChatTemplate | None = None
        source = template or model.template()
        if source:
            whose = "configured" if template else "model's own"
            if problem := examine(source):
                raise EngineLoadFailed(f"the {whose} template cannot be used: {problem}")
            try:
                self._template = ChatTemplate(source, model.bos, model.eos)
            except ValueError as error:
                raise EngineLoadFailed(f"the {whose} {error}") from None

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return self._template is not None

    @property
    def tail(self) -> str:
        """How the prompt of a conversation ends; "" without a template. A template may begin the model's thoughts."""
        return self._template.tail if self._template is not None else ""

    def of(self, job: GenerationRequest) -> list[list[int]]:
        """The tokens of each prompt; at least one each, and fewer than the context.

        Raises:
            ContextTooLong: says both numbers.
            BadRequest, UnsupportedParameter: what this model cannot be given.
        """
        if job.prompts:
            return [self._plain(prompt, "prompt") for prompt in job.prompts]
        return [self._checked(self._chat(job), "messages")]

    def _plain(self, prompt: Prompt, param: str) -> list[int]:
        """A plain prompt. Its author writes all of it, so spelled special tokens count, as llama.cpp's server has it."""
        if prompt.tokens is not None:
            if not all(0 <= token < self._model.size for token in prompt.tokens):
                raise BadRequest("A token id is outside the model's vocabulary.", param=param)
            return self._checked(list(prompt.tokens), param)
        self._check_size(prompt.text, param)
        return self._checked(self._model.tokens(prompt.text, begin=self._adds_bos(prompt.text), special=True), param)

    def _chat(self, job: GenerationRequest) -> list[int]:
        if self._template is None:
            raise BadRequest("This model has no chat template; use the completions endpoint.", param="model")
        if job.tools and not self._template.takes_tools:
            raise UnsupportedParameter("This model's chat template does not show tools to the model.", param="tools")
        if any(isinstance(part, ImageInput) for message in job.messages for part in message.parts):
            raise UnsupportedParameter("This model takes no images.", param="messages")
        for message in job.messages:
            self._check_size(message.text, "messages")
        if any(map(self._model.has_special_text, texts(job.messages, job.tools))):
            tokens: list[int] = []
            for segment in self._template.render_segments(job.messages, job.tools):
                begin = not tokens and self._adds_bos(segment.text)
                tokens += self._model.tokens(segment.text, begin=begin, special=segment.trusted)
            return tokens
        text = self._template.render(job.messages, job.tools)
        return self._model.tokens(text, begin=self._adds_bos(text), special=True)

    def _adds_bos(self, text: str) -> bool:
        """Whether the tokeniser is to add its beginning: not when the template has written it."""
        return not (self._model.bos and text.startswith(self._model.bos))

    def _check_size(self, text: str, param: str) -> None:
        """Refuse what surely does not fit without tokenising it, which would hold up the running batch."""
        least = len(text.encode("utf-8", "replace")) // self._model.longest_token
        if least > self._context:
            raise self._too_long(f"at least {least}", param)

    def _checked(self, tokens: list[int], param: str) -> list[int]:
        if not tokens:
            raise BadRequest("The prompt is empty.", param=param)
        if len(tokens) >= self._context:
            raise self._too_long(str(len(tokens)), param)
        return tokens

    def _too_long(self, count: str, param: str) -> ContextTooLong:
        message = f"The prompt has {count} tokens; the model's context of {self._context} must hold them and the answer."
        return ContextTooLong(message, param=param)
