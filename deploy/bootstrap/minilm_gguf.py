"""Makes a GGUF of all-MiniLM-L6-v2 from its Hugging Face folder: numpy and the `gguf` package, no torch.

    python -m deploy.bootstrap.minilm_gguf FOLDER OUTPUT.gguf

Sources: safetensors' format (8 bytes little-endian header length, JSON header, data) from its README; tensor names and
the WordPiece vocabulary's spelling (a leading U+2581 for word beginnings, no `##`) as llama.cpp's `bert` architecture
reads them (convert_hf_to_gguf.py, class BertModel).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 16 * 1024 * 1024
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}
_TOP = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}
_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
#: llama.cpp wants these in 32 bits whatever the file's type is; vectors too.
_WIDE = frozenset({"position_embd.weight", "token_types.weight"})
_CONTROL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class NotConvertible(ValueError):
    """The folder does not hold what a MiniLM has."""


def read_safetensors(path: Path) -> Iterator[tuple[str, Any]]:
    """Each tensor's name and its numpy array (a view of the mapped file; bfloat16 comes as float32).

    Raises:
        NotConvertible: the file is not a safetensors file.
    """
    import numpy

    size = path.stat().st_size
    with path.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise NotConvertible(f"{path.name} has no safetensors header")
        try:
            header: dict[str, Any] = json.loads(source.read(length))
        except ValueError as error:
            raise NotConvertible(f"{path.name} has no safetensors header") from error
    data = numpy.memmap(path, dtype=numpy.uint8, mode="r", offset=8 + length)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= len(data):
            raise NotConvertible(f"{path.name} is cut short at {name}")
        raw = data[begin:end]
        if entry["dtype"] == "BF16":
            array = (raw.view("<u2").astype(numpy.uint32) << 16).view(numpy.float32)
        elif entry["dtype"] in _DTYPES:
            array = raw.view(_DTYPES[entry["dtype"]])
        else:
            raise NotConvertible(f"{name} has the unknown type {entry['dtype']}")
        yield name, array.reshape(entry["shape"])


def tensor_name(name: str) -> str | None:
    """The GGUF name of a BERT tensor; None for one that embeddings do not need.

    Raises:
        NotConvertible: BERT has no such tensor.
    """
    short = name.removeprefix("bert.")
    if short.startswith("pooler.") or short == "embeddings.position_ids":
        return None
    if short in _TOP:
        return _TOP[short]
    parts = short.split(".")
    inner = ".".join(parts[3:-1])
    if parts[:2] != ["encoder", "layer"] or inner not in _LAYER:
        raise NotConvertible(f"unknown tensor {name}")
    return f"blk.{int(parts[2])}.{_LAYER[inner]}.{parts[-1]}"


def vocabulary(lines: list[str]) -> list[str]:
    """WordPiece tokens as llama.cpp spells them."""
    return [
        token if token.startswith("[") and token.endswith("]") else token[2:] if token.startswith("##") else "\u2581" + token
        for token in lines
    ]


def convert(folder: Path, output: Path) -> None:
    """Write the GGUF (16-bit matrices, 32-bit vectors), whole or not at all.

    Raises:
        NotConvertible: the folder does not hold a MiniLM.
    """
    import gguf
    import numpy

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    missing = [token for token in _CONTROL if token not in tokens]
    if missing or len(tokens) != config["vocab_size"]:
        raise NotConvertible(f"vocab.txt has {len(tokens)} tokens and lacks {missing}")
    draft = output.with_suffix(".part")
    writer = gguf.GGUFWriter(str(draft), "bert")
    _describe(writer, gguf, config, tokens)
    for name, array in read_safetensors(folder / "model.safetensors"):
        target = tensor_name(name)
        if target is not None:
            wide = array.ndim == 1 or target in _WIDE
            writer.add_tensor(target, array.astype(numpy.float32 if wide else numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    draft.replace(output)


def _describe(writer: Any, gguf: Any, config: Mapping[str, Any], tokens: list[str]) -> None:
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_token_list(vocabulary(tokens))
    kinds = gguf.TokenType
    writer.add_token_types([int(kinds.CONTROL if token in _CONTROL else kinds.NORMAL) for token in tokens])
    writer.add_pad_token_id(tokens.index("[PAD]"))
    writer.add_unk_token_id(tokens.index("[UNK]"))
    writer.add_bos_token_id(tokens.index("[CLS]"))
    writer.add_eos_token_id(tokens.index("[SEP]"))
    writer.add_sep_token_id(tokens.index("[SEP]"))
    writer.add_mask_token_id(tokens.index("[MASK]"))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
