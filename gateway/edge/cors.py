"""Which browser pages may call the API: none unless configured, and never with credentials."""

from __future__ import annotations

import re
from collections.abc import Sequence

Pairs = Sequence[tuple[bytes, bytes]]

_EXPOSED = (
    b"x-request-id, retry-after, retry-after-ms, x-ratelimit-limit-requests, x-ratelimit-limit-tokens, "
    b"x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, x-ratelimit-reset-tokens"
)
_HEADER_NAMES = re.compile(rb"[a-zA-Z0-9_, -]{1,1024}")


class Cors:
    """The answers to browsers. `origins` as configured; `*` allows every one."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    @property
    def configured(self) -> bool:
        """Whether any page may call at all."""
        return bool(self._origins)

    def headers(self, request: Pairs) -> list[tuple[bytes, bytes]]:
        """What an answer to this request carries; empty when its origin is not allowed or not stated."""
        if not self._origins:
            return []
        origin = next((value for name, value in request if name == b"origin"), None)
        if self._any:
            return [] if origin is None else [(b"access-control-allow-origin", b"*"), _EXPOSE]
        if origin not in self._origins or origin is None:
            return [(b"vary", b"origin")]
        return [(b"access-control-allow-origin", origin), (b"vary", b"origin"), _EXPOSE]

    def preflight(self, request: Pairs, methods: bytes) -> list[tuple[bytes, bytes]]:
        """What the answer to an OPTIONS carries."""
        answer = [*self.headers(request), (b"allow", methods + b", OPTIONS")]
        asked = next((value for name, value in request if name == b"access-control-request-headers"), None)
        if any(name == b"access-control-allow-origin" for name, _ in answer):
            answer += [(b"access-control-allow-methods", methods), (b"access-control-max-age", b"600")]
            if asked is not None and _HEADER_NAMES.fullmatch(asked):
                answer.append((b"access-control-allow-headers", asked))
        return answer


_EXPOSE = (b"access-control-expose-headers", _EXPOSED)
