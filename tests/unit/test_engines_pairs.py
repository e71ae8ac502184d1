"""A query and a document as one text, and a logit as a score."""

import math

import pytest

from backends.engines.pairs import filled, sigmoid


def test_what_a_client_writes_is_never_filled_again() -> None:
    pieces = filled("<q>{query}<d>{document}</d>", "{document}", "{query} x")
    assert pieces == [("<q>", True), ("{document}", False), ("<d>", True), ("{query} x", False), ("</d>", True)]
    assert filled("{document}|{query}{query}", "q", "d") == [("d", False), ("|", True), ("q", False), ("q", False)]
    assert filled("{query}{document}", "q", "") == [("q", False)]


@pytest.mark.parametrize("logit", [0.0, 3.5, -3.5, 800.0, -800.0, 1e300, -1e300])
def test_a_sigmoid_never_overflows(logit: float) -> None:
    score = sigmoid(logit)
    assert 0 <= score <= 1
    assert score == pytest.approx(0.5 + 0.5 * math.tanh(logit / 2))
    assert sigmoid(-logit) == pytest.approx(1 - score)
