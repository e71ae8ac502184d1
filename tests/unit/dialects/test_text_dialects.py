"""Dialects of servers that generate text in records of their own: what the fixtures do not show."""

from __future__ import annotations

import json

import msgspec
import pytest

from backends.core.contracts import Dialect
from backends.core.errors import UnsupportedParameter
from backends.core.events import Candidate, Event, EventGrammar, Failure, Finish, Started, TextDelta, TokenLogprob
from backends.core.fold import fold
from backends.core.request import EmbeddingRequest, GenerationRequest, Message, Output, Prompt, Sampling, Text
from backends.core.usage import Usage
from backends.registry import DIALECTS, credential_header, dialect, options

JOB = GenerationRequest("m", prompts=(Prompt("P"),), stream=True)
STOPPING = msgspec.structs.replace(JOB, sampling=Sampling(max_tokens=3, stop=("END",)))


def read(ours: Dialect, body: bytes, job: GenerationRequest = JOB, headers: dict[str, str] | None = None) -> list[Event]:
    decoder, grammar = ours.decoder(job, headers=headers or {}), EventGrammar()
    events = [*grammar.feed(decoder.feed(body)), *grammar.feed(decoder.close())]
    grammar.close()
    return events


def tgi_event(text: str, *, last: str = "", special: bool = False) -> bytes:
    details = {"finish_reason": last, "generated_tokens": 2, "input_length": 4} if last else None
    token = {"id": 1, "text": text, "logprob": -0.5, "special": special}
    event = {"index": 1, "token": token, "generated_text": "x" if last else None, "details": details}
    return b"data:" + msgspec.json.encode(event) + b"\n\n"


def test_tgi_cuts_the_stop_text_and_ends_with_its_last_record() -> None:
    body = tgi_event("ab E") + tgi_event("N") + tgi_event("D", last="stop_sequence") + tgi_event("late")
    assert read(dialect("tgi"), body, STOPPING) == [Started(), TextDelta("ab "), Finish("stop"), Usage(4, 2)]


@pytest.mark.parametrize(
    ("error", "begun", "kind"),
    [
        (b'{"error":"Model is overloaded","error_type":"overloaded"}', False, "overloaded"),
        (b'{"error":"Request failed","error_type":"generation"}', False, "unavailable"),
        (b'{"error":"`inputs` tokens must be <= 10","error_type":"validation"}', False, "rejected"),
        (b'{"error":"bad","error_type":"validation"}', True, "unavailable"),
        (b'{"error":"Incomplete generation stream","error_type":"incomplete_generation_stream"}', True, "truncated"),
    ],
)
def test_tgi_errors_in_a_stream(error: bytes, begun: bool, kind: str) -> None:
    last = read(dialect("tgi"), (tgi_event("a") if begun else b"") + b"data: " + error + b"\n\n")[-1]
    assert isinstance(last, Failure)
    assert last.kind == kind


def test_tgi_logprobs_and_grammar() -> None:
    job = msgspec.structs.replace(
        JOB, top_logprobs=1, output=Output("json_schema", schema=msgspec.Raw(b'{"type":"object"}')), stream=False
    )
    body = msgspec.json.decode(dialect("tgi").encode(job).body)
    assert body["parameters"] == {
        **{"details": True, "top_n_tokens": 1},
        "grammar": {"type": "json", "value": {"type": "object"}},
    }
    answer = (
        b'{"generated_text":"a","details":{"finish_reason":"length","generated_tokens":1,"tokens":'
        b'[{"id":1,"text":"a","logprob":-0.5,"special":false}],"top_tokens":[[{"id":2,"text":"b","logprob":-1}]]}}'
    )
    token = TokenLogprob("a", b"a", -0.5, (Candidate("b", b"b", -1.0),))
    events = read(dialect("tgi"), answer, job, {"x-prompt-tokens": "7"})
    assert events == [Started(), TextDelta("a", logprobs=(token,)), Finish("length"), Usage(7, 1)]
    assert read(dialect("tgi"), answer, job, {"x-prompt-tokens": "-7"})[-1] == Finish("length")


def test_triton_renames_and_leaves_out_tensors() -> None:
    wanted = {"text_input": "PROMPT", "seed": "random_seed", "return_num_input_tokens": "", "text_output": "OUT", "top_p": ""}
    ours = dialect("triton", options={"tensors": wanted})
    assert "top_p" not in ours.capabilities
    job = msgspec.structs.replace(JOB, sampling=Sampling(max_tokens=3, seed=4, temperature=1, frequency_penalty=1))
    request = ours.encode(job)
    assert request.path == "/v2/models/m/generate_stream"
    assert b'"temperature":1.0' in request.body and b'"frequency_penalty":1.0' in request.body
    body = msgspec.json.decode(request.body)
    assert (body["PROMPT"], body["random_seed"]) == ("P", 4)
    assert not {"text_input", "seed", "return_num_input_tokens"} & set(body)
    assert read(ours, b'data: {"OUT":"a"}\n\ndata: {"OUT":["b"]}\n\n')[1:] == [TextDelta("a"), TextDelta("b"), Finish("stop")]


@pytest.mark.parametrize(
    ("name", "wrong", "why"),
    [
        ("triton", {"tensors": {"prompt": "x"}}, "unknown tensor 'prompt'"),
        ("triton", {"tensors": {"max_tokens": ""}}, "cannot be left out"),
        ("triton", {"acumulate": True}, "unknown field"),
        ("triton", {"accumulate_tokens": "yes"}, "Expected `bool`"),
        ("ollama", {"a": 1}, "has no options"),
    ],
)
def test_wrong_options_are_named(name: str, wrong: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        dialect(name, options=wrong)


def test_options_and_credentials_by_dialect() -> None:
    assert options("triton") == ("accumulate_tokens", "exclude_input_in_output", "eos_texts", "tensors")
    assert options("ollama") == ()
    assert credential_header("triton") == "authorization"


def test_triton_ends_by_closing_after_a_whole_event() -> None:
    ours = dialect("triton")
    assert read(ours, b'data: {"text_output":"a"}\n\n') == [Started(), TextDelta("a"), Finish("stop")]
    for body in (b'data: {"text_output":"a"}\n\ndata: {"text_o', b'data: {"text_output":"a"}', b"", b": ping\n\n"):
        last = read(ours, body)[-1]
        assert isinstance(last, Failure)
        assert last.kind == "truncated"


def test_triton_counts_of_deltas_are_added_unless_they_rise() -> None:
    event = b'data: {"text_output":"a","num_input_tokens":[[4]],"num_output_tokens":[[1]]}\n\n'
    assert read(dialect("triton"), event)[-1] == Usage(4, 1)
    assert read(dialect("triton"), event * 3)[-1] == Usage(4, 3)
    rising = b"".join(event.replace(b"[[1]]", b"%d" % total) for total in (1, 2, 4))
    assert read(dialect("triton"), rising)[-1] == Usage(4, 4)


def test_triton_keeps_what_the_engine_leaves_at_the_end() -> None:
    ours = dialect("triton", options={"eos_texts": ["</s>"], "accumulate_tokens": True})
    assert read(ours, b'data: {"text_output":"a<"}\n\ndata: {"text_output":"a</s>"}\n\n')[1:] == [
        TextDelta("a"),
        Finish("stop"),
    ]


@pytest.mark.parametrize(
    ("status", "body", "seen"),
    [
        (
            400,
            b'{"error":"Prompt length (900) exceeds maximum input length (800). Set max_input_len"}',
            "context_length_exceeded",
        ),
        (503, b'{"error":"unavailable"}', "upstream_overloaded"),
        (500, b'{"error":"Traceback (most recent call last):\\n  File \\"/srv/m.py\\", line 3"}', "upstream_unavailable"),
    ],
)
def test_triton_errors(status: int, body: bytes, seen: str) -> None:
    error = dialect("triton").failure(status, {}, body)
    assert error.code == seen
    assert "/srv" not in error.message and "Traceback" not in error.message


def test_sglang_choices_of_several_prompts_and_an_abort() -> None:
    ours = dialect("sglang")
    job = GenerationRequest("m", prompts=(Prompt("a"), Prompt("b")), n=2)
    request = msgspec.json.decode(ours.encode(job).body)
    assert request == {"text": ["a", "b"], "sampling_params": {"n": 2}, "stream": False}
    ids = msgspec.json.decode(ours.encode(GenerationRequest("m", prompts=(Prompt(tokens=(1, 2)),))).body)
    assert ids["input_ids"] == [1, 2]
    one = b'{"text":"x","meta_info":{"finish_reason":{"type":"stop"},"prompt_tokens":3,"completion_tokens":1}}'
    events = read(ours, b"[" + b",".join([one] * 4) + b"]", job)
    assert events[-1] == Usage(6, 4)
    assert [event.choice for event in events if isinstance(event, Finish)] == [0, 1, 2, 3]
    abort = b'data: {"text":"","meta_info":{"finish_reason":{"type":"abort","message":"full","status_code":503}}}\n\n'
    (failure,) = read(ours, abort)
    assert isinstance(failure, Failure) and failure.kind == "overloaded"
    (old,) = read(ours, b'data: {"error":{"message":"top_p must be in (0, 1]"}}\n\ndata: [DONE]\n\n')
    assert isinstance(old, Failure) and old.kind == "rejected"


def test_lmdeploy_parse_error_is_a_stop_only_with_text() -> None:
    ours = dialect("lmdeploy")
    tail = b'"meta_info":{"finish_reason":{"type":"parse_error"}}}\n\ndata: [DONE]\n\n'
    assert read(ours, b'data: {"text":"a",' + tail)[-1] == Finish("stop")
    assert isinstance(read(ours, b'data: {"text":"",' + tail)[-1], Failure)


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        (b"top_p must in (0.0, 1.0], got 3", 400, None),
        (b"the input prompt token len 9 is too long", 400, "context_length_exceeded"),
        (b"'parameters'", 502, "upstream_unavailable"),
    ],
)
def test_lightllm_says_417_to_everything(message: bytes, status: int, code: str | None) -> None:
    error = dialect("lightllm").failure(417, {}, b'{"message":"' + message + b'"}')
    assert (error.status, error.code) == (status, code)


def test_lightllm_whole_answers_and_greedy() -> None:
    ours = dialect("lightllm")
    body = b'{"generated_text":["ab END"],"count_output_tokens":3,"finish_reason":"stop","prompt_tokens":2}'
    assert read(ours, body, STOPPING) == [Started(), TextDelta("ab "), Finish("stop"), Usage(2, 3)]
    greedy = msgspec.structs.replace(JOB, sampling=Sampling(temperature=0, max_tokens=2))
    assert msgspec.json.decode(ours.encode(greedy).body)["parameters"] == {"max_new_tokens": 2, "do_sample": False}


@pytest.mark.parametrize("name", ["tgi", "triton", "sglang", "lmdeploy", "lightllm"])
def test_what_only_other_servers_can_do_is_refused(name: str) -> None:
    ours = dialect(name)
    assert ours.needs_prompt and name in DIALECTS
    with pytest.raises(UnsupportedParameter):
        ours.encode(EmbeddingRequest("m", (Prompt("a"),)))
    with pytest.raises(ValueError, match="chat template"):
        ours.encode(GenerationRequest("m", messages=(Message("user", (Text("hi"),)),)))
    if name in ("tgi", "triton", "lightllm"):
        with pytest.raises(UnsupportedParameter):
            ours.encode(GenerationRequest("m", prompts=(Prompt(tokens=(1,)),)))


def test_alpaca_takes_the_last_choice_without_its_end_mark() -> None:
    ours = dialect("chinese_alpaca", options={"num_beams": 2})
    turns = (Message("developer", (Text("x"),)), Message("user", (Text("hi"),)))
    job = GenerationRequest("m", messages=turns, sampling=Sampling(temperature=0, stop=("END",)), stream=True)
    assert msgspec.json.decode(ours.encode(job).body) == {
        "model": "m",
        "messages": [{"role": "system", "message": "x"}, {"role": "user", "message": "hi"}],
        "do_sample": False,
        "num_beams": 2,
    }
    body = b'{"choices":[{"message":{"content":"hi"}},{"message":{"content":"ok <\\\\s>"}}],"model":"a"}'
    assert read(ours, body, job) == [Started("a"), TextDelta("ok"), Finish("stop")]
    assert read(ours, body.replace(b" <", b" END <"), job)[1] == TextDelta("ok ")
    for wrong in (b'{"choices":[]}', b'{"detail":"no"}', b"Internal Server Error"):
        assert isinstance(read(ours, wrong, job)[-1], Failure)


def test_jquesnelle_subtracts_the_prompts() -> None:
    ours = dialect("jquesnelle")
    job = GenerationRequest("m", prompts=(Prompt("Once"),), n=2)
    body = b'{"choices":[{"text":"Once a"},{"text":"Once b"}],"usage":{"prompt_tokens":1,"completion_tokens":5}}'
    events = read(ours, body, job)
    assert events[-1] == Usage(1, 3)
    assert [event for event in events if isinstance(event, TextDelta)] == [TextDelta(" a", 0), TextDelta(" b", 1)]
    assert isinstance(read(ours, body.replace(b":5", b":3"), job)[-1], Finish)
    two = GenerationRequest("m", prompts=(Prompt("Once"), Prompt("x")))
    assert msgspec.json.decode(ours.encode(two).body)["prompt"] == ["Once", "x"]
    assert isinstance(read(ours, body, two)[-1], Finish)


def test_ffm_streams_and_spells_in_its_own_way() -> None:
    ours = dialect("ffm")
    turns = (Message("user", (Text("hi"),)), Message("assistant", (Text("yo"),)))
    sampling = Sampling(temperature=0, frequency_penalty=0.5, stop=("E",), max_tokens=9)
    request = ours.encode(GenerationRequest("m", messages=turns, sampling=sampling, stream=True))
    body = msgspec.json.decode(request.body)
    assert body["messages"] == [{"role": "human", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    assert body["parameters"] == {"max_new_tokens": 9, "frequence_penalty": 0.5, "top_k": 1, "stop_sequences": ["E"]}
    stream = (
        b'event: ping\n\ndata: {"generated_text":"a","prompt_tokens":0,"generated_tokens":0,"finish_reason":null}\n\n'
        b'data: {"generated_text":"b","prompt_tokens":3,"generated_tokens":2,"finish_reason":"stop_sequence"}\n\n'
    )
    assert read(ours, stream) == [Started(), TextDelta("a"), TextDelta("b"), Finish("stop"), Usage(3, 2)]
    assert read(ours, b'{"generated_text":"a","generated_tokens":1}') == [Started(), TextDelta("a"), Finish("stop")]
    cut = read(ours, stream[: stream.index(b"data", 30)])[-1]
    assert isinstance(cut, Failure) and cut.kind == "truncated"


LIGHTLLM_TOKENS = [
    {"id": 1, "text": "a", "logprob": -0.5, "special": False, "count_output_tokens": 1, "prompt_tokens": 3},
    {"id": 2, "text": "</s>", "logprob": -0.1, "special": True, "count_output_tokens": 2, "prompt_tokens": 3},
]


@pytest.mark.parametrize("stream", [True, False])
def test_lightllm_tells_the_logprobs_of_its_tokens(stream: bool) -> None:
    ours = dialect("lightllm")
    job = GenerationRequest("m", prompts=(Prompt("p"),), top_logprobs=0, stream=stream)
    assert json.loads(ours.encode(job).body)["parameters"]["return_details"] is True
    events = [
        {"token": one, "finished": one["special"], "finish_reason": "stop" if one["special"] else None}
        for one in LIGHTLLM_TOKENS
    ]
    whole = {
        "generated_text": ["a"],
        "count_output_tokens": 2,
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "tokens": LIGHTLLM_TOKENS,
    }
    body = "".join(f"data:{json.dumps(one)}\n\n" for one in events) if stream else json.dumps(whole)
    decoder = ours.decoder(job)
    (choice,) = fold([*decoder.feed(body.encode()), *decoder.close()]).choices.values()
    assert [(one.token, one.logprob, one.top) for one in choice.logprobs] == [("a", -0.5, ())]


def test_lightllm_tells_no_alternatives() -> None:
    for job, param in (
        (GenerationRequest("m", prompts=(Prompt("p"),), top_logprobs=2), "logprobs"),
        (GenerationRequest("m", messages=(Message("user", (Text("x"),)),), top_logprobs=2), "top_logprobs"),
    ):
        with pytest.raises(UnsupportedParameter) as refused:
            dialect("lightllm").encode(job, (Prompt("p"),))
        assert refused.value.param == param
