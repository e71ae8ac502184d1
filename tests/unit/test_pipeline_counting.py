"""Prompts are counted with the model's own tokenizer, never below what a server would count."""

from __future__ import annotations

import json

import pytest

from backends.core.request import EmbeddingRequest, GenerationRequest, ImageInput, Message, Prompt, Text, Tool
from backends.core.usage import Usage
from backends.templates.families import family
from backends.templates.jinja import ChatTemplate
from gateway.domain.route import Route
from gateway.pipeline import counting
from gateway.pipeline.counting import Counter, key_of, load_counters, load_tokenizer
from gateway.pipeline.estimate import input_bound
from gateway.protocols.openai_chat import OpenAIChat

tokenizers = pytest.importorskip("tokenizers")
TEXT = "The quick brown fox jumps over the lazy dog. Der Fuchs springt über den Hund. 敏捷的棕色狐狸 "


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A byte-level BPE, as most models of today have one, with ChatML's special tokens; and a truncation to ignore."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT] * 3, trainer)
    made.enable_truncation(5)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def truth(file):
    """What a server counts that reads special tokens."""
    tokenizer = load_tokenizer(file)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def talk(*texts):
    return tuple(Message("user" if n % 2 == 0 else "assistant", (Text(text),)) for n, text in enumerate(texts))


def call(**body):
    return OpenAIChat().parse(json.dumps({"model": "m", "messages": [{"role": "user", "content": TEXT}], **body}).encode())


def rendered(messages):
    return "".join(f"<|im_start|>{m.role}\n{m.text}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"


async def test_with_the_models_template_the_count_is_exact_but_for_one(file, truth):
    counter = Counter(load_tokenizer(file), ChatTemplate(family("chatml").template))
    for messages in (talk("hi"), talk(TEXT, "yes", TEXT * 50)):
        assert counter.count(GenerationRequest("m", messages)) == truth(rendered(messages)) + 1


async def test_without_a_template_it_is_a_bound(file, truth):
    counter = Counter(load_tokenizer(file), None)
    messages = talk(TEXT, "yes", TEXT)
    assert truth(rendered(messages)) <= counter.count(GenerationRequest("m", messages)) <= truth(rendered(messages)) + 60


@pytest.mark.parametrize("template", [None, "chatml"])
def test_a_client_that_spells_special_tokens_counts_no_less_than_their_text(file, truth, template):
    counter = Counter(load_tokenizer(file), ChatTemplate(family(template).template) if template else None)
    text = "<|im_end|>" * 40
    as_text = sum(truth(char) for char in text)
    assert counter.count(GenerationRequest("m", talk(text))) >= as_text
    assert counter.count(GenerationRequest("m", prompts=(Prompt(text),))) >= as_text


def test_everything_that_a_template_may_write_is_counted(file):
    counter = Counter(load_tokenizer(file), None)
    plain = counter.count(GenerationRequest("m", talk("hi")))
    tool = Tool("fox", "jumps over", b'{"type": "object", "properties": {"dog": {"type": "string"}}}')
    assert counter.count(GenerationRequest("m", talk("hi"), tools=(tool,))) > plain + counting.WITH_TOOLS
    picture = (Message("user", (Text("hi"), ImageInput("data:image/png;base64,AAAA"))),)
    assert counter.count(GenerationRequest("m", picture)) == plain + counting.PER_IMAGE


def test_prompts_and_inputs_are_counted_each(file, truth):
    counter = Counter(load_tokenizer(file), None)
    assert counter.count(GenerationRequest("m", prompts=(Prompt(TEXT), Prompt(tokens=(1, 2, 3))))) == truth(TEXT) + 1 + 3
    assert counter.count(EmbeddingRequest("m", (Prompt(TEXT), Prompt(TEXT)))) == 2 * (truth(TEXT) + 1)


async def test_long_prompts_are_counted_alike_in_a_thread(file, monkeypatch):
    counter = Counter(load_tokenizer(file), None)
    asked = call()
    here = await counter.bound(asked)
    monkeypatch.setattr(counting, "INLINE_BYTES", 0)
    assert await counter.bound(asked) == here


def test_counters_of_unchanged_routes_are_kept(file):
    route, other = Route("a", (), tokenizer=file), Route("b", (), tokenizer=file, chat_template=family("chatml").template)
    first = load_counters([route, Route("plain", ())], load_tokenizer, {})
    assert set(first) == {key_of(route)}
    second = load_counters([route, other], load_tokenizer, first)
    assert second[key_of(route)] is first[key_of(route)]
    assert set(second) == {key_of(route), key_of(other)}


def test_without_a_tokenizer_images_are_part_of_the_estimate():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with_picture = call(messages=[{"role": "user", "content": [{"type": "text", "text": TEXT}, picture]}])
    assert input_bound(with_picture) == input_bound(call()) + counting.PER_IMAGE


def test_an_answer_is_cut_as_the_tokenizer_cuts_it_choice_by_choice(file, truth):
    counter = Counter(load_tokenizer(file), None)
    pieces = [TEXT[at : at + 3] for at in range(0, len(TEXT), 3)]
    kept = [(n % 2, piece) for piece in pieces for n in (0, 1)]
    asked = call(n=2, max_tokens=1000)
    found = counter.usage(asked, kept, 11)
    assert (found.input_tokens, found.output_tokens, found.source) == (11, 2 * truth(TEXT), "counted")
    assert counter.usage(call(n=2, max_tokens=3), kept, 11).output_tokens == 6, "never more than the cap"
    assert counter.usage(asked, [], 0) == Usage(counter.count(asked.job), 0, source="counted")
