"""A folder in Hugging Face layout, with or without an adapter's changes, as a GGUF file for llama.cpp.

Rows of q and k change places in Llama-shaped models, because llama.cpp rotates neighbours where transformers rotates
halves; the file's metadata names are llama.cpp's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import NotSupported, ProviderError
from sqlft_local.base.config import find_unusual_part, read_config, read_context, read_rope_theta, read_shape

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader, GGUFWriter
    from tokenizers import Tokenizer
    from torch import Tensor

    from sqlft_local._types import JsonMapping, JsonObject

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model_type -> llama.cpp's architecture."""
PERMUTED_ARCHITECTURES = ("llama",)
ReportProgress = Callable[[str, float | None], None]


def export(
    folder: Path,
    target: Path,
    kind: str,
    tokenizer: JsonMapping,
    stop_ids: list[int],
    changes: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    scale: float = 1.0,
    progress: ReportProgress = lambda what, share: None,
    chat_template: str | None = None,
) -> set[str]:
    """Write `target`, its matrices as `kind`; the layers of `changes` (B, A by layer) that were found.

    `tokenizer` is the content of a tokenizer.json, `chat_template` is for files that are asked with text.
    NotSupported for what llama.cpp would not compute alike.
    """
    from gguf import GGUFWriter

    config = read_config(folder)
    check_convertible(config)
    writer = GGUFWriter(str(target), ARCHITECTURES[config["model_type"]])
    _write_metadata(writer, config, kind)
    _write_vocabulary(writer, config, tokenizer, stop_ids)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    found: set[str] = set()

    def merged(name: str, weight: Tensor) -> Tensor:
        layer = name.removesuffix(".weight")
        if not changes or layer not in changes:
            return weight
        found.add(layer)
        a, b = changes[layer]
        return weight.float() + (b.float() @ a.float()) * scale

    _write_tensors(writer, folder, config, kind, merged, progress)
    return found


def check_convertible(config: JsonMapping) -> None:
    """NotSupported unless llama.cpp computes this configuration as transformers does."""
    kind = config.get("model_type")
    if why := find_unusual_part(config) if kind in ARCHITECTURES else f"the architecture {kind}":
        raise NotSupported(f"llama.cpp files are not made of {why} here.", "Use backend = 'transformers'.")


def permute_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows (or values of a bias) of q or k in the order of llama.cpp's rotary embedding."""
    rows = weight.shape[0]
    halves = weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def count_permuted_heads(name: str, config: JsonMapping) -> int | None:
    """Heads of the rows of this layer if they are to change places, else None."""
    if ARCHITECTURES[config["model_type"]] not in PERMUTED_ARCHITECTURES:
        return None
    shape = read_shape(config)
    return shape.heads if ".q_proj" in name else shape.kv_heads if ".k_proj" in name else None


def _write_metadata(writer: GGUFWriter, config: JsonMapping, kind: str) -> None:
    from gguf import LlamaFileType

    shape = read_shape(config)
    writer.add_block_count(shape.layers)
    writer.add_context_length(read_context(config))
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(read_rope_theta(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(shape.vocab_size)
    types = {
        "f32": LlamaFileType.ALL_F32,
        "f16": LlamaFileType.MOSTLY_F16,
        "bf16": LlamaFileType.MOSTLY_BF16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
    }
    writer.add_file_type(types[kind])
    writer.add_quantization_version(2)


def _write_vocabulary(writer: GGUFWriter, config: JsonMapping, tokenizer: JsonMapping, stop_ids: list[int]) -> None:
    """The tokens as llama.cpp spells them; prompts come as ids, so only spelling and merges matter."""
    from gguf import TokenType

    model = tokenizer["model"]
    if model.get("type") != "BPE" or len(stop_ids) > len(_END_TOKEN_KEYS):
        raise NotSupported(
            f"llama.cpp files are not made of a {model.get('type')} tokenizer with {len(stop_ids)} end tokens here.",
            "Use backend = 'transformers'.",
        )
    size = config["vocab_size"]
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [TokenType.UNUSED] * size
    for token, i in model["vocab"].items():
        tokens[i] = token
        is_byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
        types[i] = TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in tokenizer.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(i) for i in range(size)])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2" if config["model_type"].startswith("qwen") else "smollm")
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for key, i in zip(_END_TOKEN_KEYS, stop_ids, strict=False):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", i)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


_END_TOKEN_KEYS = ("eos", "eot", "eom")


def _write_tensors(
    writer: GGUFWriter,
    folder: Path,
    config: JsonMapping,
    kind: str,
    merged: Callable[[str, Tensor], Tensor],
    progress: ReportProgress,
) -> None:
    """Two passes, so that never more than one tensor is in memory: what there is, then its numbers."""
    import numpy as np
    from gguf import GGMLQuantizationType, get_tensor_name_map
    from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH, MODEL_ARCH_NAMES
    from gguf.quants import quantize

    arch = next(a for a in MODEL_ARCH if MODEL_ARCH_NAMES[a] == ARCHITECTURES[config["model_type"]])
    names = get_tensor_name_map(arch, config["num_hidden_layers"])
    kinds = {}
    for name, shape in read_tensor_shapes(folder):
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise NotSupported(f"llama.cpp has no place for {name}.", "Use backend = 'transformers'.")
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        matrix = len(shape) == 2
        wanted = kind if matrix and (kind != "q8_0" or shape[-1] % 32 == 0) else "f16" if matrix else "f32"
        kinds[name] = GGMLQuantizationType[wanted.upper()]
        block, size = GGML_QUANT_SIZES[kinds[name]]
        stored = math.prod(shape) // block * size
        writer.add_tensor_info(known, shape, np.dtype(np.float32), stored, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for i, (name, weight) in enumerate(_read_weights(folder, kinds)):
        values = merged(name, weight).float().numpy()
        if heads := count_permuted_heads(name, config):
            values = permute_rows(values, heads)
        writer.write_tensor_data(quantize(values, kinds[name]))
        progress("converting", (i + 1) / len(kinds))
    writer.close()


def read_tensor_shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a base."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # no mapping
                yield name, tuple(opened.get_slice(name).get_shape())


def _read_weights(folder: Path, wanted: JsonMapping) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # no mapping
                if name in wanted:
                    yield name, opened.get_tensor(name)


def export_adapter(folder: Path, adapter: Path, target: Path) -> None:
    """Write `target` from the adapter in `adapter`, made for the base in `folder`."""
    from gguf import GGUFWriter, get_tensor_name_map
    from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES

    from sqlft_local.base.adapter import read_adapter, wrong_base_error

    config = read_config(folder)
    made_for = ARCHITECTURES.get(config.get("model_type", ""), "")
    arch = next((a for a in MODEL_ARCH if MODEL_ARCH_NAMES[a] == made_for), None)
    if arch is None:
        raise NotSupported(f"llama.cpp has no {config.get('model_type')} here.", "Use backend = 'transformers'.")
    names = get_tensor_name_map(arch, config["num_hidden_layers"])
    scale, pairs = read_adapter(adapter)
    layers = dict(read_tensor_shapes(folder))
    writer = GGUFWriter(str(target), made_for)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    rank = next(iter(pairs.values()))[0].shape[0]
    writer.add_float32("adapter.lora.alpha", scale * rank)
    for layer, (a, b) in pairs.items():
        known = names.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        if known is None or layers.get(f"{layer}.weight") != (b.shape[0], a.shape[1]):
            raise wrong_base_error(adapter)
        rows = b.float().numpy()
        if heads := count_permuted_heads(layer, config):
            rows = permute_rows(rows, heads)
        writer.add_tensor(f"{known}.lora_a", a.float().numpy())
        writer.add_tensor(f"{known}.lora_b", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
