"""The Lua scripts on a real Redis answer exactly what reference.py answers, whatever the order of events.

The scripts are composed with a clock that the test gives (`ORACLE_CLOCK`); production composes them with TIME.
"""

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.domain.settlement import Progress, Rule
from gateway.domain.usage_stream import PREFIX, STREAM
from gateway.limits.commands import Closing, admit_args, ask, parse_admit, parse_settle, renew_args, settle_args
from gateway.limits.reference import Admitted, Counters
from gateway.limits.rules import MAX_AMOUNT
from gateway.limits.scripts import ORACLE_CLOCK, compose

pytestmark = pytest.mark.redis
T0 = 1_800_000_000_000_000
FAR = MAX_AMOUNT
SCRIPTS = compose(ORACLE_CLOCK)
amounts = st.one_of(st.integers(0, 12), st.integers(MAX_AMOUNT - 5, MAX_AMOUNT))
small = st.integers(0, 12)


@pytest.fixture(scope="module")
def server(redis_server):
    with redis.Redis.from_url(redis_server.url.replace("/0", "/1")) as client:
        yield client


class Pair:
    """The same calls to both; every answer is compared."""

    def __init__(self, client):
        client.flushdb()
        for script in SCRIPTS.all:
            client.script_load(script.text)
        self.client = client
        self.reference = Counters()
        self.admitted: dict[str, tuple[Rule, ...]] = {}
        self.epoch = 0
        self.now = T0

    def admit(self, id, rules, lease_ms):
        reply = self.client.execute_command(*admit_args(SCRIPTS.admit, id, ask(rules), lease_ms, FAR, b";blob;"), self.now)
        got = parse_admit(reply, rules)
        want = self.reference.admit(id, rules, lease_ms, self.now)
        assert got.states == want.states
        if isinstance(want, Admitted):
            assert got.code == 1
            self.admitted[id] = rules
            self.epoch = got.epoch
        else:
            assert (got.code, got.index, got.retry_after_ms) == (0, want.index, want.retry_after_ms)

    def settle(self, id, rules, used, script=SCRIPTS.settle):
        closing = Closing(id, self.epoch, self.now, tuple(rules), tuple(used), b"row", "w", 1)
        got = parse_settle(self.client.execute_command(*settle_args(script, closing, again=True), self.now))
        due = script is SCRIPTS.settle or id in self.reference.expired(self.now)
        want = self.reference.settle(id, used, self.now) if due else None
        assert got.code == (want is not None)
        assert want is None or got.overruns == want.overruns

    def renew(self, id, rules, lease_ms):
        if self.reference.reserved(id) is None:
            return  # a worker renews what it has not settled, in one connection's order
        progress = Progress(id, tuple(rule.name for rule in rules if rule.kind == "lease"), 5)
        self.client.execute_command(*renew_args(SCRIPTS.renew, [(progress, lease_ms)], FAR), self.now)
        self.reference.renew(id, progress.slots, 5, lease_ms, self.now)

    def record(self, id, rule, amount, age_us):
        """A settlement of what Redis lost (another epoch) is counted at its admission."""
        closing = Closing(id, 0, self.now - age_us, (rule,), (amount,), b"row", "w", 1)
        parse_settle(self.client.execute_command(*settle_args(SCRIPTS.settle, closing, again=False), self.now))
        self.reference.record(rule.name, rule.kind, rule.window_ms, amount, self.now - age_us, self.now)


kinds = st.sampled_from(
    [
        ("a", "rate", 1000),
        ("b", "rate", 60_000),
        ("c", "rate", 7001),
        ("q", "quota", 50_000),
        ("l", "lease", 0),
        ("m", "lease", 0),
    ]
)


@st.composite
def rule_sets(draw, of=small):
    chosen = draw(st.lists(kinds, min_size=1, max_size=4, unique=True))
    return tuple(
        Rule(name, kind, "tokens", draw(of), window, 1 if kind == "lease" else draw(of)) for name, kind, window in chosen
    )


def run(server, of, steps, data):
    pair, ids = Pair(server), 0
    for step, move in steps:
        pair.now += step
        known = sorted(pair.admitted)
        if move == "admit" or (not known and move != "record"):
            rules = data.draw(rule_sets(of))
            ids += 1
            pair.admit(f"i{ids}", rules, data.draw(st.sampled_from([1, 900, 15_000])))
        elif move == "record":
            ids += 1
            (rule, *_) = data.draw(rule_sets(of))
            pair.record(f"i{ids}", rule, data.draw(of), data.draw(st.integers(-5_000_000, 70_000_000)))
        else:
            id = data.draw(st.sampled_from(known))
            rules = pair.admitted[id]
            if move == "renew":
                pair.renew(id, rules, data.draw(st.sampled_from([1, 900, 15_000])))
            else:
                pair.settle(id, rules, data.draw(st.tuples(*[of] * len(rules))), getattr(SCRIPTS, move))


moves = st.sampled_from(["admit", "admit", "admit", "settle", "settle", "sweep", "renew", "record"])
clock_steps = st.one_of(
    st.integers(0, 200_000), st.integers(0, 3_000_000), st.integers(-2_000_000, 0), st.sampled_from([61_000_000, 1_000_000])
)
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@quick
@given(steps=st.lists(st.tuples(clock_steps, moves), min_size=1, max_size=40), data=st.data())
def test_lua_is_the_reference(server, steps, data):
    run(server, small, steps, data)


@quick
@given(steps=st.lists(st.tuples(clock_steps, moves), min_size=1, max_size=25), data=st.data())
def test_lua_is_the_reference_near_two_to_the_53(server, steps, data):
    run(server, amounts, steps, data)


def test_keys_all_carry_the_hash_tag_and_a_ttl(server):
    pair = Pair(server)
    rules = (
        Rule("a", "rate", "tokens", 9, 1000, 1),
        Rule("q", "quota", "nusd", 9, 5000, 1),
        Rule("l", "lease", "slots", 9, 0, 1),
    )
    for id in ("x", "y", "z"):
        pair.admit(id, rules, 1000)
    pair.settle("x", rules, (0, 0, 0))
    pair.settle("y", rules, (3, 3, 0))
    pair.renew("z", rules, 1000)
    pair.record("lost", rules[0], 1, 0)
    keys = {key.decode() for key in server.scan_iter()}
    assert all(key.startswith(PREFIX) for key in keys)
    forever = {key for key in keys if server.pttl(key) < 0}
    assert forever == {STREAM, PREFIX + "meta"}
    assert server.xlen(STREAM) == 3
