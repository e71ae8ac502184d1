"""Recorded responses, framed again and damaged by seed: what a server, a proxy or an attacker may make of them."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

RECORDED = Path(__file__).parents[2] / "fixtures" / "recorded"


class Answer(NamedTuple):
    """A response taken apart: what a mutation may change before it is written out."""

    version: bytes
    status: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    before: bytes = b""
    chunk_line: Callable[[int], bytes] = lambda size: b"%x" % size
    trailer: bytes = b""


class Case(NamedTuple):
    """Bytes that a server sends before it closes. `step`: of its writes, 0 = all at once."""

    name: str
    raw: bytes
    step: int
    trailing: bool = False


def recorded(path: Path) -> Answer:
    """A recorded response; its body is as the file has it, without transfer coding."""
    head, _, body = path.read_bytes().partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    version, _, status = first.partition(b" ")
    fields = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    if any(name.lower() == b"content-length" for name, _ in fields):
        fields = [(n, b"%d" % len(body) if n.lower() == b"content-length" else v) for n, v in fields]
    return Answer(version, status, fields, body)


def written(answer: Answer, rng: Random) -> bytes:
    """The bytes of an answer; a chunked body in chunks of random sizes."""
    head = b"".join(b"%s: %s\r\n" % field for field in answer.fields)
    body = answer.body
    if any(name.lower() == b"transfer-encoding" for name, _ in answer.fields):
        pieces, at = [], 0
        while at < len(body):
            size = min(rng.choice([1, 2, 15, 16, 17, 200, 255, 256, 1000, 5000]), len(body) - at)
            pieces.append(b"%s\r\n%s\r\n" % (answer.chunk_line(size), body[at : at + size]))
            at += size
        body = b"".join(pieces) + b"0\r\n" + answer.trailer + b"\r\n"
    return answer.before + answer.version + b" " + answer.status + b"\r\n" + head + b"\r\n" + body


def _without(answer: Answer, *names: bytes) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in answer.fields if name.lower() not in names]


def _framed(answer: Answer, *fields: tuple[bytes, bytes]) -> Answer:
    return answer._replace(fields=[*_without(answer, b"content-length", b"transfer-encoding"), *fields])


def _length(answer: Answer) -> tuple[bytes, bytes]:
    return (b"Content-Length", b"%d" % len(answer.body))


_CHUNKED = (b"Transfer-Encoding", b"chunked")


def _case(answer: Answer, rng: Random) -> Answer:
    fields = [(bytes(rng.choice([c, c ^ 32]) if chr(c).isalpha() else c for c in name), value) for name, value in answer.fields]
    return answer._replace(fields=fields)


def _shuffled(answer: Answer, rng: Random) -> Answer:
    fields = [(name, value + rng.choice([b"", b" ", b"\t "])) for name, value in answer.fields]
    rng.shuffle(fields)
    return answer._replace(fields=fields)


def _repeated(answer: Answer, rng: Random) -> Answer:
    return answer._replace(fields=[*answer.fields, *rng.choices(answer.fields, k=rng.randint(1, 3))])


def _insert(answer: Answer, rng: Random, *fields: tuple[bytes, bytes]) -> Answer:
    at = rng.randint(0, len(answer.fields))
    return answer._replace(fields=[*answer.fields[:at], *fields, *answer.fields[at:]])


def _chunk_lines(answer: Answer, rng: Random) -> Answer:
    style = rng.choice([b"%X", b"000%x", b"%x;name=value", b"%x;name", b"%x  "])
    trailer = rng.choice([b"", b"X-Sum: 1\r\n", b"A: b\r\nC: d\r\n"])
    return _framed(answer, _CHUNKED)._replace(chunk_line=lambda size: style % size, trailer=trailer)


def _bad_chunk_lines(answer: Answer, rng: Random) -> Answer:
    style = rng.choice([b"%x\n", b"0x%x", b"-%x", b"%xg", b" %x", b"%x\r"])
    return _framed(answer._replace(body=answer.body or b"x"), _CHUNKED)._replace(chunk_line=lambda size: style % size)


def _informational(answer: Answer, rng: Random) -> Answer:
    one = rng.choice([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"])
    return answer._replace(before=one * rng.choice([1, 3, 8, 9, 12]))


def _status(answer: Answer, rng: Random) -> Answer:
    status = rng.choice([b"204 No Content", b"201 Created", b"200", b"200 ", b"599 \xe9 x", b"799 x"])
    return (
        _framed(answer._replace(body=b""))._replace(status=status) if status[:3] == b"204" else answer._replace(status=status)
    )


def _gzip(answer: Answer, rng: Random) -> Answer:
    small = answer._replace(body=gzip.compress(answer.body, mtime=0))
    return _framed(small, (b"Content-Encoding", b"gzip"), _length(small))


_BAD_STATUS = [b"20 OK", b"2000 OK", b"OK", b"", b"099 x", b"200OK", b"2x0 x"]
_REDIRECT = [b"301 x", b"302 x", b"304 x", b"307 x", b"399 x"]
_VERSIONS = [b"HTTP/2.0", b"http/1.1", b"HTTP/1.2", b"HTTP/11", b"ICY", b" HTTP/1.1"]
_CONNECTION = [b"close", b"keep-alive", b"x, Close", b"upgrade"]
_BAD_LENGTHS = [b"-1", b"+5", b"abc", b"", b"5 5", b"0x5", b"1" * 30]
_BAD_CODINGS = [b"gzip, chunked", b"xchunked", b"identity", b"chunked, chunked"]
_FOLDED = [b"one\r\n two", b"one\r\n\ttwo"]
_BAD_FIELDS = [
    (b"a b", b"c"),
    (b"a ", b"c"),
    (b"", b"c"),
    (b"a", b"\x00"),
    (b"a", b"b\rc"),
    (b"\xe9", b"c"),
    (b"a", b"b\x0bc"),
]
_ODD_FIELDS = [
    (b"a", b""),
    (b"!#$%&'*+-.^_`|~", b"c"),
    (b"a", b"\xe9\xff"),
    (b"a", b"b\x7fc"),
    (b"a", b"\x01"),
    (b"a", b"::"),
]

Mutation = Callable[[Answer, Random], Answer]
SHAPES: dict[str, Mutation] = {
    "case": _case,
    "shuffle": _shuffled,
    "repeat": _repeated,
    "rechunk": lambda a, r: _framed(a, _CHUNKED),
    "chunk lines": _chunk_lines,
    "chunk lines, bad": _bad_chunk_lines,
    "length": lambda a, r: _framed(a, _length(a)),
    "until close": lambda a, r: _framed(a),
    "http/1.0": lambda a, r: r.choice([_framed(a), _framed(a, _length(a))])._replace(version=b"HTTP/1.0"),
    "connection": lambda a, r: _insert(a, r, (b"Connection", r.choice(_CONNECTION))),
    "1xx": _informational,
    "status": _status,
    "status, bad": lambda a, r: a._replace(status=r.choice(_BAD_STATUS)),
    "redirect": lambda a, r: _insert(a._replace(status=r.choice(_REDIRECT)), r, (b"Location", b"/x")),
    "version": lambda a, r: a._replace(version=r.choice(_VERSIONS)),
    "same lengths": lambda a, r: _framed(a, _length(a), _length(a)),
    "length list": lambda a, r: _framed(a, (b"Content-Length", b"%d, %d" % (len(a.body), len(a.body)))),
    "differing lengths": lambda a, r: _framed(a, _length(a), (b"Content-Length", b"%d" % (len(a.body) + 1))),
    "length and chunked": lambda a, r: _framed(a, *r.sample([_length(a), _CHUNKED], 2)),
    "length, bad": lambda a, r: _framed(a, (b"Content-Length", r.choice(_BAD_LENGTHS))),
    "length, wrong": lambda a, r: _framed(a, (b"Content-Length", b"%d" % (len(a.body) + r.randint(1, 50)))),
    "coding, bad": lambda a, r: _framed(a, (b"Transfer-Encoding", r.choice(_BAD_CODINGS))),
    "coding twice": lambda a, r: _framed(a, _CHUNKED, _CHUNKED),
    "coding case": lambda a, r: _framed(a, (b"transfer-ENCODING", b"Chunked")),
    "fold": lambda a, r: _insert(a, r, (b"X-Long", r.choice(_FOLDED))),
    "gzip": _gzip,
    "identity": lambda a, r: _insert(a, r, (b"Content-Encoding", b"identity")),
    "many fields": lambda a, r: _insert(a, r, *[(b"X-%d" % i, b"y") for i in range(r.choice([60, 140]))]),
    "long field": lambda a, r: _insert(a, r, (b"X-Long", b"y" * r.choice([1000, 30_000, 70_000]))),
    "field, bad": lambda a, r: _insert(a, r, r.choice(_BAD_FIELDS)),
    "field, odd": lambda a, r: _insert(a, r, r.choice(_ODD_FIELDS)),
}


def case(path: Path, name: str, seed: int) -> Case:
    """One mutated response, the same for the same arguments."""
    rng = Random(f"{path.stem} {name} {seed}")
    answer = recorded(path)
    step = rng.choice([0, 0, 1, 3, 50, 1000])
    if name in SHAPES:
        raw = written(SHAPES[name](answer, rng), rng)
        return Case(name, raw, step if len(raw) < 8000 else 0)
    raw = written(answer, rng)
    if name == "as it was":
        return Case(name, raw, step)
    if name == "cut":
        return Case(name, raw[: rng.randint(0, len(raw) - 1)], step)
    if name == "trailing":
        extra = rng.choice([b"\r\n", b"\n", b"x", b"0\r\n\r\n", raw, b"HTTP/1.1 "])
        return Case(name, raw + extra, 0, trailing=True)
    if name == "bare newlines":
        head, _, body = raw.partition(b"\r\n\r\n")
        return Case(name, head.replace(b"\r\n", b"\n") + b"\n\n" + body, step)
    assert name == "flip"
    at = rng.randrange(raw.index(b"\r\n\r\n") + 4)
    return Case(name, raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :], 0)  # may end early: then in one piece


NAMES = ("as it was", "cut", "trailing", "bare newlines", "flip", *SHAPES)


def stricter(case: Case) -> str | None:
    """Why the pool refuses a response that other clients may take, by our own rules and nothing else."""
    raw = case.raw
    informational = 0
    while match := re.match(rb"HTTP/1\.[0-9] 1[0-9]{2}[ \r\n].*?\n\r?\n", raw, re.S):
        informational += 1
        if raw[9:12] == b"101":
            return "101"
        raw = raw[match.end() :]
    if informational > 8:
        return "more than eight 1xx"
    end = re.search(rb"\n\r?\n", raw)
    head = raw[: end.end()] if end else raw
    lines = head.split(b"\n")[1:]
    names = {line.partition(b":")[0].lower(): line.partition(b":")[2].strip().lower() for line in lines}
    rules = {
        "redirect": re.match(rb"HTTP/1\.[0-9] 3[0-9]{2}[ \r\n]", head),
        "folded line": any(line[:1] in (b" ", b"\t") for line in lines),
        "length beside coding": b"content-length" in names and b"transfer-encoding" in names,
        "content coding": names.get(b"content-encoding", b"identity") not in (b"identity", b""),
        "head too large": len(head) > 64 * 1024 or len(lines) - 2 > 128,
        "not HTTP/1": raw and not raw.startswith(b"HTTP/1."[: len(raw)]),
        "bytes after the end": _surplus(case, names, len(raw) - len(head)),
    }
    return next((name for name, holds in rules.items() if holds), None)


def _surplus(case: Case, names: dict[bytes, bytes], body_bytes: int) -> bool:
    """Whether more follows than the head announces."""
    if b"transfer-encoding" in names:
        return case.trailing
    stated = names.get(b"content-length", b"")
    return stated.isdigit() and body_bytes > int(stated)
