"""A real Triton server whose models have the tensors of TensorRT-LLM's own: `PYTHON tests/engines/triton_server.py`.

PYTHON is Debian's interpreter in an environment with nvidia-pytriton; nothing of this project is imported. It serves
`ensemble` (each event has the new text and its count) and `tensorrt_llm_bls` (each has all so far), reads three ports as
one line from its arguments and serves until its standard input closes. Names and types of the tensors:
TensorRT-LLM triton_backend/all_models/inflight_batcher_llm (ensemble and tensorrt_llm_bls, config.pbtxt).

The model says the prompt's last line that is no template mark, word by word; asked to sing, it says "la" for ever.
As TensorRT-LLM does, it ends with the stop word in its text. A line `refuse` is an error of the model, `break` one after
two words.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

ENDLESS = "sing without end"
_PAUSE_S = 0.02
_MARK = re.compile(r"<\|[^|]*\|>|\[/?INST\]|assistant|user|system")


def _words(prompt: str) -> Iterator[str]:
    lines = [line.strip() for line in _MARK.sub("\n", prompt).splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    if ENDLESS in said.lower():
        while True:
            yield "la "
    yield from re.findall(r"\S+\s*", f"You said: {said}")


class Model:
    """One model. `accumulates`: each event has all text so far."""

    def __init__(self, accumulates: bool) -> None:
        self._accumulates = accumulates

    def infer(self, requests: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """One request's events."""
        # a generator itself: pytriton asks the function what it is
        yield from self._events({name: value.reshape(-1) for name, value in requests[0].items()})

    def _events(self, inputs: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
        prompt = bytes(inputs["text_input"][0]).decode()
        streamed = bool(inputs.get("stream", [False])[0])
        stops = [bytes(one).decode() for one in inputs.get("stop_words", ()) if one]
        if prompt.rstrip().endswith("refuse") or "\nrefuse" in prompt:
            raise ValueError("the model refuses this prompt")
        text, count = "", 0
        for word in _words(prompt):
            if "break" in prompt and count == 2:
                raise ValueError("the model broke")
            text, count = text + word, count + 1
            ended = any(stop in text for stop in stops) or count >= int(inputs["max_tokens"][0])
            if streamed:
                yield self._event(*((text, count) if self._accumulates else (word, 1)), prompt)
                time.sleep(_PAUSE_S)
            if ended:
                break
        if not streamed:
            kept = bool(inputs.get("exclude_input_in_output", [False])[0])
            yield self._event(text if kept else prompt + text, count, prompt)

    def _event(self, text: str, count: int, prompt: str) -> list[dict[str, Any]]:
        event = {
            "text_output": np.array([text.encode()], dtype=object),
            "cum_log_probs": np.array([-0.1 * count], np.float32),
            "num_input_tokens": np.array([len(prompt.split())], np.int32),
            "num_output_tokens": np.array([count], np.int32),
        }
        return [event]


def _one(name: str, kind: Any, optional: bool = True) -> Tensor:
    return Tensor(name=name, dtype=kind, shape=(1,), optional=optional)


INPUTS = [
    _one("text_input", bytes, False), _one("max_tokens", np.int32, False), _one("temperature", np.float32),
    _one("top_k", np.int32), _one("top_p", np.float32), _one("seed", np.uint64), _one("min_tokens", np.int32),
    _one("repetition_penalty", np.float32), _one("presence_penalty", np.float32), _one("frequency_penalty", np.float32),
    _one("stream", np.bool_), _one("exclude_input_in_output", np.bool_), _one("return_num_input_tokens", np.bool_),
    _one("return_num_output_tokens", np.bool_), _one("beam_width", np.int32), _one("return_log_probs", np.bool_),
    Tensor(name="stop_words", dtype=bytes, shape=(-1,), optional=True),
    Tensor(name="bad_words", dtype=bytes, shape=(-1,), optional=True),
]  # fmt: skip
OUTPUTS = [_one("text_output", bytes, False), _one("cum_log_probs", np.float32, False),
           _one("num_input_tokens", np.int32, False), _one("num_output_tokens", np.int32, False)]  # fmt: skip


def main(http: int, grpc: int, metrics: int, folder: Path) -> None:
    """Serve on these ports of the loopback; `folder` takes Triton's workspace."""
    config = TritonConfig(
        http_port=http, grpc_port=grpc, metrics_port=metrics, http_address="127.0.0.1", grpc_address="127.0.0.1"
    )
    with Triton(config=config, workspace=str(folder / "workspace")) as triton:
        for name, accumulates in (("ensemble", False), ("tensorrt_llm_bls", True)):
            model = Model(accumulates)
            decoupled = ModelConfig(batching=False, decoupled=True)
            triton.bind(model_name=name, infer_func=model.infer, inputs=INPUTS, outputs=OUTPUTS, config=decoupled)
        triton.run()
        print("serving", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
