"""Whole texts turned into new parts: the same as cutting the last text, whatever was shown on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.parsing.snapshots import Snapshots
from backends.parsing.stops import StopCutter

TEXT = st.text(st.sampled_from("abS\N{EARTH GLOBE EUROPE-AFRICA}"), max_size=12)


@given(TEXT, st.lists(st.integers(0, 40), max_size=6), st.lists(st.sampled_from(["S", "ab", "aSb", "bb"]), max_size=2))
def test_growing_texts_give_the_last_one(text: str, places: list[int], stops: list[str]) -> None:
    octets = text.encode()
    seen = [octets[: min(place, len(octets))].decode("utf-8", "replace") for place in sorted(places)]
    snapshots, cutter = Snapshots(stops), StopCutter(stops)
    got = "".join(snapshots.feed(one) for one in seen) + snapshots.feed(text, last=True)
    wanted, hit = cutter.feed(text)
    assert got == (wanted if hit else wanted + cutter.close())
    assert bool(snapshots.matched) == hit


@pytest.mark.parametrize(
    ("texts", "stops", "wanted"),
    [
        (["Hi ", "Hi \ufffd", "Hi \ufffd\ufffd", "Hi \N{BUG}!"], [], "Hi \N{BUG}!"),
        (["a", "a\ufffd"], [], "a\ufffd"),
        (["ab E", "ab EN", "ab "], ["END"], "ab "),
        (["ab E", "ab", "abc"], [], "ab Ec"),
    ],
)
def test_what_is_not_final_is_held_back(texts: list[str], stops: list[str], wanted: str) -> None:
    snapshots = Snapshots(stops)
    assert "".join(snapshots.feed(text) for text in texts) + snapshots.close() == wanted
