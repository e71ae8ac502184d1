"""An engine of the configuration file as the value that its host is started from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from backends import registry
from backends.engines import kinds
from gateway.config.dynamic import EngineEntry
from gateway.config.problems import KeyPath
from gateway.config.snapshot import EngineSpec
from gateway.domain.engines import EngineKeep

#: A model's name on a hub: an organisation and a name.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: What several kinds of engines know, and the file has keys of its own for.
_SHARED = ("threads", "batch", "gpu_layers")
#: Told of a key's problem and its mend.
Report = Callable[[KeyPath, str, str], None]


def compile_engine(name: str, entry: EngineEntry, base: Path, *, template: str, known: bool, report: Report) -> EngineSpec:
    """The engine, its mistakes reported.

    Args:
        name, entry: as in the file.
        base: folder of the file, where relative paths start.
        template: the source of its chat template, "" = the model's own.
        known: whether its kind's families of calls and thoughts are known ones.
        report: takes each mistake.
    """
    path: KeyPath = ("engines", name)
    # Only what was stated: another kind of engine need not know these.
    options = entry.model_dump(include={"embedding", "rerank", *_SHARED}, exclude_unset=True, exclude_none=True)
    options |= entry.options
    if known:
        options |= kinds.marker_options(
            entry.kind, registry.tool_syntax(entry.tools or ""), registry.think_tags(entry.thinking or "")
        )
    if template:
        options["template"] = template
    if entry.lora:
        options["lora"] = {adapter: str(base / file) for adapter, file in entry.lora.items()}
    if options.get("embedding") and options.get("rerank"):
        report((*path, "rerank"), "a model makes embeddings or scores, not both", "keep one of embedding and rerank")
    if "\0" in entry.model:
        report((*path, "model"), "a path cannot hold a NUL", "write the path of the model file")
    _environment((*path, "environment"), entry.environment, report)
    for where, problem, mend in kinds.engine_problems(entry.kind, options):
        report((*path, "options", *where), problem, mend)
    if kinds.reads_tools(entry.kind, options) and (entry.tools or entry.thinking):
        report(
            (*path, "tools" if entry.tools else "thinking"),
            "the engine's own parser reads calls and thoughts already (options)",
            "keep one of the two",
        )
    return EngineSpec(
        name,
        entry.kind,
        _model(entry.kind, entry.model, base),
        entry.slots,
        _context(path, entry, report),
        entry.queue,
        options,
        python=_interpreter((*path, "python"), entry.python, base, report),
        environment=entry.environment,
        keep=_keep(name, entry),
        memory_limit_mb=entry.memory_limit_mb or 0,
    )


def _model(kind: str, stated: str, base: Path) -> str:
    """A path; or, for kinds that know model hubs, the name of a model there where no such path exists."""
    named = kind in kinds.KNOW_HUBS and _HUB_NAME.fullmatch(stated) is not None
    return stated if named and "\0" not in stated and not (base / stated).exists() else str(base / stated)


def _context(path: KeyPath, entry: EngineEntry, report: Report) -> int:
    """Tokens of a slot. vLLM's users know it by a name of vLLM's own, which may stand instead, but not against it."""
    arguments = entry.options.get("arguments")
    own = arguments.get("max_model_len") if isinstance(arguments, dict) else None
    if not isinstance(own, int) or own == entry.context:
        return entry.context
    if "context" in entry.model_fields_set:
        problem = f"it is {own}, and context is {entry.context}"
        report((*path, "options", "arguments", "max_model_len"), problem, "state one of the two")
    return own


def _keep(name: str, entry: EngineEntry) -> EngineKeep:
    return EngineKeep(
        name,
        eager=entry.load == "eager",
        idle_unload_s=entry.idle_unload_s or 0.0,
        memory_mb=entry.memory_mb or 0,
        measured=entry.memory_mb is None,
        watchdog_s=entry.watchdog_s,
        load_timeout_s=entry.load_timeout_s,
        memory_limit_mb=entry.memory_limit_mb or 0,
    )


def _interpreter(path: KeyPath, stated: str | None, base: Path, report: Report) -> str:
    if stated is None:
        return ""
    found = None if "\0" in stated else shutil.which(stated if "/" not in stated else str(base / stated))
    if found is None:
        report(path, "there is no program of that name", "write the path of a Python interpreter")
    return found or ""


def _environment(path: KeyPath, stated: dict[str, str], report: Report) -> None:
    for name, value in stated.items():
        if not name or "=" in name or "\0" in name + value:
            report((*path, name), "this cannot be an environment variable", "a name without =, and no NUL in either")
