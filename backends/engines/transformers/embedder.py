"""Embeddings by transformers: hidden states pooled here, or all of it by sentence-transformers.

A step is one request: its inputs go through the model in padded batches, the longest together.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from backends.core.errors import BadRequest, Overloaded, UnsupportedParameter
from backends.core.events import Embedding, Event, Item, Started
from backends.core.request import EmbeddingRequest, Job
from backends.core.usage import Usage
from backends.engines.huggingface.prompts import Prompts
from backends.engines.journal import Journal
from backends.engines.launch import EngineLaunch
from backends.engines.options import EngineLoadFailed
from backends.engines.transformers.loading import Loaded
from backends.engines.transformers.settings import TransformersOptions
from backends.engines.transformers.work import failure

#: Inputs that go through the model together.
ROWS = 16
#: Inputs of a request.
MAX_INPUTS = 2048


class TransformersEmbedder:
    """The `Engine` contract, for vectors."""

    def __init__(self, launch: EngineLaunch, options: TransformersOptions, version: str) -> None:
        """Raises EngineLoadFailed."""
        self._version = version
        self._options = options
        self._slots, self._queue = launch.slots, launch.queue
        self._waiting: deque[tuple[str, EmbeddingRequest, list[list[int]]]] = deque()
        if options.pooling == "sentence_transformers":
            self._sentences: Any = _sentences(launch.model, options)
            self._tokenizer, trained = self._sentences.tokenizer, int(self._sentences.max_seq_length or 0)
            self._vocabulary, self.device = len(self._tokenizer), str(self._sentences.device)
        else:
            self._sentences = None
            self._loaded = Loaded(launch.model, options)
            if self._loaded.encodes:
                raise EngineLoadFailed("the model has an encoder and a decoder: write options.pooling: sentence_transformers")
            self._tokenizer, trained = self._loaded.tokenizer, self._loaded.trained_context
            self._vocabulary, self.device = self._loaded.vocabulary, self._loaded.device
        if launch.context and trained and launch.context > trained:
            raise EngineLoadFailed(f"a context of {launch.context} is more than the {trained} the model was trained with")
        self.context_size = launch.context or trained or 512
        self._prompts = Prompts(self._tokenizer, self.context_size, vocabulary=self._vocabulary, generates=False)
        self._journal = Journal(options.step_log, options.log)
        self.width = len(self._vectors([[next(iter(self._tokenizer.all_special_ids), 0)]])[0])

    def submit(self, job: Job, id: str) -> None:
        """Take a job; as `Engine`."""
        try:
            self._waiting.append(self._work(job, id))
        except Exception as error:
            self._journal.job("refuse", id, error=type(error).__name__)
            raise
        self._journal.job("submit", id)

    def prompt_tokens(self, job: Job) -> int:
        """As `CountsPrompts`."""
        if not isinstance(job, EmbeddingRequest):
            raise BadRequest("This model makes embeddings, not text.", param="model")
        return sum(len(self._prompts.plain(one, "input")) for one in job.inputs)

    def cancel(self, id: str) -> None:
        """Forget a job; one that is being computed was answered before this is heard."""
        before = len(self._waiting)
        self._waiting = deque(one for one in self._waiting if one[0] != id)
        if len(self._waiting) != before:
            self._journal.job("cancel", id, was="queued")

    def hurry(self) -> None:
        """A batch is not cut short."""

    def nudge(self) -> None:
        """Nothing to do: a step never only waits."""

    def waiting_s(self) -> float:
        """It computes in its steps."""
        return 0.0

    def busy(self) -> bool:
        """Whether there is work."""
        return bool(self._waiting)

    def step(self) -> Sequence[tuple[str, Sequence[Event]]]:
        """The next request, whole."""
        if not self._waiting:
            return ()
        id, job, prompts = self._waiting.popleft()
        try:
            vectors = self._vectors(prompts)
        except Exception as error:  # memory, most likely: this request fails
            self._journal.job("fail", id)
            return [(id, [failure(error)])]
        self._journal.job("finish", id)
        items = [Item(Embedding(index, vector.astype("<f4").tobytes())) for index, vector in enumerate(vectors)]
        return [(id, [Started(job.model), *items, Usage(sum(map(len, prompts)), 0, source="counted")])]

    def describe(self) -> Mapping[str, object]:
        """Facts and figures; as `Engine`."""
        return {
            "context": self.context_size,
            "slots": self._slots,
            "version": f"transformers {self._version}",
            "device": self.device,
            "capabilities": ["dimensions", "embeddings", "token_input"],
            "embedding_width": self.width,
            "running": 0,
            "queued": len(self._waiting),
        }

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _work(self, job: Job, id: str) -> tuple[str, EmbeddingRequest, list[list[int]]]:
        if not isinstance(job, EmbeddingRequest):
            raise BadRequest("This model makes embeddings, not text.", param="model")
        if job.dimensions not in (None, self.width):
            raise UnsupportedParameter(f"The model's vectors have {self.width} numbers only.", param="dimensions")
        if len(job.inputs) > MAX_INPUTS:
            raise BadRequest(f"At most {MAX_INPUTS} inputs are taken.", param="input")
        if len(self._waiting) >= self._slots + self._queue:
            raise Overloaded("The model's queue is full.", retry_after_ms=1000)
        return id, job, [self._prompts.plain(one, "input") for one in job.inputs]

    def _vectors(self, prompts: list[list[int]]) -> list[Any]:
        """A float32 array for each prompt, in their order."""
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        found: list[Any] = [None] * len(prompts)
        for begin in range(0, len(order), ROWS):
            rows = order[begin : begin + ROWS]
            for index, vector in zip(rows, self._rows([prompts[index] for index in rows]), strict=True):
                found[index] = vector
        return found

    def _rows(self, prompts: list[list[int]]) -> Any:
        import torch

        longest = max(map(len, prompts))
        device = self._sentences.device if self._sentences is not None else self._loaded.inner.device
        pad = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[*one, *[pad] * (longest - len(one))] for one in prompts], device=device)
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in prompts], device=device)
        with torch.inference_mode():
            if self._sentences is not None:
                vectors = self._sentences({"input_ids": ids, "attention_mask": mask})["sentence_embedding"].float()
            else:
                hidden = self._loaded.inner(input_ids=ids, attention_mask=mask).last_hidden_state.float()
                vectors = _pooled(hidden, mask, self._options.pooling)
            if self._options.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy()


def _pooled(hidden: Any, mask: Any, pooling: str) -> Any:
    """Hidden states (rows, tokens, width) to vectors (rows, width)."""
    import torch

    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), mask.sum(1) - 1]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _sentences(model: str, options: TransformersOptions) -> Any:
    if importlib.util.find_spec("sentence_transformers") is None:
        raise EngineLoadFailed("options.pooling needs sentence-transformers: pip install sentence-transformers, or write mean")
    from sentence_transformers import SentenceTransformer

    device = None if options.device == "auto" else options.device
    try:
        return SentenceTransformer(model, device=device, trust_remote_code=options.trust_remote_code)
    except Exception as error:
        raise EngineLoadFailed(f"{model} cannot be loaded: {type(error).__name__}: {error}") from None
