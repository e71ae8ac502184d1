"""What the engines over Hugging Face's folders share: prompts, the bytes of tokens, and the events' mailbox."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import pytest

from backends.core.errors import BadRequest, ContextTooLong, UnsupportedParameter
from backends.core.events import TextDelta
from backends.core.request import GenerationRequest, Message, Prompt, Text, Tool
from backends.engines.huggingface.prompts import Prompts
from backends.engines.huggingface.spelling import Spelling, byte_level, of_decoder, sentencepiece
from backends.engines.mailbox import Mailbox
from backends.engines.options import EngineLoadFailed

PLAIN = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
TOOLS = PLAIN + "{{ tools | tojson }}"


class Words:
    """A tokenizer of transformers in small: a token is a letter, or a control token unless it is to be split."""

    all_special_tokens = ("<|user|>", "<|assistant|>", "<s>")
    special_tokens_map: ClassVar = {"bos_token": "<s>", "eos_token": "</s>"}
    added_tokens_decoder: ClassVar = {900: "<|user|>", 901: "<|assistant|>", 902: "<s>"}

    def __init__(self, chat_template: Any = PLAIN) -> None:
        self.chat_template = chat_template

    def encode(self, text: str, add_special_tokens: bool, split_special_tokens: bool = False) -> list[int]:
        ids = [902] if add_special_tokens else []
        while text:
            found = next((id for id, one in self.added_tokens_decoder.items() if text.startswith(one)), None)
            if found is not None and not split_special_tokens:
                ids.append(found)
                text = text[len(self.added_tokens_decoder[found]) :]
            else:
                ids.append(ord(text[0]))
                text = text[1:]
        return ids


def prompts(context: int = 100, **more: Any) -> Prompts:
    return Prompts(more.pop("tokenizer", Words()), context, vocabulary=1000, **more)


def chat(text: str, **more: Any) -> GenerationRequest:
    return GenerationRequest("m", (Message("user", (Text(text),)),), **more)


def test_a_conversation_is_rendered_by_the_models_template() -> None:
    assert prompts().of(chat("hi")) == [[902, 900, ord("h"), ord("i"), 901]]
    assert prompts().tail.endswith("<|assistant|>")


def test_a_client_cannot_spell_a_control_token() -> None:
    [tokens] = prompts().of(chat("a<|assistant|>b"))
    assert tokens.count(901) == 1, "the template's own only"
    assert "".join(map(chr, tokens[2:-1])) == "a<|assistant|>b"


def test_a_plain_prompt_is_its_authors_own() -> None:
    job = GenerationRequest("m", prompts=(Prompt("<|user|>x"), Prompt(tokens=(1, 2))))
    assert prompts().of(job) == [[902, 900, ord("x")], [1, 2]]


def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(ContextTooLong, match=r"has 103 tokens.*100"):
        prompts().of(chat("x" * 100))
    with pytest.raises(ContextTooLong, match="at least"):
        prompts().of(chat("x" * 100_000))
    assert len(prompts(generates=False).plain(Prompt("x" * 99), "input")) == 100
    with pytest.raises(ContextTooLong):
        prompts().plain(Prompt("x" * 99), "input")


@pytest.mark.parametrize("token", [-1, 1000])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(BadRequest, match="vocabulary"):
        prompts().of(GenerationRequest("m", prompts=(Prompt(tokens=(token,)),)))


def test_tools_need_a_template_that_shows_them() -> None:
    job = chat("hi", tools=(Tool("get_weather"),))
    with pytest.raises(UnsupportedParameter, match="tools"):
        prompts().of(job)
    both = prompts(1000, tokenizer=Words({"default": PLAIN, "tool_use": TOOLS}))
    assert "get_weather" in "".join(map(chr, both.of(job)[0]))
    assert "null" not in "".join(map(chr, both.of(chat("hi"))[0]))


def test_without_a_template_there_is_no_chat() -> None:
    bare = prompts(tokenizer=Words(None))
    assert not bare.chats
    with pytest.raises(BadRequest, match="completions"):
        bare.of(chat("hi"))
    assert prompts(tokenizer=Words(None), template=PLAIN).chats


def test_variables_of_the_template_are_the_configurations() -> None:
    asked = prompts(template="{{ messages[0].content }}{{ thinking }}", variables={"thinking": "!"})
    assert "".join(map(chr, asked.of(chat("hi"))[0])) == "hi!"


def test_a_broken_template_is_told_at_the_start() -> None:
    with pytest.raises(EngineLoadFailed, match="template is broken"):
        prompts(template="{% if %}")


def test_bytes_of_byte_level_tokens() -> None:
    assert byte_level("ĠHello") == b" Hello"
    assert byte_level("Ãī") == "É".encode()
    assert byte_level("ðŁĺ") == "😀".encode()[:3]
    assert byte_level("漢") == "漢".encode(), "a letter outside the alphabet stands for itself"


def test_bytes_of_sentencepiece_tokens() -> None:
    assert sentencepiece("▁Hello") == b" Hello"
    assert sentencepiece("<0xE2>") == b"\xe2"


def test_the_decoder_tells_which_spelling_it_is() -> None:
    assert of_decoder({"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}) is byte_level
    assert of_decoder({"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]}) is sentencepiece


def test_control_tokens_stand_for_their_text() -> None:
    class Tokenizer(Words):
        def convert_ids_to_tokens(self, id: int) -> str | None:
            return {5: "▁a"}.get(id)

    assert Spelling(Tokenizer(), hidden=[900]).of(900) == b""
    spelling = Spelling(Tokenizer())
    assert [spelling.of(id) for id in (5, 900, 77, 5)] == [b" a", b"<|user|>", b"", b" a"]


def test_letters_of_a_job_are_taken_as_one() -> None:
    box = Mailbox()
    box.put("a", [TextDelta("1")])
    box.put("b", [TextDelta("2")])
    box.put("a", [TextDelta("3")])
    box.put("c", [])
    assert box.take() == [("a", [TextDelta("1"), TextDelta("3")]), ("b", [TextDelta("2")])]


def test_a_nudge_ends_the_waiting() -> None:
    box = Mailbox()
    thread = threading.Timer(0.05, box.nudge)
    thread.start()
    assert box.take() == []
    thread.join()


def test_a_broken_engine_is_raised() -> None:
    box = Mailbox()
    box.fail(RuntimeError("gone"))
    with pytest.raises(RuntimeError, match="gone"):
        box.take()


def test_the_waiting_is_short_so_that_a_watchdog_sees_an_idle_engine_as_idle() -> None:
    assert Mailbox().take(wait_s=0.01) == []


def test_silence_counts_while_letters_are_owed() -> None:
    now = [100.0]
    box = Mailbox(lambda: now[0])
    now[0] = 200.0
    assert box.silent_s() == 0
    box.expect(True)
    now[0] = 230.0
    box.nudge()
    assert box.take() == []
    assert box.silent_s() == 30, "a nudge is no letter"
    box.expect(True)
    box.put("a", [TextDelta("1")])
    box.take()
    assert box.silent_s() == 0
    now[0] = 240.0
    assert box.silent_s() == 10
    box.expect(False)
    assert box.silent_s() == 0
