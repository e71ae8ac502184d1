"""Thoughts apart from the answer: `<think>...</think>` at the beginning of a model's text, and its variants.

White space around the thoughts and before the answer is no content. Thoughts that never end are all there is. Sources:
the chat templates of Qwen3 and QwQ, DeepSeek-R1 (whose template opens the tag itself), Magistral (`[THINK]`), Seed-OSS
(`<seed:think>`), and Cohere Command A Reasoning (`<|START_THINKING|>`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from backends.core.events import ReasoningDelta, TextDelta

#: White space that is kept until something else follows.
_MAX_BLANK = 4096


class Tags(NamedTuple):
    """What is around the thoughts. `opened`: the family's template always writes the first itself."""

    begin: str
    end: str
    opened: bool = False


_THINK = Tags("<think>", "</think>")
#: Tags by family: what `thinking:` of an engine or a deployment may be.
THINK_TAGS: Mapping[str, Tags] = MappingProxyType(
    {
        "qwen": _THINK,
        "deepseek": _THINK,
        "opened": Tags("<think>", "</think>", opened=True),
        "mistral": Tags("[THINK]", "[/THINK]"),
        "seed": Tags("<seed:think>", "</seed:think>"),
        "cohere": Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    }
)


class ThinkSplitter:
    """One choice's text. Single use: `feed`, then `close`; any split gives the same thoughts and the same answer."""

    def __init__(self, tags: Tags, *, opened: bool = False, choice: int = 0) -> None:
        """`opened`: the prompt ended with the opening tag, so that the text begins inside it; one of its own is left out."""
        self._tags = tags
        self._opened = opened or tags.opened
        self._choice = choice
        self._state = "begin"
        self._held = ""

    def feed(self, text: str) -> list[TextDelta | ReasoningDelta]:
        """The next text; what is decided by it."""
        if self._state == "answer":
            return [TextDelta(text, self._choice)] if text else []
        self._held += text
        return self._run(ended=False)

    def close(self) -> list[TextDelta | ReasoningDelta]:
        """The end of the text; the rest."""
        return self._run(ended=True)

    def _run(self, *, ended: bool) -> list[TextDelta | ReasoningDelta]:
        out: list[TextDelta | ReasoningDelta] = []
        before = ""
        while before != self._state:
            before = self._state
            if self._state == "begin":
                self._begin(ended=ended)
            elif self._state == "inside":
                self._trim()
            elif self._state == "thoughts":
                self._thoughts(out, ended=ended)
            elif self._state == "after":
                self._trim()
            elif self._held:
                out.append(TextDelta(self._held, self._choice))
                self._held = ""
        return out

    def _begin(self, *, ended: bool) -> None:
        """Whether the tag is opened here."""
        tag, text = self._tags.begin, self._held.lstrip()
        if text.startswith(tag):
            self._held = text[len(tag) :]
            self._state = "inside"
        elif ended or not tag.startswith(text) or len(self._held) > _MAX_BLANK:
            self._state = "inside" if self._opened else "answer"

    def _trim(self) -> None:
        """Leave out white space before the thoughts, and before the answer."""
        self._held = self._held.lstrip()
        if self._held:
            self._state = "thoughts" if self._state == "inside" else "answer"

    def _thoughts(self, out: list[TextDelta | ReasoningDelta], *, ended: bool) -> None:
        """Thoughts up to the closing tag; white space before it, and what may be its beginning, waits."""
        tag, text = self._tags.end, self._held
        thoughts, found, after = text.partition(tag)
        if found:
            self._held, self._state = after, "after"
            size = len(thoughts.rstrip())
        elif ended:
            self._held = ""
            size = len(text.rstrip())
        else:
            size = len(text)
            for held in range(min(len(text), len(tag) - 1), 0, -1):
                if tag.startswith(text[-held:]):
                    size -= held
                    break
            size = len(text[:size].rstrip())
            if len(text) - size > _MAX_BLANK:
                size = len(text) - len(tag)
            self._held = text[size:]
        if size:
            out.append(ReasoningDelta(thoughts[:size], self._choice))
