"""A budget lives in SQLite: a restart of a gateway without Redis does not reset it, the end of its period does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.domain.principal import LimitSpec
from gateway.domain.route import Price
from gateway.domain.settlement import Settlement
from gateway.ledger.embedded import EmbeddedLedger
from gateway.ledger.migrations import migrate
from gateway.limits.embedded_store import EmbeddedStore
from gateway.limits.periods import LONGEST_PERIOD_US
from gateway.limits.rules import Demand, rules_for
from gateway.limits.store import PeriodOver, QuotaExhausted
from tests.rows import row

DAY_US = 86_400_000_000
PRICE = Price(1_000_000, 1_000_000, 1_000_000)
#: 0.001 USD a month: 1,000 tokens.
BUDGET = (LimitSpec("team:t", "nusd", 1_000_000, period="month", zone="Europe/Berlin"),)


def us(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp()) * 1_000_000  # type: ignore[arg-type, misc]


class Gateway:
    """The embedded store on its file, as a worker starts it."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.ledger = EmbeddedLedger(path)
        self.ledger.start(clock())
        self.store = EmbeddedStore(clock, self.ledger)
        self.store.restore(self.ledger.recent(clock() - LONGEST_PERIOD_US))

    async def ask(self, id: str, tokens: int, used: int | None = None) -> None:
        rules = rules_for(BUDGET, Demand(tokens, price=PRICE), self.store.now_us())
        reservation = await self.store.admit(id, rules, row(id), 15_000)
        if used is not None:
            await self.store.settle(Settlement(reservation, (used * 1000,), row(id, outcome="ok", cost_nusd=used * 1000)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    migrate(f"sqlite+aiosqlite:///{tmp_path}/ledger.db")
    return tmp_path / "ledger.db"


async def test_a_monthly_budget_is_not_reset_by_a_restart_but_by_the_month(path: Path) -> None:
    now = us(2026, 9, 30, 22, 0)  # the first instant of October in Berlin
    first = Gateway(path, lambda: now)
    await first.ask("settled", 400, used=300)
    await first.ask("left open", 600)
    first.ledger.close()
    now = us(2026, 10, 31, 22, 59)  # a month of 31 days and one hour less a minute later: still October there
    second = Gateway(path, lambda: now)
    with pytest.raises(QuotaExhausted) as caught:  # 300 used, 600 of the one that nobody settled
        await second.ask("too much", 101)
    assert caught.value.retry_after_ms == 60_000
    assert "0.0001 USD left" in caught.value.message
    await second.ask("fits", 100, used=100)
    second.ledger.close()
    now = us(2026, 10, 31, 23, 0)
    third = Gateway(path, lambda: now)
    await third.ask("november", 1000, used=1000)
    third.ledger.close()


async def test_a_period_that_ends_between_rules_and_admission_charges_nothing(path: Path) -> None:
    now = us(2026, 10, 31, 22, 59)
    gateway = Gateway(path, lambda: now)
    rules = rules_for(BUDGET, Demand(1000, price=PRICE), now)
    now += 60_000_000
    with pytest.raises(PeriodOver):
        await gateway.store.admit("late", rules, row("late"), 15_000)
    await gateway.ask("late", 1000, used=1000)  # the same id, in the new month
    gateway.ledger.close()
