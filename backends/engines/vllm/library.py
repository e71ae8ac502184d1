"""All that is asked of the vllm package itself, but for its parsers. Imported in the host's process only.

Source: vLLM 0.32 (run on CPU) and 0.33 (read): `vllm/v1/engine/async_llm.py`, `sampling_params.py`, `pooling_params.py`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.core.errors import BadRequest
from backends.core.events import Embedding, Event, Item, Score
from backends.core.request import EmbeddingRequest, Output, RerankRequest
from backends.engines.huggingface.pairs import Pair
from backends.engines.options import EngineLoadFailed
from backends.parsing.sanitise import public

#: vLLM's metrics that are told on, less their prefix; see `gateway/figures.py`.
_PREFIX = "vllm:"
#: Where in a library's source an error was found, which its words begin with.
_PLACE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")


async def start(arguments: Mapping[str, object]) -> Any:
    """An AsyncLLM that is up.

    Raises:
        EngineLoadFailed: why vLLM does not start, in its words.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    except Exception as error:  # its configuration classes, the model's, torch: anything
        raise EngineLoadFailed(f"vLLM does not start: {type(error).__name__}: {error}") from None


def tokenizer(engine: Any) -> Any:
    """Its tokenizer.

    Raises:
        EngineLoadFailed: it is none of transformers' (tokenizer_mode: mistral and the like), which is not supported.
    """
    found = engine.get_tokenizer()
    if not hasattr(found, "added_tokens_decoder") or not hasattr(found, "convert_ids_to_tokens"):
        raise EngineLoadFailed(
            f"the tokenizer {type(found).__name__} is not supported: write options.arguments.tokenizer_mode: hf, and give the"
            " model a tokenizer.json"
        )
    return found


def check_adapters(modules: Mapping[str, str]) -> None:
    """Look for the adapters before anything is loaded.

    Raises:
        EngineLoadFailed: which one is not there.
    """
    for name, path in modules.items():
        if not Path(path, "adapter_config.json").is_file():
            raise EngineLoadFailed(f"lora.{name}: {path} has no adapter_config.json")


async def adapters(engine: Any, modules: Mapping[str, str]) -> dict[str, Any]:
    """LoRA adapters by name, loaded, so that a broken one is told at the start.

    Raises:
        EngineLoadFailed: which one cannot be loaded, and why.
    """
    from vllm.lora.request import LoRARequest

    found = {}
    for number, (name, path) in enumerate(modules.items(), 1):
        found[name] = LoRARequest(name, number, path)
        try:
            await engine.add_lora(found[name])
        except Exception as error:
            raise EngineLoadFailed(f"lora.{name}: {type(error).__name__}: {error}") from None
    return found


def sampling(arguments: Mapping[str, object], constraint: Mapping[str, object], conversation: Any, output: Output) -> Any:
    """`SamplingParams` of these arguments; a conversation's parsers may add a constraint of their own.

    Raises:
        BadRequest: vLLM's words on what is wrong with them.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    try:
        params = SamplingParams(
            **arguments,
            output_kind=RequestOutputKind.DELTA,
            structured_outputs=StructuredOutputsParams(**constraint) if constraint else None,
        )
    except Exception as error:
        if not (is_refusal(error) or isinstance(error, TypeError)):
            raise
        raise refused(error, output) from None
    if conversation is not None:
        if conversation.constraint is not None:
            params.structured_outputs = conversation.constraint
        params.skip_special_tokens = not conversation.show_special
    return params


def prompt(tokens: list[int]) -> Any:
    """A prompt of token ids as vLLM's engine takes it."""
    from vllm.inputs import tokens_input

    return tokens_input(tokens)


async def pooled(engine: Any, job: EmbeddingRequest | RerankRequest, id: str, index: int, pair: Pair, adapter: Any) -> Event:
    """The vector, or the score, of input number `index`. A reranker's score is vLLM's own: after the model's activation.

    Raises:
        BadRequest: the model's head has several outputs, so that none of them is the score.
    """
    from vllm.pooling_params import PoolingParams

    if isinstance(job, EmbeddingRequest):
        params = PoolingParams(task="embed", dimensions=job.dimensions)
    else:
        params = PoolingParams(task="classify")
        if pair.kinds is not None and 1 in pair.kinds:  # vLLM takes them as the place of the first 1
            params.extra_kwargs = {"compressed_token_type_ids": pair.kinds.index(1)}
    last = None
    async for output in engine.encode(prompt(pair.tokens), params, request_id=id, lora_request=adapter):
        last = output
    assert last is not None, "a pooling request ends with its output"
    numbers = last.outputs.data.float().flatten().tolist()
    if isinstance(job, EmbeddingRequest):
        return Item(Embedding(index, struct.pack(f"<{len(numbers)}f", *numbers)))
    if len(numbers) != 1:
        raise BadRequest(f"This model tells {len(numbers)} numbers of a pair; a reranker tells one.", param="model")
    return Item(Score(index, numbers[0]))


def figures(engine: Any) -> dict[str, object]:
    """Numbers for metrics: the cache's size and use, and vLLM's own under `vllm`, summed over its engine cores."""
    from prometheus_client import REGISTRY

    own: dict[str, float] = {}
    for family in REGISTRY.collect():
        if not family.name.startswith(_PREFIX):
            continue
        for sample in family.samples:
            if sample.name.endswith("_created") or "le" in sample.labels:
                continue
            name = sample.name.removeprefix(_PREFIX)
            own[name] = own.get(name, 0.0) + sample.value
    cache = engine.vllm_config.cache_config
    size = (cache.num_gpu_blocks or 0) * (cache.block_size or 0)
    used = own.get("kv_cache_usage_perc", 0.0)
    return {"kv_size": size, "kv_tokens": round(used * size), "vllm": own}


def is_dead(error: Exception) -> bool:
    """Whether vLLM's processes are gone."""
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError)


def refused(error: Exception, output: Output) -> BadRequest:
    """vLLM's refusal of a request as ours. vLLM names the parameter of some; what it says else is of the answer's form."""
    said = _PLACE.sub("", str(error.args[0] if error.args else error))
    param = getattr(error, "parameter", None)
    if param is None and output.kind != "text":
        param = output.asked_as or ("grammar" if output.kind == "grammar" else "response_format")
    return BadRequest(public(said) or "vLLM refuses this request.", param=param if isinstance(param, str) else None)


def is_refusal(error: Exception) -> bool:
    """Whether the request is at fault."""
    from vllm.exceptions import VLLMClientError

    return isinstance(error, VLLMClientError | ValueError)
