"""The bytes that a token of a Hugging Face tokenizer stands for: for logprobs, and for text that never breaks a character.

Two spellings exist among tokenizers: byte-level BPE writes each byte as one letter (GPT-2 `bytes_to_unicode`), and
SentencePiece writes a space as U+2581 and a lone byte as `<0xE2>`. Which one it is stands in the tokenizer's decoder.
Source: Hugging Face tokenizers 0.23 `decoders`, `pre_tokenizers.ByteLevel`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

_LONE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _alphabet() -> dict[str, int]:
    """Letter to byte, as GPT-2's byte-level BPE has it."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in shown}
    hidden = [byte for byte in range(256) if byte not in shown]
    return letters | {chr(256 + number): byte for number, byte in enumerate(hidden)}


_LETTERS = _alphabet()


def byte_level(token: str) -> bytes:
    """The bytes of a token of byte-level BPE; letters outside its alphabet (added tokens) stand for themselves."""
    return b"".join(bytes((_LETTERS[c],)) if c in _LETTERS else c.encode() for c in token)


def sentencepiece(token: str) -> bytes:
    """The bytes of a SentencePiece token."""
    if lone := _LONE_BYTE.fullmatch(token):
        return bytes((int(lone[1], 16),))
    return token.replace("\u2581", " ").encode()


def of_decoder(decoder: object) -> Callable[[str], bytes]:
    """How the tokens of a tokenizer with this decoder (as `tokenizer.json` has it) are spelled."""
    text = msgspec.json.encode(decoder)
    return byte_level if b'"ByteLevel"' in text else sentencepiece


class Spelling:
    """Bytes of token ids. Added tokens (control tokens among them) stand for their own text."""

    def __init__(self, tokenizer: Any, hidden: Iterable[int] = ()) -> None:
        """`tokenizer`: of transformers, fast or not. `hidden`: tokens that an answer's text leaves out; they are b""."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        state = msgspec.json.decode(backend.to_str()) if backend is not None else {}
        self._spell = of_decoder(state.get("decoder") if isinstance(state, dict) else None)
        self._added: dict[int, bytes] = {id: str(token).encode() for id, token in tokenizer.added_tokens_decoder.items()}
        self._name: Callable[[int], str | None] = tokenizer.convert_ids_to_tokens
        self._known: dict[int, bytes] = dict.fromkeys(hidden, b"")

    def of(self, token: int) -> bytes:
        """The token's bytes; b"" for an id that is none."""
        found = self._known.get(token)
        if found is None:
            name = self._name(token)
            found = self._added.get(token) if token in self._added else self._spell(name) if name is not None else b""
            self._known[token] = found = found or b""
        return found
