"""Models that nothing else runs, by Hugging Face transformers: one at a time through `generate`, or its continuous batch.

Jobs are tokenised and checked on the engine thread. The model's own threads make the tokens and put events into a
mailbox, which `step` empties.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

from backends.core.capabilities import Capabilities
from backends.core.contracts import Engine
from backends.core.errors import BadRequest, UnsupportedParameter
from backends.core.request import GenerationRequest, Job
from backends.engines.huggingface.prompts import Prompts
from backends.engines.huggingface.spelling import Spelling
from backends.engines.journal import Journal
from backends.engines.launch import EngineLaunch
from backends.engines.mailed import MailedEngine, Taken
from backends.engines.options import EngineLoadFailed, read_options
from backends.engines.transformers.answers import Answer, Ends
from backends.engines.transformers.batching import Batch, Unsuitable, pages
from backends.engines.transformers.loading import Loaded, generation_problem
from backends.engines.transformers.pooler import TransformersPooler
from backends.engines.transformers.sampling import CAPABILITIES, batchable, generation_arguments
from backends.engines.transformers.settings import SUPPORTED, TransformersOptions
from backends.engines.transformers.solo import Solo
from backends.engines.transformers.work import Work
from backends.engines.versions import check

#: Stop strings of a request.
MAX_STOPS = 64
CLOSE_S = 1.0


def load(launch: EngineLaunch) -> Engine:
    """The engine for a launch: one for embeddings or scores when its options say so.

    Raises:
        EngineLoadFailed: in one line why not.
    """
    version = check(SUPPORTED)
    options = read_options(launch.options, TransformersOptions)
    if problem := generation_problem(options.generation):
        raise EngineLoadFailed(problem)
    if options.embedding or options.rerank:
        return TransformersPooler(launch, options, version)
    return TransformersEngine(launch, options, version)


class TransformersEngine(MailedEngine):
    """See the module; the `Engine` contract."""

    def __init__(self, launch: EngineLaunch, options: TransformersOptions, version: str) -> None:
        """Raises EngineLoadFailed."""
        self._options = options
        self._version = version
        super().__init__(launch, Journal(options.step_log, options.log))
        self._loaded = loaded = Loaded(launch.model, options)
        self.context_size = _context(launch.context, loaded.trained_context)
        self._prompts = Prompts(
            loaded.tokenizer,
            self.context_size,
            vocabulary=loaded.vocabulary,
            template=options.template,
            variables=options.template_variables,
        )
        hidden = [
            id
            for id, text in zip(loaded.tokenizer.all_special_ids, loaded.tokenizer.all_special_tokens, strict=True)
            if str(text) not in options.shown
        ]
        self._ends = Ends(loaded.ends(), hidden, Spelling(loaded.tokenizer).of)
        self._of_model = loaded.generation_defaults()
        self._batch, self._why_not = self._batching()
        alone = self._batch.paused if self._batch is not None else nullcontext
        self._solo = Solo(loaded, self._ends, self._mailbox.put, alone)
        self._at_once = self._slots if self._batch is not None else 1

    # the Engine contract

    def prompt_tokens(self, job: Job) -> int:
        """As `CountsPrompts`."""
        if not isinstance(job, GenerationRequest):
            raise BadRequest("This model makes text, nothing else.", param="model")
        return sum(map(len, self._prompts.of(job)))

    def describe(self) -> Mapping[str, object]:
        """Facts and figures; as `Engine`."""
        return {
            "context": self.context_size,
            **self._load(),
            "version": f"transformers {self._version}",
            "device": self._loaded.device,
            "batching": "continuous" if self._batch is not None else f"queue ({self._why_not})",
            "capabilities": sorted(self._capabilities()),
            "adapters": sorted(self._loaded.adapters),
            "prompt_tail": self._prompts.tail,
        }

    def close(self) -> None:
        """Free the model."""
        self._solo.close(CLOSE_S)
        if self._batch is not None:
            self._batch.close(CLOSE_S)
        self._journal.close()

    def _capabilities(self) -> Capabilities:
        can = CAPABILITIES | ({"chat"} if self._prompts.chats else set())
        return can - {"logprobs"} if self._options.beams > 1 else can

    def _batching(self) -> tuple[Batch | None, str]:
        """The continuous batch, or why there is none."""
        options = self._options
        if options.batching == "queue":
            return None, "as configured"
        count = pages(options.cache_tokens, slots=self._slots, context=self.context_size, page_tokens=options.page_tokens)
        try:
            if options.beams > 1:
                raise Unsuitable("num_beams is stated, and beams are not batched")
            if options.lora:
                raise Unsuitable("adapters are each request's own, and a batch has one model")
            batch = Batch(
                self._loaded,
                self._mailbox.put,
                self._mailbox.fail,
                slots=self._slots,
                pages=count,
                page_tokens=options.page_tokens,
            )
            batch.probe([next(iter(self._ends.ends), 0)])
        except Unsuitable as error:
            if options.batching == "continuous":
                raise EngineLoadFailed(f"options.batching: continuous batching cannot be had: {error}") from None
            return None, str(error)
        return batch, ""

    # taking a job, on the engine thread

    def _take(self, job: Job, id: str) -> Taken:
        work = self._work(job, id)
        fits = self._batch is not None and batchable(work.job, self._of_model, self._options.generation)
        runner: Solo | Batch = self._batch if fits and self._batch is not None else self._solo
        return Taken(work.job.choices, lambda: runner.add(work), lambda: runner.cancel(work), work.answer.usage)

    def _work(self, job: Job, id: str) -> Work:
        if not isinstance(job, GenerationRequest):
            raise BadRequest("This model makes text, nothing else.", param="model")
        if len(job.sampling.stop) > MAX_STOPS:
            raise BadRequest(f"At most {MAX_STOPS} stop strings are taken.", param="stop")
        if job.suffix:
            raise UnsupportedParameter("This model's engine does not fill in the middle.", param="suffix")
        if job.output.kind != "text":
            raise UnsupportedParameter("This model's engine cannot hold an answer to a form.", param="response_format")
        for token, _ in job.sampling.logit_bias:
            if not 0 <= token < self._loaded.vocabulary:
                raise BadRequest(f"The model has no token {token}.", param="logit_bias")
        self._check_beams(job)
        self._check_room(job.choices)
        prompts = self._prompts.of(job)
        arguments: list[Mapping[str, object]] = [
            generation_arguments(
                job,
                room=self.context_size - len(prompt),
                ends=self._ends.ends,
                pad=self._loaded.pad(),
                of_model=self._of_model,
                stated=self._options.generation,
            )
            for prompt in prompts
        ]
        return Work(id, job, prompts, arguments, Answer(job, [len(one) for one in prompts], self.context_size, self._ends))

    def _check_beams(self, job: GenerationRequest) -> None:
        beams = self._options.beams
        if beams > 1 and job.n > beams:
            raise BadRequest(f"This model is searched with {beams} beams, so that n is at most {beams}.", param="n")
        if beams > 1 and job.top_logprobs is not None:
            raise UnsupportedParameter("A search by beams tells no logprobs.", param="logprobs")


def _context(asked: int, trained: int) -> int:
    """Tokens of prompt and answer together.

    Raises:
        EngineLoadFailed: more is asked than the model was trained with, or nothing is known.
    """
    if asked and trained and asked > trained:
        raise EngineLoadFailed(f"a context of {asked} is more than the {trained} the model was trained with")
    if not asked and not trained:
        raise EngineLoadFailed("the model does not say how long its context is: write engines.<name>.context")
    return asked or trained
