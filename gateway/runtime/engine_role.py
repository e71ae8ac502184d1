"""A local engine's host as a role of the supervisor: exec'd, so that no worker ever imports an engine."""

from __future__ import annotations

import msgspec

from backends.engines.launch import EngineLaunch, command
from gateway.runtime.roles import ExecRole


def engine_role(launch: EngineLaunch) -> ExecRole:
    """The role `engine:<name>`. The launch's own `parent_fd` is replaced by the supervisor's pipe.

    Raises:
        ValueError: the launch cannot work, with a sentence saying why.
    """
    problem = launch.problem()
    if problem is not None:
        raise ValueError(f"engine {launch.name}: {problem}")
    return ExecRole(name=f"engine:{launch.name}", command=lambda fd: command(msgspec.structs.replace(launch, parent_fd=fd)))
