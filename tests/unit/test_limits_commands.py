import pytest

from gateway.domain.settlement import Progress, Rule, RuleState
from gateway.limits.abandoned import by_progress
from gateway.limits.commands import (
    Closing,
    SettleReply,
    admit_args,
    ask,
    counter_key,
    parse_admit,
    parse_settle,
    renew_args,
    settle_args,
)
from gateway.limits.scripts import ORACLE_CLOCK, compose
from tests.rows import row

SCRIPTS = compose()
RULES = (Rule("k:tokens:60000", "rate", "tokens", 100, 60_000, 30), Rule("k:slots", "lease", "slots", 2, 0, 1))


def keys_of(args):
    return args[3 : 3 + args[2]]


def test_every_key_carries_the_version_and_the_hash_tag():
    progress = Progress("id", ("k:slots",), 4)
    calls = (
        admit_args(SCRIPTS.admit, "id", ask(RULES), 15_000, 1, b""),
        settle_args(SCRIPTS.settle, Closing("id", 1, 2, RULES, (1, 0), b"", "w", 1), again=False),
        renew_args(SCRIPTS.renew, [(progress, 15_000)], 1),
    )
    assert all(key.startswith("sy2:{sy}:") for args in calls for key in keys_of(args))
    assert [len(keys_of(args)) for args in calls] == [5, 7, 3]


def test_a_long_name_is_hashed_and_a_short_one_is_kept():
    assert counter_key("team:a:slots") == "sy2:{sy}:c:team:a:slots"
    long = counter_key("team:" + "a" * 1000)
    assert len(long) < 64
    assert long != counter_key("team:" + "a" * 1001)


def test_replies_of_admission_are_read():
    granted = parse_admit([1, 1800000000000001, 77, 3, 70, 61000, 1, 15000], RULES)
    assert (granted.code, granted.now_us, granted.epoch, granted.config) == (1, 1800000000000001, 77, 3)
    assert granted.states == (RuleState(RULES[0], 70, 61000), RuleState(RULES[1], 1, 15000))
    refused = parse_admit([0, 5, 3, 1, 900, 70, 0, 0, 15000], RULES)
    assert (refused.code, refused.config, refused.index, refused.retry_after_ms) == (0, 3, 1, 900)
    assert refused.states[1].remaining == 0
    assert parse_admit([-1, 5], RULES).code == -1
    assert parse_settle([2, 5, 1, 9, b"70-1", b"71-0"]) == SettleReply(2, 5, 1, 9, (70, 1), (71, 0))
    for odd in (b"", b"x", b"7", b"7-", b"7-x"):
        assert parse_settle([1, 5, 0, 9, odd, b"71-0"]).committed == (0, 0)


@pytest.mark.parametrize("reply", [[], [1, 2, 3], [0, 5, 3, 1, 900, 70, 0]])
def test_a_reply_of_another_form_is_refused(reply):
    with pytest.raises((ValueError, IndexError)):
        parse_admit(reply, RULES)


def test_production_scripts_use_the_servers_clock_and_the_oracles_do_not():
    assert all(b"redis.call('TIME')" in script.text for script in SCRIPTS.all)
    assert not any(b"redis.call('TIME')" in script.text for script in compose(ORACLE_CLOCK).all)
    assert len({script.sha for script in SCRIPTS.all}) == 5


def test_an_abandoned_request_is_estimated_and_never_above_what_was_reserved():
    reserved = (
        Rule("r", "rate", "requests", 9, 60_000, 1),
        Rule("t", "rate", "tokens", 9, 60_000, 50),
        Rule("u", "rate", "nusd", 9, 60_000, 1000),
        Rule("l", "lease", "slots", 9, 0, 1),
    )
    written, amounts = by_progress(reserved, row("a", input_tokens=20), 99, 7, lambda r: r.output_tokens * 10)
    assert amounts == (1, 27, 70, 0)
    assert (written.outcome, written.usage_source, written.admitted_us) == ("abandoned", "estimated", 99)
    assert (written.input_tokens, written.output_tokens, written.cost_nusd) == (20, 7, 70)
    assert by_progress(reserved, row("a", input_tokens=20), 99, 700, lambda r: 5000)[1] == (1, 50, 1000, 0)
