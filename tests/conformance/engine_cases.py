"""The engines that the conformance suite asks, each with how it is started and what it can do.

Every engine starts with the same shape: 2 slots, a queue of 2, 512 tokens of context, and the journal. A test names the
flags that it needs; an engine that lacks one skips the test with the reason written beside the flag.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests import heavy
from tests.models import chat_gguf

#: Flags a test may need, and what an engine without it is like.
FLAGS: Mapping[str, str] = {
    "several_prompts": "it takes one prompt a request",
    "seed": "it does not promise the same answer for the same seed",
    "logprobs": "it tells no logprobs",
    "stop": "it takes no stop strings",
    "n": "it makes one choice a request",
    "ignore_eos": "it cannot be kept from ending",
    "exact_context": "its context is not filled to the last token",
    "queue": "it has no bound of its own on waiting requests",
    "step_log": "its steps are another program's, so they are not in the journal",
    "schema": "it cannot be held to a JSON schema",
    "grammar": "it cannot be held to a grammar",
    "cached": "it does not tell which prompt tokens it had already read",
}


@dataclass(frozen=True)
class EngineCase:
    """One engine. `launch` gives the `EngineLaunch` fields that differ; it may skip with the reason for what is absent."""

    kind: str
    launch: Callable[[], dict[str, Any]]
    can: frozenset[str]
    marks: tuple[pytest.MarkDecorator, ...] = ()
    up_s: float = 40.0
    lacks: Mapping[str, str] = field(default_factory=dict)
    variant: str = ""

    def need(self, *flags: str) -> None:
        """Skip the test unless the engine has all of these flags."""
        for flag in flags:
            if flag not in self.can:
                pytest.skip(f"{self.kind}: {self.lacks.get(flag, FLAGS[flag])}")


def _scripted() -> dict[str, Any]:
    script = [f" word{n}" for n in range(40)]
    return {"options": {"script": script, "repeat": True, "prefill": 4, "step_s": 0.01}}


def _llamacpp() -> dict[str, Any]:
    return {"model": chat_gguf(), "options": {"batch": 32}}


#: JSON without the blanks that a tiny model would never end.
TERSE = {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}


def _vllm() -> dict[str, Any]:
    python = heavy.python("vllm")
    model = heavy.tiny_model(python)
    return {
        "python": str(python),
        "model": str(model),
        "environment": heavy.VLLM_ON_CPU,
        "options": {"arguments": {"enforce_eager": True, "dtype": "float32", "enable_prefix_caching": True, **TERSE}},
    }


def _transformers(**options: Any) -> Callable[[], dict[str, Any]]:
    def launch() -> dict[str, Any]:
        python = heavy.python("transformers")
        model = heavy.tiny_model(python)
        return {"python": str(python), "model": str(model), "environment": heavy.OFFLINE, "options": {"threads": 1, **options}}

    return launch


#: What transformers' engine has not, batched or not.
_NOT_TRANSFORMERS = {
    "step_log": FLAGS["step_log"],
    "schema": "transformers has no decoding that is held to a form",
    "grammar": "transformers has no decoding that is held to a form",
    "cached": "generate keeps no prefixes, and the continuous batch does not tell which of its pages were shared",
}

CASES = (
    EngineCase("scripted", _scripted, frozenset(FLAGS) - {"schema", "grammar", "cached"}),
    EngineCase("llamacpp", _llamacpp, frozenset(FLAGS), (pytest.mark.llamacpp,)),
    EngineCase("vllm", _vllm, frozenset(FLAGS) - {"step_log"}, (pytest.mark.heavy, pytest.mark.timeout(400)), up_s=240),
    *(
        EngineCase(
            "transformers",
            _transformers(batching=batching),
            frozenset(FLAGS) - _NOT_TRANSFORMERS.keys(),
            (pytest.mark.heavy, pytest.mark.timeout(400)),
            up_s=240,
            lacks=_NOT_TRANSFORMERS,
            variant=batching,
        )
        for batching in ("queue", "continuous")
    ),
)
PARAMS = [pytest.param(case, id="-".join(filter(None, (case.kind, case.variant))), marks=case.marks) for case in CASES]
