"""The llama.cpp engine's options."""

from __future__ import annotations

import os
from typing import Annotated

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Rows = Annotated[int, msgspec.Meta(ge=32, le=65_536)]


class LlamaOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a `llamacpp` engine.

    `embedding`: make vectors instead of text; `rerank`: score documents instead, by the file's own form of a pair or
    `rerank_template`, a text with `{query}` and `{document}`. `threads`: of computation, None = all cores but one, one for
    these two. `batch`: tokens of one step; a longer prompt is read in pieces of it. `beside`: prompt tokens of a step at
    most while others decode. `stretch`: how many times as long as without prompts such a step may take.
    `gpu_layers`: -1 = all. `prefix_cache`: keep a finished request's memory for one that begins the same; a request
    that states a seed never uses it, so that it gets the same batches again. `pooling`: for an embedder whose file
    does not say. `cache_tokens`: tokens that the cache holds, all slots
    together, None = every slot's whole context; when it is full, the youngest request is refused. `kept_tokens`: tokens of
    finished requests that are kept beside the cache, in memory of its own; None = a quarter of it.
    `template`: the source of a chat template, "" = the model's own. `lora`: adapter files by name.
    `shown`: control tokens whose text is part of an answer. `step_log`, `log`: files for the journal.
    """

    embedding: bool = False
    rerank: bool = False
    rerank_template: str = ""
    threads: Positive | None = None
    batch: Rows = 128
    beside: Annotated[int, msgspec.Meta(ge=4, le=65_536)] = 128
    stretch: Annotated[float, msgspec.Meta(gt=1.0, le=100.0)] = 2.5
    gpu_layers: Annotated[int, msgspec.Meta(ge=-1, le=10_000)] = 0
    mmap: bool = True
    prefix_cache: bool = True
    pooling: str | None = None
    cache_tokens: Annotated[int, msgspec.Meta(ge=32, le=2**31 - 1)] | None = None
    kept_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None
    shown: tuple[str, ...] = ()
    template: str = ""
    lora: dict[str, str] = {}
    step_log: str | None = None
    log: str | None = None

    def thread_count(self) -> int:
        """Threads of computation."""
        if self.threads is not None:
            return self.threads
        return 1 if self.embedding or self.rerank else max(1, len(os.sched_getaffinity(0)) - 1)
