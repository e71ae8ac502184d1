"""In how many ways a grammar can begin: counted as llama.cpp walks them, and quickly whatever a client writes."""

from __future__ import annotations

import contextlib
import time

import pytest

from backends.core.errors import BadRequest
from backends.core.request import Output
from backends.engines.llamacpp.forms.ambiguity import MOST_WAYS, ways
from backends.engines.llamacpp.forms.asked import grammar_of


def chain(length: int, last: str) -> str:
    """Each rule is the next one twice."""
    rules = "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(length))
    return f"root ::= r0\n{rules}\nr{length} ::= {last}"


@pytest.mark.parametrize(
    ("grammar", "count"),
    [
        ('root ::= "yes" | "no"', 2),
        ('root ::= "a"? "b"? "c"?', 3),
        ('root ::= ("a" | "b") ("c" | "d")?', 2),
        ('root ::= ("a"?){3}', 3),
        ('root ::= ("a"?){0,3}', 4),
        ('root ::= ("a"? | "b"?){3}', 14),
        ('root ::= "a"{2,}', 1),
        ('root ::= [^"\\]#(?*] "x" # | "y"', 1),
        ('root ::= "(" root? ")" | ws\nws ::= ([ \\t] ws)?', 2),
        (chain(40, '"a"'), 1),
        (chain(12, '"a"?'), 4096),
    ],
)
def test_ways_are_counted(grammar: str, count: int) -> None:
    assert ways(grammar) == count


@pytest.mark.parametrize(
    "grammar",
    [
        chain(16, '"a"?'),
        chain(1000, '"a"?'),
        'root ::= ((("a"?){50}){50}){50}',
        'root ::= ("a"? | "b"?){20}',
        "\n".join(f"r{n} ::= r{n + 1}" for n in range(5000)),
    ],
)
def test_too_many_are_found(grammar: str) -> None:
    assert ways(grammar) > MOST_WAYS


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        'x"' * 30_000,
        '"\\' * 30_000,
        "a " * 30_000,
        "<" * 60_000,
        "{ " * 30_000,
        "root ::= " + '("a"?){0,9999} ' * 4000,
        "(" * 60_000,
    ],
)
def test_counting_is_quick_whatever_the_text(text: str) -> None:
    began = time.process_time()
    ways(text)
    with contextlib.suppress(BadRequest):
        grammar_of(Output("grammar", grammar=text))
    assert time.process_time() - began < 5


def test_a_grammar_with_too_many_is_refused_by_its_parameter() -> None:
    with pytest.raises(BadRequest, match="more than") as caught:
        grammar_of(Output("grammar", grammar=chain(18, '"a"?')))
    assert caught.value.param == "grammar"
