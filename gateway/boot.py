"""What is decided once, before any process of a gateway is started."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gateway.auth.tables import AUDIT
from gateway.config.settings import Configuration
from gateway.ledger.queries import Kept
from gateway.telemetry.style import Style


class Boot(msgspec.Struct, frozen=True):
    """`gateway` names this gateway among all that share a Redis, `engine_token` is the per-boot secret of the engines'
    sockets, and `welcome` is printed once, when all is ready.
    """

    configuration: Configuration
    gateway: str
    pepper: bytes
    engine_token: str
    welcome: str = ""

    def __repr__(self) -> str:
        return f"Boot({self.configuration!r})"

    def engine_socket(self, engine: str) -> Path:
        """Where an engine's host listens."""
        return self.configuration.run_dir / f"engine-{engine}.sock"

    @property
    def gate_socket(self) -> Path:
        """Where the gate listens."""
        return self.configuration.run_dir / "gate.sock"

    @property
    def log_style(self) -> Style:
        """Which events are logged, and in which form."""
        return log_style(self.configuration)

    @property
    def gated(self) -> bool:
        """Whether a gate process counts for several workers; else the one worker counts by itself."""
        return self.configuration.static.server.workers > 1


def log_style(configuration: Configuration) -> Style:
    """What `telemetry.log_level` and `telemetry.log_format` say."""
    telemetry = configuration.static.telemetry
    return Style(telemetry.log_level, telemetry.log_format)


def kept_audit(days: int) -> Kept:
    """How long the audit trail is kept."""
    return Kept(AUDIT, days, lambda before_us: AUDIT.c.at_us < before_us)
