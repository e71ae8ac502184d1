"""Answers of real servers as they came over the wire: `tests/fixtures/recorded/<server>.<what>.http`.

Recorded 2026-11-21: llama-server b1-0c1e570, xllamacpp, vLLM 0.32, transformers serve 5.19, on a 2M-parameter model.
Bodies are stored without their chunk framing.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

RECORDED = Path(__file__).parent.parent / "fixtures" / "recorded"


class Response(msgspec.Struct, frozen=True):
    """Status, headers with lower-case names, body."""

    status: int
    headers: dict[str, str]
    body: bytes


def recorded(name: str) -> Response:
    """The response of that name."""
    head, _, body = (RECORDED / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    first, *lines = head.decode().splitlines()
    pairs = (line.partition(":") for line in lines)
    return Response(int(first.split()[1]), {key.lower(): value.strip() for key, _, value in pairs}, body)
