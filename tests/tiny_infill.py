"""A tiny llama of bytes that knows one gap by heart: behind the mark of the middle it writes GAP and ends; else it repeats.

What it writes follows from the last token alone (attention and feed-forward are zeros, each token's embedding points at its
successor), so its answers are exact. Only numpy and `gguf` are needed. Tensor names: llama.cpp's `llama` architecture
(gguf-py `constants.py`); the three marks are the metadata keys `tokenizer.ggml.fim_*_token_id`.
"""

from __future__ import annotations

import itertools
from pathlib import Path

GAP = "sum(x)"
CONTEXT = 256
_MARKS = ("<unk>", "<s>", "</s>", "<fim_pre>", "<fim_suf>", "<fim_mid>")
_END, _PRE, _SUF, _MID = 2, 3, 4, 5
_BYTES = len(_MARKS)
_VOCABULARY = _BYTES + 256
_WIDTH = 288  # the vocabulary rounded up to heads of 32


def _successors() -> dict[int, int]:
    """The token that follows each; a byte repeats itself unless it is one of GAP, each of which is there once."""
    following = dict.fromkeys(range(_BYTES), _END) | {token: token for token in range(_BYTES, _VOCABULARY)}
    chain = [_MID, *(_BYTES + byte for byte in GAP.encode()), _END]
    return following | dict(itertools.pairwise(chain))


def write_gguf(output: Path, *, marks: bool = True, context: int = CONTEXT) -> Path:
    """The model. `marks`: its metadata name the tokens around a gap, as models that fill gaps have them."""
    import gguf
    import numpy

    writer = gguf.GGUFWriter(str(output), "llama")
    writer.add_name("tiny-infill")
    writer.add_context_length(context)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(_WIDTH // 32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(32)
    writer.add_vocab_size(_VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*_MARKS, *(f"<0x{byte:02X}>" for byte in range(256))])
    writer.add_token_scores([0.0] * _VOCABULARY)
    kinds = gguf.TokenType
    writer.add_token_types([int(kinds.UNKNOWN), *[int(kinds.CONTROL)] * (_BYTES - 1), *[int(kinds.BYTE)] * 256])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(_END)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if marks:
        for name, token in (("pre", _PRE), ("suf", _SUF), ("mid", _MID)):
            writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", token)

    def zeros(*shape: int) -> numpy.ndarray:
        return numpy.zeros(shape, numpy.float32)

    embedding, head = zeros(_VOCABULARY, _WIDTH), zeros(_VOCABULARY, _WIDTH)
    for token, following in _successors().items():
        embedding[token, token] = 1
        head[following, token] += 10
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output.weight", head)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", 1 + zeros(_WIDTH))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", zeros(_WIDTH, _WIDTH))
    for name, shape in (("ffn_gate", (32, _WIDTH)), ("ffn_up", (32, _WIDTH)), ("ffn_down", (_WIDTH, 32))):
        writer.add_tensor(f"blk.0.{name}.weight", zeros(*shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output
