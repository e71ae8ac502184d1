"""What is said to the scripts, and what they answer: argument lists and replies as values. Pure.

Keys are `sy2:{sy}:…`: a version and one hash tag, so that all keys of a call lie in one slot of a cluster.
    r:<id> a reservation · c:<rule name> a counter · live minus expiry by reservation · meta epoch and configuration version
    usage the outbox stream · committed its last entry that is in SQL · sweeper the sweeper's lock
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Any

import msgspec

from gateway.domain.settlement import Kind, LedgerRow, Progress, Rule, RuleState
from gateway.domain.usage_stream import COMMITTED, META, PREFIX, STREAM
from gateway.limits.reference import check_rule
from gateway.limits.scripts import Script

Args = tuple[bytes | str | int, ...]

LIVE = PREFIX + "live"
SWEEPER = PREFIX + "sweeper"
#: In place of a reservation: voided, or charged without one (settle.lua).
GONE = b"-"
#: `again` of a settlement: 1 an earlier try may have arrived; this, for the sweep script: nobody will renew the lease.
HOLDER_DEAD = 2
_CODE: dict[Kind, int] = {"rate": 1, "quota": 2, "lease": 3}
_LONGEST_NAME = 160
_PROGRESS = 16
_TWO, _FOUR = Struct("<2d"), Struct("<4d")
_encode = msgspec.msgpack.Encoder().encode


class Opening(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the sweeper needs of a reservation whose holder vanished: `[rules, row]` as msgpack."""

    rules: tuple[Rule, ...]
    row: LedgerRow


def pack_opening(rules: Sequence[Rule], row: LedgerRow) -> bytes:
    """An `Opening` as msgpack."""
    return _encode((rules, row))


class Closing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A settlement as it is said to Redis and written to the spool file. `row` empty: a void.

    `actual[i]` is what was used of `rules[i]`. `epoch` is that of the data that knew the admission, 0 when Redis did
    not know it. `seq` is the worker's number.
    """

    id: str
    epoch: int
    admitted_us: int
    rules: tuple[Rule, ...]
    actual: tuple[int, ...]
    row: bytes
    worker: str
    seq: int


class AdmitReply(msgspec.Struct, frozen=True, gc=False):
    """An answer of admit.lua. `code` 1 charged, 0 refused by rule `index`, -1 too late, -2 the id was used."""

    code: int
    now_us: int
    epoch: int = 0
    config: int = 0
    index: int = 0
    retry_after_ms: int = 0
    states: tuple[RuleState, ...] = ()


#: A stream entry's id, as a pair that compares as Redis does.
EntryId = tuple[int, int]


class SettleReply(msgspec.Struct, frozen=True, gc=False):
    """An answer of settle.lua. `code` 1 settled, 2 row kept without a reservation, 0 nothing to do.

    `epoch` names the data in Redis (0: none yet), `committed` is the last entry that is in SQL, `entry` this row's.
    """

    code: int
    now_us: int
    overruns: int
    epoch: int = 0
    committed: EntryId = (0, 0)
    entry: EntryId = (0, 0)


@lru_cache(maxsize=128)
def _doubles(count: int) -> Struct:
    return Struct(f"<{count}d")


def _demand(rule: Rule) -> bytes:
    """A rule's numbers in an admission, when it is one that can be counted."""
    check_rule(rule)
    return _FOUR.pack(_CODE[rule.kind], rule.limit, rule.window_ms, rule.cost)


_same_demand = lru_cache(maxsize=4096)(_demand)


def reservation_key(id: str) -> str:
    """The key of a reservation."""
    return f"{PREFIX}r:{id}"


@lru_cache(maxsize=4096)
def counter_key(name: str) -> str:
    """The key of a rule's counter; names of unreasonable length are hashed."""
    if len(name) > _LONGEST_NAME:
        name = "#" + hashlib.blake2b(name.encode(), digest_size=20).hexdigest()
    return f"{PREFIX}c:{name}"


class Asked(msgspec.Struct, frozen=True, gc=False):
    """The rules of one admission as the script takes them: their counters' keys, their numbers."""

    keys: list[str]
    numbers: bytes


def ask(rules: Sequence[Rule]) -> Asked:
    """Prepare an admission by these rules.

    Raises:
        ValueError: they cannot be counted exactly: see `reference.check_rules`.
    """
    keys: list[str] = []
    numbers: list[bytes] = []
    for rule in rules:
        keys.append(counter_key(rule.name))
        # a quota's window shrinks with each millisecond: kept, it would only push the others out
        numbers.append(_demand(rule) if rule.ends_us else _same_demand(rule))
    if len(set(keys)) != len(keys):
        raise ValueError("two rules of one request share a counter")
    return Asked(keys, b"".join(numbers))


def admit_args(script: Script, id: str, asked: Asked, lease_ms: int, deadline_us: int, blob: bytes) -> Args:
    """EVALSHA of an admission. `blob` is an `Opening`, packed."""
    numbers = _TWO.pack(deadline_us, lease_ms) + asked.numbers
    return ("EVALSHA", script.sha, 3 + len(asked.keys), f"{PREFIX}r:{id}", LIVE, META, *asked.keys, id, numbers, blob)


def settle_args(script: Script, closing: Closing, *, again: int) -> Args:
    """EVALSHA of a settlement, or with the sweep script of a reservation whose lease is over or whose holder is (`again`)."""
    id, rules = closing.id, closing.rules
    numbers: list[int] = [closing.epoch, closing.admitted_us, again]
    words: list[bytes | str | int] = ["EVALSHA", script.sha, 5 + len(rules), reservation_key(id), LIVE, META, COMMITTED, STREAM]
    for rule, actual in zip(rules, closing.actual, strict=True):
        words.append(counter_key(rule.name))
        numbers += (_CODE[rule.kind], rule.window_ms, actual)
    words += (id, _doubles(len(numbers)).pack(*numbers), closing.row, closing.worker, closing.seq)
    return tuple(words)


def renew_args(script: Script, live: Sequence[tuple[Progress, int]], deadline_us: int) -> Args:
    """EVALSHA of a renewal of (progress, lease_ms) pairs."""
    keys: list[bytes | str | int] = [LIVE]
    args: list[bytes | str | int] = [deadline_us, len(live)]
    for progress, lease_ms in live:
        keys.append(reservation_key(progress.id))
        keys += [counter_key(name) for name in progress.slots]
        args += (progress.id, lease_ms, progress.output_tokens, len(progress.slots))
    return ("EVALSHA", script.sha, len(keys), *keys, *args)


def peek_args(script: Script, rules: Sequence[Rule], lease_ms: int) -> Args:
    """EVALSHA of a look at some rules; `parse_admit` reads its answer."""
    numbers: list[int] = [lease_ms]
    for rule in rules:
        numbers += (_CODE[rule.kind], rule.limit, rule.window_ms)
    packed = _doubles(len(numbers)).pack(*numbers)
    return ("EVALSHA", script.sha, len(rules), *(counter_key(rule.name) for rule in rules), packed)


def parse_admit(reply: Sequence[int], rules: Sequence[Rule]) -> AdmitReply:
    """The answer of admit.lua.

    Raises:
        ValueError, IndexError: it is something else.
    """
    code, now_us = reply[0], reply[1]
    if code < 0:
        return AdmitReply(code, now_us)
    head = 4 if code else 5
    if len(reply) != head + 2 * len(rules):
        raise ValueError("admit.lua answered for other rules")
    states = tuple(map(RuleState, rules, reply[head::2], reply[head + 1 :: 2]))
    if code:
        return AdmitReply(code, now_us, reply[2], reply[3], states=states)
    return AdmitReply(code, now_us, 0, reply[2], reply[3], reply[4], states)


def parse_settle(reply: Sequence[Any]) -> SettleReply:
    """The answer of settle.lua and sweep.lua.

    Raises:
        ValueError: it is something else.
    """
    code, now_us, overruns, epoch, committed, entry = reply
    return SettleReply(code, now_us, overruns, epoch, committed_id(committed), _entry_id(entry))


def parse_record(record: bytes) -> tuple[int, int, bytes]:
    """A stored reservation: its output tokens so far, its instant of admission, the packed `Opening`.

    Raises:
        ValueError, struct.error: it is something else.
    """
    now_us, rules = _TWO.unpack_from(record, _PROGRESS)
    return int(record[:_PROGRESS]), int(now_us), record[_PROGRESS + 16 + 16 * int(rules) :]


@lru_cache(maxsize=8)
def committed_id(text: bytes) -> EntryId:
    """An id that changes a few times a second; (0, 0) for what is none: the key may hold anything."""
    try:
        return _entry_id(text)
    except ValueError:
        return (0, 0)


def _entry_id(text: bytes) -> EntryId:
    at, _, number = text.partition(b"-")
    return int(at), int(number)
