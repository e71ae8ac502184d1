"""The transformers engine's options."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import msgspec

from backends.engines.versions import Supported

SUPPORTED = Supported("transformers", ("transformers",), (5, 19), (5, 24), "transformers")

Positive = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class TransformersOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a `transformers` engine.

    `tokenizer`: its folder or name, "" = the model's. `lora`: PEFT adapters, name to folder; a deployment whose `model` is such
    a name gets that adapter. `merged_lora`: folder of one that every request gets, merged into the model unless that is
    quantised. `device`: `auto`, `cpu`, `cuda`, `cuda:1` …; `device_map`: over several devices, as
    accelerate has it. `dtype`: of the weights, `auto` = as in the file. `quantization`: by bitsandbytes.
    `attention`: transformers' `attn_implementation`, "" = its choice. `generation`: fields of `GenerationConfig` used
    where a request states nothing (`num_beams`, `repetition_penalty`, `do_sample` …). `batching`: `continuous` is
    transformers' own, `queue` runs one request at a time, `auto` is the first where the model can. `page_tokens` and
    `cache_tokens`: the size of a page of the continuous cache and of all of it, None = every slot's whole context.
    `embedding`: make vectors; `pooling`: how. `rerank`: score documents, by the tokenizer's form of a pair or by
    `rerank_template`, a text with `{query}` and `{document}`. `threads`: of computation on a CPU, None = all cores but one.
    `template`, `template_variables`: of the conversation. `shown`: control tokens whose text is part of an answer.
    `step_log`, `log`: files for the journal.
    """

    tokenizer: str = ""
    lora: dict[str, str] = {}
    merged_lora: str = ""
    device: str = "auto"
    device_map: str | dict[str, str | int] | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: Literal["8bit", "4bit"] | None = None
    attention: str = ""
    trust_remote_code: bool = False
    generation: dict[str, object] = {}
    batching: Literal["auto", "continuous", "queue"] = "auto"
    page_tokens: Annotated[int, msgspec.Meta(ge=4, le=65_536)] = 64
    cache_tokens: Annotated[int, msgspec.Meta(ge=64)] | None = None
    embedding: bool = False
    rerank: bool = False
    rerank_template: str = ""
    pooling: Literal["mean", "cls", "last", "sentence_transformers"] = "mean"
    normalize: bool = True
    threads: Positive | None = None
    template: str = ""
    template_variables: dict[str, object] = {}
    shown: tuple[str, ...] = ()
    step_log: str | None = None
    log: str | None = None

    def thread_count(self) -> int:
        """Threads of computation."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) - 1)

    @property
    def beams(self) -> int:
        """Beams of the search; 1 = none."""
        stated = self.generation.get("num_beams", 1)
        return stated if isinstance(stated, int) else 1
