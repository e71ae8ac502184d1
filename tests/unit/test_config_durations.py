import pytest

from gateway.config.durations import instant_text, parse_duration, parse_expiry

NOW_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("12h", 43_200), ("30d", 2_592_000), ("4w", 2_419_200)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1.5h", "30 d", "30D", "101y", "5300w", "٣d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"for instance|at most"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "later_s"),
    [("30d", 2_592_000), ("2026-01-02", 86_400), ("2026-01-01T01:00:00+00:30", 1800), ("2026-01-01 00:00:01", 1)],
)
def test_expiries(text: str, later_s: int) -> None:
    assert parse_expiry(text, NOW_US) == NOW_US + later_s * 1_000_000


@pytest.mark.parametrize("text", ["2026-01-01", "2020-01-01", "soon", "2026-13-01"])
def test_what_is_no_expiry(text: str) -> None:
    with pytest.raises(ValueError, match=r"past|write"):
        parse_expiry(text, NOW_US)


def test_instants_are_shown_in_utc() -> None:
    assert instant_text(NOW_US) == "2026-01-01 00:00"
    assert instant_text(None) == "-"
