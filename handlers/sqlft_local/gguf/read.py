"""A Llama-shaped GGUF file as a folder in Hugging Face layout, which is what packages of weights hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import NotSupported, ProviderError

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader
    from tokenizers import Tokenizer

    from sqlft_local._types import JsonObject

NORMAL, CONTROL = 1, 3
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def convert(file: Path, folder: Path, progress: Callable[[str, float | None], None]) -> None:
    """Write config, tokenizer and float32 safetensors into the empty `folder`; ProviderError if `file` is corrupt."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(file))
        fields = {
            k: v.contents() for k, v in reader.fields.items() if k.startswith(("general.", "llama.", "tokenizer."))
        }
        _check_supported(fields, file)
        _write_config(fields, reader, folder)
        build_tokenizer(fields).save(str(folder / "tokenizer.json"))
        _write_tokenizer_config(fields, folder)
        _write_weights(fields, reader, folder, progress)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as e:
        raise ProviderError(
            f"{file.name} is no complete GGUF file ({type(e).__name__}: {e}).",
            "It was cut short or damaged: get it again.",
        ) from e


def build_tokenizer(fields: JsonObject) -> Tokenizer:
    """The byte-level BPE that the metadata describes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, right in (m.split(" ") for m in fields["tokenizer.ggml.merges"])]
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == CONTROL]
    made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    return made


def _check_supported(fields: JsonObject, file: Path) -> None:
    kind = tuple(fields.get(k) for k in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"))
    if kind != ("llama", "gpt2", "smollm"):
        raise NotSupported(
            f"{file.name} is a GGUF of {kind[0]} with the tokenizer {kind[1]}/{kind[2]}, which is not read here.",
            "Use a folder with config.json and safetensors, or the model's Hugging Face id.",
        )


def _write_config(fields: JsonObject, reader: GGUFReader, folder: Path) -> None:
    hidden, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    special = {
        f"{name}_token_id": fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL_TOKEN_KEYS.items()
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 12),
        "rope_theta": fields.get("llama.rope.freq_base", 10000.0),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": all(t.name != "output.weight" for t in reader.tensors),
        "dtype": "float32",
        "torch_dtype": "float32",
        **special,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", special)


_SPECIAL_TOKEN_KEYS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def _write_tokenizer_config(fields: JsonObject, folder: Path) -> None:
    tokens = fields["tokenizer.ggml.tokens"]
    names = {**_SPECIAL_TOKEN_KEYS, "unk": "unknown"}
    ids = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": tokens[i] for name, i in ids.items() if i is not None},
    }
    _write_json(folder / "tokenizer_config.json", config)
    if "tokenizer.chat_template" in fields:
        (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")


def _write_weights(
    fields: JsonObject, reader: GGUFReader, folder: Path, progress: Callable[[str, float | None], None]
) -> None:
    import numpy as np
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    weights: dict[str, np.ndarray] = {}
    for i, tensor in enumerate(reader.tensors):
        name = _transformers_name(tensor.name)
        if name is None:
            continue
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if ".q_proj." in name:
            values = _unpermute_rows(values, fields["llama.attention.head_count"])
        elif ".k_proj." in name:
            values = _unpermute_rows(values, fields["llama.attention.head_count_kv"])
        weights[name] = np.ascontiguousarray(values)
        progress("converting", (i + 1) / len(reader.tensors))
    target = folder / "model.safetensors"
    save_file(weights, str(target), metadata={"format": "pt"})
    target.chmod(0o644)


def _transformers_name(gguf_name: str) -> str | None:
    """The tensor's name in transformers' Llama; None for what transformers computes itself."""
    parts = gguf_name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{BLOCK_TENSORS[parts[2]]}.weight"
    return None if parts[0].startswith("rope_") else f"{OUTER_TENSORS[parts[0]]}.weight"


def _unpermute_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo the row order that llama.cpp's converter gives q and k for its interleaved rotary embedding."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, rows // heads // 2, 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _write_json(path: Path, value: JsonObject) -> None:
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}, indent=2) + "\n", encoding="utf-8")
