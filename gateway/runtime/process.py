"""One child process of the supervisor: forked or exec'd, signalled, reaped by its own id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Protocol

from gateway.runtime.control import Messages
from gateway.runtime.roles import Child, ForkRole


class _Log(Protocol):
    def event(self, name: str, /, **fields: object) -> None: ...


class Process:
    """A running child. `channel`: the supervisor's end, None for an exec'd program or once it is closed."""

    def __init__(self, pid: int, channel: socket.socket | None, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.pid, self.channel = pid, channel
        self.unsent = bytearray()
        self.messages = Messages()
        self._popen = popen

    def ended(self) -> int | None:
        """Its exit status (negative: the signal that killed it) once it has ended, reaping it; else None."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return -signal.SIGKILL
        if not pid:
            return None
        code = os.waitstatus_to_exitcode(status)
        if self._popen is not None:
            self._popen.returncode = code
        return code

    def signal(self, number: int) -> None:
        """Send a signal; a process that is gone already is fine."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def start_fork(role: ForkRole, log: _Log, close: Sequence[int]) -> Process:
    """Fork a role. The child closes the supervisor's descriptors, so that it and its siblings see the supervisor die.

    Raises:
        OSError: no process could be made.
    """
    ours, theirs = socket.socketpair()
    boot = time.time_ns()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        theirs.close()
        ours.setblocking(False)
        return Process(pid, ours)
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        # A terminal sends these to the whole group; only the supervisor acts on them.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        ours.close()
        for fd in close:
            os.close(fd)
        status = role.run(Child(role.name, boot, theirs))
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        log.event("process_failed", role=role.name, error=traceback.format_exc()[-2000:])
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)  # not the supervisor's own way out


def start_program(argv: Sequence[str], data: bytes, fds: Sequence[int]) -> Process:
    """Start a program in a process group of its own, with these descriptors and `data` as its standard input.

    Raises:
        OSError: it cannot be started.
    """
    stdin = os.memfd_create("launch")  # unlike a pipe it takes any size at once, and nobody else can open it
    try:
        os.write(stdin, data)
        os.lseek(stdin, 0, os.SEEK_SET)
        popen = subprocess.Popen(  # noqa: S603  # argv is built by us, no shell
            argv, stdin=stdin, pass_fds=tuple(fds), process_group=0
        )
    finally:
        os.close(stdin)
    return Process(popen.pid, None, popen)
