"""The flight record: what each open request of a worker has come to, in memory that outlives the worker's death.

A worker writes into a mapped file as its streams flow: no system call, nothing to flush, and after a SIGKILL the pages
still hold what was written last. Whoever finds the file without its worker (the worker locks it for life) settles what
it tells. A slot is not emptied when its request ends, but used again, the longest ended first: settling twice changes
nothing, and so even a settlement that died on its way is told.

A file is a header and slots of 272 bytes, little-endian: deltas, their bytes | input, cached, output, reasoning tokens,
whether they are told | of the prompt: whether its estimate was counted, its bytes, token ids, messages | cap | id |
attempts, deployment. A format: its name carries a version.

A write costs a quarter of a microsecond, for each upstream read one; so there is no method around it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from struct import Struct, error
from typing import Protocol

import msgspec

from backends.core.usage import Usage, UsageSource

#: Requests of one worker that are recorded at once; of those beyond only the progress of every 5 s is known.
MAX_FLIGHTS = 4096
#: So many of those that ended last stay as they are while there are others: their settlements may be on their way.
RESTING = 256
_SIZE = 272
_MAGIC = b"switchyard flights 1\n"
_PATTERN = "flights-1-*.bin"
_COUNTS = Struct("<2q")
_USAGE = Struct("<5q")
_TRY = Struct("<q128s")
_BEGIN = Struct("<56s5q40s136s")
_WHOLE = Struct("<12q40sq128s")
_USAGE_AT, _TRY_AT = 16, 136
_SOURCES: tuple[UsageSource, ...] = ("reported", "counted", "estimated")


class Flown(msgspec.Struct, frozen=True):
    """What a record tells of one request.

    `usage`: as the backend told it or as it was counted, None = neither had been. `counted`: whether the opening row's
    input was; else it is estimated from the prompt's `text_bytes`, `token_count` and `items`. `cap`: output tokens that bytes
    alone never estimate more than, 0 = none. `deployment` "" = none was asked yet.
    """

    id: str
    deltas: int = 0
    delta_bytes: int = 0
    usage: Usage | None = None
    counted: bool = False
    text_bytes: int = 0
    token_count: int = 0
    items: int = 0
    cap: int = 0
    attempts: int = 0
    deployment: str = ""


class Flight:
    """One request's slot.

    Callables, in C: `told(deltas, bytes)` writes its running counts, `tries(attempt, deployment)` whom it asks (the name
    in bytes), `ended()` says that it was settled: the slot may be used again, after those that ended earlier.
    """

    __slots__ = ("begins", "ended", "reports_at", "told", "tries")

    def __init__(self, write: Callable[[Struct, int], Callable[..., None]], free: Callable[[Flight], None]) -> None:
        self.begins = write(_BEGIN, 0)
        self.told: Callable[[int, int], None] = write(_COUNTS, 0)
        self.tries: Callable[[int, bytes], None] = write(_TRY, _TRY_AT)
        self.reports_at = write(_USAGE, _USAGE_AT)
        self.ended: Callable[[], None] = partial(free, self)

    def reports(self, usage: Usage) -> None:
        """It is told what it came to. Numbers that no column holds are left out."""
        told = (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens, usage.reasoning_tokens)
        try:  # noqa: SIM105  # a context manager costs as much as the write
            self.reports_at(*told, 1 + _SOURCES.index(usage.source))
        except error:
            pass


def nowhere() -> Flight:
    """A slot that nobody will read: nothing is written."""
    return Flight(lambda _struct, _at: _nothing, _nothing)


def _nothing(*_: object) -> None:
    """Write nothing."""


class Records(Protocol):
    """Keeps the flight records of admitted requests."""

    def began(self, id: str, counted: bool, text_bytes: int, token_count: int, items: int, cap: int) -> Flight:
        """The slot of a request that was admitted. For the arguments see `Flown`."""


class NoRecord:
    """Keeps none."""

    def __init__(self) -> None:
        self._nowhere = nowhere()

    def began(self, id: str, counted: bool, text_bytes: int, token_count: int, items: int, cap: int) -> Flight:  # noqa: ARG002
        """See `Records`."""
        return self._nowhere


class Flights:
    """One worker's record. `close` it when everything is settled; the file is gone then.

    Args:
        folder: where who settles looks.
        name: of this incarnation of the worker.

    Raises:
        OSError: the file cannot be made, or has no room.
    """

    def __init__(self, folder: Path, name: str, slots: int = MAX_FLIGHTS) -> None:
        self._path = folder / f"flights-1-{name}.bin"
        draft = self._path.with_suffix(".draft")  # nobody may take it for left behind before it is locked
        size = _SIZE * (slots + 1)
        self._file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._file, 0, size)  # a page that could not be had would kill the worker when it is written
            self._memory = mmap.mmap(self._file, size)
            self._memory[: len(_MAGIC)] = _MAGIC
            draft.rename(self._path)
        except OSError:
            os.close(self._file)
            draft.unlink(missing_ok=True)
            raise
        self._free: deque[Flight] = deque()
        self._fresh = iter(range(1, slots + 1))
        self._nowhere = nowhere()

    def began(self, id: str, counted: bool, text_bytes: int, token_count: int, items: int, cap: int) -> Flight:
        """See `Records`; when all slots are taken, one that nobody reads.

        The counts are written before the id: a slot that is half written belongs to nobody.
        """
        flight = self._free.popleft() if len(self._free) > RESTING else self._another()
        flight.begins(b"", counted, text_bytes, token_count, items, cap, id.encode(), b"")
        return flight

    def _another(self) -> Flight:
        """A slot that was never used; when there is none, the one that ended first."""
        slot = next(self._fresh, None)
        if slot is not None:
            return Flight(partial(self._writer, _SIZE * slot), self._free.append)
        return self._free.popleft() if self._free else self._nowhere

    def _writer(self, slot: int, fields: Struct, at: int) -> Callable[..., None]:
        return partial(fields.pack_into, self._memory, slot + at)

    def close(self) -> None:
        """Everything was settled."""
        self._path.unlink(missing_ok=True)
        self._memory.close()
        os.close(self._file)


@contextmanager
def left_behind(folder: Path) -> Iterator[list[Flown]]:
    """What the workers that are gone had under way. Their files are deleted when the block ends without an error.

    Raises:
        OSError: the folder cannot be read.
    """
    found: list[Flown] = []
    with ExitStack() as files:
        done: list[Path] = []
        for path in sorted(folder.glob(_PATTERN)):
            try:
                file = files.enter_context(path.open("rb"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, FileNotFoundError):
                continue  # its worker lives, or somebody else sees to it
            found += read_flights(file.read(_SIZE * (MAX_FLIGHTS + 1)))
            done.append(path)
        yield found
        for path in done:
            path.unlink(missing_ok=True)


def read_flights(data: bytes) -> list[Flown]:
    """What a file tells; nothing of one that no worker wrote."""
    if not data.startswith(_MAGIC):
        return []
    found = []
    for at in range(_SIZE, len(data) - _SIZE + 1, _SIZE):
        deltas, size, given, cached, made, thought, told, *prompt, cap, id, tries, deployment = _WHOLE.unpack_from(data, at)
        if name := id.rstrip(b"\0"):
            counted, text_bytes, token_count, items = prompt
            found.append(
                Flown(
                    name.decode("ascii", "replace"),
                    deltas,
                    size,
                    Usage(given, made, cached, thought, _SOURCES[told - 1]) if 1 <= told <= len(_SOURCES) else None,
                    bool(counted),
                    text_bytes,
                    token_count,
                    items,
                    cap,
                    tries,
                    deployment.rstrip(b"\0").decode("utf-8", "replace"),
                )
            )
    return found
