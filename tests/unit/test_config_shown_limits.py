"""A limit is shown as it was written, whatever its kind."""

import pytest

from gateway.config.compiled_limits import compile_limits
from gateway.config.entries import Limit
from gateway.config.shown_limits import limit_text, shown_limit, usd, usd_per_million
from gateway.domain.principal import LimitSpec

WRITTEN = [
    {"requests": 5, "per": "second"},
    {"input_tokens": 5, "per": "hour"},
    {"output_tokens": 5, "per": "day", "on_insufficient": "clamp"},
    {"tokens": 5, "per": "calendar_day", "model": "chat", "shadow": True},
    {"usd": "0.000001", "per": "month", "on_outage": "allow"},
    {"concurrent": 3},
]


@pytest.mark.parametrize("written", WRITTEN, ids=str)
def test_what_is_shown_can_be_written_again(written: dict[str, object]) -> None:
    (spec,) = compile_limits([Limit.model_validate(written)], "team:red", "UTC")
    assert shown_limit(spec) == written
    assert compile_limits([Limit.model_validate(shown_limit(spec))], "team:red", "UTC") == (spec,)


def test_cells_and_money() -> None:
    assert limit_text(LimitSpec("k", "tokens", 5, 60_000, model="chat", shadow=True)) == "5 tokens/minute of chat (shadow)"
    assert shown_limit(LimitSpec("k", "tokens", 5, 7000)) == {"tokens": 5, "per_ms": 7000}
    assert (usd(1), usd(12 * 10**9), usd(0), usd(10**18 + 1)) == ("0.000000001", "12", "0", "1000000000.000000001")
    assert (usd_per_million(37_500), usd_per_million(10_000_000)) == ("0.0375", "10")
