"""Upstreams that lie and die, through the whole gateway: the right error, never a silent success, nothing of theirs leaks."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.gateway_process import GatewayProcess, declared_key, http_client
from tests.liars import GOOD, LIES, SECRETS, liar_server
from tests.upstream import in_thread

KEY = "sk-liars-0123456789abcdef"
CREDENTIAL = "sk-upstream-secret-1234567890"
CUTS = [f"cut-{count}-{how}" for how in ("clean", "middle", "close", "reset") for count in range(len(GOOD) - 1)]
MAX_GROWTH = 160 << 20
TEXT = "one two three "
SILENT = {"mute", "mute-after-head", "only-roles", "drips"}
#: Lies that change nothing for the client.
HARMLESS = {"good", "wrong-type", "bad-usage", "done-in-content", "never-ends", "talks-on", "telling-headers"}
#: What a whole answer, and a stream, come to: a status, or the code of the error in the stream.
EXPECTED: dict[str, tuple[int, int | str]] = {
    "endless-line": (502, "upstream_protocol_error"),
    "body-instead-of-events": (502, 502),
    "big-event": (502, 502),
    "bad-json": (502, "upstream_protocol_error"),
    "deep-json": (502, "upstream_protocol_error"),
    "html": (502, 502),
    "gzipped": (502, 502),
    "redirect": (502, 502),
    "mute": (504, 504),
    "mute-after-head": (504, 504),
    "mute-in-stream": (504, "upstream_timeout"),
    "only-roles": (504, 504),
    "late-401": (502, "upstream_auth_failed"),
    "rejected-401": (502, 502),
    "telling-400": (400, 400),
    "telling-500": (502, 502),
    "huge-500": (502, 502),
    "mute-500": (502, 502),
    "resets-in-head": (502, 502),
    "resets-in-body": (502, "stream_truncated"),
    "drips": (504, 504),
    "closes-short": (502, "stream_truncated"),
    "empty": (502, 502),
    "no-content": (502, 502),
    "switches": (502, 502),
    "many-1xx": (502, 502),
    "huge-chunk-size": (502, 502),
    "huge-head": (502, 502),
    "two-lengths": (502, 502),
    "no-choices": (502, 502),
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with in_thread(liar_server) as liars:
        models = [*LIES, *CUTS]
        place = {
            "dialect": "openai_compatible",
            "base_url": f"http://127.0.0.1:{liars.port}/v1",
            "credential": "env:UPSTREAM",
            "keepalive_s": 0.5,
        }
        slow = {"first_event_s": 5, "idle_s": 0.6, "total_s": 8}
        quick = {"first_event_s": 0.6, "idle_s": 0.6, "total_s": 4}
        tree = {
            "deployments": {f"d-{m}": {**place, "model": m, "timeouts": quick if m in SILENT else slow} for m in models},
            "models": {m: {"tiers": [[f"d-{m}"]]} for m in models},
            "keys": {"declared": [declared_key("user", KEY)]},
        }
        with GatewayProcess(tmp_path_factory.mktemp("liars"), tree, {"UPSTREAM": CREDENTIAL}) as process:
            process.liars = liars
            process.start()
            yield process


def worker(gateway: GatewayProcess) -> psutil.Process:
    """The one worker: the child that listens on the port."""
    for child in gateway.children():
        if any(one.laddr.port == gateway.port and one.status == "LISTEN" for one in child.net_connections("tcp")):
            return child
    raise AssertionError("no worker")


def peak(process: psutil.Process) -> int:
    """Its resident memory's peak since `forget_peak`, bytes."""
    (line,) = (one for one in Path(f"/proc/{process.pid}/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def forget_peak(process: psutil.Process) -> int:
    """Let the peak start anew; the resident memory now."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return int(process.memory_info().rss)


async def post(gateway: GatewayProcess, model: str, stream: bool) -> tuple[int, str, httpx.Headers]:
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
    if stream:
        body["stream_options"] = {"include_usage": True}
    async with http_client(KEY) as http:
        answer = await http.post(gateway.url + "/v1/chat/completions", json=body)
    told = answer.text + str(answer.headers.raw)
    for secret in (*SECRETS, "127.0.0.1", str(gateway.liars.port), "Traceback", "set-cookie"):
        assert secret not in told, told[:2000]
    return answer.status_code, answer.text, answer.headers


def events(text: str) -> list[dict[str, object]]:
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]


def judge(model: str, expected: int | str, status: int, text: str) -> None:
    """One answer against what was expected; an error has OpenAI's four fields and nothing else."""
    if isinstance(expected, int):
        assert status == expected, text[:500]
        error = json.loads(text)["error"]
    else:
        assert status == 200, text[:500]
        assert "[DONE]" not in text
        error = events(text)[-1]["error"]
        assert error["code"] == expected, error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and len(error["message"]) <= 1024
    assert error["type"] == ("invalid_request_error" if expected == 400 else "server_error")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("model", sorted(EXPECTED))
async def test_a_lie_is_the_right_error(gateway: GatewayProcess, model: str, stream: bool) -> None:
    process = worker(gateway)
    before = forget_peak(process)
    status, text, _ = await post(gateway, model, stream)
    judge(model, EXPECTED[model][stream], status, text)
    assert worker(gateway).pid == process.pid
    assert peak(process) - before < MAX_GROWTH
    row = gateway.rows(1, model=model, streamed=int(stream))[-1]
    assert row["outcome"] in (("client_error",) if model == "telling-400" else ("upstream_error",))


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("model", sorted(HARMLESS))
async def test_what_does_no_harm_is_answered(gateway: GatewayProcess, model: str, stream: bool) -> None:
    began = time.monotonic()
    status, text, _ = await post(gateway, model, stream)
    assert status == 200, text
    assert time.monotonic() - began < 1.5
    expected = 'data: [DONE]\n\ndata: {"choices":[]}\n\n: x\r\n\r\n0\r\n\r\n' if model == "done-in-content" else TEXT
    if stream:
        chunks = events(text)
        assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == expected
        assert text.endswith("data: [DONE]\n\n")
        usage = chunks[-1]["usage"]
    else:
        assert json.loads(text)["choices"][0]["message"]["content"] == expected
        usage = json.loads(text)["usage"]
    assert 0 < usage["prompt_tokens"] < 1000
    assert 0 < usage["completion_tokens"] < 1000
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("model", CUTS)
async def test_a_stream_cut_anywhere_is_never_a_success(gateway: GatewayProcess, model: str) -> None:
    status, text, _ = await post(gateway, model, True)
    count = int(model.split("-")[1])
    judge(model, "stream_truncated" if count > 1 else 502, status, text)
    if status == 200:
        said = "".join(c["choices"][0]["delta"].get("content") or "" for c in events(text)[:-1] if c["choices"])
        assert said and TEXT.startswith(said)


@pytest.mark.parametrize("model", ["odd-choices", "no-finish"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_an_odd_answer_is_either_an_error_or_a_good_answer(gateway: GatewayProcess, model: str, stream: bool) -> None:
    status, text, _ = await post(gateway, model, stream)
    if status == 200 and stream and "[DONE]" not in text:
        judge(model, "upstream_protocol_error", status, text)
    elif status == 200 and stream:
        finishes = [c["choices"][0]["finish_reason"] for c in events(text) if c["choices"]]
        assert finishes[-1] in ("stop", "length")
    elif status == 200:
        assert json.loads(text)["choices"][0]["finish_reason"] in ("stop", "length")
    else:
        judge(model, 502, status, text)


async def test_connections_of_good_answers_are_used_again_and_others_are_not(gateway: GatewayProcess) -> None:
    async def connection(model: str) -> int:
        await post(gateway, model, True)
        number = gateway.liars.asked[-1].connection
        await asyncio.sleep(0.15)  # what comes later has come
        return number

    assert await connection("good") == await connection("good")
    assert await connection("bytes-after-the-end") != await connection("bytes-after-the-end")
    assert await connection("never-ends") != await connection("never-ends")
    seen = gateway.liars.asked[-1].headers
    assert seen["authorization"] == f"Bearer {CREDENTIAL}"
    assert KEY not in str(seen)


async def test_after_all_lies_the_worker_holds_nothing(gateway: GatewayProcess) -> None:
    process = worker(gateway)
    deadline = time.monotonic() + 5
    while any(one.raddr and one.raddr.port == gateway.liars.port for one in process.net_connections("tcp")):
        assert time.monotonic() < deadline, "connections to the upstream are left"
        time.sleep(0.1)
    assert gateway.metric("switchyard_open_streams") == 0
    text = gateway.log.read_text() + gateway.metrics()
    for secret in (KEY, CREDENTIAL):
        assert secret not in text
