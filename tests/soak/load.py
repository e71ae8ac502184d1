"""The soak's clients: each asks, leaves, errs and notes what it was told, so that the ledger can be held against it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import httpx

from tests.soak.house import BAD, LIMITED, PLAIN, SoakedHouse

#: What is asked for, and how often.
MIX = {
    "words-10-d10": 10,
    "words-40-d25": 4,
    "words-5-d5": 10,
    "words-4-nousage": 2,
    "falls-back": 3,
    "words-6-cut": 1,
    "words-6-error": 1,
    "words-3-status-500": 1,
    "words-3-status-429": 1,
    "narrow": 4,
    "tools": 1,
    "mute": 1,
    "unknown": 2,
}


@dataclass
class Noted:
    """What clients know. `admitted`: request id → generated tokens, None where the client cannot know them."""

    admitted: dict[str, int | None] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)
    left: int = 0
    unanswered: int = 0
    doubtful: set[str] = field(default_factory=set)
    """Ids of answers of which it cannot be told from outside whether they were admitted."""

    @property
    def made(self) -> int:
        """Requests."""
        return sum(self.statuses.values()) + self.unanswered


async def clients(house: SoakedHouse, until: float, count: int, noted: Noted) -> None:
    """Ask until the instant (time.monotonic)."""
    async with (
        httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=count * 2)) as http,
        asyncio.TaskGroup() as group,
    ):
        for number in range(count):
            group.create_task(_client(http, house, until, noted, random.Random(number)))


async def _client(http: httpx.AsyncClient, house: SoakedHouse, until: float, noted: Noted, dice: random.Random) -> None:
    while time.monotonic() < until:
        model = dice.choices(list(MIX), list(MIX.values()))[0]
        if model == "unknown":
            model = f"unknown-{dice.random()}"
        key = dice.choices([PLAIN, LIMITED, BAD], [20, 5, 1])[0]
        body = {
            "model": model,
            "stream": dice.random() < 0.7,
            "messages": [{"role": "user", "content": "x" * dice.randrange(400)}],
        }
        if body["stream"]:
            body["stream_options"] = {"include_usage": True}
        content = b"{broken" if dice.random() < 0.02 else json.dumps(body).encode()
        leaves_after = dice.randrange(1, 6) if dice.random() < 0.1 else None
        await _ask(http, house.gateway.url, content, key, leaves_after, noted)
        await asyncio.sleep(dice.random() * 0.3)


async def _ask(http: httpx.AsyncClient, url: str, content: bytes, key: str, leaves_after: int | None, noted: Noted) -> None:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        async with http.stream("POST", url + "/v1/chat/completions", content=content, headers=headers) as answer:
            noted.statuses[answer.status_code] = noted.statuses.get(answer.status_code, 0) + 1
            id = answer.headers["x-request-id"]
            if answer.status_code in (200, 502, 504):
                noted.admitted[id] = None
            elif answer.status_code == 503:  # the limit store was out, or every slot was taken, which is after admission
                noted.doubtful.add(id)
            got, pieces = b"", 0
            async for piece in answer.aiter_raw():
                got += piece
                pieces += 1
                if leaves_after is not None and pieces >= leaves_after:
                    noted.left += 1
                    return
            if answer.status_code == 200:
                noted.admitted[id] = _tokens(got)
    except (httpx.HTTPError, OSError):
        noted.unanswered += 1


def _tokens(body: bytes) -> int | None:
    """What the answer says that it generated; None where it says nothing or broke off."""
    found = None
    lines = body.decode().splitlines()
    for text in [line[6:] for line in lines if line.startswith("data: {")] or [body.decode()]:
        try:
            value = json.loads(text)
        except ValueError:
            return None
        if "error" in value:
            return None
        if value.get("usage"):
            found = int(value["usage"]["completion_tokens"])
    return found
