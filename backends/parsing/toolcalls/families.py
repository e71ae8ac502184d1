"""The tool-call syntaxes by name: what `tools:` of an engine or a deployment may be."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from backends.parsing.toolcalls.deepseek import DeepSeek
from backends.parsing.toolcalls.hermes import Hermes
from backends.parsing.toolcalls.llama3 import Llama3
from backends.parsing.toolcalls.machine import Syntax
from backends.parsing.toolcalls.mistral import Mistral
from backends.parsing.toolcalls.pythonic import Pythonic

#: Syntaxes by family.
TOOL_SYNTAXES: Mapping[str, Syntax] = MappingProxyType(
    {
        "hermes": Hermes(),
        "qwen": Hermes(),
        "mistral": Mistral(),
        "llama3": Llama3(),
        "pythonic": Pythonic(),
        "deepseek": DeepSeek(),
    }
)
