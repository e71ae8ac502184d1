"""Parts of native wires that recorded fixtures do not show: fill in the middle, logprobs, what servers tell of themselves."""

import json
from typing import Any

import msgspec
import pytest

from backends.core.errors import UnsupportedParameter, UpstreamProtocol
from backends.core.events import Candidate, TextDelta, TokenLogprob
from backends.core.facts import Facts
from backends.core.fold import fold
from backends.core.request import GenerationRequest, Message, Prompt, Text
from backends.dialects import llamacpp, tei, tgi
from backends.registry import dialect

TEXT = GenerationRequest("m", prompts=(Prompt("def f():"),), stream=True)
CHAT = GenerationRequest("m", messages=(Message("user", (Text("hi"),)),), stream=True, top_logprobs=1)


def body(request: Any) -> dict[str, Any]:
    return dict(json.loads(request.body))


@pytest.mark.parametrize("name", ["llamacpp", "llamacpp_legacy"])
def test_a_prompt_with_a_suffix_is_filled_in(name: str) -> None:
    ours = dialect(name)
    job = msgspec.structs.replace(TEXT, suffix="\nreturn x")
    request = ours.encode(job)
    assert request.path == "/infill"
    sent = body(request)
    assert (sent["input_prefix"], sent["input_suffix"], sent["stream"]) == ("def f():", "\nreturn x", True)
    assert "prompt" not in sent
    record = b'data: {"content":" x","stop":true,"stop_type":"eos","tokens_predicted":1,"tokens_evaluated":4}\n\n'
    decoder = ours.decoder(job)
    answer = fold([*decoder.feed(record), *decoder.close()])
    assert "".join(answer.choices[0].text) == " x"
    for prompts in ((Prompt("a"), Prompt("b")), (Prompt(tokens=(1,)),)):
        with pytest.raises(UnsupportedParameter):
            ours.encode(msgspec.structs.replace(job, prompts=prompts))


def test_ollama_logprobs() -> None:
    ours = dialect("ollama")
    assert body(ours.encode(CHAT)) | {"logprobs": True, "top_logprobs": 1} == body(ours.encode(CHAT))
    assert "logprobs" not in body(ours.encode(msgspec.structs.replace(CHAT, top_logprobs=None)))
    token = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.5}]}
    line = json.dumps({"model": "m", "message": {"content": "a"}, "done": False, "logprobs": [token]}).encode() + b"\n"
    events = ours.decoder(CHAT).feed(line)
    assert events[1] == TextDelta("a", 0, (TokenLogprob("a", b"a", -0.5, (Candidate("b", b"b", -1.5),)),))


def sglang(text: str, tokens: list[list[Any]], count: int, **more: Any) -> bytes:
    tops = [[[-2.0, 9, "z"]] for _ in tokens]
    meta = {"completion_tokens": count, "prompt_tokens": 3, "output_token_logprobs": tokens, "output_top_logprobs": tops}
    return b"data: " + json.dumps({"text": text, "meta_info": {**meta, "finish_reason": None, **more}}).encode() + b"\n\n"


@pytest.mark.parametrize("incremental", [False, True])
def test_sglang_logprobs(incremental: bool) -> None:
    ours = dialect("sglang", options={"incremental_streaming_output": incremental})
    sent = body(ours.encode(CHAT, (Prompt("p"),)))
    assert (sent["return_logprob"], sent["top_logprobs_num"], sent["return_text_in_logprobs"]) == (True, 1, True)
    one, two = [-0.1, 1, "a"], [-0.2, 2, "b"]
    later = sglang("b", [two], 2) if incremental else sglang("ab", [one, two], 2)
    decoder = ours.decoder(CHAT)
    events = [*decoder.feed(sglang("a", [one], 1)), *decoder.feed(later)]
    said = [event for event in events if isinstance(event, TextDelta)]
    assert [event.text for event in said] == ["a", "b"]
    assert [[token.token for token in event.logprobs] for event in said] == [["a"], ["b"]]
    assert said[0].logprobs[0].top == (Candidate("z", b"z", -2.0),)


def test_what_llamacpp_tells_of_itself() -> None:
    props = {
        "default_generation_settings": {"n_ctx": 512},
        "total_slots": 2,
        "model_path": "C:\\m\\x.gguf",
        "chat_template": "T",
    }
    slots = [{"id": 0, "is_processing": True}, {"id": 1, "is_processing": False}]
    bodies = [json.dumps(props).encode(), json.dumps(slots).encode()]
    assert llamacpp.facts(bodies) == Facts(model="x.gguf", context=512, slots=2, busy=1, template="T")
    assert not llamacpp.facts([b"", b"<html>", b"3"]).told
    assert llamacpp.text_of(b'{"content":"a"}') == "a"
    with pytest.raises(UpstreamProtocol):
        llamacpp.text_of(b"{}")


def test_what_tgi_and_tei_tell_of_themselves() -> None:
    assert tgi.facts([b'{"model_id":"m","max_total_tokens":9}']) == Facts(model="m", context=9)
    assert tei.facts([b'{"model_id":"m","max_client_batch_size":8}']) == Facts(model="m", batch=8)
    assert not tgi.facts([b"x"]).told and not tei.facts([b"x"]).told
    assert body(tgi.tokenize_request("a"))["inputs"] == "a"
    assert tgi.tokens_of(b'[{"id":1,"text":"a"},{"id":2,"text":"b"}]') == (1, 2)
    assert tgi.tokens_of(b'[[{"id":1}]]') == (1,)
    for wrong in (b"{}", b"[1]", b""):
        with pytest.raises(UpstreamProtocol):
            tgi.tokens_of(wrong)
