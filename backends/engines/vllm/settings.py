"""The vLLM engine's options."""

from __future__ import annotations

from typing import Annotated

import msgspec


class VllmOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a `vllm` engine.

    `arguments`: vLLM's own engine arguments, by their names in Python. `embedding`: make vectors instead of text;
    `rerank`: score documents instead, by the tokenizer's form of a pair or by `rerank_template`, a text with `{query}` and
    `{document}`.
    `lora`: LoRA adapters, name to folder; a deployment whose `model` is such a name gets that adapter.
    `tool_call_parser`: vLLM's parser of tool calls; its reasoning parser is the argument `reasoning_parser`.
    `template_variables`: further variables of the chat template. `sleep_after_s`: seconds without work after which the
    GPU's memory is given back (level 1: weights are kept in RAM; 2: they are dropped and read again), None = never.
    `step_log`, `log`: files for the journal; vLLM plans its own steps, so both hold jobs only.
    """

    arguments: dict[str, object] = {}
    embedding: bool = False
    rerank: bool = False
    rerank_template: str = ""
    lora: dict[str, str] = {}
    tool_call_parser: str = ""
    template: str = ""
    template_variables: dict[str, object] = {}
    sleep_after_s: Annotated[float, msgspec.Meta(ge=1, le=31_536_000)] | None = None
    sleep_level: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    step_log: str | None = None
    log: str | None = None
