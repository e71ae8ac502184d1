"""The grammar of the form that a request asks for, and what of a client's own grammar must not reach llama.cpp. Pure."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from backends.core.errors import BadRequest
from backends.core.request import Output
from backends.engines.llamacpp.forms import rules
from backends.engines.llamacpp.forms.ambiguity import MOST_WAYS, ways
from backends.engines.llamacpp.forms.schema import SchemaError

#: Bytes of a schema or grammar that a request may bring.
MAX_GRAMMAR = 64 << 10
#: Open parentheses of a grammar: llama.cpp's reader calls itself for each, on a stack that ends the process.
MAX_NESTING = 64
#: What of a grammar is text: literals, sets of characters, tokens by name, comments.
#: One without its end is text to the end: nothing is looked through twice.
_TEXTS = re.compile(r'"(?:\\.|[^"\\])*+"?|\[(?:\\.|[^\]\\])*+\]?|<[^>]*+>?|#[^\r\n]*', re.DOTALL)
_TIMES = re.compile(r"\{\s*([0-9]+)\s*,\s*([0-9]+)\s*\}")


class Grammar(NamedTuple):
    """GBNF, and the client's parameter that asked for it."""

    text: str
    param: str


def grammar_of(output: Output) -> Grammar | None:
    """What an answer must follow, None for free text.

    Raises:
        BadRequest: a schema or grammar that is too large, wrong, or cannot be expressed; names the parameter and why.
    """
    if output.kind == "text":
        return None
    param = output.asked_as or ("grammar" if output.kind == "grammar" else "response_format")
    return Grammar(_text(output, param), param)


def _text(output: Output, param: str) -> str:
    if output.kind == "grammar":
        return _checked(output.grammar, param)
    if output.kind == "json_object":
        return rules.grammar({"type": "object"})
    asked = output.grammar.encode("utf-8", "replace") if output.kind == "regex" else bytes(output.schema)
    if len(asked) > MAX_GRAMMAR:
        raise BadRequest(f"'{param}' is larger than {MAX_GRAMMAR} bytes.", param=param)
    try:
        if output.kind == "regex":
            return rules.regular(output.grammar)
        return rules.grammar(json.loads(asked or b"{}", parse_constant=_no_constant), lenient=output.strict is False)
    except SchemaError as error:
        raise BadRequest(f"This model's engine cannot keep to '{param}': {error}.", param=param) from None
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise BadRequest(f"This model's engine cannot keep to '{param}'.", param=param, detail=repr(error)) from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _checked(grammar: str, param: str) -> str:
    """A client's own grammar. The rest llama.cpp reads and judges; what is refused here would end its process instead."""
    if len(grammar.encode("utf-8", "replace")) > MAX_GRAMMAR:
        raise BadRequest(f"The grammar is larger than {MAX_GRAMMAR} bytes.", param=param)
    if "\0" in grammar:
        raise BadRequest("The grammar has a NUL character.", param=param)
    bare = _TEXTS.sub(" ", grammar)
    if _nesting(bare) > MAX_NESTING:
        raise BadRequest(f"The grammar nests parentheses deeper than {MAX_NESTING}.", param=param)
    for low, high in _TIMES.findall(bare):
        if len(low) > 9 or len(high) > 9 or int(high) < int(low):  # it would count from one to the other without end
            raise BadRequest("The grammar has a repetition whose bounds are the wrong way round.", param=param)
    if ways(grammar) > MOST_WAYS:
        raise BadRequest(f"The grammar can begin in more than {MOST_WAYS} ways.", param=param)
    return grammar


def _nesting(grammar: str) -> int:
    """Deepest count of open parentheses."""
    depth = deepest = 0
    for character in grammar:
        if character == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif character == ")":
            depth -= 1
    return deepest
