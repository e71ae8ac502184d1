"""How a supervisor starts an engine host: the launch value, and the command that carries it.

The launch goes to the host as JSON on its standard input, so that the token is in neither the argument list nor the
environment, which other processes of the machine may read.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec


class EngineLaunch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a host process needs to know.

    `engine`: import string `module:Class` of the Engine; the class is called with this value (its token blanked).
    `model`: path of the weights. `socket`: path of the Unix socket to make. `token`: per-boot secret that a worker
    must show. `slots`: requests that run at once. `context`: tokens per slot, 0 = what the model was trained with.
    `queue`: jobs that may wait for a slot. `parent_fd`: an inherited pipe's read end; the host exits when it closes.
    `python`: the interpreter that has the engine's packages, "" = this one. `environment`: variables that the host sets
    for itself before it imports the engine.
    `status_fd`: an inherited pipe's write end for `status.py`. `memory_limit_mb`: MiB of data the process may have, 0 = any.
    """

    name: str
    kind: str
    engine: str
    model: str
    socket: str
    token: str
    slots: int = 4
    context: int = 0
    queue: int = 64
    options: dict[str, object] = {}
    parent_fd: int | None = None
    python: str = ""
    environment: dict[str, str] = {}
    status_fd: int | None = None
    memory_limit_mb: int = 0

    def __repr__(self) -> str:
        return f"EngineLaunch({self.name!r}, {self.kind!r})"

    def problem(self) -> str | None:
        """What is wrong with it, in one sentence; None when nothing is."""
        if not self.name or not self.token:
            return "name and token may not be empty"
        if not 1 <= self.slots <= 256:
            return f"slots must be between 1 and 256, not {self.slots}"
        if self.context < 0 or self.queue < 0:
            return "context and queue may not be negative"
        if self.memory_limit_mb < 0:
            return "memory_limit_mb may not be negative"
        if ":" not in self.engine:
            return f"engine must be an import string `module:Class`, not {self.engine!r}"
        if len(self.socket.encode()) > MAX_SOCKET_PATH:
            return f"the socket's path is longer than {MAX_SOCKET_PATH} bytes"
        return None


HOST = "backends.engines.host"
#: Runs the host in an interpreter that does not have Switchyard: our package alone is shown to it, not the rest of what
#: is installed beside it, which would come before the engine's own libraries. It needs msgspec and jinja2 of its own.
_ELSEWHERE = f"""
import importlib.util, runpy, sys
folder = sys.argv.pop(1)
spec = importlib.util.spec_from_file_location("backends", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["backends"] = importlib.util.module_from_spec(spec)
runpy.run_module("{HOST}", run_name="__main__")
"""
#: Bytes of a Unix socket's path on Linux (sockaddr_un.sun_path less its NUL).
MAX_SOCKET_PATH = 107
#: Bytes of a launch on standard input that a host reads at most.
MAX_LAUNCH = 1 << 20


def command(launch: EngineLaunch) -> tuple[list[str], bytes]:
    """The argument list to exec and the bytes for its standard input, to be written and closed.

    `parent_fd` and `status_fd` must be inherited under their numbers (`pass_fds`).
    """
    data = msgspec.json.encode(launch)
    if not launch.python:
        return [sys.executable, "-m", HOST, launch.name], data
    return [launch.python, "-P", "-c", _ELSEWHERE, str(Path(__file__).parent.parent), launch.name], data
