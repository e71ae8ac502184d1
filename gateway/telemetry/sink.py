"""Where log lines go: a bounded buffer, written by a thread of its own, so that a blocked standard output stalls nobody.

A thread and not O_NONBLOCK: that flag belongs to the open file description, which other processes share. Lines are
written in pieces of at most PIPE_BUF bytes, which a pipe keeps whole when several processes write to it (POSIX, write).
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

import msgspec

from gateway.telemetry.redact import redact
from gateway.telemetry.style import Style, severity

MAX_BUFFER = 4 << 20
MAX_TEXT = 2048
FLUSH_S = 0.05
#: What POSIX guarantees to be written in one piece on Linux.
PIPE_BUF = 4096

_encode = msgspec.json.Encoder().encode


def encode(fields: Mapping[str, object] | msgspec.Struct) -> bytes:
    """One JSON line. Control characters are escaped, C0 by JSON itself, the rest by escaping all that is not ASCII."""
    try:
        line = _encode(fields)
    except UnicodeEncodeError:  # a lone surrogate
        line = json.dumps(msgspec.to_builtins(fields)).encode()
    if not line.isascii():
        line = json.dumps(msgspec.json.decode(line), separators=(",", ":")).encode()
    return line.replace(b"\x7f", b"\\u007f") + b"\n"


def pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines joined to at most PIPE_BUF bytes each; a longer line alone is a piece of its own."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        if held and size + len(line) > PIPE_BUF:
            yield b"".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
    if held:
        yield b"".join(held)


class Sink:
    """A worker's log output.

    Args:
        fd: an open file, left open.
        max_buffer: bytes that may wait; a line that finds no room is dropped and counted.
        style: which lines, and in which form.
    """

    def __init__(self, fd: int = 1, max_buffer: int = MAX_BUFFER, style: Style | None = None) -> None:
        self._fd, self._max, self._style = fd, max_buffer, style or Style()
        self._lines: list[bytes] = []
        self._size = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._closing = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Hand over one JSON line; returns at once."""
        if self._style.form != "json":
            line = self._style.line(line)
        with self._lock:
            if self._size + len(line) > self._max or self._closing:
                self.dropped += 1
                return
            self._lines.append(line)
            self._size += len(line)
        if not self._wake.is_set():
            self._idle.clear()
            self._wake.set()

    def event(self, name: str, /, **fields: object) -> None:
        """One event. Text is cut and secrets are masked."""
        fields.setdefault("level", severity(name))
        if self._style.wants(fields["level"]):
            self.write(event_line(name, fields))

    def flush(self, timeout_s: float = 1.0) -> bool:
        """Wait until everything is written; False when standard output is blocked for that long."""
        return self._idle.wait(timeout_s)

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is left, for at most that long."""
        self.flush(timeout_s)
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if not self._closing:
                time.sleep(FLUSH_S)
            with self._lock:
                lines, self._lines = self._lines, []
                self._wake.clear()
            try:
                for piece in pieces(lines):
                    _write_all(self._fd, piece)
                    with self._lock:
                        self._size -= len(piece)
            except OSError:
                with self._lock:
                    self.dropped += len(lines)
                    self._size = sum(map(len, self._lines))
            with self._lock:
                if not self._lines:
                    self._idle.set()
                elif not self._wake.is_set():
                    self._wake.set()
            if self._closing and not self._lines:
                return


class DirectSink:
    """The supervisor's log output: no thread there, so a line that cannot be written at once is dropped and counted."""

    def __init__(self, fd: int = 1, style: Style | None = None) -> None:
        self._fd, self._style = fd, style or Style()
        self.dropped = 0

    def event(self, name: str, /, **fields: object) -> None:
        """One event. Text is cut and secrets are masked."""
        fields.setdefault("level", severity(name))
        if not self._style.wants(fields["level"]):
            return
        line = self._style.line(event_line(name, fields))
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        try:
            if len(line) <= PIPE_BUF and any(event & select.POLLOUT for _, event in poll.poll(0)):
                _write_all(self._fd, line)
            else:
                self.dropped += 1
        except OSError:
            self.dropped += 1


def event_line(name: str, fields: Mapping[str, object]) -> bytes:
    """The line of an event: time, name, fields."""
    clean = {key: redact(value[:MAX_TEXT]) if isinstance(value, str) else value for key, value in fields.items()}
    return encode({"ts": timestamp(time.time_ns() // 1000), "event": name, "pid": os.getpid(), **clean})


def timestamp(us: int) -> str:
    """RFC 3339, UTC, milliseconds."""
    seconds, rest = divmod(us, 1_000_000)
    return f"{_to_the_second(seconds)}.{str(1000 + rest // 1000)[1:]}Z"  # a third of what the format 03d costs


@lru_cache(maxsize=4)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
