import pytest

from gateway.domain.settlement import Rule, RuleState
from gateway.limits.headers import duration, limit_headers, retry_headers
from gateway.limits.refusal import refusal
from gateway.limits.rules import MAX_AMOUNT
from gateway.limits.store import LimitExceeded, QuotaExhausted


def rule(unit, limit=100, window_ms=60_000, kind="rate"):
    return Rule(f"key:a:{unit}:{window_ms}", kind, unit, limit, window_ms, 1)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0s"),
        (120, "120ms"),
        (1000, "1s"),
        (8640, "8.64s"),
        (61_000, "1m1s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
        (86_400_000, "24h0m0s"),
        (60_001, "1m0.001s"),
    ],
)
def test_durations_are_written_as_openai_does(ms, text):
    assert duration(ms) == text


def test_headers_show_the_tightest_rule_of_each_unit():
    states = (
        RuleState(rule("requests", 60), 59, 1000),
        RuleState(rule("requests", 1000, 3_600_000), 12, 360_000),
        RuleState(rule("tokens", 500), 250, 8640),
        RuleState(rule("slots", 8, 0, "lease"), 1, 15_000),
    )
    assert limit_headers(states) == [
        (b"x-ratelimit-limit-requests", b"1000"),
        (b"x-ratelimit-remaining-requests", b"12"),
        (b"x-ratelimit-reset-requests", b"6m0s"),
        (b"x-ratelimit-limit-tokens", b"500"),
        (b"x-ratelimit-remaining-tokens", b"250"),
        (b"x-ratelimit-reset-tokens", b"8.64s"),
    ]


def test_of_two_with_the_same_left_the_slower_one_is_shown():
    states = (RuleState(rule("requests", 60), 0, 1000), RuleState(rule("requests", 70, 3_600_000), 0, 2000))
    assert limit_headers(states)[0] == (b"x-ratelimit-limit-requests", b"70")


@pytest.mark.parametrize(("ms", "seconds"), [(0, b"1"), (1, b"1"), (1000, b"1"), (1001, b"2"), (59_999, b"60")])
def test_retry_after_is_whole_seconds_rounded_up(ms, seconds):
    assert retry_headers(ms) == [(b"retry-after", seconds), (b"retry-after-ms", b"%d" % ms)]


def test_a_refusal_says_which_limit_and_when_and_a_quota_is_insufficient_quota():
    rules = (rule("requests", 60), rule("tokens", 1000, kind="quota"))
    states = (RuleState(rules[0], 0, 5000), RuleState(rules[1], 3, 60_000))
    error = refusal(rules, 0, 1500, states)
    assert type(error) is LimitExceeded
    assert (error.status, error.code, error.retry_after_ms) == (429, "rate_limit_exceeded", 1500)
    assert error.message == "Limit of this key reached: 60 requests per minute, 0 left, 1 asked. Please try again in 1.5s."
    quota = refusal(rules, 1, 1500, states)
    assert type(quota) is QuotaExhausted
    assert (quota.type, quota.code) == ("insufficient_quota", "insufficient_quota")


def test_a_refusal_by_a_budget_says_how_much_money_is_left_and_when_it_begins_anew():
    ends = 1_796_083_200_000_000  # 2026-12-01T00:00Z
    month = Rule("@big team:red:nusd:2026-11", "quota", "nusd", 300 * 10**9, 5000, 500_000_000, ends_us=ends)
    error = refusal((month,), 0, 5000, (RuleState(month, 120_000_001, 5000),))
    assert error.message == (
        "Limit of this team for the model 'big' reached: 300 USD in the month 2026-11, 0.120000001 USD left, 0.5 USD asked. "
        "Please try again in 5s. It begins anew at 2026-12-01T00:00:00Z."
    )
    day = Rule("gateway:input_tokens:2026-11-21", "quota", "input_tokens", 9, 5000, 3, ends_us=ends)
    assert "Limit of this gateway reached: 9 input tokens in the day 2026-11-21, 1 left, 3 asked." in (
        refusal((day,), 0, 5000, (RuleState(day, 1, 5000),)).message
    )


def test_a_shadow_limit_is_not_shown_to_clients():
    shadow = rule("tokens", MAX_AMOUNT)
    assert limit_headers((RuleState(shadow, 5, 5000),)) == []
