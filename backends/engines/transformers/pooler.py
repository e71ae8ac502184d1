"""Embeddings and scores by transformers: hidden states pooled here, all of it by sentence-transformers, or a reranker's head.

A step is one padded batch of one request's inputs, the longest of them together; requests of several batches take turns.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from backends.core.errors import BadRequest, Overloaded, UnsupportedParameter
from backends.core.events import Embedding, Event, Item, Score, Started
from backends.core.request import EmbeddingRequest, Job, RerankRequest
from backends.core.usage import Usage
from backends.engines.huggingface.pairs import Pair, Pairs
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


class _Work:
    """One job: its inputs, what was computed of them, and the order in which they go: the longest first."""

    def __init__(self, id: str, job: Job, inputs: list[Pair]) -> None:
        self.id = id
        self.job = job
        self.inputs = inputs
        self.found: list[Any] = [None] * len(inputs)
        self.todo = deque(sorted(range(len(inputs)), key=lambda index: -len(inputs[index].tokens)))


class TransformersPooler:
    """The `Engine` contract, for vectors or scores."""

    def __init__(self, launch: EngineLaunch, options: TransformersOptions, version: str) -> None:
        """Raises EngineLoadFailed."""
        self._version = version
        self._options = options
        self._slots, self._queue = launch.slots, launch.queue
        self._waiting: deque[_Work] = deque()
        if options.pooling == "sentence_transformers":
            self._sentences: Any = _sentences(launch.model, options)
            self._tokenizer, trained = self._sentences.tokenizer, int(self._sentences.max_seq_length or 0)
            self._vocabulary, self.device = len(self._tokenizer), str(self._sentences.device)
        else:
            self._sentences = None
            self._loaded = Loaded(launch.model, options)
            if self._loaded.encodes:
                raise EngineLoadFailed("the model has an encoder and a decoder: write options.pooling: sentence_transformers")
            if options.rerank and (labels := int(self._loaded.inner.config.num_labels)) != 1:
                raise EngineLoadFailed(f"a reranker has one label, this model has {labels}")
            self._tokenizer, trained = self._loaded.tokenizer, self._loaded.trained_context
            self._vocabulary, self.device = self._loaded.vocabulary, self._loaded.device
        if launch.context and trained and launch.context > trained:
            raise EngineLoadFailed(f"a context of {launch.context} is more than the {trained} the model was trained with")
        self.context_size = launch.context or trained or 512
        self._prompts = Prompts(self._tokenizer, self.context_size, vocabulary=self._vocabulary, generates=False)
        self._pairs = Pairs(self._tokenizer, self.context_size, template=options.rerank_template)
        self._journal = Journal(options.step_log, options.log)
        self.width = len(self._rows([Pair([next(iter(self._tokenizer.all_special_ids), 0)])])[0])

    def submit(self, job: Job, id: str) -> None:
        """Take a job; as `Engine`."""
        try:
            if len(self._waiting) >= self._slots + self._queue:
                raise Overloaded("The model's queue is full.", retry_after_ms=1000)
            self._waiting.append(_Work(id, job, self._inputs(job)))
        except Exception as error:
            self._journal.job("refuse", id, error=type(error).__name__)
            raise
        self._journal.job("submit", id)

    def prompt_tokens(self, job: Job) -> int:
        """As `CountsPrompts`."""
        return sum(len(one.tokens) for one in self._inputs(job))

    def cancel(self, id: str) -> None:
        """Forget a job, between two batches."""
        for work in self._waiting:
            if work.id == id:
                self._waiting.remove(work)
                self._journal.job("cancel", id, was="queued" if len(work.todo) == len(work.inputs) else "decode")
                return

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
        """The next batch; a request's answer comes whole."""
        if not self._waiting:
            return ()
        work = self._waiting.popleft()
        rows = [work.todo.popleft() for _ in range(min(self._together, len(work.todo)))]
        try:
            for index, one in zip(rows, self._rows([work.inputs[index] for index in rows]), strict=True):
                work.found[index] = one
        except Exception as error:  # memory, most likely: this request fails
            self._journal.job("fail", work.id)
            return [(work.id, [failure(error)])]
        if work.todo:
            self._waiting.append(work)
            return ()
        self._journal.job("finish", work.id)
        items = [
            Item(Score(index, float(one[0])) if self._options.rerank else Embedding(index, one.astype("<f4").tobytes()))
            for index, one in enumerate(work.found)
        ]
        tokens = sum(len(one.tokens) for one in work.inputs)
        return [(work.id, [Started(work.job.model), *items, Usage(tokens, 0, source="counted")])]

    def describe(self) -> Mapping[str, object]:
        """Facts and figures; as `Engine`."""
        return {
            "context": self.context_size,
            "slots": self._slots,
            "version": f"transformers {self._version}",
            "device": self.device,
            "capabilities": ["rerank"] if self._options.rerank else ["dimensions", "embeddings", "token_input"],
            "embedding_width": self.width,
            "running": 0,
            "queued": len(self._waiting),
        }

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _inputs(self, job: Job) -> list[Pair]:
        """What goes through the model for a job."""
        if isinstance(job, RerankRequest) and self._options.rerank:
            return self._pairs.of(job)
        if not isinstance(job, EmbeddingRequest) or self._options.rerank:
            raise BadRequest("This model does not do that kind of work.", param="model")
        if job.dimensions not in (None, self.width):
            raise UnsupportedParameter(f"The model's vectors have {self.width} numbers only.", param="dimensions")
        if len(job.inputs) > MAX_INPUTS:
            raise BadRequest(f"At most {MAX_INPUTS} inputs are taken.", param="input")
        return [Pair(self._prompts.plain(one, "input")) for one in job.inputs]

    @property
    def _together(self) -> int:
        """Heads of models that read from left to right find a row's end by the padding that the configuration names."""
        return ROWS if not self._options.rerank or self._loaded.inner.config.pad_token_id is not None else 1

    def _rows(self, inputs: list[Pair]) -> Any:
        import torch

        device = self._sentences.device if self._sentences is not None else self._loaded.inner.device
        pad = (self._loaded.inner.config.pad_token_id if self._options.rerank else self._tokenizer.pad_token_id) or 0
        lengths = [len(one.tokens) for one in inputs]

        def padded(rows: list[list[int]], filler: int) -> Any:
            longest = max(lengths)
            return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows], device=device)

        given = {
            "input_ids": padded([one.tokens for one in inputs], pad),
            "attention_mask": padded([[1] * length for length in lengths], 0),
        }
        if all(one.kinds is not None for one in inputs):
            given["token_type_ids"] = padded([one.kinds or [] for one in inputs], 0)
        with torch.inference_mode():
            if self._options.rerank:
                return self._loaded.inner(**given).logits.float().sigmoid().cpu().numpy()
            if self._sentences is not None:
                vectors = self._sentences(given)["sentence_embedding"].float()
            else:
                hidden = self._loaded.inner(**given).last_hidden_state.float()
                vectors = _pooled(hidden, given["attention_mask"], self._options.pooling)
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
