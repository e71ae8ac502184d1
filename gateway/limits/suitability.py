"""Whether a Redis is fit to hold limits and the usage stream: what `switchyard check` asks of it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

_OLDEST = (6, 0)


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong (`error`) or unwise (`warning`), with its mend."""

    severity: Literal["error", "warning"]
    message: str


async def findings(client: Redis) -> list[Finding]:
    """What speaks against this Redis. An eviction policy other than `noeviction` would forget charges silently.

    Never raises for an outage: that is a finding too.
    """
    ask: Any = client
    out: list[Finding] = []
    try:
        info = await ask.info("server")
        version = str(info.get("redis_version", "0"))
        number = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if number < _OLDEST:
            out.append(Finding("error", f"Redis {version} is too old: 6.0 or later is needed"))
        if info.get("redis_mode") == "cluster":
            out.append(Finding("warning", "one hash tag is used: everything lies on one node of this cluster"))
        settings = await ask.config_get("maxmemory-policy", "appendonly") if number >= (7, 0) else await _settings(ask)
    except ResponseError:
        return [*out, Finding("warning", "CONFIG is not allowed: make sure that maxmemory-policy is noeviction")]
    except (RedisError, OSError) as error:
        return [Finding("error", f"Redis does not answer ({type(error).__name__})")]
    policy = settings.get("maxmemory-policy", "")
    if policy != "noeviction":
        out.append(Finding("error", f"maxmemory-policy is {policy}: set it to noeviction, or charges are forgotten"))
    if settings.get("appendonly") != "yes":
        out.append(Finding("warning", "appendonly is off: a restart of Redis forgets charges and unwritten usage rows"))
    return out


async def _settings(ask: Any) -> dict[str, str]:
    """CONFIG GET takes one pattern before Redis 7."""
    return {**await ask.config_get("maxmemory-policy"), **await ask.config_get("appendonly")}
