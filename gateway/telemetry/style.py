"""Which events are written, and in which form: `telemetry.log_level` and `telemetry.log_format`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Level = Literal["debug", "info", "warning", "error"]
_ORDER: tuple[object, ...] = ("debug", "info", "warning", "error")
#: Events that are not `info` and say nothing else themselves.
_SEVERITY: Mapping[str, Level] = {
    "bug": "error",
    "process_failed": "error",
    "process_fatal": "error",
    "process_not_started": "error",
    "process_died": "error",
    "engine_crashed": "error",
    "process_killed": "warning",
    "config_refused": "warning",
    "config_reload_failed": "warning",
    "config_names_unchecked": "warning",
    "config_needs_restart": "warning",
    "redis_unwise": "warning",
    "metrics_port_taken": "warning",
    "metrics_unreadable": "warning",
}


class Style(msgspec.Struct, frozen=True):
    """`level`: the least severe event that is written. `form`: one JSON object, or one readable line per event."""

    level: Level = "info"
    form: Literal["json", "text"] = "json"

    def wants(self, level: object) -> bool:
        """Whether events of this level are written; one that is no level counts as the most severe."""
        return level not in _ORDER or _ORDER.index(level) >= _ORDER.index(self.level)

    def line(self, line: bytes) -> bytes:
        """A JSON line in this form."""
        return line if self.form == "json" else readable(line)


def severity(name: str) -> Level:
    """How severe an event is."""
    return _SEVERITY.get(name, "info")


def readable(line: bytes) -> bytes:
    """`time LEVEL event key=value …` of a JSON line; values are JSON, so that a line stays one line."""
    fields: dict[str, object] = msgspec.json.decode(line)
    head = f"{fields.pop('ts', '')} {str(fields.pop('level', 'info')).upper()} {fields.pop('event', '')}"
    told = [f"{name}={value if _plain(value) else msgspec.json.encode(value).decode()}" for name, value in fields.items()]
    return " ".join([head, *told]).encode("ascii", "backslashreplace") + b"\n"


def _plain(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable() and value != "" and " " not in value
