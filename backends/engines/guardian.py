"""A small process that outlives the host just long enough to end what the host started.

vLLM's processes do not notice when their parent is killed: they would keep the memory and the GPU. The guardian reads a
pipe that only the host holds open; at its end, however that came, it kills the host's process group.
"""

from __future__ import annotations

import os
import subprocess
import sys

_CODE = """
import os, signal, sys
for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(one, signal.SIG_IGN)
sys.stdin.buffer.read()
os.killpg(0, signal.SIGKILL)
"""


def guard() -> subprocess.Popen[bytes] | None:
    """Start it; keep the result as long as the process lives. None: this process leads no group, nothing is guarded."""
    if os.getpgrp() != os.getpid():
        return None
    return subprocess.Popen([sys.executable, "-S", "-E", "-c", _CODE], stdin=subprocess.PIPE)  # noqa: S603  (our own code)
