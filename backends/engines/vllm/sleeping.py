"""vLLM's sleep mode: an engine without work gives the GPU's memory back, and the next request wakes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any


class Sleeping:
    """Used on the loop that runs vLLM. `after_s` None: it never sleeps."""

    def __init__(self, vllm: Any, after_s: float | None, level: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._vllm = vllm
        self._after_s = after_s
        self._level = level
        self._clock = clock
        self._turn = asyncio.Lock()
        self._open = 0
        self._idle_since = clock()
        self.asleep = False

    @asynccontextmanager
    async def awake(self) -> AsyncIterator[None]:
        """While a job runs: it is woken first, and does not fall asleep."""
        self._open += 1
        try:
            if self._after_s is not None:
                async with self._turn:
                    if self.asleep:
                        await self._vllm.wake_up()
                        if self._level > 1:  # weights were dropped; the cached states of prefixes belong to the old ones
                            await self._vllm.collective_rpc("reload_weights")
                            await self._vllm.reset_prefix_cache()
                        self.asleep = False
            yield
        finally:
            self._open -= 1
            self._idle_since = self._clock()

    async def perhaps(self) -> None:
        """Fall asleep when there was no work for long enough."""
        if self._after_s is None or self.asleep or self._open or self._clock() - self._idle_since < self._after_s:
            return
        async with self._turn:
            if not self._open:
                await self._vllm.sleep(level=self._level)
                self.asleep = True
