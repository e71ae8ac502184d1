"""Bodies of the three endpoints to calls, and every refusal with its parameter's name."""

import json

import msgspec
import pytest

from backends.core.errors import BadRequest
from backends.core.request import (
    EmbeddingRequest,
    GenerationRequest,
    ImageInput,
    Message,
    Output,
    Prompt,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
)
from gateway.protocols.contract import Call, ClientProtocol, Options
from gateway.protocols.decoding import checked_schema
from gateway.protocols.openai_wire import IGNORED, REFUSED
from gateway.protocols.registry import CHAT, COMPLETIONS, EMBEDDINGS, PATHS

HELLO = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}}


def chat(**fields: object) -> Call:
    return CHAT.parse(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())


def generation(call: Call) -> GenerationRequest:
    assert isinstance(call.job, GenerationRequest)
    return call.job


def refusal(protocol: ClientProtocol, body: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        protocol.parse(body)
    return caught.value


def test_the_least_chat() -> None:
    call = chat()
    assert call.job == GenerationRequest(model="m", messages=(Message("user", (Text("hi"),)),))
    assert call.options == Options()
    assert (call.text_bytes, call.token_count, call.items) == (2, 0, 1)


def test_every_sampling_parameter_arrives() -> None:
    call = chat(
        temperature=0.5, top_p=0.9, stop=["a", "b"], seed=-7, presence_penalty=1, frequency_penalty=-1,
        logit_bias={"12": -100, "7": 3.5}, top_k=40, min_p=0.05, typical_p=1, repeat_penalty=1.1, repeat_last_n=-1,
        mirostat=2, mirostat_tau=5, mirostat_eta=0.1, min_tokens=3, ignore_eos=True, max_tokens=9, n=2,
    )  # fmt: skip
    assert generation(call).sampling == Sampling(
        max_tokens=9, temperature=0.5, top_p=0.9, stop=("a", "b"), seed=-7, presence_penalty=1.0, frequency_penalty=-1.0,
        logit_bias=((12, -100.0), (7, 3.5)), top_k=40, min_p=0.05, typical_p=1.0, repetition_penalty=1.1, repeat_last_n=-1,
        mirostat=2, mirostat_tau=5.0, mirostat_eta=0.1, min_tokens=3, ignore_eos=True,
    )  # fmt: skip
    assert generation(call).n == 2


@pytest.mark.parametrize(
    ("caps", "cap"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 5}, 5),
        ({"max_tokens": 1, "max_completion_tokens": 1_000_000}, 1_000_000),
        ({"max_tokens": 8, "max_completion_tokens": 2}, 8),
        ({"n_predict": 6, "max_tokens": None}, 6),
    ],
)
def test_the_larger_cap_counts(caps: dict[str, int], cap: int | None) -> None:
    call = chat(**caps)
    assert generation(call).sampling.max_tokens == cap
    assert call.options.stated_cap is (cap is not None)


def test_top_k_off_is_zero() -> None:
    assert generation(chat(top_k=-1)).sampling.top_k == 0


def test_an_empty_stop_list_is_none() -> None:
    assert generation(chat(stop=[])).sampling == Sampling()
    assert generation(chat(stop="x")).sampling.stop == ("x",)


def test_a_conversation_with_all_its_fields() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]},
        {"role": "user", "name": "bo", "content": [{"type": "text", "text": "é"},
         {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}]},
        {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "function_call": None,
         "reasoning_content": "hm", "tool_calls": [
             {"id": "c1", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]  # fmt: skip
    call = chat(messages=messages)
    assert generation(call).messages == (
        Message("developer", (Text("be "), Text("kind"))),
        Message("user", (Text("é"), ImageInput("data:image/png;base64,AA==", "low")), "bo"),
        Message("assistant", (), "", (ToolCall("c1", "f", "{}"),), "", "hm"),
        Message("tool", (Text("42"),), tool_call_id="c1"),
        Message("assistant", refusal="no"),
    )
    assert call.text_bytes == len("be kind") + 2 + 2 + (1 + 2 + 2) + 2 + 2
    assert call.items == 5


def test_tools_and_their_choice() -> None:
    call = chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}}, parallel_tool_calls=False)
    tool = generation(call).tools[0]
    assert (tool.name, tool.description, json.loads(bytes(tool.parameters)), tool.strict) == (
        "f",
        "d",
        {"type": "object"},
        True,
    )
    assert generation(call).tool_choice == ToolChoice("function", "f")
    assert generation(call).parallel_tool_calls is False
    assert call.text_bytes == 2 + 1 + 1 + len(bytes(tool.parameters))
    assert generation(chat(tools=[TOOL], tool_choice="required")).tool_choice == ToolChoice("required")
    assert generation(chat(tool_choice="none")).tool_choice == ToolChoice("none")
    assert generation(chat(tools=[])).tools == ()
    bare = generation(chat(tools=[{"type": "function", "function": {"name": "g"}}])).tools[0]
    assert isinstance(bare, Tool)
    assert bytes(bare.parameters) == b"{}"


def test_allowed_tools_narrow_the_list() -> None:
    other = {"type": "function", "function": {"name": "g"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [other]}}
    job = generation(chat(tools=[TOOL, other], tool_choice=choice))
    assert [tool.name for tool in job.tools] == ["g"]
    assert job.tool_choice == ToolChoice("required")


def test_forms_of_the_answer() -> None:
    assert generation(chat(response_format={"type": "text"})).output == Output()
    assert generation(chat(response_format={"type": "json_object"})).output.kind == "json_object"
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True, "description": None}}
    output = generation(chat(response_format=form)).output
    assert (output.kind, output.name, output.strict) == ("json_schema", "s", True)
    assert list(json.loads(bytes(output.schema))["properties"]) == ["b", "a"]
    assert generation(chat(grammar="root ::= x")).output == Output("grammar", grammar="root ::= x", asked_as="grammar")


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"guided_json": {"type": "object"}}, Output("json_schema", schema=b'{"type": "object"}')),
        ({"guided_json": '{"type": "object"}'}, Output("json_schema", schema=b'{"type": "object"}')),
        ({"structured_outputs": {"json": {"type": "array"}}}, Output("json_schema", schema=b'{"type": "array"}')),
        ({"structured_outputs": {"json_object": True}}, Output("json_object")),
        ({"guided_grammar": "root ::= x"}, Output("grammar", grammar="root ::= x")),
        ({"structured_outputs": {"grammar": "root ::= x"}}, Output("grammar", grammar="root ::= x")),
        ({"guided_choice": ["yes", 'a "no"\n']}, Output("grammar", grammar='root ::= "yes" | "a \\"no\\"\\n"')),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Output("grammar", grammar='root ::= "a" | "b"')),
        ({"guided_regex": "[a-z]+"}, Output("regex", grammar="[a-z]+")),
        ({"structured_outputs": {"regex": "[a-z]+"}}, Output("regex", grammar="[a-z]+")),
        ({"guided_json": None, "structured_outputs": None}, Output()),
        ({"structured_outputs": {}}, Output()),
    ],
)
def test_vllms_forms_of_the_answer(fields: dict[str, object], form: Output) -> None:
    got = generation(chat(**fields)).output
    assert (got.kind, bytes(got.schema), got.grammar) == (form.kind, bytes(form.schema), form.grammar)
    told = [
        name if not isinstance(value, dict) or name == "guided_json" else f"{name}.{next(iter(value), '')}"
        for name, value in fields.items()
    ]
    assert got.asked_as == (told[0] if form.kind != "text" else "")
    plain = COMPLETIONS.parse(json.dumps({"model": "m", "prompt": "x", **fields}).encode())
    assert generation(plain).output.kind == form.kind


def test_an_empty_stop_string_stops_nothing() -> None:
    assert generation(chat(stop=["END", ""])).sampling.stop == ("END",)
    assert generation(chat(stop="")).sampling.stop == ()


def test_streaming_and_logprobs() -> None:
    assert chat(stream=True).options == Options(stream=True)
    assert chat(stream=True, stream_options={"include_usage": True, "include_obfuscation": False}).options.include_usage
    assert not chat(stream=True, stream_options={}).options.include_usage
    assert generation(chat(logprobs=True)).top_logprobs == 0
    assert generation(chat(logprobs=True, top_logprobs=20)).top_logprobs == 20
    assert generation(chat(logprobs=False)).top_logprobs is None
    assert generation(chat(reasoning_effort="high")).reasoning_effort == "high"


def test_what_changes_no_output_is_left_out() -> None:
    values: dict[str, object] = {
        "metadata": {"a": "b"},
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_key": "k",
        "prompt_cache_options": {"ttl": "1h"},
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "service_tier": "auto",
        "store": True,
        "user": "u",
    }
    assert set(values) == {name for name in IGNORED if "." not in name}
    assert chat(**values, modalities=["text"], verbosity="medium") == chat()


def test_null_is_absent_everywhere() -> None:
    names = [
        "stream stream_options n max_tokens max_completion_tokens temperature top_p stop seed presence_penalty tools",
        "frequency_penalty logit_bias user top_k min_p logprobs top_logprobs tool_choice parallel_tool_calls store",
        "response_format reasoning_effort modalities verbosity metadata service_tier",
    ]
    assert chat(**dict.fromkeys([*" ".join(names).split(), *REFUSED])) == chat()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 1_000_000}, "n", "invalid_value"),
        ({"n": 1.5}, "n", "invalid_type"),
        ({"max_tokens": 2**63}, "max_tokens", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 10**9}, "max_completion_tokens", "invalid_value"),
        ({"n_predict": -1}, "n_predict", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"guided_json": {"a": 1}, "response_format": {"type": "json_object"}}, "guided_json", "invalid_value"),
        ({"guided_json": "no schema"}, "guided_json", "invalid_type"),
        ({"guided_whitespace_pattern": "a+"}, "guided_whitespace_pattern", "unknown_parameter"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag", "unknown_parameter"),
        ({"structured_outputs": {"json": 1}}, "structured_outputs.json", "invalid_type"),
        ({"stop": "x" * 257}, "stop", "invalid_value"),
        ({"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"9999999999": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"n_discard": -1}, "n_discard", "unknown_parameter"),
        ({"chat_template": "x"}, "chat_template", "unknown_parameter"),
        ({"api_base": "http://x"}, "api_base", "unknown_parameter"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_value"),
        ({"repeat_penalty": 1.2, "repetition_penalty": 1.1}, "repeat_penalty", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [*HELLO, {"role": "user", "content": 5}]}, "messages[1].content", "invalid_type"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [
            {"id": "1", "function": {"name": "f"}}]}]}, "messages[0].tool_calls", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
         "messages[0].content[0].type", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}]},
         "messages[0].content[0].image_url.url", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "teapot"}]}]}, "messages[0].content[0].type", "invalid_value"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a\n"}}]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
         "tools[0].function.parameters", "invalid_type"),
        ({"tools": [TOOL] * 129}, "tools", "invalid_value"),
        ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "z"}}},
         "tool_choice.function.name", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_object"}, "grammar": "x"}, "grammar", "invalid_value"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"function_call": "auto"}, "function_call", "unsupported_parameter"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
        ({"verbosity": "high"}, "verbosity", "unsupported_parameter"),
        ({"model": ""}, "model", "invalid_value"),
        ({"model": None}, "model", "invalid_type"),
        ({"reasoning_effort": "vast"}, "reasoning_effort", "invalid_value"),
    ],
)  # fmt: skip
def test_refusals_name_the_parameter(fields: dict[str, object], param: str, code: str) -> None:
    error = refusal(CHAT, json.dumps({"model": "m", "messages": HELLO, **fields}).encode())
    assert (error.param, error.code, error.status) == (param, code, 400)


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
        (b'{"model":"m","temperature":NaN}', "invalid_json"),
        (b'{"model":"m","temperature":Infinity}', "invalid_json"),
        (b'{"model":"m","temperature":1e400}', "invalid_value"),
        (b'{"model":"m","temperature":' + b"9" * 100_000 + b"}", "invalid_value"),
        (b'{"model":"m","seed":' + b"9" * 100_000 + b"}", "invalid_value"),
        (b'{"model":"m","messages":' + DEEP, "invalid_type"),
        (b'{"model":"m","prediction":' + DEEP, "invalid_json"),
        (b'{"model":"m","zzz":' + DEEP, "unknown_parameter"),
        (b'{"model":"\\ud800"}', "invalid_json"),
        (b'{"model":"\xff"}', "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        ('{"model":"m"}'.encode("utf-16"), "invalid_json"),
        (b'{"model":"m\x00"}', "invalid_json"),
        (b'{"model":"m","messages":[{"role":"user","content":"x"}]} {}', "invalid_json"),
        (b"\x1f\x8b\x08\x00", "invalid_json"),
        (b'{"model":"m","model":"n","messages":[{"role":"user","content":"x"}]}', "invalid_value"),
        (b'{"model":"m","mod\\u0065l":"n","messages":[{"role":"user","content":"x"}]}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":"x"}]}', "missing_required_parameter"),
    ],
)
def test_malformed_bodies(body: bytes, code: str) -> None:
    error = refusal(CHAT, body)
    assert (error.code, error.status) == (code, 400)
    assert len(error.message) < 400


def test_the_number_of_values_is_bounded() -> None:
    error = refusal(COMPLETIONS, b'{"model":"m","prompt":[' + b"1," * 600_000 + b"1]}")
    assert (error.code, error.param) == ("invalid_value", None)
    assert generation(COMPLETIONS.parse(b'{"model":"m","prompt":[' + b"1," * 100_000 + b"1]}")).prompts


@pytest.mark.parametrize(
    "schema",
    [
        b'{"a":1,"a":2}',
        b'{"a":1e400}',
        b'{"a":' + b'{"b":' * 64 + b"1" + b"}" * 64 + b"}",
        b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"\xff"}',
    ],
)
def test_schemas_are_bounded(schema: bytes) -> None:
    tool = b'{"type":"function","function":{"name":"f","parameters":' + schema + b"}}"
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[' + tool + b"]}"
    error = refusal(CHAT, body)
    assert error.param == "tools[0].function.parameters"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"metadata": 5}, "metadata"),
        ({"metadata": {"a": 5}}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 70_000}}, "metadata"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"1": 1, **{f"{n:010}": 1 for n in range(5000)}}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": "x" * 300_000}}}] * 2}, "tools"),
    ],
)
def test_kept_json_is_bounded(fields: dict[str, object], param: str) -> None:
    assert refusal(CHAT, json.dumps({"model": "m", "messages": HELLO, **fields}).encode()).param == param


def test_brackets_in_strings_are_no_depth() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": "[{" * 200, "y": '"\\[' * 99}}}
    assert generation(chat(tools=[tool])).tools


@pytest.mark.parametrize(
    ("prompt", "prompts", "tokens"),
    [
        ("hi", (Prompt("hi"),), 0),
        (None, (Prompt(""),), 0),
        (["a", "b"], (Prompt("a"), Prompt("b")), 0),
        ([1, 2, 3], (Prompt(tokens=(1, 2, 3)),), 3),
        ([[1], [2, 3]], (Prompt(tokens=(1,)), Prompt(tokens=(2, 3))), 3),
    ],
)
def test_prompts_of_completions(prompt: object, prompts: tuple[Prompt, ...], tokens: int) -> None:
    call = COMPLETIONS.parse(json.dumps({"model": "m", "prompt": prompt, "logprobs": 3, "suffix": "z", "n": 2}).encode())
    job = generation(call)
    assert (job.prompts, job.top_logprobs, job.suffix, job.n) == (prompts, 3, "z", 2)
    assert (call.token_count, call.items) == (tokens, len(prompts))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [2**31]}, "prompt[0]"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 20, "n": 16}, "prompt"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"echo": True, "prompt": [1]}, "echo"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": []}, "messages"),
    ],
)
def test_refusals_of_completions(fields: dict[str, object], param: str) -> None:
    assert refusal(COMPLETIONS, json.dumps({"model": "m", "prompt": "x", **fields}).encode()).param == param


def test_best_of_n_and_echo() -> None:
    call = COMPLETIONS.parse(b'{"model":"m","prompt":"x","n":2,"best_of":2,"echo":true}')
    assert call.options.echo


@pytest.mark.parametrize(
    ("given", "inputs", "tokens"),
    [
        ("hi", (Prompt("hi"),), 0),
        (["a", "é"], (Prompt("a"), Prompt("é")), 0),
        ([1, 2], (Prompt(tokens=(1, 2)),), 2),
        ([[1], [2]], (Prompt(tokens=(1,)), Prompt(tokens=(2,))), 2),
    ],
)
def test_inputs_of_embeddings(given: object, inputs: tuple[Prompt, ...], tokens: int) -> None:
    call = EMBEDDINGS.parse(json.dumps({"model": "m", "input": given, "dimensions": 8, "encoding_format": "base64"}).encode())
    assert call.job == EmbeddingRequest("m", inputs, 8)
    assert (call.options.encoding, call.token_count, call.items) == ("base64", tokens, len(inputs))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": ["a", 1]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": None}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"stream": True}, "stream"),
    ],
)
def test_refusals_of_embeddings(fields: dict[str, object], param: str) -> None:
    assert refusal(EMBEDDINGS, json.dumps({"model": "m", "input": "x", **fields}).encode()).param == param


def test_aliases_answer_the_same_protocol() -> None:
    assert all(PATHS[path] is PATHS[f"/v1{path}"] for path in ("/chat/completions", "/completions", "/embeddings"))


@pytest.mark.parametrize("reference", ["http://evil.example/s.json", "//evil/s", "other.json#/a", "file:///etc/passwd"])
def test_a_schema_refers_to_itself_alone(reference: str) -> None:
    inner = json.dumps({"type": "object", "properties": {"a": {"$ref": reference}}}).replace("$ref", "\\u0024ref")
    with pytest.raises(BadRequest, match="begin with '#'"):
        checked_schema(msgspec.Raw(inner.encode()), "schema")
    own = b'{"$defs":{"a":{}},"properties":{"$ref":{"type":"string"},"b":{"$ref":"#/$defs/a"}}}'
    assert bytes(checked_schema(msgspec.Raw(own), "schema")) == own
