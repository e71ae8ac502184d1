"""Tools on a real llama.cpp model, through a whole gateway: a call that must be made is held to the tool's schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from tests.gateway_process import GatewayProcess, declared_key
from tests.models import chat_gguf

pytestmark = pytest.mark.llamacpp
KEY = "sk-llama-tools-0123456789abcdef"
#: SmolLM2's own template does not show tools.
TEMPLATE = """{%- if tools %}<|im_start|>system
You may call: {% for tool in tools %}{{ tool | tojson }} {% endfor %}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PLACE = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
WEATHER = {
    "type": "object",
    "properties": {"place": {"$ref": "#/$defs/Place"}, "unit": {"type": ["string", "null"], "enum": ["c", "f", None]}},
    "required": ["place", "unit"],
    "$defs": {"Place": PLACE},
}
TIME = {
    "type": "object",
    "properties": {"zone": {"type": "string", "pattern": r"^[A-Z]{3}(\+\d)?$"}, "place": {"$ref": "#/$defs/Place"}},
    "required": ["zone"],
    "$defs": {"Place": {"type": "integer", "minimum": 1, "maximum": 5000}},
}
SCHEMAS: dict[str, Any] = {"weather": WEATHER, "time": TIME}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("tools")
    (folder / "tools.jinja").write_text(TEMPLATE)
    tree = {
        "engines": {
            "chat": {
                "model": chat_gguf(),
                "slots": 2,
                "context": 1024,
                "tools": "hermes",
                "template": str(folder / "tools.jinja"),
            }
        },
        "deployments": {"chat": {"engine": "chat", "model": "chat"}},
        "models": {"chat": {"tiers": [["chat"]]}},
        "keys": {"declared": [declared_key("tools", KEY)]},
    }
    with GatewayProcess(folder / "gateway", tree) as gateway:
        gateway.start()
        with httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {KEY}"}, timeout=120) as http:
            yield http


def ask(client: httpx.Client, **more: Any) -> httpx.Response:
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
        "tools": TOOLS,
        "temperature": 0.8,
        "seed": 5,
        "max_tokens": 120,
        **more,
    }
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("choice", ["required", "weather", "time"])
def test_a_forced_call_fits_its_tools_schema(client: httpx.Client, choice: str) -> None:
    named = {"type": "function", "function": {"name": choice}}
    answer = ask(client, tool_choice=choice if choice == "required" else named, n=2).json()
    for one in answer["choices"]:
        [call] = one["message"]["tool_calls"]
        assert one["finish_reason"] == "tool_calls"
        assert choice in ("required", call["function"]["name"])
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])


def test_its_deltas_are_the_whole_call(client: httpx.Client) -> None:
    answer = ask(client, tool_choice="required", stream=True)
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    deltas = [call for chunk in chunks for one in chunk["choices"] for call in one["delta"].get("tool_calls") or ()]
    assert deltas[0]["id"] and deltas[0]["type"] == "function"
    name = deltas[0]["function"]["name"]
    arguments = "".join(delta["function"].get("arguments") or "" for delta in deltas)
    jsonschema.validate(json.loads(arguments), SCHEMAS[name])
    assert [one["finish_reason"] for chunk in chunks for one in chunk["choices"] if one["finish_reason"]] == ["tool_calls"]


def test_none_makes_no_call_and_a_strict_tool_that_cannot_be_held_to_is_refused(client: httpx.Client) -> None:
    assert ask(client, tool_choice="none", max_tokens=5).json()["choices"][0]["message"].get("tool_calls") is None
    parameters = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}
    for strict, status in ((True, 400), (False, 200)):
        tool = {"type": "function", "function": {"name": "f", "strict": strict, "parameters": parameters}}
        answer = ask(client, tools=[tool], tool_choice="required")
        assert answer.status_code == status, answer.text
        if strict:
            error = answer.json()["error"]
            assert (error["param"], "'uniqueItems'" in error["message"]) == ("tools", True)
