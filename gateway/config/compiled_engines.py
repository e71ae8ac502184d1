"""An engine of the configuration file as the value that its host is started from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from backends import registry
from gateway.config.dynamic import EngineEntry
from gateway.config.problems import KeyPath
from gateway.config.snapshot import EngineSpec
from gateway.domain.engines import EngineKeep

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
    options = entry.model_dump(include={"embedding", "threads", "batch", "gpu_layers"}, exclude_unset=True, exclude_none=True)
    options |= entry.options
    if known:
        options |= registry.marker_options(entry.kind, entry.tools or "", entry.thinking or "")
    if template:
        options["template"] = template
    if entry.lora:
        options["lora"] = {adapter: str(base / file) for adapter, file in entry.lora.items()}
    if "\0" in entry.model:
        report((*path, "model"), "a path cannot hold a NUL", "write the path of the model file")
    _environment((*path, "environment"), entry.environment, report)
    return EngineSpec(
        name,
        entry.kind,
        str(base / entry.model),
        entry.slots,
        entry.context,
        entry.queue,
        options,
        python=_interpreter((*path, "python"), entry.python, base, report),
        environment=entry.environment,
        keep=_keep(name, entry),
        memory_limit_mb=entry.memory_limit_mb or 0,
    )


def _keep(name: str, entry: EngineEntry) -> EngineKeep:
    return EngineKeep(
        name,
        eager=entry.load == "eager",
        idle_unload_s=entry.idle_unload_s or 0.0,
        memory_mb=entry.memory_mb or 0,
        measured=entry.memory_mb is None,
        watchdog_s=entry.watchdog_s,
        load_timeout_s=entry.load_timeout_s,
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
