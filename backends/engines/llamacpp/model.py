"""A GGUF in memory: its vocabulary, its metadata, text to tokens and back. llama-cpp-python's low-level API.

A user may bring a llama.cpp of their own build: the library is found through LLAMA_CPP_LIB_PATH by llama_cpp itself.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Collection
from pathlib import Path

import llama_cpp as llama

from backends.core.errors import BadRequest
from backends.engines.options import EngineLoadFailed

#: llama.cpp's levels above "warning".
_ERROR_LEVEL = 4
_complaints: list[str] = []


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _listen(level: int, text: bytes, _: object) -> None:
    if level == _ERROR_LEVEL and len(_complaints) < 50:
        _complaints.append(text.decode("utf-8", "replace").strip())


def complaints() -> str:
    """What llama.cpp logged as errors since the last call, joined."""
    said = "; ".join(line for line in _complaints if line)
    _complaints.clear()
    return said[:500]


class Model:
    """Loaded weights and their vocabulary."""

    def __init__(self, path: str, *, gpu_layers: int, use_mmap: bool) -> None:
        """Load.

        Raises:
            EngineLoadFailed: no such file, not a GGUF, or llama.cpp cannot use it; its own words are included.
        """
        if not Path(path).is_file():
            raise EngineLoadFailed(f"there is no model file {path}")
        with Path(path).open("rb") as file:
            if file.read(4) != b"GGUF":
                raise EngineLoadFailed(f"{path} is not a GGUF file")
        llama.llama_log_set(_listen, ctypes.c_void_p(0))
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.use_mmap = use_mmap
        self.handle = llama.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise EngineLoadFailed(f"llama.cpp cannot load {path}: {complaints() or 'no reason given'}")
        self.vocab = llama.llama_model_get_vocab(self.handle)
        self.size: int = llama.llama_vocab_n_tokens(self.vocab)
        self.trained_context: int = llama.llama_model_n_ctx_train(self.handle)
        self.width: int = llama.llama_model_n_embd_out(self.handle)
        self._pieces: dict[int, bytes] = {}
        self._read_vocabulary()

    def _read_vocabulary(self) -> None:
        """What is special and what ends a generation; how many bytes a token stands for at most."""
        special = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_USER_DEFINED | llama.LLAMA_TOKEN_ATTR_UNKNOWN
        self.ends: list[int] = []
        texts: set[str] = set()
        self.longest_token = 1
        for token in range(self.size):
            raw = llama.llama_vocab_get_text(self.vocab, token) or b""
            self.longest_token = max(self.longest_token, len(raw))
            if llama.llama_vocab_get_attr(self.vocab, token) & special:
                texts.add(raw.decode("utf-8", "replace"))
            if llama.llama_vocab_is_eog(self.vocab, token):
                self.ends.append(token)
        self._ends = frozenset(self.ends)
        texts.discard("")
        longest_first = sorted(texts, key=lambda text: (-len(text), text))
        self._special = re.compile("|".join(map(re.escape, longest_first))) if texts else None

    def ends_generation(self, token: int) -> bool:
        """Whether the model means "done" by it."""
        return token in self._ends

    def has_special_text(self, text: str) -> bool:
        """Whether the text spells one of the vocabulary's special tokens."""
        return self._special is not None and self._special.search(text) is not None

    def tokens(self, text: str, *, begin: bool, special: bool) -> list[int]:
        """Text as tokens. `begin`: with what the model wants before a text (BOS); `special`: spelled special tokens count."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        buffer = (llama.llama_token * size)()
        count = llama.llama_tokenize(self.vocab, data, len(data), buffer, size, begin, special)
        if count < 0:
            buffer = (llama.llama_token * -count)()
            count = llama.llama_tokenize(self.vocab, data, len(data), buffer, -count, begin, special)
        if count < 0:
            raise BadRequest("The prompt cannot be tokenised.")
        return buffer[:count]

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for in an answer; control tokens stand for none."""
        known = self._pieces.get(token)
        if known is None:
            buffer = ctypes.create_string_buffer(256)
            count = llama.llama_token_to_piece(self.vocab, token, buffer, 256, 0, False)
            if count < 0:
                buffer = ctypes.create_string_buffer(-count)
                count = llama.llama_token_to_piece(self.vocab, token, buffer, -count, 0, False)
            known = self._pieces[token] = buffer.raw[: max(count, 0)]
        return known

    def show(self, texts: Collection[str]) -> None:
        """Let these control tokens stand for their text in answers: what marks a tool call is one in some vocabularies."""
        wanted = {text.encode() for text in texts}
        for token in range(self.size if wanted else 0):
            raw = llama.llama_vocab_get_text(self.vocab, token)
            if raw in wanted:
                self._pieces[token] = raw

    def spelling(self, token: int) -> str:
        """A token's text in the vocabulary, "" for none (the ids below 0 that llama.cpp calls null)."""
        return (llama.llama_vocab_get_text(self.vocab, token) or b"").decode("utf-8", "replace") if token >= 0 else ""

    @property
    def bos(self) -> str:
        """The beginning-of-text token's spelling."""
        return self.spelling(llama.llama_vocab_bos(self.vocab))

    @property
    def eos(self) -> str:
        """The end-of-text token's spelling."""
        return self.spelling(llama.llama_vocab_eos(self.vocab))

    def template(self) -> str:
        """The chat template in the metadata, "" when there is none."""
        found = llama.llama_model_chat_template(self.handle, None)
        return found.decode("utf-8", "replace") if found else ""

    def partial_memory(self) -> bool:
        """Whether parts of a sequence can be removed and copied: not so for recurrent models."""
        return not (llama.llama_model_is_recurrent(self.handle) or llama.llama_model_is_hybrid(self.handle))

    def close(self) -> None:
        """Free the weights."""
        llama.llama_model_free(self.handle)
