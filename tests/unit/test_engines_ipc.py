"""The engine socket's language: handshake, bounds, errors."""

import msgspec
import pytest

from backends.core.errors import ContextTooLong, GatewayError, InternalError, Overloaded
from backends.core.events import Finish, Started, TextDelta
from backends.core.request import GenerationRequest, Output, Prompt, Tool
from backends.core.usage import Usage
from backends.engines import ipc
from backends.engines.launch import EngineLaunch, command

HELLO = ipc.frame(ipc.Hello(ipc.VERSION, "secret", "w1"))


def test_the_handshake_opens_the_way() -> None:
    inbound = ipc.HostInbound("secret")
    big = ipc.Submit("a", b"x" * (ipc.MAX_HELLO * 4))
    assert inbound.feed(HELLO + ipc.frame(big) + ipc.frame(ipc.Cancel("a"))) == [
        ipc.Hello(ipc.VERSION, "secret", "w1"),
        big,
        ipc.Cancel("a"),
    ]
    assert inbound.worker == "w1"


@pytest.mark.parametrize(
    "data",
    [
        ipc.frame(ipc.Hello(ipc.VERSION, "Secret")),
        ipc.frame(ipc.Hello(ipc.VERSION, "")),
        ipc.frame(ipc.Hello(ipc.VERSION + 1, "secret")),
        ipc.frame(ipc.Cancel("a")),
        HELLO + HELLO,
        ipc.frame(ipc.Submit("a", b"x" * ipc.MAX_HELLO)),
        b"\xff\xff\xff\xff",
        HELLO + b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc1",
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_what_is_not_the_handshake_is_refused(data: bytes) -> None:
    with pytest.raises(ipc.FrameError) as caught:
        ipc.HostInbound("secret").feed(data)
    assert "secret" not in str(caught.value).lower()


def test_a_worker_refuses_another_version_and_the_hosts_own_vocabulary() -> None:
    with pytest.raises(ipc.FrameError):
        ipc.WorkerInbound().feed(ipc.frame(ipc.Ready(True, version=9)))
    with pytest.raises(ipc.FrameError):
        ipc.WorkerInbound().feed(HELLO)


def test_a_frame_over_the_bound_is_not_made() -> None:
    with pytest.raises(ipc.FrameError):
        ipc.frame(ipc.Submit("a", bytes(ipc.MAX_FRAME)))


def test_jobs_with_and_without_raw_json() -> None:
    for job in (
        GenerationRequest("m", prompts=(Prompt("hi"),)),
        GenerationRequest(
            "m",
            tools=(Tool("f", parameters=msgspec.Raw(b'{"b": 1, "a": [2]}')),),
            output=Output("json_schema", schema=msgspec.Raw(b'{"type": "object"}')),
        ),
    ):
        assert ipc.unpack_job(ipc.pack_job(job)) == job
    with pytest.raises(ipc.FrameError):
        ipc.unpack_job(b'{"type": "nonsense"}')


def test_batches_are_read_late() -> None:
    events = [Started("m"), TextDelta("é"), Finish("stop"), Usage(1, 1)]
    (message,) = ipc.WorkerInbound().feed(ipc.frame(ipc.Events((ipc.batch("a", events, True),))))
    assert isinstance(message, ipc.Events)
    assert message.batches[0].last
    assert ipc.unpack_events(message.batches[0]) == tuple(events)
    with pytest.raises(ipc.FrameError):
        ipc.unpack_events(ipc.Batch("a", False, msgspec.Raw(b"\x01")))


@pytest.mark.parametrize(
    "error",
    [ContextTooLong("too long", param="messages"), Overloaded("full", retry_after_ms=1500), InternalError.of(ValueError())],
)
def test_a_refusal_arrives_as_the_error_it_was(error: GatewayError) -> None:
    (message,) = ipc.WorkerInbound().feed(ipc.frame(ipc.refuse("a", error)))
    assert isinstance(message, ipc.Refused)
    got = ipc.refusal(message)
    assert type(got) is type(error)
    assert (got.status, got.code, got.param, got.message, got.retry_after_ms) == (
        error.status, error.code, error.param, error.message, error.retry_after_ms,
    )  # fmt: skip


def test_a_bug_is_refused_without_its_words() -> None:
    refused = ipc.refuse("a", KeyError("a private thing"))
    assert "private" not in refused.message
    assert "private" in refused.detail


def test_the_token_is_on_standard_input_only() -> None:
    launch = EngineLaunch("e", "scripted", "m:C", "model", "/run/s", "T0KEN")
    argv, stdin = command(launch)
    assert "T0KEN" not in " ".join(argv)
    assert "T0KEN" not in repr(launch)
    assert msgspec.json.decode(stdin, type=EngineLaunch) == launch


@pytest.mark.parametrize(
    ("field", "value"), [("slots", 0), ("queue", -1), ("engine", "nocolon"), ("token", ""), ("socket", "/" + "s" * 120)]
)
def test_a_launch_says_what_is_wrong(field: str, value: object) -> None:
    launch = EngineLaunch("e", "scripted", "m:C", "model", "/run/s", "t")
    assert launch.problem() is None
    problem = msgspec.structs.replace(launch, **{field: value}).problem()
    assert problem is not None
    assert field in problem or "socket" in problem
