"""Log lines: one per request, safe to read on a terminal, never a secret, never a stall."""

from __future__ import annotations

import json
import logging
import os

import pytest

from backends.core.errors import UpstreamRefused
from gateway.domain.principal import Principal
from gateway.pipeline.tally import Tally
from gateway.telemetry.bridge import Bridge
from gateway.telemetry.logs import RequestLog, request_line
from gateway.telemetry.redact import MASK, redact
from gateway.telemetry.sink import PIPE_BUF, DirectSink, Sink, encode, pieces
from gateway.telemetry.style import Style, readable
from tests.unit.test_telemetry_metrics import ended


class Lines:
    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def write(self, line: bytes, /) -> None:
        self.lines.append(line)


def test_the_line_of_a_request() -> None:
    sink, tally = Lines(), ended()
    tally.principal = Principal("3f2a", team_id="research")
    tally.client_request_id = "mine-1"
    RequestLog(sink).observe(tally, 1_700_000_000_123_456)
    (line,) = sink.lines
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "ts": "2023-11-14T22:13:20.123Z",
        "event": "request",
        "request_id": "id",
        "client_request_id": "mine-1",
        "protocol": "openai_chat",
        "key_id": "3f2a",
        "team": "research",
        "model": "chat",
        "deployment": "d2",
        "outcome": "ok",
        "status": 200,
        "attempts": 2,
        "ttft_ms": 500.0,
        "queue_ms": 20.0,
        "duration_ms": 1022.0,
        "input_tokens": 100,
        "output_tokens": 3,
        "usage": "reported",
    }


def test_an_error_is_logged_with_its_detail_without_secrets() -> None:
    tally = Tally("id", "openai_chat", 0, 0)
    tally.fail(UpstreamRefused("no", detail="401 for Bearer sk-live-abcdef123456 at http://u:pw@host/"), "upstream_error")
    fields = json.loads(encode(request_line(tally, 0)))
    assert fields["error"] == "upstream_auth_failed"
    assert "abcdef" not in str(fields)
    assert "pw" not in str(fields)


@pytest.mark.parametrize(
    "hostile",
    ["a\r\nb", "\x1b[31mred", "\x9b31m", "\u2028", "\x7f", "\x00", "\x85", '"},{"x":"', "\U0001f600", "é", "\udc80"],
)
def test_a_line_is_one_line_of_printable_ascii(hostile: str) -> None:
    line = encode({"model": hostile})
    assert line.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    assert json.loads(line) == {"model": hostile}


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abc.def-ghi_jkl",
        "sent bearer  abc.def-ghi_jkl, got 401",
        "key sk-abc.def-ghi_jkl refused",
        "api_key=abc.def-ghi_jkl&x=1",
        '{"x-api-key": "abc.def-ghi_jkl"}',
        "redis://user:abc.def-ghi_jkl@host:6379/0",
        "Basic abc.def-ghi_jkl",
        "sk-sy-abc.def-ghi_jkl",
    ],
)
def test_secrets_are_masked(text: str) -> None:
    assert "def-ghi" not in redact(text)
    assert MASK in redact(text)


def test_ordinary_text_is_left_alone() -> None:
    text = "model chat on qwen-h200: 3 tokens, risk-averse, basic"
    assert redact(text) == text


def test_pieces_keep_lines_whole() -> None:
    lines = [b"x" * n + b"\n" for n in (10, 4000, 200, 5000, 1, 1)]
    made = list(pieces(lines))
    assert b"".join(made) == b"".join(lines)
    assert all(p.endswith(b"\n") for p in made)
    assert all(len(p) <= PIPE_BUF or p == lines[3] for p in made)


def test_the_sink_writes_everything_in_order() -> None:
    read, write = os.pipe()
    sink = Sink(write)
    for n in range(50):
        sink.write(b"%d\n" % n)
    sink.event("start", message="Bearer sk-abcdefgh", workers=2)
    sink.close()
    os.close(write)
    with os.fdopen(read, "rb") as lines:
        got = lines.read().splitlines()
    assert got[:50] == [b"%d" % n for n in range(50)]
    event = json.loads(got[50])
    assert (event["event"], event["workers"], event["message"]) == ("start", 2, f"Bearer {MASK}")
    assert sink.dropped == 0


def test_a_blocked_output_stalls_nobody_and_drops_are_counted() -> None:
    read, write = os.pipe()
    sink = Sink(write, max_buffer=200_000)
    for _ in range(1000):
        sink.write(b"y" * 999 + b"\n")
    assert sink.dropped >= 700
    assert not sink.flush(0.01)
    written = 0
    while written < (1000 - sink.dropped) * 1000:
        written += len(os.read(read, 65536))
    assert sink.flush(5)
    sink.close()
    os.close(read)
    os.close(write)


def test_a_closed_output_is_counted_not_raised() -> None:
    read, write = os.pipe()
    os.close(read)
    sink = Sink(write)
    sink.write(b"lost\n")
    sink.flush()
    assert sink.dropped == 1
    sink.close()
    os.close(write)


def test_the_supervisors_sink_never_waits() -> None:
    read, write = os.pipe()
    sink = DirectSink(write)
    sink.event("one", text="a")
    assert json.loads(os.read(read, 4096))["event"] == "one"
    os.set_blocking(write, False)
    while True:
        try:
            os.write(write, b"z" * 4096)
        except BlockingIOError:
            break
    sink.event("two")
    assert sink.dropped == 1
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(("level", "written"), [("debug", 3), ("info", 3), ("warning", 2), ("error", 1)])
def test_less_severe_events_are_not_written(level: str, written: int) -> None:
    read, write = os.pipe()
    sink = DirectSink(write, Style(level))  # type: ignore[arg-type]
    for name in ("ready", "config_refused", "bug"):
        sink.event(name)
    os.close(write)
    with os.fdopen(read, "rb") as lines:
        assert len(lines.readlines()) == written


def test_text_is_one_readable_line() -> None:
    line = b'{"ts":"T","event":"bug","level":"error","error":"a\\nb c","count":3,"empty":"","name":"x=\\u00e9"}'
    assert readable(line) == b'T ERROR bug error="a\\nb c" count=3 empty="" name="x=\\xe9"\n'


def test_what_goes_through_logging_becomes_events() -> None:
    class Heard:
        def __init__(self) -> None:
            self.events: list[tuple[str, dict[str, object]]] = []

        def event(self, name: str, /, **fields: object) -> None:
            self.events.append((name, fields))

    heard = Heard()
    bridge, log = Bridge(heard), logging.getLogger("bridge.test")
    log.handlers, log.propagate = [bridge], False
    log.warning("limits_redis_out", extra={"reason": "timeout"})
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("A %s happened", "thing")
    (name, fields), (other, more) = heard.events
    assert (name, fields) == ("limits_redis_out", {"level": "warning", "logger": "bridge.test", "reason": "timeout"})
    assert (other, more["text"], more["level"]) == ("log", "A thing happened", "error")
    assert str(more["trace"]).endswith("ValueError: no")
