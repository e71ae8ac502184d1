"""The bounds that a chat template runs in: it comes from a model's file, so it may ask for any amount of time or memory.

On top of jinja2's immutable sandbox: each round of a loop and each call of a macro looks at the clock; sums, products and
calls whose result would be too large are refused before they are made, where their size can be told from their arguments.
What is left is what one filter can do to one text of the allowed size.
"""

from __future__ import annotations

import operator
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

#: Longest text that a template may make, in characters.
MAX_OUTPUT = 64 * 1024 * 1024
#: Longest repetition of a text or list, in characters or items.
_MAX_PRODUCT = 1024 * 1024
#: Largest width, indentation or count that a filter or a text's method is given.
_MAX_WIDTH = 10_000
#: In a format: a width of five digits or more, or one that is an argument.
_WIDE = re.compile(r"\d{5,}|%[-+ #0]*\*|\{[^{}]*:[^{}]*\{")
_WIDTHS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_FILTERS = (
    "center",
    "indent",
    "replace",
    "format",
    "wordwrap",
    "batch",
    "slice",
    "tojson",
    "join",
    "truncate",
    "urlize",
    "round",
)


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: marks the assistant's turn for training; here only its content."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's body, in its place."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TooSlow(Exception):  # a verdict
    """A rendering that was not done in time."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles templates that stay within the bounds; `within` sets the time for what a thread renders next."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"], autoescape=False
        )
        self._running = threading.local()
        del self.globals["lipsum"]
        for name in _FILTERS:
            self.filters[name] = self._bounded(self.filters[name])

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Raises TooSlow out of a rendering that is not done in time."""
        self._running.until = time.monotonic() + seconds
        try:
            yield
        finally:
            del self._running.until

    def tick(self) -> str:
        """Called by templates at each round of a loop and each call of a macro."""
        if time.monotonic() > getattr(self._running, "until", float("inf")):
            raise TooSlow
        return ""

    def concat_of(self, *parts: Any) -> str:
        """`a ~ b`, within the bounds."""
        texts = [str(part) for part in parts]
        _fits(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: jinja2.runtime.Context, operator_: str, left: Any, right: Any) -> Any:  # noqa: ARG002
        """Multiply, add and format, within the bounds."""
        if operator_ == "**":
            raise SecurityError("powers are not for templates")
        if operator_ == "%":
            if isinstance(left, str):
                _narrow(left)
            return operator.mod(left, right)
        if operator_ == "+":
            if isinstance(left, str) and isinstance(right, str):
                _fits(len(left) + len(right))
            elif isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) + len(right) > _MAX_PRODUCT:
                raise SecurityError("a sum that is too large")
            return operator.add(left, right)
        for sized, times in ((left, right), (right, left)):
            if isinstance(sized, str | list | tuple) and isinstance(times, int) and len(sized) * times > _MAX_PRODUCT:
                raise SecurityError("a product that is too large")
        return operator.mul(left, right)

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what a template calls; a text's own methods within the bounds."""
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            _allowed(text, getattr(__obj, "__name__", ""), args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """A text's `format`, where its widths are small."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _narrow(value.__self__)
        return wrapped

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Watched().visit(tree)
        tree.set_environment(self)
        return tree

    def _bounded(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose numbers are small, and whose text stays bounded."""

        passed = 1 if hasattr(run, "jinja_pass_arg") else 0  # the environment or context comes first

        def bounded(*args: Any, **kwargs: Any) -> Any:
            subject, given = args[passed], args[passed + 1 :]
            _small((*given, *kwargs.values()))
            if run.__name__ in ("do_join", "sync_do_join", "do_async_join"):
                subject = list(subject)
                _fits(sum(len(str(one)) for one in subject) + len(subject) * len(str((*given, *kwargs.values(), "")[0])))
                args = (*args[:passed], subject, *given)
            if isinstance(subject, str):
                _allowed(subject, run.__name__.removeprefix("sync_").removeprefix("do_"), given, kwargs)
            result = run(*args, **kwargs)
            if isinstance(result, str):
                _fits(len(result))
            return result

        bounded.__dict__.update(run.__dict__)  # jinja2's marks: what is passed to it
        bounded.__name__ = run.__name__
        return bounded


class _Watched(NodeTransformer):
    """Puts a look at the clock into every loop and macro, and bounds `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  # jinja2 finds it by the name
        return self._with_tick(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = list(node.nodes)
        return nodes.Call(nodes.EnvironmentAttribute("concat_of"), parts, [], None, None, lineno=node.lineno)

    def _with_tick(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node


def _fits(size: int) -> None:
    if size > MAX_OUTPUT:
        raise SecurityError("a text that is too long")


def _small(values: Sequence[Any]) -> None:
    if any(isinstance(one, int) and not isinstance(one, bool) and abs(one) > _MAX_WIDTH for one in values):
        raise SecurityError("a width that is too large")


def _narrow(pattern: str) -> None:
    if _WIDE.search(pattern):
        raise SecurityError("a format that is too wide")


def _allowed(text: str, method: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Whether a text's method, so called, stays within the bounds."""
    given = (*args, *kwargs.values())
    if method in _WIDTHS:
        _small(given)
    elif method == "format":  # the filter; the method is `wrap_str_format`'s
        _narrow(text)
    elif method == "replace" and len(given) > 1:
        old, new = str(given[0]), str(given[1])
        _fits(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    elif method == "join" and given and isinstance(given[0], str | list | tuple):
        _fits(sum(len(str(one)) for one in given[0]) + len(text) * len(given[0]))
    elif method == "translate":
        raise SecurityError("translations are not for templates")
