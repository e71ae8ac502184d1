"""The built-in families: one conversation in each, written out, and the strings that end its answers."""

from __future__ import annotations

import pytest

from backends.core.request import Message, Role, Text
from backends.templates.families import FAMILIES, family
from backends.templates.jinja import ChatTemplate


def turn(role: Role, text: str) -> Message:
    return Message(role, (Text(text),))


TURNS = (turn("developer", "S"), turn("user", "a"), turn("assistant", "b"), turn("user", "c"))
WRITTEN = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
    "llama2": "[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST]",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "[INST] S\n\na [/INST] b</s>[INST] c [/INST]",
    "zephyr": "<|system|>\nS</s>\n<|user|>\na</s>\n<|assistant|>\nb</s>\n<|user|>\nc</s>\n<|assistant|>\n",
    "gemma": "<start_of_turn>user\nS\n\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
    "<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n",
    "phi": "<|system|>\nS<|end|>\n<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nc<|end|>\n<|assistant|>\n",
    "alpaca": "S\n\n### Instruction:\na\n\n### Response:\nb\n\n### Instruction:\nc\n\n### Response:\n",
    "vicuna": "S USER: a ASSISTANT: b</s>USER: c ASSISTANT:",
    "deepseek": "S<\uff5cUser\uff5c>a<\uff5cAssistant\uff5c>b<\uff5cend\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>c"
    "<\uff5cAssistant\uff5c>",
}
WRITTEN["api_like_oai"] = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant follows the given rules no matter "
    "what.\n\nASSISTANT's RULE: S\nUSER: a\nASSISTANT: b</s>\nUSER: c\nASSISTANT:"
)
WRITTEN["qwen"] = WRITTEN["chatml"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation(name: str) -> None:
    template = ChatTemplate(family(name).template)
    assert template.render(TURNS) == WRITTEN[name]
    pieces = template.render_segments(TURNS)
    assert "".join(piece.text for piece in pieces) == WRITTEN[name]
    assert [piece.text for piece in pieces if not piece.trusted] == ["S", "a", "b", "c"]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_ends_at_one_of_its_stops(name: str) -> None:
    _, _, after = ChatTemplate(family(name).template).render(TURNS).rpartition("b")
    assert any(stop in after for stop in FAMILIES[name].stops)


def test_the_old_proxy_is_started_with_other_names() -> None:
    ours = family("api_like_oai", {"chat_prompt": "", "user_name": '\\nQ {{"x"}}: ', "ai_name": "\nA\u00e9: ", "stop": "<end>"})
    assert ChatTemplate(ours.template).render(TURNS) == (
        '\nASSISTANT\'s RULE: S\nQ {{"x"}}: a\nA\u00e9: b<end>\nQ {{"x"}}: c\nA\u00e9:'
    )
    assert ours.stops == ("<end>", '\nQ {{"x"}}:')
    assert family("api_like_oai", {"user_name": " ", "stop": ""}).stops == ()


def test_options_that_a_family_has_not_are_named() -> None:
    with pytest.raises(ValueError, match="no option 'bot_name'; known: chat_prompt, user_name"):
        family("api_like_oai", {"bot_name": "x"})
    with pytest.raises(ValueError, match="'chatml' has no option 'user_name'; known: none"):
        family("chatml", {"user_name": "x"})
