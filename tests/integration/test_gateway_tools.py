"""Tools and thoughts out of text, through a whole gateway: engines that only speak text, and the OpenAI SDK."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from tests.gateway_process import GatewayProcess, declared_key
from tests.models import chat_gguf

KEY = "sk-test-tools-0123456789abcdef"
TEXT = (
    '<think>\nParis, then.\n</think>\n\nI look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Pa\u00ffris"}}\n'
)
TEXT += '</tool_call>\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("get_weather", "get_time")
]


def tree() -> dict[str, object]:
    script = [TEXT[i : i + 3] for i in range(0, len(TEXT), 3)]
    return {
        "engines": {
            "script": {
                "kind": "scripted",
                "model": "none",
                "tools": "hermes",
                "thinking": "qwen",
                "options": {"script": script},
            },
            "small": {"model": chat_gguf(), "slots": 2, "context": 512, "tools": "hermes", "thinking": "qwen"},
        },
        "deployments": {"script": {"engine": "script", "model": "script"}, "small": {"engine": "small", "model": "small"}},
        "models": {"script": {"tiers": [["script"]]}, "small": {"tiers": [["small"]]}},
        "keys": {"declared": [declared_key("tools", KEY)]},
    }


@pytest.fixture
async def sdk(tmp_path):
    with GatewayProcess(tmp_path, tree()) as process:
        await asyncio.to_thread(process.start)
        async with openai.AsyncOpenAI(base_url=process.url + "/v1", api_key=KEY, max_retries=0) as client:
            yield client


def ask(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "weather?"}], "max_tokens": 200, **more}


@pytest.mark.llamacpp
async def test_calls_and_thoughts_streamed_and_whole(sdk):
    whole = await sdk.chat.completions.create(**ask("script", tools=TOOLS, parallel_tool_calls=True))
    message = whole.choices[0].message
    assert whole.choices[0].finish_reason == "tool_calls"
    assert message.content == "I look.\n"
    assert message.reasoning_content == "Paris, then."
    calls = [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls]
    assert calls == [("call_0", "get_weather", '{"city": "Pa\u00ffris"}'), ("call_1", "get_time", "{}")]

    text, thoughts, pieces, finish = "", "", {}, None
    async for chunk in await sdk.chat.completions.create(**ask("script", tools=TOOLS, stream=True)):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        thoughts += getattr(delta, "reasoning_content", None) or ""
        for call in delta.tool_calls or ():
            piece = pieces.setdefault(call.index, ["", "", ""])
            piece[0] += call.id or ""
            piece[1] += call.function.name or ""
            piece[2] += call.function.arguments or ""
        finish = chunk.choices[0].finish_reason or finish
    assert (text, thoughts, finish) == ("I look.\n", "Paris, then.", "tool_calls")
    assert [tuple(piece) for _, piece in sorted(pieces.items())] == calls

    plain = await sdk.chat.completions.create(**ask("script"))
    assert "<tool_call>" in plain.choices[0].message.content
    one = await sdk.chat.completions.create(**ask("script", tools=TOOLS, parallel_tool_calls=False))
    assert len(one.choices[0].message.tool_calls) == 1
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(**ask("script", tools=TOOLS, tool_choice="required"))
    assert refused.value.param == "tool_choice"

    # the real model: its chat template knows no tools, which is said; all else is as it was
    answer = await sdk.chat.completions.create(**ask("small", max_tokens=8, temperature=0))
    assert answer.choices[0].message.content
    answer = await sdk.chat.completions.create(**ask("small", max_tokens=8, tools=TOOLS, tool_choice="none"))
    assert answer.choices[0].message.content
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(**ask("small", tools=TOOLS))
    assert refused.value.param == "tools"
    assert json.loads(json.dumps(refused.value.body))["type"] == "invalid_request_error"
