"""What one worker counts and records with: the limit store, the embedded ledger, the spool, the flight record.

A part of the composition root: the limits and the ledger do not know each other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy.engine import make_url

from gateway.boot import Boot
from gateway.config.snapshot import Snapshot
from gateway.domain.money import cost_of_row
from gateway.domain.settlement import LedgerRow
from gateway.ledger.embedded import EmbeddedLedger
from gateway.limits.abandoned import flown_charges, flown_row
from gateway.limits.embedded_store import EmbeddedStore
from gateway.limits.flights import Flights, left_behind
from gateway.limits.periods import LONGEST_PERIOD_US
from gateway.limits.redis_store import RedisStore
from gateway.limits.spool import Spool, adopt
from gateway.pipeline.clock import wall_us
from gateway.telemetry.sink import Sink


class Accounting:
    """`start` it and `aclose` it in one task. `ledger` None: another process writes it, from Redis."""

    def __init__(self, boot: Boot, index: int, incarnation: int, sink: Sink) -> None:
        self._boot = boot
        self._index = index
        self._sink = sink
        self.ledger: EmbeddedLedger | None = None
        configuration = boot.configuration
        if configuration.redis_url is not None:
            self.limits: RedisStore | EmbeddedStore = RedisStore(
                configuration.redis_url,
                wall_us,
                worker=f"{boot.gateway}-{index}",
                timeout_ms=configuration.static.redis.timeout_ms,
                spool=self._spool(),
                rebuilt=True,
            )
        else:
            self.ledger = EmbeddedLedger(Path(make_url(configuration.ledger_url).database or ""))
            self.limits = EmbeddedStore(wall_us, self.ledger)
        self.flights = self._flights(f"{index}-{incarnation}")

    async def start(self, present: Callable[[], Snapshot]) -> None:
        """Begin. Without Redis, first settle what this worker's predecessor had open, by its flight record where there is one.

        Args:
            present: the configuration with the database's prices.
        """
        if isinstance(self.limits, RedisStore):
            await self.limits.start()
            return
        assert self.ledger is not None
        now_us = wall_us()
        with left_behind(self._boot.configuration.run_dir) as flown:
            flights = {one.id: one for one in flown}

            def judge(row: LedgerRow, charges: bytes) -> tuple[LedgerRow, bytes]:
                flight = flights.get(row.id)
                if flight is None:
                    return row, charges
                row = flown_row(row, row.admitted_us, flight, lambda one: cost_of_row(one, present().models.get(one.model)))
                return row, flown_charges(row, charges)

            self.ledger.start(now_us, judge)
        self.limits.restore(self.ledger.recent(now_us - LONGEST_PERIOD_US))

    async def aclose(self) -> None:
        """Flush what is pending, bounded in time, and close; everything was settled."""
        await self.limits.aclose()
        if self.ledger is not None:
            self.ledger.close()
        if self.flights is not None:
            self.flights.close()

    def _flights(self, name: str) -> Flights | None:
        """Without it a killed worker's requests are known by the progress of every 5 s alone: no reason not to serve."""
        try:
            return Flights(self._boot.configuration.run_dir, name)
        except OSError as error:
            self._sink.event("flight_record_missing", level="error", reason=f"{type(error).__name__}: {error}")
            return None

    def _spool(self) -> Spool:
        """This worker's file. The first worker adopts those of a former start with more workers."""
        folder = self._boot.configuration.state_dir
        own = Spool(folder / f"settlements-{self._index}.spool")
        if self._index == 0:
            names = {f"settlements-{index}.spool" for index in range(self._boot.configuration.static.server.workers)}
            if count := adopt(own, folder, "settlements-*.spool", lambda path: path.name in names):
                self._sink.event("settlements_adopted", count=count)
        return own
