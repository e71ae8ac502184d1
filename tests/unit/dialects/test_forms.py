"""Grammars and regular expressions, in the words of each server that knows them, and the client's own in a refusal."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backends.core.capabilities import ParamsRule, resolve
from backends.core.errors import UnsupportedParameter
from backends.core.request import GenerationRequest, Message, Output, Prompt, Text
from backends.registry import DIALECTS, dialect, quirks_of

CHAT = GenerationRequest("m", messages=(Message("user", (Text("hi"),)),))
REGEX = Output("regex", grammar="[ab]+", asked_as="guided_regex")
GRAMMAR = Output("grammar", grammar='root ::= "a"', asked_as="guided_choice")


def sent(name: str, quirks: str, output: Output) -> dict[str, Any]:
    ours = dialect(name, quirks)
    job = msgspec.structs.replace(CHAT, output=output)
    body: dict[str, Any] = msgspec.json.decode(ours.encode(job, (Prompt("P"),) if ours.needs_prompt else ()).body)
    return body


@pytest.mark.parametrize(
    ("name", "quirks", "regex", "grammar"),
    [
        (
            "openai_compatible",
            "vllm",
            {"structured_outputs": {"regex": "[ab]+"}},
            {"structured_outputs": {"grammar": 'root ::= "a"'}},
        ),
        ("openai_compatible", "sglang", {"regex": "[ab]+"}, {"ebnf": 'root ::= "a"'}),
        ("openai_compatible", "lmdeploy", {"response_format": {"type": "regex_schema", "regex_schema": "[ab]+"}}, None),
        (
            "openai_compatible",
            "trtllm",
            {"response_format": {"type": "regex", "regex": "[ab]+"}},
            {"response_format": {"type": "ebnf", "ebnf": 'root ::= "a"'}},
        ),
        ("openai_compatible", "llamacpp", None, {"grammar": 'root ::= "a"'}),
        ("sglang", "", {"sampling_params": {"regex": "[ab]+"}}, {"sampling_params": {"ebnf": 'root ::= "a"'}}),
        ("tgi", "", {"parameters": {"details": True, "grammar": {"type": "regex", "value": "[ab]+"}}}, None),
        (
            "lightllm",
            "",
            {"parameters": {"regular_constraint": "[ab]+"}},
            {"parameters": {"guided_grammar": 'root ::= "a"'}},
        ),
        ("llamacpp", "", None, {"grammar": 'root ::= "a"'}),
    ],
)
def test_each_server_in_its_own_words(
    name: str, quirks: str, regex: dict[str, Any] | None, grammar: dict[str, Any] | None
) -> None:
    can = dialect(name, quirks).capabilities
    for capability, output, form in (("regex", REGEX, regex), ("grammar", GRAMMAR, grammar)):
        assert (capability in can) == (form is not None)
        if form is not None:
            assert form.items() <= sent(name, quirks, output).items()


def test_triton_has_them_where_the_deployment_says_so() -> None:
    assert not {"regex", "grammar"} & dialect("triton").capabilities
    for output, kind in ((REGEX, "regex"), (GRAMMAR, "ebnf_grammar")):
        body = sent("triton", "", output)
        assert (body["guided_decoding_guide_type"], body["guided_decoding_guide"]) == (kind, output.grammar)


@pytest.mark.parametrize("rule", ["reject", "drop", "forward"])
@pytest.mark.parametrize("output", [REGEX, GRAMMAR, Output("json_schema", schema=msgspec.Raw(b"{}"), asked_as="guided_json")])
def test_a_form_that_a_backend_lacks_is_refused_under_the_clients_own_name(rule: ParamsRule, output: Output) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        resolve(msgspec.structs.replace(CHAT, output=output), frozenset({"chat"}), rule)
    assert (refused.value.status, refused.value.param) == (400, output.asked_as)
    plain = msgspec.structs.replace(output, asked_as="")
    with pytest.raises(UnsupportedParameter) as refused:
        resolve(msgspec.structs.replace(CHAT, output=plain), frozenset({"chat"}), rule)
    assert refused.value.param in ("regex", "grammar", "response_format")


def test_no_dialect_leaves_out_a_form_that_it_claims() -> None:
    for name in DIALECTS:
        for quirks in quirks_of(name) or ("",):
            for capability, output in (("regex", REGEX), ("grammar", GRAMMAR)):
                if capability in dialect(name, quirks).capabilities:
                    assert msgspec.json.encode(output.grammar) in msgspec.json.encode(sent(name, quirks, output))
