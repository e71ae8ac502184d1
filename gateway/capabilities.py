"""What each dialect, quirk and engine can do, as a page: `switchyard capabilities > docs/capabilities.md`.

It is made from the data that requests are checked against, so it cannot say anything else.
"""

from __future__ import annotations

from collections.abc import Iterator

from backends import registry
from backends.core.capabilities import CAPABILITY_NAMES, DROPPABLE, LOCAL_SAMPLING, OPENAI_SAMPLING, Capabilities
from backends.engines import kinds
from gateway.protocols.openai_wire import IGNORED

_HEAD = """\
# Capabilities

What every backend can do, by the request parameters' wire names, made by `switchyard capabilities`. A deployment's
`quirks`, `capabilities.adds` and `capabilities.lacks` correct its dialect's set. What a request asks beyond it is refused
with a 400 that names the parameter (`params: reject`, the default), left out where that changes only how tokens are
chosen (`drop`), or sent all the same (`forward`). `n` is given to every backend by asking several times.
"""


def page() -> str:
    """The page as Markdown."""
    return "\n".join((_HEAD, *_remote(), *_engines(), *_readings(), *_rules()))


def _places() -> Iterator[tuple[str, Capabilities]]:
    for name in sorted(registry.DIALECTS):
        quirks = registry.quirks_of(name)
        for one in quirks or ("",):
            yield (f"`{name}` · `{one}`" if one else f"`{name}`"), registry.dialect(name, one).capabilities


def _remote() -> Iterator[str]:
    yield "## Dialects\n"
    yield "| dialect · quirks | kinds | can | cannot |\n| --- | --- | --- | --- |"
    for title, can in _places():
        yield _row(title, can)
    yield ""


def _engines() -> Iterator[str]:
    yield "## Local engines\n"
    yield "| engine | kinds | can | cannot |\n| --- | --- | --- | --- |"
    for kind in sorted(kinds.ENGINES):
        yield _row(f"`{kind}`", kinds.engine_capabilities(kind, {}))
        for work in ("embedding", "rerank"):
            yield _row(f"`{kind}`, `{work}: true`", kinds.engine_capabilities(kind, {work: True}))
    yield ""


_KINDS = ("chat", "completions", "embeddings", "rerank")


def _row(title: str, can: Capabilities) -> str:
    kinds = [name for name in _KINDS if name in can]
    others = CAPABILITY_NAMES - set(_KINDS)
    return f"| {title} | {', '.join(kinds)} | {_listed(can & others)} | {_listed(others - can)} |"


def _listed(names: Capabilities) -> str:
    """Names, the two groups of sampling parameters by one word where all are there."""
    words = []
    for group, word in ((OPENAI_SAMPLING, "OpenAI's sampling"), (LOCAL_SAMPLING, "local sampling")):
        if group <= names:
            words.append(word)
            names = names - group
    return ", ".join([*words, *(f"`{name}`" for name in sorted(names))]) or "-"


def _readings() -> Iterator[str]:
    yield "## Read out of text\n"
    yield "Where a server or an engine only speaks text, the keys `tools` and `thinking` say in whose way it is read."
    yield "`tools` adds `tools` and `parallel_tool_calls`, and `tool_choice` where a JSON schema can be asked for: "
    yield f"{', '.join(f'`{name}`' for name in registry.TOOL_FAMILIES)}."
    yield f"`thinking` splits the thoughts off: {', '.join(f'`{name}`' for name in registry.THINK_FAMILIES)}.\n"


def _rules() -> Iterator[str]:
    yield "## Groups\n"
    yield f"- OpenAI's sampling: {', '.join(f'`{name}`' for name in sorted(OPENAI_SAMPLING))}."
    yield f"- local sampling: {', '.join(f'`{name}`' for name in sorted(LOCAL_SAMPLING))}."
    others = DROPPABLE - OPENAI_SAMPLING - LOCAL_SAMPLING
    yield f"- `params: drop` may leave out both groups and {', '.join(f'`{name}`' for name in sorted(others))}."
    ignored = ", ".join(f"`{name}`" for name in sorted(IGNORED))
    yield f"- Accepted from every client and left out, as they change no answer: {ignored}.\n"
