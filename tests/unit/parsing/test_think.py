"""Thoughts and answer, told apart."""

from __future__ import annotations

import pytest

from backends.core.events import Finish
from backends.core.fold import fold
from backends.parsing.think import THINK_TAGS, ThinkSplitter


def split(text: str | list[str], family: str = "qwen", opened: bool = False) -> tuple[str, str]:
    splitter = ThinkSplitter(THINK_TAGS[family], opened=opened)
    events = [event for piece in text for event in splitter.feed(piece)] + splitter.close()
    choice = fold([*events, Finish("stop")]).choices[0]
    return "".join(choice.reasoning), "".join(choice.text)


CASES = [
    ("<think>\nI think.\n\nSo.\n</think>\n\nYes.", False, ("I think.\n\nSo.", "Yes.")),
    ("\n<think>a</think>b <think>c</think>", False, ("a", "b <think>c</think>")),
    ("<think>\n\n</think>\n\nYes.", False, ("", "Yes.")),
    ("plain </think> text", False, ("", "plain </think> text")),
    ("I think.\n</think>\n\nYes.", True, ("I think.", "Yes.")),
    ("<think>I think.</think>Yes.", True, ("I think.", "Yes.")),
    ("<think>a < b </thin k", False, ("a < b </thin k", "")),
    ("all thoughts </th", True, ("all thoughts </th", "")),
    ("<thi", False, ("", "<thi")),
    ("<thi", True, ("<thi", "")),
    ("  ", False, ("", "  ")),
    ("", True, ("", "")),
]


@pytest.mark.parametrize(("text", "opened", "expected"), CASES)
def test_any_split(text: str, opened: bool, expected: tuple[str, str]) -> None:
    assert split([text], opened=opened) == expected
    assert split(list(text), opened=opened) == expected
    for cut in range(len(text)):
        assert split([text[:cut], text[cut:]], opened=opened) == expected


def test_families_have_their_own_tags() -> None:
    for name, tags in THINK_TAGS.items():
        assert split(f"{tags.begin}a{tags.end}b", name) == ("a", "b")
        assert split(f"a{tags.end}b", name) == (("a", "b") if tags.opened else ("", f"a{tags.end}b"))


def test_thoughts_are_not_held_back() -> None:
    splitter = ThinkSplitter(THINK_TAGS["qwen"])
    assert [event.text for event in splitter.feed("<think>I think")] == ["I think"]
    assert [event.text for event in splitter.feed(" so")] == [" so"]
    assert splitter.feed("\n</th") == []
