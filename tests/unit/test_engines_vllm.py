"""vLLM's engine without vLLM: configuration to arguments, requests to sampling, outputs to events."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from backends.core.errors import BadRequest
from backends.core.events import EventGrammar, Finish, ReasoningDelta, Started, TextDelta, ToolCallDelta
from backends.core.request import GenerationRequest, Message, Output, Prompt, Sampling, Text
from backends.core.usage import Usage
from backends.engines import kinds
from backends.engines.launch import EngineLaunch
from backends.engines.options import EngineLoadFailed, read_options
from backends.engines.vllm import forms
from backends.engines.vllm.arguments import NAMES, SUPPORTED, engine_arguments, problems
from backends.engines.vllm.outputs import JobEvents, Unfinished
from backends.engines.vllm.sampling import CAPABILITIES, constraint, sampling_arguments
from backends.engines.vllm.settings import VllmOptions


def chat(**more: Any) -> GenerationRequest:
    return GenerationRequest("m", (Message("user", (Text("hi"),)),), **more)


# the configuration


def test_arguments_are_vllms_own() -> None:
    stated = {
        "tensor_parallel_size": 4,
        "quantization": "fp8",
        "gpu_memory_utilization": 0.85,
        "enable_prefix_caching": True,
        "max_lora_rank": 32,
    }
    assert not list(problems(stated))
    given = engine_arguments(stated, model="/m", slots=64, context=8192, pooling="", adapters=2)
    assert given | stated == given
    assert (given["model"], given["max_num_seqs"], given["max_model_len"]) == ("/m", 64, 8192)
    assert (given["enable_lora"], given["max_loras"]) == (True, 2)


def test_an_embedder_is_a_pooling_runner_unless_stated_otherwise() -> None:
    given = engine_arguments({}, model="m", slots=8, context=0, pooling="embed", adapters=0)
    assert (given["runner"], given["convert"]) == ("pooling", "embed")
    assert "max_model_len" not in given
    given = engine_arguments({"convert": "none"}, model="m", slots=8, context=0, pooling="embed", adapters=0)
    assert given["convert"] == "none"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("tensor_paralel_size", "tensor_parallel_size"),
        ("--gpu-memory-utilization", "gpu_memory_utilization"),
        ("max_num_seqs", "engines.<name>.slots"),
        ("model", "engines.<name>.model"),
        ("frobnicate", "AsyncEngineArgs"),
    ],
)
def test_an_argument_that_cannot_be_given_has_a_mend(name: str, word: str) -> None:
    [(told, _, mend)] = problems({name: 1})
    assert told == name
    assert word in mend


def test_the_names_are_those_that_users_know() -> None:
    assert {"tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend", "max_model_len"} <= NAMES
    assert {"speculative_config", "kv_cache_dtype", "enable_sleep_mode", "reasoning_parser", "trust_remote_code"} <= NAMES


def test_options_are_read_strictly() -> None:
    options = read_options({"arguments": {"dtype": "auto"}, "lora": {"sql": "/l"}, "sleep_after_s": 600}, VllmOptions)
    assert options.lora == {"sql": "/l"}
    with pytest.raises(EngineLoadFailed, match="unknown engine option 'tensor_parallel_size'"):
        read_options({"tensor_parallel_size": 2}, VllmOptions)
    with pytest.raises(EngineLoadFailed, match="sleep_level"):
        read_options({"sleep_level": 3}, VllmOptions)


@pytest.mark.parametrize(("version", "fits"), [("0.32.0", True), ("0.33.1+cu130", True), ("0.31.9", False), ("1.0", False)])
def test_versions_are_pinned(version: str, fits: bool) -> None:
    problem = SUPPORTED.problem(version)
    assert (problem is None) is fits
    if problem is not None:
        assert version in problem
        assert "pip install 'switchyard[vllm]'" in problem


def test_the_registry_knows_it_without_importing_it() -> None:
    can = kinds.engine_capabilities("vllm", {})
    assert {"chat", "grammar", "response_format.json_schema", "logprobs", "min_tokens", "needs_output_cap"} <= can
    assert not {"tools", "typical_p"} & can
    assert {"tools", "tool_choice"} <= kinds.engine_capabilities("vllm", {"tool_call_parser": "hermes"})
    assert kinds.engine_capabilities("vllm", {"embedding": True}) == {"embeddings", "token_input", "dimensions"}


def test_without_vllm_it_does_not_start_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from backends.engines import versions

    monkeypatch.setattr(versions, "installed", lambda _: None)
    launch = EngineLaunch("big", "vllm", kinds.ENGINES["vllm"], "m", "/s", "t")
    from backends.engines.engine_thread import load_engine

    with pytest.raises(EngineLoadFailed, match=r"vllm is not installed.*switchyard\[vllm\].*engines.<name>.python"):
        load_engine(launch)


# requests


def test_what_a_client_states_goes_before_what_the_model_states() -> None:
    sampling = Sampling(
        temperature=0.0, top_k=5, stop=("a", "b"), seed=-1, logit_bias=((7, -100.0),), min_tokens=3, max_tokens=50
    )
    of_model = {"temperature": 0.6, "top_p": 0.9, "max_tokens": 9, "unheard_of": 1}
    assert sampling_arguments(chat(sampling=sampling, n=2, top_logprobs=0), room=20, defaults=of_model) == {
        "temperature": 0.0,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 2**63 - 1,
        "min_tokens": 3,
        "stop": ["a", "b"],
        "logit_bias": {7: -100.0},
        "max_tokens": 20,
        "n": 2,
        "logprobs": 0,
    }


def test_without_a_cap_the_models_own_holds_and_else_the_room() -> None:
    assert sampling_arguments(chat(), room=20, defaults={"max_tokens": 9})["max_tokens"] == 9
    assert sampling_arguments(chat(), room=20, defaults={}) == {"max_tokens": 20, "n": 1}


def test_every_parameter_that_is_declared_is_passed() -> None:
    """A parameter in CAPABILITIES that the translation forgets would be dropped in silence."""
    values: dict[str, Any] = {"stop": ("x",), "logit_bias": ((1, 1.0),), "ignore_eos": True}
    for name in Sampling.__struct_fields__:
        if name not in CAPABILITIES:
            continue
        given = sampling_arguments(chat(sampling=Sampling(**{name: values.get(name, 1)})), room=9, defaults={})
        assert name in given, name


@pytest.mark.parametrize(
    ("output", "given"),
    [
        (Output(), {}),
        (Output("json_object"), {"json_object": True}),
        (Output("json_schema", schema=msgspec.Raw(b'{"type": "object"}')), {"json": '{"type": "object"}'}),
        (Output("grammar", grammar="root ::= x"), {"grammar": "root ::= x"}),
        (Output("grammar", grammar='root ::= "a"', choices=("a",)), {"choice": ["a"]}),
    ],
)
def test_forms_of_answers(output: Output, given: dict[str, object]) -> None:
    assert constraint(output) == given


# outputs


def output(*choices: Any, cached: int = 0, prompt: int = 5) -> Any:
    return SimpleNamespace(prompt_token_ids=[1] * prompt, num_cached_tokens=cached, outputs=list(choices))


def delta(text: str, tokens: int = 1, end: str | None = None, index: int = 0, logprobs: Any = None) -> Any:
    return SimpleNamespace(index=index, text=text, token_ids=[9] * tokens, finish_reason=end, logprobs=logprobs)


def fed(told: JobEvents, *outputs: Any) -> list[Any]:
    grammar = EventGrammar()
    got = [event for one in outputs for event in grammar.feed(told.feed(one))]
    grammar.close()
    return got


def spelled(token: int) -> bytes:
    return b"%d" % token


def test_deltas_become_events_and_usage_ends_them() -> None:
    told = JobEvents(chat(), spelled)
    got = fed(told, output(delta("He"), cached=3), output(delta("", 1)), output(delta("llo", 2, "stop")))
    assert got == [Started("m"), TextDelta("He"), TextDelta("llo"), Finish("stop"), Usage(5, 4, 3, source="counted")]


def test_choices_end_one_by_one() -> None:
    told = JobEvents(chat(n=2), spelled)
    got = fed(told, output(delta("a", index=1, end="length")), output(delta("b", index=0, end="stop")))
    assert got[1:] == [TextDelta("a", 1), Finish("length", 1), TextDelta("b"), Finish("stop"), Usage(5, 2, source="counted")]


def test_several_prompts_are_numbered_and_counted() -> None:
    job = GenerationRequest("m", prompts=(Prompt("a"), Prompt("b")), n=2)
    told = JobEvents(job, spelled)
    events = [*told.feed(output(delta("x", index=0, end="stop"), delta("y", index=1, end="stop"), cached=2), 0)]
    events += told.feed(output(delta("z", index=0, end="stop"), delta("w", index=1, end="stop"), prompt=7), 1)
    assert [(event.text, event.choice) for event in events if isinstance(event, TextDelta)] == [
        ("x", 0), ("y", 1), ("z", 2), ("w", 3),
    ]  # fmt: skip
    assert events[-1] == Usage(12, 4, 2, source="counted")


def ranked(*pairs: tuple[int, int, float]) -> dict[int, Any]:
    return {id: SimpleNamespace(rank=rank, logprob=logprob, decoded_token="?") for id, rank, logprob in pairs}


def test_logprobs_wait_for_their_text_and_have_as_many_as_asked() -> None:
    """The chosen token comes beside the likeliest, which it need not be among."""
    told = JobEvents(chat(top_logprobs=2), spelled)
    one = ranked((9, 5, -3.0), (1, 1, -0.1), (2, 2, float("-inf")))
    got = fed(told, output(delta("", 1, logprobs=[one])), output(delta("ab", 1, "stop", logprobs=[ranked((9, 1, -0.5))])))
    [text] = [event for event in got if isinstance(event, TextDelta)]
    assert [(p.token, p.logprob, [(t.token, t.logprob) for t in p.top]) for p in text.logprobs] == [
        ("9", -3.0, [("1", -0.1), ("2", -9999.0)]),
        ("9", -0.5, [("9", -0.5)]),
    ]


def test_asked_for_none_beside_it_there_is_none_beside_it() -> None:
    told = JobEvents(chat(top_logprobs=0), spelled)
    got = fed(told, output(delta("a", 1, "stop", logprobs=[ranked((9, 1, -0.5))])))
    assert got[1].logprobs[0].top == ()


def test_logprobs_without_text_leave_with_the_end() -> None:
    told = JobEvents(chat(top_logprobs=0), spelled)
    got = fed(told, output(delta("", 1, "stop", logprobs=[ranked((9, 1, -0.5))])))
    assert got[1].text == "" and len(got[1].logprobs) == 1
    assert got[2] == Finish("stop")


def test_a_choice_that_was_cut_off_is_no_answer() -> None:
    told = JobEvents(chat(), spelled)
    with pytest.raises(Unfinished, match="abort"):
        told.feed(output(delta("a", 1, "abort")))


class Calls:
    """A reader that takes upper case for calls and digits for thoughts."""

    def __init__(self, choice: int) -> None:
        self.choice = choice
        self.called = False
        self.reasoning_tokens = 0

    def read(self, text: str, tokens: Any, prompt: Any, finished: bool) -> list[Any]:
        if text.isdigit():
            self.reasoning_tokens += len(tokens)
            return [ReasoningDelta(text, self.choice)]
        if text.isupper():
            self.called = True
            return [ToolCallDelta(0, "call_0", text, "{}", self.choice)]
        return [TextDelta(text, self.choice)] if text else []


def test_a_reader_tells_calls_and_thoughts_apart() -> None:
    told = JobEvents(chat(), spelled, Calls)
    got = fed(told, output(delta("12", 2)), output(delta("F")), output(delta("", 1, "stop")))
    assert got[1:] == [
        ReasoningDelta("12"),
        ToolCallDelta(0, "call_0", "F", "{}"),
        Finish("tool_calls"),
        Usage(5, 4, 0, 2, source="counted"),
    ]


def test_a_call_that_was_cut_off_says_length() -> None:
    told = JobEvents(chat(), spelled, Calls)
    assert Finish("length") in fed(told, output(delta("F", 1, "length")))


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"properties": {"a": {"items": {"not": {}}}}}, "'not' (at /a/items)"),
        ({"anyOf": [{"if": {}, "then": {}}]}, "'if' (at /anyOf/0)"),
        ({"$defs": {"d": {"pattern": "a(?<!b)"}}}, "looking ahead or behind in 'pattern' (at /d)"),
        ({"properties": {}, "anyOf": [{"required": ["a"]}]}, "'properties' beside 'anyOf'"),
        ({"$ref": "#/$defs/d", "minimum": 3}, "'minimum' beside '$ref'"),
    ],
)
def test_what_xgrammar_passes_over_is_refused_unless_it_is_a_wish(schema: object, what: str) -> None:
    output = Output("json_schema", schema=msgspec.Raw(msgspec.json.encode(schema)), asked_as="guided_json")
    with pytest.raises(BadRequest) as error:
        forms.check(output)
    assert error.value.param == "guided_json"
    assert what in error.value.message
    forms.check(msgspec.structs.replace(output, strict=False))


def test_what_only_looks_so_is_taken() -> None:
    for schema in (
        {"properties": {"not": {"type": "string", "const": "(?=a)"}, "if": {"enum": [{"not": 1}]}}},
        {"$ref": "#/$defs/d", "description": "x", "title": "y", "$defs": {"d": {"type": "integer"}}},
        {"type": "object", "anyOf": [{"type": "object"}], "default": {"not": 1}},
    ):
        forms.check(Output("json_schema", schema=msgspec.Raw(msgspec.json.encode(schema))))
