"""The form that an answer must take, in each way that clients state it: `response_format`, llama.cpp's `grammar`, and
vLLM's `structured_outputs` with the older `guided_*`.

A choice among texts is a grammar too, so that every backend with grammars can do it. Source: openai-openapi
`ResponseFormat*`; vLLM 0.33 `StructuredOutputsParams`; vLLM 0.11 `guided_json`, `guided_grammar`, `guided_choice`,
`guided_regex`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from backends.core.errors import BadRequest
from backends.core.request import Output
from gateway.protocols.decoding import MAX_SCHEMA_BYTES, checked_schema, decoded_part, stated
from gateway.protocols.openai_wire import (
    ChatBody,
    GenerationBody,
    Json,
    JsonObjectFormat,
    JsonSchemaFormat,
    StructuredOutputs,
)

_TEXT = Output()
_ANY_OBJECT = Output("json_object", asked_as="structured_outputs.json_object")
_structured: msgspec.json.Decoder[StructuredOutputs] = msgspec.json.Decoder(StructuredOutputs)
_text = msgspec.json.Decoder(str).decode
_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def output(body: GenerationBody) -> Output:
    """The form of the answer; plain text where none is stated.

    Raises:
        BadRequest: a bad schema, or two forms at once; names the parameter.
    """
    named = _format(body) if isinstance(body, ChatBody) else None
    others = _others(body)
    if not others:  # nearly all requests
        return _TEXT if named is None else named[1]
    forms = [form for form in (named, *others) if form is not None]
    if len(forms) > 1:
        raise BadRequest(f"'{forms[1][0]}' and '{forms[0][0]}' exclude each other.", param=forms[1][0])
    return forms[0][1] if forms else _TEXT


def _format(chat: ChatBody) -> tuple[str, Output] | None:
    form = chat.response_format
    if isinstance(form, JsonObjectFormat):
        return "response_format", Output("json_object")
    if isinstance(form, JsonSchemaFormat):
        named = form.json_schema
        raw = stated(named.schema)
        schema = msgspec.Raw(b"{}") if raw is None else checked_schema(raw, "response_format.json_schema.schema")
        return "response_format", Output("json_schema", named.name, schema, named.strict)
    return None


def _others(body: GenerationBody) -> list[tuple[str, Output] | None]:
    if (
        body.grammar is None
        and body.guided_grammar is None
        and body.guided_choice is None
        and body.guided_regex is None
        and body.guided_json is msgspec.UNSET
        and body.structured_outputs is msgspec.UNSET
    ):
        return []
    wanted = decoded_part(_structured, body.structured_outputs, "structured_outputs", MAX_SCHEMA_BYTES) or StructuredOutputs()
    return [
        _grammar("grammar", body.grammar),
        _grammar("guided_grammar", body.guided_grammar),
        _choice("guided_choice", body.guided_choice),
        _regex("guided_regex", body.guided_regex),
        _schema("guided_json", body.guided_json),
        _grammar("structured_outputs.grammar", wanted.grammar),
        _choice("structured_outputs.choice", wanted.choice),
        _regex("structured_outputs.regex", wanted.regex),
        _schema("structured_outputs.json", wanted.json),
        (_ANY_OBJECT.asked_as, _ANY_OBJECT) if wanted.json_object else None,
    ]


def _grammar(param: str, text: str | None) -> tuple[str, Output] | None:
    return None if text is None else (param, Output("grammar", grammar=text, asked_as=param))


def _regex(param: str, pattern: str | None) -> tuple[str, Output] | None:
    return None if pattern is None else (param, Output("regex", grammar=pattern, asked_as=param))


def _choice(param: str, texts: Sequence[str] | None) -> tuple[str, Output] | None:
    if texts is None:
        return None
    grammar = "root ::= " + " | ".join(f'"{text.translate(_ESCAPES)}"' for text in texts)
    return param, Output("grammar", grammar=grammar, choices=tuple(texts), asked_as=param)


def _schema(param: str, raw: Json) -> tuple[str, Output] | None:
    """A schema as an object, or as a text that holds one."""
    value = stated(raw)
    if value is None:
        return None
    if bytes(value).startswith(b'"'):
        value = msgspec.Raw(_text(value).strip().encode())
    return param, Output("json_schema", schema=checked_schema(value, param), asked_as=param)
