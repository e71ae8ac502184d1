"""A look at counters from outside the gateway's processes: what a command shows, without a store of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from gateway.domain.settlement import Rule, RuleState
from gateway.limits.commands import parse_admit, peek_args
from gateway.limits.refusal import unavailable
from gateway.limits.scripts import compose
from gateway.limits.store import PEEK_LEASE_MS

_TIMEOUT_S = 5.0


class Glance:
    """Looks at the counters of one Redis; `glancing` makes and closes it. `now_us`: the server's clock when it was made."""

    def __init__(self, client: Redis, now_us: int) -> None:
        self._client = client
        self._script = compose().peek
        self._now_us = now_us

    def now_us(self) -> int:
        """See above; good for the moments that a command takes."""
        return self._now_us

    async def peek(self, rules: Sequence[Rule]) -> Sequence[RuleState]:
        """What is left of these rules now.

        Raises:
            LimitsUnavailable: Redis does not answer.
        """
        ask: Any = self._client
        args = peek_args(self._script, rules, PEEK_LEASE_MS)
        try:
            try:
                reply = await ask.execute_command(*args)
            except NoScriptError:
                await ask.script_load(self._script.text)
                reply = await ask.execute_command(*args)
        except (RedisError, OSError) as error:
            raise unavailable(1000, type(error).__name__) from None
        return parse_admit(reply, rules).states


@asynccontextmanager
async def glancing(url: str) -> AsyncIterator[Glance]:
    """A look at the counters of a Redis.

    Raises:
        LimitsUnavailable: it does not answer.
    """
    async with aclosing(Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)) as client:
        try:
            seconds, micros = await client.time()
        except (RedisError, OSError) as error:
            raise unavailable(1000, type(error).__name__) from None
        yield Glance(client, seconds * 1_000_000 + micros)
