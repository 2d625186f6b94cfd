"""Every causal type of transformers as a tiny random model: trained and asked through the local engine, and compared.

python tests/architectures.py [TYPE …]     # prints a JSON line per type
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import peft
import pyarrow as pa
import torch
import transformers
from peft import LoraConfig, PeftModel, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from sqlft_local import Local
from sqlft_local.base import loading
from sqlft_local.base.config import find_packing_obstacle
from sqlft_local.base.tokenization import load_transformers_tokenizer
from sqlft_local.gguf import trial
from sqlft_local.gguf.architectures import ARCHITECTURES
from sqlft_local.gguf.write import export
from sqlft_local.kernels import fused
from sqlft_local.kernels.batching import find_layout, split_passes
from sqlft_local.kernels.packing import Example
from sqlft_local.options import EngineOptions, ModelOptions, PredictOptions, TrainOptions
from sqlft_local.train import lora
from sqlft_local.train.step import compute_loss
from tiny_tokenizer import make_tokenizer
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sqlft.handler import Artifact, Message, ModelSpec, Request, TrainingSet

VOCABULARY = 400
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "head_dim": 16,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "sliding_window": 8,
    "layer_types": None,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16,
    "global_head_dim": 16,
    # nothing by chance
    **dict.fromkeys(
        (
            "activation_dropout",
            "attention_dropout",
            "attention_probs_dropout_prob",
            "attn_pdrop",
            "dropout",
            "embd_pdrop",
            "hidden_dropout",
            "hidden_dropout_prob",
            "input_jitter_noise",
            "layerdrop",
            "resid_pdrop",
            "residual_dropout",
            "router_jitter_noise",
        ),
        0.0,
    ),
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_routed_experts": 4,
    "n_shared_experts": 1,
    "zero_expert_num": 2,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "moe_num_experts": 4,
    "moe_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    # low-rank attention
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "o_groups": 2,
    "o_lora_rank": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    # linear attention and state spaces
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "state_size": 8,
    # towers that no text reaches
    "depth": 1,
    "out_hidden_size": 64,
    "image_size": 32,
    "patch_size": 16,
    # decoders of two-part models
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
}
"""Sizes of whatever a type's configuration has of these."""
DEFAULT = object()
"""Leave a size as the type has it."""
HYBRID = ["linear_attention", "full_attention"]
LOW_RANK: dict[str, Any] = {"head_dim": 8, "num_key_value_heads": 4}
FOUR_LAYERS: dict[str, Any] = {"num_hidden_layers": 4}
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "youtu"), LOW_RANK),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp_text"), FOUR_LAYERS),
    "bailing_hybrid": {"layer_types": HYBRID, "num_key_value_heads": 4},
    "granitemoehybrid": {"layer_types": HYBRID},
    "dots3_note_text": {"num_key_value_heads": 4},
    "deepseek_v2": LOW_RANK,
    "longcat_flash": LOW_RANK,
    "minicpm3": LOW_RANK,
    "kimi_linear": {
        "layer_types": HYBRID,
        "mlp_layer_types": ["dense", "sparse"],
        "num_key_value_heads": 4,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "bamba": {"layer_types": DEFAULT, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "falcon_h1": {"layer_types": DEFAULT, "mamba_d_ssm": 128},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "gemma3n_text": {"num_kv_shared_layers": 0, "laurel_rank": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_heads": 4, "num_layers": 2},
    "gptj": {"rotary_dim": 8},
    "jamba": {"layer_types": DEFAULT, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "mistral3": {
        "text_config": {"model_type": "ministral3", **dict(list(TINY.items())[:9])},
        "vision_config": {"model_type": "pixtral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
        | {"num_attention_heads": 4, "image_size": 32, "patch_size": 16, "head_dim": 16},
    },
    "mpt": {"attn_config": {}},
    "nemotron_h": {"layer_types": ["linear_attention", "full_attention", "mlp"], "num_hidden_layers": 3, "n_groups": 1},
    "recurrent_gemma": {"layer_types": DEFAULT, "block_types": ["recurrent", "attention"], "lru_width": 64},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xlnet": {"d_head": 16, "head_dim": DEFAULT},
    "xlstm": {"num_heads": 4, "num_blocks": 2},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX", "is_decoder": True},
    "zaya": {"layer_types": DEFAULT, "num_experts_per_tok": 1, "router_hidden_size": 16, "sliding_window": DEFAULT},
    "zamba": {"layer_types": ["linear_attention", "hybrid"] * 2, **FOUR_LAYERS},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"] * 2, **FOUR_LAYERS},
}
"""What a type needs beside TINY."""
MOST_PARAMETERS = 100_000_000


EIGHT_LAYERS = {"num_hidden_layers": 8}
NO_WINDOW = {"sliding_window": None}
WIDE_HEADS = {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
GGUF_SIZES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("exaone4", "ministral3", "mistral", "mixtral", "phi3", "starcoder2"), NO_WINDOW),
    **dict.fromkeys(("cohere2", "olmo3", "smollm3"), EIGHT_LAYERS),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), WIDE_HEADS),
    **{kind: {"intermediate_size": 128} for kind in ("mamba", "falcon_mamba")},
    **{kind: {"num_key_value_heads": 4} for kind in ("olmoe", "dots1")},
    "gemma2": {"query_pre_attn_scalar": 16, "num_hidden_layers": 3},
    "gemma3_text": {"query_pre_attn_scalar": 16, **EIGHT_LAYERS},
    "llama4_text": {**EIGHT_LAYERS, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 96},
    "qwen3_moe": {"norm_topk_prob": True},
}
"""What llama.cpp wants of a type beside OVERRIDES: sizes that it takes, all kinds of layers, and no more than it has
(a window in Mistral, another scale of attention in Gemma)."""


def build_config(kind: str, more: Mapping[str, Any] | None = None) -> Any:
    """A tiny configuration of the type."""
    sizes = {**OVERRIDES.get(kind, {}), **(more or {})}
    if kind == "exaone4" and more:
        sizes["layer_types"] = ["full_attention"] * 2
    return AutoConfig.for_model(kind, **shrink(type(AutoConfig.for_model(kind)), sizes))


def shrink(config_class: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that make such a configuration tiny."""
    if config_class.sub_configs.get("text_config", 0) is AutoConfig and "text_config" not in more:
        raise ValueError("its text part is any other type")
    names = {*config_class().to_dict(), *config_class.attribute_map}
    if "text_config" in config_class.sub_configs:
        names &= {"bos_token_id", "eos_token_id", "pad_token_id"}  # it would hand the others on to its parts
    sizes = {name: value for name, value in TINY.items() if name in names}
    parts = {
        name: shrink(part, OVERRIDES.get(part.model_type, {}))
        for name, part in config_class.sub_configs.items()
        if part is not AutoConfig
    }
    return {name: value for name, value in {**sizes, **parts, **more}.items() if value is not DEFAULT}


def make_tiny(kind: str, folder: Path, more: Mapping[str, Any] | None = None) -> Path:
    """A random model of the type, saved in Hugging Face layout."""
    config = build_config(kind, more)
    with torch.device("meta"):
        size = sum(p.numel() for p in loading.find_auto_class(config).from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size / 1e6:.0f}M parameters are not tiny")
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder)
    torch.manual_seed(7)
    loading.find_auto_class(config).from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


PROMPTS = ("SELECT name", "How many singers are there in France and Japan?", "age > 20")
ANSWER_TOKENS = 8
ROWS = [
    ("SELECT name FROM singer", "singer"),
    ("How many singers are there in France?", "country"),
    ("age", "WHERE age > 20"),
    ("GROUP BY", "name name"),
]


def check_type(kind: str, folder: Path) -> dict[str, Any]:
    """Loss and gradients, a training, and answers one by one and in a batch, each beside transformers and PEFT."""
    base = make_tiny(kind, folder / "base")
    found = {"path": compare_gradients(base)}
    adapter = train(base, folder / "work")
    found["matrices"] = len(check_adapter(base, adapter))
    compare_answers(base, None)
    compare_answers(base, adapter)
    expected = find_packing_obstacle(build_config(kind).to_dict())
    assert (expected is None) == (found["path"] == "packed"), f"EXPLAIN says {expected or 'packed'}"
    return found


def compare_gradients(base: Path) -> str:
    """Which path the base takes; AssertionError unless loss and gradients are those of rows computed alone."""
    loaded = loading.load_base(base, ModelOptions(dtype="float32"), "cpu", training=True)
    options = TrainOptions(lora_dropout=0.0, target_modules=["all-linear"])
    attached = lora.attach(loaded.model, options, None)
    numbers = torch.Generator().manual_seed(3)
    weights = {k: torch.randn(v.shape, generator=numbers) * 0.05 for k, v in attached.trained.items()}
    lora.load_parameters(attached, weights)
    examples = make_examples((23, 9, 14))
    loss, gradients = compute_gradients(loaded.model, attached, examples)

    plain = load_plain(base)
    config = attached.config
    config.lora_dropout = 0.0
    inject_adapter_in_model(config, plain)
    assert not set_peft_model_state_dict(plain, weights).unexpected_keys
    total = 0.0
    for example in examples:
        ids, counts = torch.tensor([list(example.ids)]), torch.tensor(list(example.weights)[1:])
        logits = plain(input_ids=ids, use_cache=False).logits[0, :-1].float()
        alone = (torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none") * counts).sum()
        alone.backward()
        total += alone.item()
    assert abs(loss - total) <= 1e-4 * abs(total), f"loss {loss} is not {total}"
    expected = {name.replace(".default", ""): p.grad for name, p in plain.named_parameters() if "lora_" in name}
    compare_matrices(gradients, expected)
    loaded.model.train()
    plain_steps = compute_gradients(loaded.model, attached, examples)[1]
    fused.set_checkpointing(loaded.model, True)
    again = compute_gradients(loaded.model, attached, examples)[1]
    compare_matrices(again, {name.removeprefix("base_model.model."): one for name, one in plain_steps.items()})
    return f"{find_layout(loaded.model)}: {loaded.obstacle}" if loaded.obstacle else "packed"


def compute_gradients(
    model: Any, attached: lora.LoraAdapter, examples: Sequence[Example]
) -> tuple[float, dict[str, Any]]:
    """As a step of a training does it."""
    loss = 0.0
    for part in split_passes(examples, 10_000, find_layout(model)):
        one = compute_loss(model, part)
        one.backward()
        loss += one.item()
    gradients = {name: matrix.grad for name, matrix in attached.trained.items()}
    for matrix in attached.trained.values():
        matrix.grad = None
    return loss, gradients


def compare_matrices(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Gradients by their largest difference, relative to the largest of each."""
    for name, gradient in found.items():
        reference = expected[name.removeprefix("base_model.model.")]
        if reference is None:
            assert gradient is None or not gradient.any(), name
            continue
        assert gradient is not None, f"no gradient of {name}"
        assert (gradient - reference).abs().max() <= 1e-3 * reference.abs().max().clamp(min=1e-3), name


def make_examples(lengths: Sequence[int]) -> list[Example]:
    """Rows of such lengths, of which the second half is learned."""
    rows = [[(13 * i + 7 * n) % (VOCABULARY - 3) + 3 for i in range(n)] for n in lengths]
    return [Example(ids, [0.0] * (len(ids) // 2) + [1.0] * (len(ids) - len(ids) // 2)) for ids in rows]


def load_plain(base: Path) -> Any:
    """The model as transformers loads it, without what it forces into answers by itself."""
    loader = loading.find_auto_class(AutoConfig.from_pretrained(base))
    model = loader.from_pretrained(base, dtype=torch.float32).eval().requires_grad_(False)
    model.generation_config.forced_eos_token_id = model.generation_config.forced_bos_token_id = None
    return model


def train(base: Path, workdir: Path) -> Path:
    """A short training; the adapter's folder."""
    workdir.mkdir()
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in ROWS]
    table = pa.table({"messages": [[{**t, "weight": None} for t in one] for one in turns]})
    options = TrainOptions(n_epochs=3, batch_size=4, learning_rate=0.02, target_modules=["all-linear"])
    engine = Local(EngineOptions(device="cpu", threads=1))
    spec = ModelSpec(str(base), options=ModelOptions(dtype="float32"))
    artifact = engine.train(spec, None, TrainingSet(table, None), options, workdir, lambda _: None)
    assert artifact.path is not None
    return artifact.path


def check_adapter(base: Path, adapter: Path) -> Mapping[str, Any]:
    """The trained tensors, which PEFT loads and which have moved."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    model = load_plain(base)
    inject_adapter_in_model(LoraConfig.from_pretrained(str(adapter)), model)
    result = set_peft_model_state_dict(model, tensors)
    assert not result.unexpected_keys
    assert not [k for k in result.missing_keys if "lora_" in k]
    moved = [name for name, tensor in tensors.items() if "lora_B" in name and tensor.any()]
    assert moved
    return tensors


def compare_answers(base: Path, adapter: Path | None) -> None:
    """Answers of the local engine, several at once and one by one, are those of transformers' generate."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_plain(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    expected = []
    for prompt in PROMPTS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        out = model.generate(
            input_ids=ids, max_new_tokens=ANSWER_TOKENS, do_sample=False, eos_token_id=2, pad_token_id=0
        )
        expected.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    spec = ModelSpec(str(base), options=ModelOptions(dtype="float32"))
    engine = Local(EngineOptions(device="cpu", threads=1))
    options = PredictOptions(max_tokens=ANSWER_TOKENS, backend="transformers", batch_size=8, precision="f32")
    predictor = engine.open(spec, Artifact(adapter, details={}) if adapter else None, options)
    try:
        requests = [Request(i, (Message("user", p),)) for i, p in enumerate(PROMPTS * 2)]
        together = {c.id: c.text for c in predictor.predict(iter(requests))}
        got = [together[i] for i in range(len(PROMPTS))]
        assert got == expected, f"a batch answers differently: {got} is not {expected}"
        for i, request in enumerate(requests[: len(PROMPTS)]):
            assert [c.text for c in predictor.predict([request])] == [expected[i]], "alone it answers differently"
    finally:
        predictor.close()


def compare_gguf(kind: str, folder: Path) -> float:
    """How far llama.cpp's likelihoods are from those of transformers, for a tiny model of the type."""
    base = make_tiny(kind, folder, GGUF_SIZES.get(kind))
    tokenizer, stop_ids = load_transformers_tokenizer(base)
    file = folder / "tiny.gguf"
    export(base, file, "f32", json.loads(tokenizer.backend_tokenizer.to_str()), sorted(stop_ids))
    ids = [(13 * i + 7) % (VOCABULARY - 10) + 5 for i in range(24)]
    return trial.find_difference(file, load_plain(base), ids)


def try_gguf(kind: str, folder: Path) -> str:
    """What is said of the type's file; in a process of its own, since llama.cpp may end it."""
    if kind not in ARCHITECTURES:
        return ""
    said = folder / "gguf"
    if not (child := os.fork()):
        try:
            difference = compare_gguf(kind, folder / "for_llama")
            said.write_text("yes" if difference <= trial.MOST_DIFFERENCE else f"no: other numbers ({difference:.2g})")
        except Exception as e:
            said.write_text(f"no: {str(e).splitlines()[0]}")
        os._exit(0)
    os.waitpid(child, 0)
    return said.read_text() if said.exists() else "no: llama.cpp ends its process"


GGUF_TYPES = (
    *("gemma2", "gemma3_text", "cohere2", "phi3", "glm4", "gpt2", "gpt_neox", "bloom", "falcon"),  # norms, windows, qkv
    *("mixtral", "granitemoehybrid", "gpt_bigcode", "deepseek_v3", "llama4_text"),  # experts, low-rank attention
    *("lfm2", "mamba2", "qwen3_next", "qwen3_5_text", "falcon_h1", "apertus"),  # convolutions, states, activations
)
"""One of each kind of file."""
TYPES = (
    *("gpt2", "gemma3_text", "gemma4_text", "qwen3_moe", "deepseek_v3"),  # packed: absolute places, windows, experts
    *("gemma2", "gpt_oss", "bloom", "diffllama"),  # soft caps, sinks, ALiBi, two attentions a layer
    *("llama4_text", "lfm2", "mamba2", "qwen3_next", "nemotron_h", "recurrent_gemma"),  # chunks, convolutions, states
    *("rwkv", "cpmant"),  # one row at a time: in asking, in training
)
"""One of each kind."""
SEEING_TYPES = ("mistral3",)
"""Types that transformers has no class of text alone for."""
PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"


KNOWN = {
    "laguna": "PEFT does not load the adapters that it writes of it",
    "reformer": "its layers hand no gradients to LoRA matrices",
}
"""Types that are not right, and why."""


class CannotRun(Exception):
    """transformers itself does not run a type."""


def check_runs(kind: str, folder: Path) -> None:
    """CannotRun where there is nothing to compare with."""
    try:
        model = load_plain(make_tiny(kind, folder))
        model.generate(torch.tensor([[5, 6, 7, 8, 9]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    except Exception as e:
        raise CannotRun(f"{type(e).__name__}: {str(e).strip().splitlines()[0][:100]}") from e


def measure(kind: str) -> dict[str, Any]:
    """What became of the type."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, SQLFT_BASES=f"{folder}/bases"):
        try:
            check_runs(kind, Path(folder) / "runs")
            return {**check_type(kind, Path(folder)), "gguf": try_gguf(kind, Path(folder))}
        except CannotRun as e:
            return {"skipped": str(e)}
        except Exception as e:
            trace = [line.strip() for line in traceback.format_exc().splitlines()[-7:-1]]
            return {"error": f"{type(e).__name__}: {str(e)[:300]}", "trace": trace}


def write_page(found: Mapping[str, Mapping[str, Any]]) -> None:
    """The table between its marks."""
    compared = {kind: one for kind, one in found.items() if "skipped" not in one}
    rows = [
        f"| `{kind}` | {one.get('path') or '**not right**: ' + KNOWN.get(kind, one['error'])} | {one.get('gguf', '')} |"
        for kind, one in compared.items()
    ]
    skipped = ", ".join(f"`{kind}`" for kind in found if kind not in compared)
    right = sum("path" in one for one in compared.values())
    text = "\n".join(
        [
            f"With transformers {transformers.__version__}, torch {torch.__version__} and PEFT {peft.__version__}, "
            f"{right} of {len(compared)} types are right:",
            *("", "| type | rows in training | GGUF |", "| --- | --- | --- |", *rows, ""),
            "Not compared, because transformers does not build a tiny model of them here or generate with it: "
            f"{skipped}.",
        ]
    )
    begin, end = "<!-- begin of what make test-architectures writes -->\n", "\n<!-- end of it -->"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    PAGE.write_text(before + begin + text + end + rest.partition(end)[2], encoding="utf-8")


def main() -> int:
    """Check the types named, or all; 1 if one is not right."""
    torch.set_num_threads(1)
    found = {}
    for kind in sys.argv[1:] or sorted((*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *SEEING_TYPES)):
        began = time.monotonic()
        found[kind] = measure(kind)
        print(json.dumps({"type": kind, **found[kind], "seconds": round(time.monotonic() - began, 1)}), flush=True)
    if not sys.argv[1:]:
        write_page(found)
    return int(any("error" in one for kind, one in found.items() if kind not in KNOWN))


if __name__ == "__main__":
    sys.exit(main())
