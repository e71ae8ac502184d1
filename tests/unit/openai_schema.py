"""OpenAI's own response schemas, for the tests that hold our answers against them."""

import json
from functools import cache
from pathlib import Path

import jsonschema

#: What we tell beyond OpenAI's schema, where other servers of open models do too.
_OURS = dict.fromkeys(("ChatCompletionStreamResponseDelta", "ChatCompletionResponseMessage"), ("reasoning_content",))
_FILE = Path(__file__).parent.parent / "fixtures" / "openai_schema.json"


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    document = json.loads(_FILE.read_text())
    for ours, extra in _OURS.items():
        document["$defs"][ours]["properties"] |= {key: {"type": "string"} for key in extra}
    _close(document)
    if name == "CreateCompletionChunk":  # the same schema; only a chunk's finish_reason is null, which it leaves out
        choice = document["$defs"]["CreateCompletionResponse"]["properties"]["choices"]["items"]
        choice["properties"]["finish_reason"]["enum"].append(None)
        del choice["properties"]["finish_reason"]["type"]
        document["$defs"]["CreateCompletionResponse"]["properties"]["usage"] = {
            "anyOf": [{"$ref": "#/$defs/CompletionUsage"}, {"type": "null"}]
        }
        name = "CreateCompletionResponse"
    return jsonschema.Draft202012Validator({**document, "$ref": f"#/$defs/{name}"})


def _close(schema: object) -> None:
    """Names that a schema does not list are refused, in it and in all below it."""
    if isinstance(schema, list):
        for one in schema:
            _close(one)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and "allOf" not in schema:
            schema.setdefault("additionalProperties", False)
        for one in schema.values():
            _close(one)


def valid(name: str, value: object) -> None:
    """Fail unless the value is an instance of the named schema and has no names but its own, and `_OURS`."""
    _validator(name).validate(value)


def sse(data: bytes) -> list[object]:
    """The JSON of each event of a stream that ended well; it must end in `[DONE]`."""
    events = data.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""], events[-2:]
    assert all(event.startswith("data: ") and "\n" not in event for event in events[:-1])
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
