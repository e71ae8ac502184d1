"""Log-probabilities of one row of logits: of the model itself, before any sampling parameter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backends.core.events import Candidate, TokenLogprob


def token_logprob(logits: np.ndarray, token: int, count: int, piece: Callable[[int], bytes]) -> TokenLogprob:
    """The chosen token's natural-log probability and those of the `count` likeliest, best first.

    Args:
        logits: float32, one per token of the vocabulary.
        token: the chosen one.
        count: alternatives, 0 for none.
        piece: the bytes of a token.
    """
    best = float(logits.max())
    total = best + float(np.log(np.exp(logits - best).sum()))
    top: tuple[Candidate, ...] = ()
    if count:
        likeliest = np.argpartition(logits, -count)[-count:]
        ordered = likeliest[np.lexsort((likeliest, -logits[likeliest]))]
        top = tuple(_candidate(piece(int(one)), float(logits[one]) - total) for one in ordered)
    data = piece(token)
    return TokenLogprob(data.decode("utf-8", "replace"), data, min(0.0, float(logits[token]) - total), top)


def _candidate(data: bytes, logprob: float) -> Candidate:
    return Candidate(data.decode("utf-8", "replace"), data, min(0.0, logprob))
