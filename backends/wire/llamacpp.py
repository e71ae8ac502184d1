"""llama.cpp's own wire: `/completion`, `/embedding`, `/tokenize`, `/detokenize`, `/apply-template`, `/props`, `/slots`.

Only the fields that are read.

Source: llama.cpp `tools/server` as vendored in llama-cpp-python 0.3.36, and captures of 2023-11 (`stopped_*` flags
instead of `stop_type`, no `index`).
"""

from __future__ import annotations

import msgspec

from backends.wire.openai_chat import TokenWire


class Timings(msgspec.Struct, gc=False):
    """`cache_n`: prompt tokens taken from the cache. `prompt_n` counts only the others: never the prompt's length."""

    cache_n: int = 0


class Completion(msgspec.Struct, gc=False):
    """An event of a stream, or a whole answer. `stop` is true on the last of each choice (`index`)."""

    content: str | None = None
    index: int | None = None
    stop: bool = False
    model: str = ""
    stop_type: str = ""
    stopped_eos: bool = False
    stopped_word: bool = False
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    timings: Timings | None = None
    completion_probabilities: list[TokenWire] | None = None
    error: msgspec.Raw = msgspec.Raw(b"")


class EmbeddingItem(msgspec.Struct, gc=False):
    """One input's vectors: one with pooling, one per token without."""

    index: int
    embedding: list[list[float]]


class Templated(msgspec.Struct, gc=False):
    """The answer of `/apply-template`."""

    prompt: str


class Tokenized(msgspec.Struct, gc=False):
    """The answer of `/tokenize`."""

    tokens: list[int]


class Detokenized(msgspec.Struct, gc=False):
    """The answer of `/detokenize`."""

    content: str


class GenerationSettings(msgspec.Struct, gc=False):
    """Of one slot. `n_ctx`: tokens that it holds."""

    n_ctx: int = 0


class Props(msgspec.Struct, gc=False):
    """The answer of `/props`."""

    default_generation_settings: GenerationSettings | None = None
    total_slots: int = 0
    model_path: str = ""
    chat_template: str = ""
    build_info: str = ""


class SlotState(msgspec.Struct, gc=False):
    """One slot of `/slots`."""

    id: int = 0
    is_processing: bool = False
