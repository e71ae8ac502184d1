"""What the entries of the configuration file are made of: names, instants, time zones, money, and a limit.

The admin API's bodies are made of the same. Each value is checked by itself; every field's description begins with its unit
where it has one.
"""

from __future__ import annotations

import datetime
import re
import zoneinfo
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

#: Numbers above it lose digits in Redis' Lua, so limits may not pass it.
MAX_LIMIT = 2**53
_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_ENGINE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,31}")
_NO_ZONE = "there is no such time zone; write an IANA name such as Europe/Berlin or UTC"
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("a name has 1 to 128 of the characters A-Z a-z 0-9 . _ : / -")
    return text


def _engine_name(text: str) -> str:
    """An engine's name is part of its socket's path, which is short."""
    if not _ENGINE_NAME.fullmatch(text):
        raise ValueError("an engine's name has 1 to 32 of the characters A-Z a-z 0-9 . _ - and no dot at its beginning")
    return text


def _hash(text: str) -> str:
    if not _HASH.fullmatch(text):
        raise ValueError("write sha256: and 64 hexadecimal digits in lower case: printf %s KEY | sha256sum")
    return text


def _instant(value: object) -> object:
    """YAML has made a date or a datetime of it already; without a zone it is UTC."""
    if isinstance(value, datetime.datetime):
        return value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)
    return value


def _zone(text: str) -> str:
    try:
        zoneinfo.ZoneInfo(text)
    except (OSError, ValueError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(_NO_ZONE) from None
    except KeyError:
        raise ValueError(_NO_ZONE) from None
    return text


def _with_zone(instant: datetime.datetime) -> datetime.datetime:
    """Quoted text comes here as pydantic parsed it; without a zone it is UTC too."""
    return instant if instant.tzinfo else instant.replace(tzinfo=datetime.UTC)


Name = Annotated[str, AfterValidator(_name)]
EngineName = Annotated[str, AfterValidator(_engine_name)]
Hash = Annotated[str, AfterValidator(_hash)]
Instant = Annotated[datetime.datetime, BeforeValidator(_instant), AfterValidator(_with_zone)]
Zone = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_zone)]
Usd = Annotated[Decimal, Field(ge=0, le=1_000_000, max_digits=13, decimal_places=6)]
TemplateOptions = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=4096)]]


class Entry(BaseModel):
    """Base of every entry: unknown keys are errors, values never change, no value is shown in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Limit(Entry):
    """One limit: exactly one of `requests`, `input_tokens`, `output_tokens`, `tokens`, `usd` (with `per`) and `concurrent`."""

    requests: int | None = Field(default=None, ge=1, le=MAX_LIMIT, description="requests admitted in `per`")
    input_tokens: int | None = Field(default=None, ge=1, le=MAX_LIMIT, description="prompt tokens admitted in `per`")
    output_tokens: int | None = Field(default=None, ge=1, le=MAX_LIMIT, description="generated tokens admitted in `per`")
    tokens: int | None = Field(
        default=None, ge=1, le=MAX_LIMIT, description="prompt and generated tokens together, admitted in `per`"
    )
    usd: Annotated[Decimal, Field(gt=0, le=1_000_000, max_digits=13, decimal_places=6)] | None = Field(
        default=None, description="USD that the requests admitted in `per` may cost, by the deployments' prices"
    )
    concurrent: int | None = Field(default=None, ge=1, le=1_000_000, description="requests in progress at once; has no `per`")
    per: Literal["second", "minute", "hour", "day", "calendar_day", "month"] | None = Field(
        default=None,
        description="second, minute, hour and day: any rolling window of that length; calendar_day and month: from midnight in"
        " the owner's time zone",
    )
    model: Name | None = Field(default=None, description="only requests for this model count (default: all models together)")
    shadow: bool = Field(default=False, description="count and report only, refuse nothing")
    on_outage: Literal["deny", "allow"] | None = Field(
        default=None, description="what it does while Redis does not answer (default: redis.on_outage)"
    )
    on_insufficient: Literal["reject", "clamp"] | None = Field(
        default=None,
        description="an output cap that the client stated and this limit does not leave: a 429, or a lower cap, told in the"
        " header x-switchyard-output-cap (default: reject)",
    )

    @model_validator(mode="after")
    def _one_unit(self) -> Limit:
        units = ("requests", "input_tokens", "output_tokens", "tokens", "usd", "concurrent")
        stated = [name for name in units if getattr(self, name) is not None]
        if len(stated) != 1:
            raise ValueError(f"a limit has exactly one of {', '.join(units)}; write one list entry for each")
        if (stated[0] == "concurrent") != (self.per is None):
            raise ValueError("every limit but concurrent needs `per`; concurrent has none")
        if self.on_insufficient is not None and stated[0] not in ("output_tokens", "tokens", "usd"):
            raise ValueError("on_insufficient has a meaning for output_tokens, tokens and usd only")
        return self
