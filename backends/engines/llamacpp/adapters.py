"""LoRA adapters of a model, by name. llama.cpp applies them to a whole context, so a batch has rows of one adapter only."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llama_cpp as llama

from backends.engines.llamacpp.model import Model, complaints
from backends.engines.options import EngineLoadFailed

#: The name that stands for the model without an adapter.
NONE = ""


class Adapters:
    """Loaded adapters. They are freed with their model."""

    def __init__(self, model: Model, files: Mapping[str, str]) -> None:
        """Load.

        Raises:
            EngineLoadFailed: a file is not there, or is no adapter of this model; llama.cpp's own words are included.
        """
        self._handles: dict[str, Any] = {}
        self._applied = NONE
        for name, path in files.items():
            if not Path(path).is_file():
                raise EngineLoadFailed(f"lora {name!r}: there is no file {path}")
            handle = llama.llama_adapter_lora_init(model.handle, path.encode())
            if not handle:
                raise EngineLoadFailed(f"lora {name!r}: llama.cpp cannot load {path}: {complaints() or 'no reason given'}")
            self._handles[name] = handle

    @property
    def names(self) -> list[str]:
        """All of them."""
        return sorted(self._handles)

    def named(self, model: str) -> str:
        """The adapter that a job's model name chooses; NONE for any other name."""
        return model if model in self._handles else NONE

    def apply(self, context: object, name: str) -> None:
        """Have the context compute with this adapter alone from now on.

        Raises:
            RuntimeError: llama.cpp refuses.
        """
        if name == self._applied:
            return
        count = 0 if name == NONE else 1
        handles = (llama.llama_adapter_lora_p_ctypes * count)(*([self._handles[name]] if count else ()))
        if llama.llama_set_adapters_lora(context, handles, count, (ctypes.c_float * count)(*[1.0] * count)):
            raise RuntimeError(f"llama.cpp cannot apply the adapter {name!r}: {complaints()}")
        self._applied = name
