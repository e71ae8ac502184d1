"""A tiny BERT cross-encoder of fixed random numbers, once as a GGUF and once as a Hugging Face folder: the same model.

So every engine of rerankers must tell the same scores. It means nothing by them. Only numpy and `gguf` are needed.
Tensor names: llama.cpp's `bert` architecture (gguf-py `constants.py`), transformers' `BertForSequenceClassification`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

WIDTH, LAYERS, HEADS, INNER, CONTEXT = 64, 2, 2, 128, 128
_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = ("what", "is", "the", "capital", "of", "france", "paris", "a", "river", "rhine", "cats", "sleep", "all", "day")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
TOKENS = (*_MARKS, *_WORDS, *(one for one in _LETTERS if one not in _WORDS), *(f"##{one}" for one in _LETTERS))
#: Inside a block: transformers' name to llama.cpp's.
_BLOCK = {
    "attention.self.query": ("attn_q", WIDTH, WIDTH),
    "attention.self.key": ("attn_k", WIDTH, WIDTH),
    "attention.self.value": ("attn_v", WIDTH, WIDTH),
    "attention.output.dense": ("attn_output", WIDTH, WIDTH),
    "intermediate.dense": ("ffn_up", INNER, WIDTH),
    "output.dense": ("ffn_down", WIDTH, INNER),
}
_NORMS = {"attention.output.LayerNorm": "attn_output_norm", "output.LayerNorm": "layer_output_norm"}


def _tensors() -> Iterator[tuple[str, str, Any]]:
    """transformers' name, llama.cpp's, and the float32 array of each."""
    import numpy

    dice = numpy.random.default_rng(7)

    def made(*shape: int, scale: float = 0.2) -> Any:
        return (dice.standard_normal(shape) * scale).astype(numpy.float32)

    both = made(1, WIDTH)
    yield "bert.embeddings.word_embeddings.weight", "token_embd.weight", made(len(TOKENS), WIDTH, scale=1.0)
    yield "bert.embeddings.position_embeddings.weight", "position_embd.weight", made(CONTEXT, WIDTH)
    # llama.cpp knows one kind of token only, so both kinds are the same
    yield "bert.embeddings.token_type_embeddings.weight", "token_types.weight", numpy.concatenate([both, both])
    yield "bert.embeddings.LayerNorm.weight", "token_embd_norm.weight", 1 + made(WIDTH)
    yield "bert.embeddings.LayerNorm.bias", "token_embd_norm.bias", made(WIDTH)
    for layer in range(LAYERS):
        for theirs, (ours, rows, columns) in _BLOCK.items():
            yield f"bert.encoder.layer.{layer}.{theirs}.weight", f"blk.{layer}.{ours}.weight", made(rows, columns)
            yield f"bert.encoder.layer.{layer}.{theirs}.bias", f"blk.{layer}.{ours}.bias", made(rows)
        for theirs, ours in _NORMS.items():
            yield f"bert.encoder.layer.{layer}.{theirs}.weight", f"blk.{layer}.{ours}.weight", 1 + made(WIDTH)
            yield f"bert.encoder.layer.{layer}.{theirs}.bias", f"blk.{layer}.{ours}.bias", made(WIDTH)
    yield "bert.pooler.dense.weight", "cls.weight", made(WIDTH, WIDTH)
    yield "bert.pooler.dense.bias", "cls.bias", made(WIDTH)
    yield "classifier.weight", "cls.output.weight", made(1, WIDTH, scale=0.5)
    yield "classifier.bias", "cls.output.bias", made(1)


def write_gguf(output: Path) -> Path:
    """The model as llama.cpp reads it, all in 32 bits."""
    import gguf

    writer = gguf.GGUFWriter(str(output), "bert")
    writer.add_name("tiny-reranker")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(2)
    spelled = [token if token in _MARKS else token[2:] if token.startswith("##") else "\u2581" + token for token in TOKENS]
    writer.add_token_list(spelled)
    kinds = gguf.TokenType
    writer.add_token_types([int(kinds.CONTROL if token in _MARKS else kinds.NORMAL) for token in TOKENS])
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    # a pair is [CLS] query [SEP] document [SEP], as transformers has it
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)
    for _, name, array in _tensors():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output


def write_folder(folder: Path) -> Path:
    """The model as transformers and vLLM read it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "vocab_size": len(TOKENS),
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER,
        "max_position_embeddings": CONTEXT, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
        "id2label": {"0": "relevance"}, "label2id": {"relevance": 0}, "pad_token_id": 0, "torch_dtype": "float32",
    }  # fmt: skip
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": CONTEXT}
    for name, value in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        (folder / name).write_text(json.dumps(value))
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    _safetensors(folder / "model.safetensors", {theirs: array for theirs, _, array in _tensors()})
    return folder


def _safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """8 bytes of the header's length, the header as JSON, the data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in tensors.values()))
