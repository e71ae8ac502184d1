"""A query and a document as one text, and a logit as a score: what every engine of rerankers shares. Pure."""

from __future__ import annotations

import math


def filled(template: str, query: str, document: str) -> list[tuple[str, bool]]:
    """The pieces of a reranker's template, `{query}` and `{document}` filled in; each with whether it is the template's own."""
    pieces: list[tuple[str, bool]] = []
    for number, around in enumerate(template.split("{query}")):
        if number:
            pieces.append((query, False))
        for place, text in enumerate(around.split("{document}")):
            if place:
                pieces.append((document, False))
            pieces.append((text, True))
    return [piece for piece in pieces if piece[0]]


def sigmoid(logit: float) -> float:
    """From 0 to 1, without an overflow on either side."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    small = math.exp(logit)
    return small / (1 + small)
