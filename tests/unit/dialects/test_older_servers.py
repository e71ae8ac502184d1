"""The quirks of servers from 2023 and 2024 that speak OpenAI's API nearly."""

from __future__ import annotations

import msgspec
import pytest

from backends.core.events import Event, Failure, Finish, Started, TextDelta
from backends.core.fold import fold
from backends.core.request import GenerationRequest, Message, Prompt, Sampling, Text
from backends.core.usage import Usage
from backends.registry import dialect

CHAT = GenerationRequest("m", messages=(Message("user", (Text("a"), Text("b"))),), stream=True)
STOPPING = msgspec.structs.replace(CHAT, sampling=Sampling(stop=("END",), max_tokens=5))


def read(quirks: str, body: bytes, job: GenerationRequest = CHAT) -> list[Event]:
    decoder = dialect("openai_compatible", quirks).decoder(job)
    return [*decoder.feed(body), *decoder.close()]


def chunk(text: str, finish: str | None = None) -> bytes:
    return msgspec.json.encode({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


@pytest.mark.parametrize("quirks", ["openai_trtllm", "mbase", "mesolitica", "api_like_oai"])
def test_content_is_one_string_and_usage_is_not_asked(quirks: str) -> None:
    body = msgspec.json.decode(dialect("openai_compatible", quirks).encode(STOPPING).body)
    assert body["messages"] == [{"role": "user", "content": "ab"}]
    assert "stream_options" not in body
    assert body.get("stop") == (None if quirks in ("mbase", "mesolitica") else ["END"])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n"])
def test_api_like_oai_ends_events_with_one_newline(end: bytes) -> None:
    lines = [b"data: " + chunk("a"), b": ping", b"data: " + chunk("b", "stop")]
    events = read("api_like_oai", end.join(lines) + end)
    assert events == [Started(), TextDelta("a"), TextDelta("b"), Finish("stop")]
    for broken in (lines[0] + end, lines[0] + end + lines[2][:20]):
        last = read("api_like_oai", broken)[-1]
        assert isinstance(last, Failure) and last.kind == "truncated"
    first = dialect("openai_compatible", "api_like_oai").decoder(CHAT).feed(lines[0] + end)
    assert first == [Started(), TextDelta("a")], "a line does not wait for the next"


def test_mbase_errors_come_under_200_and_system_is_a_stop() -> None:
    (failure,) = read("mbase", b'{"error":{"message":"busy","type":"server_error","code":"x"}}')
    assert isinstance(failure, Failure) and failure.kind == "unavailable"
    assert read("mbase", b"data: " + chunk("a", "system") + b"\n\n")[-1] == Finish("stop")


def test_mesolitica_ends_by_closing_and_stops_are_cut_here() -> None:
    body = b"".join(b"data: " + chunk(text) + b"\r\n\r\n" for text in ("a E", "ND b"))
    answer = fold(read("mesolitica", body, STOPPING))
    assert ("".join(answer.choices[0].text), answer.choices[0].finish) == ("a ", "stop")
    last = read("mesolitica", b"data: " + chunk("a") + b"\r\n\r\ndata: CUDA out of memory\r\n\r\n")[-1]
    assert isinstance(last, Failure)


def test_openai_trtllm_ends_with_an_error_event() -> None:
    body = (
        b"data: " + chunk("a") + b'\n\nevent: error\ndata: {"error":{"status_code":500,"message":"Internal Server Error"}}\n\n'
    )
    last = read("openai_trtllm", body)[-1]
    assert isinstance(last, Failure) and last.kind == "unavailable"


def test_the_old_proxy_is_asked_for_the_prompts_tokens() -> None:
    plain, asked = (
        dialect("openai_compatible", "api_like_oai"),
        dialect("openai_compatible", "api_like_oai", {"tokenize": True}),
    )
    whole = msgspec.structs.replace(CHAT, stream=False)
    assert "tokenize" not in msgspec.json.decode(plain.encode(whole).body)
    assert msgspec.json.decode(asked.encode(whole).body)["tokenize"] is True
    assert "tokenize" not in msgspec.json.decode(asked.encode(CHAT).body), "its streams tell no tokens"
    with pytest.raises(ValueError, match="'vllm' know no option 'tokenize'"):
        dialect("openai_compatible", "vllm", {"tokenize": True})


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        ({"prompt_tokens": 4, "completion_tokens": 2}, Usage(4, 2)),
        ({"prompt_tokens": 0, "completion_tokens": 2}, Usage(3, 2)),
        ({"completion_tokens": 2}, Usage(3, 2)),
        ({}, None),
    ],
)
def test_the_prompts_tokens_count_where_usage_does_not(usage: dict[str, int], told: Usage | None) -> None:
    body = {
        "choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}],
        "usage": usage,
        "promptToken": [1, 2, 3],
    }
    assert fold(read("api_like_oai", msgspec.json.encode(body), msgspec.structs.replace(CHAT, stream=False))).usage == told


@pytest.mark.parametrize(("count", "sent"), [(7, 12), (0, 5 + 3)])
def test_jquesnelles_cap_includes_the_prompt(count: int, sent: int) -> None:
    ours = dialect("jquesnelle")
    request = ours.encode(STOPPING, (Prompt("ten bytes.", count=count),))
    assert msgspec.json.decode(request.body)["max_tokens"] == sent
    assert "max_tokens" not in msgspec.json.decode(ours.encode(CHAT, (Prompt("ten bytes."),)).body)
