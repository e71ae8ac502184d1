"""What libraries and our own lower rooms say through `logging`, as events among the others."""

from __future__ import annotations

import logging
import re
from typing import Protocol

from gateway.telemetry.style import Level, Style

_NAME = re.compile(r"[a-z][a-z_]{2,63}")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_MAX_TRACE = 4000


class EventSink(Protocol):
    """Takes events and returns at once."""

    def event(self, name: str, /, **fields: object) -> None:
        """One event."""


class Bridge(logging.Handler):
    """Turns records into events: a message like `limits_redis_out` is the event's name, `extra` its fields."""

    def __init__(self, sink: EventSink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """One record."""
        text = record.getMessage()
        fields: dict[str, object] = {
            name: value if isinstance(value, int | float | bool) else str(value)
            for name, value in vars(record).items()
            if name not in _STANDARD and name not in ("level", "name")
        }
        name = text if _NAME.fullmatch(text) else "log"
        if name == "log":
            fields["text"] = text
        if record.exc_info:
            fields["trace"] = logging.Formatter().formatException(record.exc_info)[-_MAX_TRACE:]
        self._sink.event(name, level=_level(record.levelno), logger=record.name, **fields)


def attach(sink: EventSink, style: Style) -> None:
    """Send everything that goes through `logging` in this process to the sink, and nowhere else."""
    root = logging.getLogger()
    root.handlers[:] = [Bridge(sink)]
    root.setLevel(style.level.upper())


def _level(number: int) -> Level:
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    return "info" if number >= logging.INFO else "debug"
