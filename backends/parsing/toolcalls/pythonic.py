"""`[f(a=1), g(b="x")]`: calls in Python's syntax, as Llama 3.2 (small), Llama 4, Olmo 3 and ToolACE write them.

Source: Meta's llama-models prompt formats; Llama 4 may put the list between `<|python_start|>` and `<|python_end|>`.
Arguments are literals; they are parsed, never run.
"""

from __future__ import annotations

import ast
import json
import re

from backends.parsing.toolcalls.reading import MAX_DEPTH, Calls, Malformed, Reader, Steps, expect, one_of, space, word

_STRUCTURE = re.compile(r"""["'()\[\]{}#]""")
#: What JSON calls them, for models that mix the two.
_NAMES = {"true": True, "false": False, "null": None}


class Pythonic:
    """See the module. A bare list is one of calls only as the answer's beginning."""

    markers = ("<|python_start|>",)
    tokens = ("<|python_start|>", "<|python_end|>")
    bare = "["

    def read(self, reader: Reader, calls: Calls, marker: str) -> Steps[None]:
        """As `Syntax`."""
        yield from space(reader)
        yield from expect(reader, "[")
        while True:
            yield from space(reader)
            name = yield from word(reader)
            yield from expect(reader, "(")
            begin = reader.at
            yield from _to_parenthesis(reader)
            calls.call(name, _arguments(reader.since(begin)[:-1]))
            yield from space(reader)
            if (yield from expect(reader, ",", "]")) == "]":
                break
        reader.mark = reader.position
        if marker:
            yield from space(reader)
            if not (yield from one_of(reader, "<|python_end|>", cut=True)):
                reader.rewind()


def _to_parenthesis(reader: Reader) -> Steps[None]:
    """Pass over everything to behind the parenthesis that closes the call."""
    depth = 1
    while depth:
        match = _STRUCTURE.search(reader.text, reader.position)
        if match is None:
            reader.position = len(reader.text)
            if reader.ended:
                raise Malformed
            yield
            continue
        reader.position = match.start() + 1
        sign = match[0]
        if sign == "#":
            raise Malformed
        if sign in "\"'":
            reader.position -= 1
            yield from _quoted(reader, (yield from one_of(reader, sign * 3, sign * 2, sign)))
        else:
            depth += 1 if sign in "([{" else -1
            if depth > MAX_DEPTH:
                raise Malformed


def _quoted(reader: Reader, quote: str) -> Steps[None]:
    """Pass over the rest of a string. Two quotes are an empty one."""
    if len(quote) == 2:
        return
    escaped = False
    while True:
        while reader.position < len(reader.text):
            if escaped:
                escaped = False
            elif reader.text[reader.position] == "\\":
                escaped = True
            elif reader.text[reader.position] == quote[0]:
                found = yield from one_of(reader, quote, quote[0])
                if found == quote:
                    return
                continue
            reader.position += 1
        if reader.ended:
            raise Malformed
        yield


def _arguments(text: str) -> str:
    """Keyword arguments as the text of a JSON object."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Malformed from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise Malformed
    arguments: dict[str, object] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise Malformed
        arguments[keyword.arg] = _literal(keyword.value)
    try:
        return json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise Malformed from None


def _literal(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None as value):
            return value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(one) for one in items]
        case ast.Dict(keys=keys, values=values):
            names = [None if key is None else _literal(key) for key in keys]
            if not all(isinstance(name, str) for name in names):
                raise Malformed
            return {str(name): _literal(one) for name, one in zip(names, values, strict=True)}
    raise Malformed
