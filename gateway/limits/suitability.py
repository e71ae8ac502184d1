"""Whether a Redis is fit to hold limits and the usage stream: asked by `switchyard check` and at every start."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

_OLDEST = (6, 0)
_TIMEOUT_S = 2.0


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong (`error`: it must not be used) or unwise (`warning`), with its mend."""

    severity: Literal["error", "warning"]
    message: str


def examined(url: str) -> list[Finding]:
    """What speaks against the Redis of this URL; blocks, for seconds at most. For a command, and before a start."""

    async def ask() -> list[Finding]:
        async with aclosing(Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)) as client:
            return await findings(client)

    return asyncio.run(ask())


async def findings(client: Redis) -> list[Finding]:
    """What speaks against this Redis. An eviction policy other than `noeviction` would forget charges silently.

    Asked by INFO alone, which managed servers allow where they forbid CONFIG. Never raises for an outage: that is a
    finding too, and no error, for `on_outage` says what follows from one.
    """
    ask: Any = client
    try:
        info: dict[str, Any] = {}
        for section in ("server", "memory", "persistence", "replication"):
            info |= await ask.info(section)
    except (RedisError, OSError) as error:
        return [Finding("warning", f"Redis does not answer ({type(error).__name__}), so it could not be examined")]
    out: list[Finding] = []
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST:
        out.append(Finding("error", f"Redis {version} is too old: 6.0 or later is needed"))
    policy = info.get("maxmemory_policy")
    if policy is None:
        out.append(Finding("warning", "it does not tell its maxmemory-policy: make sure that it is noeviction"))
    elif policy != "noeviction":
        out.append(Finding("error", f"maxmemory-policy is {policy}: set it to noeviction, or charges are forgotten"))
    if info.get("aof_enabled") == 0:
        out.append(
            Finding("warning", "appendonly is off: a restart of Redis forgets rates, and usage rows that no gateway holds")
        )
    if info.get("redis_mode") == "cluster":
        out.append(Finding("warning", "one hash tag is used: everything lies on one node of this cluster"))
    if info.get("role") == "slave":
        out.append(Finding("warning", "it is a replica, which takes no writes: name the primary"))
    return out
