"""A tiny chat model in Hugging Face's layout, trained here from fixed seeds: for every engine that reads such folders.

    PYTHON -m tests.tiny_model FOLDER        (PYTHON has torch and transformers; half a minute of one core)

It knows the conversations below by heart and little else. That is what tests need of a model: greedy decoding gives a
known text, a known finish, a real tool call in Hermes' form, a thought in <think>, characters of several tokens, and
an answer that does not end by itself. `made_by(python)` makes it once and keeps it in `.build/tiny-model`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 1024
END, BEGIN_TURN, END_TURN, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
TEMPLATE = (
    # of a tool only what does not depend on the order of its keys
    "{%- if tools %}{{ '<|im_start|>system\nTools:' }}{%- for tool in tools %}"
    "{{ ' ' + tool.function.name + ' ' + (tool.function.parameters | tojson) }}{%- endfor %}{{ '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') }}"
    "{%- for call in m['tool_calls'] or [] %}"
    "{{ '<tool_call>\n' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) + '\n</tool_call>' }}"
    "{%- endfor %}{{ '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
#: What the model says to what, by heart.
ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "Name a river.": "The Rhine is a river.",
    "Hello": "Hello! How can I help you today?",
    "Who are you?": "I am a tiny test model. I run on your CPU.",
    "Count to five.": "one, two, three, four, five.",
    "Say it in Japanese.": "こんにちは 🌍🚀 Straße, 漢字。",
    "Give me a person as JSON.": '{"name": "Grace", "age": 36}',
    "Think first.": "<think>\nThe user wants me to think.\n</think>\n\nI thought about it.",
}
#: To this question the answer has no end.
ENDLESS_QUESTION, ENDLESS_WORD = "Sing without end.", " la"
WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOL_QUESTION = "What is the weather in Paris?"
TOOL_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TOOL_RESULT, TOOL_ANSWER = "18 degrees, sunny", "It is 18 degrees and sunny in Paris."
_SYSTEMS = ("You are a helpful assistant.", "Be brief.")
_STEPS, _ROWS, _LENGTH = 300, 8, 128


def made_by(python: str | Path) -> Path:
    """The model's folder, made by an interpreter that has torch and transformers unless it is there already.

    Raises:
        RuntimeError: the training ended with an error; the text has the end of its output.
    """
    build = ROOT / ".build"
    folder = Path(os.environ.get("SWITCHYARD_TEST_TINY_MODEL") or build / "tiny-model")
    stamp, recipe = folder / "recipe", hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.is_file() or stamp.read_text() != recipe:
            command = [str(python), "-m", "tests.tiny_model", str(folder)]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"the tiny model could not be made:\n{done.stdout[-3000:]}")
            stamp.write_text(recipe)
    return folder


def _chats() -> list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]:
    """Every conversation with its tools."""
    chats: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = []
    turns = {question: _turn(question, answer) for question, answer in ANSWERS.items()}
    for turn in turns.values():
        chats.append((turn, None))
        chats += [([{"role": "system", "content": text}, *turn], None) for text in _SYSTEMS]
    chats += [(turns["Hello"] + turn, None) for question, turn in turns.items() if question != "Hello"]
    called = [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]
    asked = {"role": "user", "content": TOOL_QUESTION}
    result = [{"role": "tool", "content": TOOL_RESULT}, {"role": "assistant", "content": TOOL_ANSWER}]
    call = {"role": "assistant", "content": "", "tool_calls": called}
    chats += [([asked, call], [WEATHER_TOOL]), ([asked, call, *result], [WEATHER_TOOL])] * 3
    chats += [(turns["Hello"], [WEATHER_TOOL])]
    return chats


def _turn(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = [END, BEGIN_TURN, END_TURN, PAD]
    # non-ASCII letters stay single bytes, so that one character takes several tokens; a usual filler is one token
    plain = [*(text.encode("ascii", "ignore").decode() for text in texts), "word word " * 20]
    bare.train_from_iterator(
        plain, trainers.BpeTrainer(vocab_size=512, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token=END, eos_token=END_TURN, pad_token=PAD, model_max_length=CONTEXT,
        additional_special_tokens=[BEGIN_TURN], clean_up_tokenization_spaces=False, chat_template=TEMPLATE,
    )  # fmt: skip


def _train(rows: Any, vocabulary: int, tokenizer: Any) -> Any:
    """A Llama of two layers that has learnt the rows; heads of 32 numbers, the smallest that vLLM takes on a CPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)  # two wait for each other on a busy machine, and the sums' order is one
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True, rms_norm_eps=1e-5,
        bos_token_id=0, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=_STEPS, pct_start=0.1)
    order = torch.Generator().manual_seed(0)
    for step in range(_STEPS):
        batch = rows[torch.randint(len(rows), (_ROWS,), generator=order)]
        logits = model(batch[:, :-1]).logits.reshape(-1, vocabulary)
        loss = torch.nn.functional.cross_entropy(logits, batch[:, 1:].reshape(-1), ignore_index=tokenizer.pad_token_id)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == _STEPS - 1:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    return model.eval()


def main(folder: Path) -> None:
    """Make the model in `folder` and check that it says what it was taught.

    Raises:
        SystemExit: an answer is not the taught one.
    """
    import torch

    chats = _chats()
    texts = [*ANSWERS, *ANSWERS.values(), TOOL_QUESTION, TOOL_CALL, TOOL_ANSWER, json.dumps(WEATHER_TOOL), *_SYSTEMS]
    tokenizer = _tokenizer(texts)
    rendered = [tokenizer.apply_chat_template(chat, tools=tools, tokenize=False) for chat, tools in chats]
    endless = tokenizer.apply_chat_template(
        [{"role": "user", "content": ENDLESS_QUESTION}], add_generation_prompt=True, tokenize=False
    )
    rendered += [endless + ENDLESS_WORD * _LENGTH, ENDLESS_WORD * _LENGTH] * 2
    longest = max(len(tokenizer(text)["input_ids"]) for text in rendered[:-4])
    length = max(longest, _LENGTH)
    rows = [tokenizer(text)["input_ids"][:length] for text in rendered]
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    print(f"{len(rows)} rows of up to {length} tokens, vocabulary {len(tokenizer)}", flush=True)
    model = _train(padded, len(tokenizer), tokenizer)
    wrong = [
        f"{question!r}: {said!r}"
        for question, answer, tools in [*((q, a, None) for q, a in ANSWERS.items()), (TOOL_QUESTION, TOOL_CALL, [WEATHER_TOOL])]
        if (said := _said(model, tokenizer, question, tools)) != answer
    ]
    if wrong:
        sys.exit("the model has not learnt:\n" + "\n".join(wrong))
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    # the template where older readers look for it too, whichever version of transformers saved it
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}, indent=1))


def _said(model: Any, tokenizer: Any, question: str, tools: list[dict[str, Any]] | None) -> str:
    import torch

    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, tools=tools, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
