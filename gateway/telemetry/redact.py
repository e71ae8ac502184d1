"""Secrets out of free text, at the last moment before it is written. A safety net: nobody is meant to log one."""

from __future__ import annotations

import re

MASK = "[redacted]"

_SECRETS = re.compile(
    r"(?P<scheme>\b(?:bearer|basic)\s+)[^\s\"',;]+"
    r"|\b(?:sk|pk|hf|gsk|sy)[-_][A-Za-z0-9_\-.]{6,}"
    r"|(?P<name>\b(?:x-)?(?:api[-_]?key|authorization|token|secret|password|passwd|pepper)\b[\"']?\s*[:=]\s*[\"']?)(?:(?:bearer|basic)\s+)?[^\s\"',;&]+"
    r"|(?P<user>://)[^/\s:@]*:[^/\s@]+@",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text with bearer and basic credentials, `sk-…`-like keys, `name=secret` values and URL passwords masked."""
    return _SECRETS.sub(_mask, text)


def _mask(match: re.Match[str]) -> str:
    if match["user"]:
        return f"://{MASK}@"
    return f"{match['scheme'] or match['name'] or ''}{MASK}"
