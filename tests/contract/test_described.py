"""What the servers' documents describe, written out as bytes: every shape at every split gives what a client must see.

`tests/fixtures/described.jsonl` has a case a line, of kinds that recorded fixtures lack; its source is the server's own code
or documents, as named in its dialect's docstring or in `backends.dialects.server_quirks`.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backends.core.errors import BackendError
from backends.core.events import EventGrammar
from backends.core.fold import Fold
from backends.core.request import GenerationRequest, Message, Prompt, Sampling, Text, Tool, ToolChoice
from backends.core.usage import Usage
from backends.registry import dialect
from tests.contract.cases import FIXTURES

_TOOL = Tool("f", parameters=msgspec.Raw(b'{"type":"object"}'))


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the client wants. `tool`: it offers the function `f`, `forced` or `free`."""

    n: int = 1
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    tool: str = ""

    def job(self) -> GenerationRequest:
        """The job."""
        return GenerationRequest(
            "m",
            messages=(Message("user", (Text("hi"),)),),
            n=self.n,
            stream=True,
            sampling=Sampling(stop=self.stop, max_tokens=self.max_tokens),
            tools=(_TOOL,) if self.tool else (),
            tool_choice=ToolChoice("function", "f") if self.tool == "forced" else None,
        )


class Described(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer and what comes of it: text and finish of the one choice, or of each.

    `error`: (status, code) of what ends it; code "*" = any. `usage`: input, output, cached input; None = not looked at,
    [] = none may be told.
    """

    name: str
    dialect: str
    body: str
    quirks: str = ""
    options: dict[str, Any] = {}
    asked: Asked = Asked()
    text: str | dict[str, str] = ""
    finish: str | dict[str, str] | None = "stop"
    usage: list[int] | None = None
    error: tuple[int, str | None] | None = None
    calls: list[tuple[str, str]] = []
    reasoning: str = ""


CASES = [msgspec.json.decode(line, type=Described) for line in (FIXTURES / "described.jsonl").read_bytes().splitlines()]


def seen(case: Described, step: int) -> tuple[Fold, BackendError | None]:
    """What comes of the body in pieces of `step` bytes; 0 = whole."""
    body = case.body.encode()
    decoder = dialect(case.dialect, case.quirks, case.options).decoder(case.asked.job(), (Prompt("hi"),))
    grammar, folding = EventGrammar(), Fold()
    size = step or len(body)
    error = None
    batches = [grammar.feed(decoder.feed(body[start : start + size])) for start in range(0, len(body), size)]
    for batch in (*batches, grammar.feed(decoder.close())):
        try:
            folding.feed(batch)
        except BackendError as failed:
            error = failed
    grammar.close()
    return folding, error


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_described(case: Described, step: int) -> None:
    folding, error = seen(case, step)
    choices = folding.answer.choices
    if case.error is None:
        assert error is None, error
    else:
        assert error is not None
        assert error.status == case.error[0], error.message
        assert case.error[1] == "*" or error.code == case.error[1]
        for hidden in ("10.0.0.3", "http://", "Traceback"):
            assert hidden not in error.message
    if isinstance(case.text, dict):
        assert {str(n): "".join(one.text) for n, one in choices.items()} == case.text
        assert {str(n): one.finish for n, one in choices.items()} == case.finish
    else:
        assert "".join(choices[0].text if choices else ()) == case.text
        wanted = case.finish if case.error is None else None
        assert {one.finish for one in choices.values()} <= {wanted}
    if case.usage is not None:
        assert folding.answer.usage == (Usage(*case.usage) if case.usage else None)
    if 0 in choices:
        assert [(call.name, call.arguments) for call in choices[0].tool_calls()] == case.calls
        assert "".join(choices[0].reasoning) == case.reasoning
