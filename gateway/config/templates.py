"""Chat templates of a configuration: found where it says, and tried before they are used.

Reading happens in every process that compiles the configuration. The trial (`backends.templates.probe`) starts a process
for each template, so it is made once: by the command, and by the supervisor when a reload brings a new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from types import MappingProxyType

from backends.templates.families import FAMILIES, family, named
from backends.templates.probe import examine
from backends.templates.sources import Source, read_source
from gateway.config.problems import ConfigError, Problem
from gateway.config.snapshot import Snapshot

NONE = Source("")
_OURS = frozenset(family.template for family in FAMILIES.values())


def find(text: str | None, base: Path, options: Mapping[str, str] = MappingProxyType({})) -> Source:
    """The template that a configuration names: `builtin:` and a family, or a path that starts at `base`.

    Raises:
        ValueError: there is none, or it has no such options.
    """
    builtin = named(text)
    if options and not builtin:
        raise ValueError("template_options belong to a built-in template")
    if builtin:
        found = family(builtin, options)
        return Source(found.template, stops=found.stops)
    return NONE if text is None else read_source(base / text)


def sources(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """Every template that is not one of ours, with the key that brings it."""
    found: list[tuple[str, str]] = []
    found += [(f"deployments.{name}.template", one.template) for name, one in snapshot.deployments.items()]
    found += [(f"models.{name}.tokenizer.template", one.chat_template) for name, one in snapshot.models.items()]
    found += [(f"engines.{name}.template", str(one.options.get("template", ""))) for name, one in snapshot.engines.items()]
    return ((key, source) for key, source in found if source and source not in _OURS)


def try_templates(snapshot: Snapshot, file: Path | None, known: Set[str] = frozenset()) -> None:
    """Try each template in a process of its own. Blocks.

    Args:
        snapshot: whose templates.
        file: the configuration's, for the error.
        known: sources that were tried before.

    Raises:
        ConfigError: one may not be used.
    """
    tried = set(known)
    problems = []
    for key, source in sources(snapshot):
        if source in tried:
            continue
        tried.add(source)
        if problem := examine(source):
            problems.append(Problem(str(file or ""), key, problem, "mend the template, or use a built-in one"))
    if problems:
        raise ConfigError(problems)
