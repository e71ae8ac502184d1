"""Models and tokenizers by transformers: device, dtype, quantisation, LoRA. Every failure is one line for the operator."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends.engines.huggingface.weights import check_weights
from backends.engines.options import EngineLoadFailed
from backends.engines.transformers.settings import TransformersOptions


class Loaded:
    """A model and what belongs to it. `inner`: the module whose `generate` runs."""

    def __init__(self, model: str, options: TransformersOptions) -> None:
        """Raises EngineLoadFailed."""
        import torch
        from transformers import AutoConfig, AutoTokenizer

        check_weights(model)
        torch.set_num_threads(options.thread_count())
        self.device = _device(options)
        trusted = {"trust_remote_code": options.trust_remote_code}
        try:
            config = AutoConfig.from_pretrained(model, **trusted)
            self.tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or model, **trusted)
        except Exception as error:  # whatever a folder's content provokes
            raise _failed(model, error) from None
        self.encodes = bool(getattr(config, "is_encoder_decoder", False))
        self.inner = _model(model, config, options, self.device, trusted)
        if options.merged_lora:
            self.inner = _with_lora(self.inner, options)
        self.adapted = _with_adapters(self.inner, options.lora) if options.lora else None
        self.adapters = frozenset(options.lora)
        self.inner.eval()
        text = config.get_text_config()
        self.vocabulary = int(text.vocab_size)
        self.trained_context = int(getattr(text, "max_position_embeddings", 0) or 0)

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """While the model has the adapter of that name; without an adapter when there is none of it."""
        if self.adapted is None:
            yield
        elif name in self.adapters:
            self.adapted.set_adapter(_key(name))
            yield
        else:
            with self.adapted.disable_adapter():
                yield

    def ends(self) -> list[int]:
        """Tokens that end an answer."""
        stated = self.inner.generation_config.eos_token_id
        found = [stated] if isinstance(stated, int) else list(stated or ())
        return found or ([self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else [])

    def pad(self) -> int:
        """The token that fills up rows."""
        if self.tokenizer.pad_token_id is not None:
            return int(self.tokenizer.pad_token_id)
        return next(iter(self.ends()), 0)

    def generation_defaults(self) -> dict[str, object]:
        """What the model's own generation configuration states of sampling."""
        stated = self.inner.generation_config.to_diff_dict()
        names = ("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "num_beams")
        return {name: stated[name] for name in names if stated.get(name) is not None}


def generation_problem(stated: Mapping[str, object]) -> str | None:
    """What is wrong with `options.generation`, with the mend; None when nothing is."""
    import difflib

    from transformers import GenerationConfig

    known = sorted(name for name in vars(GenerationConfig()) if not name.startswith("_"))
    for name in stated:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            mend = f"did you mean {' or '.join(near)}?" if near else "the names are those of GenerationConfig"
            return f"options.generation.{name}: there is no such field; {mend}"
    try:
        GenerationConfig(**stated).validate(strict=True)
    except Exception as error:
        return f"options.generation: {error}"
    return None


def _device(options: TransformersOptions) -> str:
    import torch

    if options.device != "auto":
        try:
            torch.empty(0, device=options.device)
        except Exception as error:
            raise EngineLoadFailed(f"options.device: {options.device!r} cannot be used: {error}") from None
        return options.device
    for name in ("cuda", "xpu", "mps"):
        kind = getattr(torch, name, None) if name != "mps" else torch.backends.mps
        if kind is not None and kind.is_available():
            return name
    return "cpu"


def _model(model: str, config: Any, options: TransformersOptions, device: str, trusted: Mapping[str, object]) -> Any:
    import transformers

    more: dict[str, object] = {**trusted, "dtype": options.dtype}
    if options.attention:
        more["attn_implementation"] = options.attention
    if options.quantization is not None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise EngineLoadFailed(
                f"options.quantization: {options.quantization} needs bitsandbytes: pip install 'switchyard[bitsandbytes]' into"
                " the engine's environment, or remove it"
            )
        more["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_8bit=options.quantization == "8bit", load_in_4bit=options.quantization == "4bit"
        )
    if options.device_map is not None or options.quantization is not None:
        if importlib.util.find_spec("accelerate") is None:
            raise EngineLoadFailed("options.device_map and .quantization need accelerate: pip install accelerate")
        more["device_map"] = options.device_map or {"": device}
    if options.embedding:
        kind = transformers.AutoModel
    elif options.rerank:
        kind = transformers.AutoModelForSequenceClassification
    else:
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    try:
        loaded = kind.from_pretrained(model, **more)
        return loaded if "device_map" in more else loaded.to(device)
    except Exception as error:
        raise _failed(model, error) from None


def _with_lora(model: Any, options: TransformersOptions) -> Any:
    _check_adapter("options.merged_lora", options.merged_lora)
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, options.merged_lora, is_trainable=False)
        # a quantised weight would lose what the adapter adds by rounding: there the adapter's own layers stay in place
        return adapted.merge_and_unload() if options.quantization is None else adapted.get_base_model()
    except Exception as error:
        raise EngineLoadFailed(f"options.merged_lora: {type(error).__name__}: {error}") from None


def _with_adapters(model: Any, adapters: Mapping[str, str]) -> Any:
    """The model with adapters that can be switched; the module itself stays the one that generates."""
    for name, path in adapters.items():
        _check_adapter(f"lora.{name}", path)
    from peft import PeftModel

    adapted = None
    for name, path in adapters.items():
        try:
            if adapted is None:
                adapted = PeftModel.from_pretrained(model, path, adapter_name=_key(name), is_trainable=False)
            else:
                adapted.load_adapter(path, adapter_name=_key(name), is_trainable=False)
        except Exception as error:
            raise EngineLoadFailed(f"lora.{name}: {type(error).__name__}: {error}") from None
    return adapted


def _key(name: str) -> str:
    """PEFT makes modules of adapters' names, where a dot has a meaning of its own."""
    return "adapter_" + name.encode().hex()


def _check_adapter(key: str, path: str) -> None:
    if importlib.util.find_spec("peft") is None:
        raise EngineLoadFailed(f"{key} needs peft: pip install 'switchyard[transformers]' into the engine's environment")
    if not Path(path, "adapter_config.json").is_file():
        raise EngineLoadFailed(f"{key}: {path} has no adapter_config.json")


def _failed(model: str, error: Exception) -> EngineLoadFailed:
    return EngineLoadFailed(f"{model} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
