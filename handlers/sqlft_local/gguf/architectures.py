"""What llama.cpp calls an architecture of transformers, which keys describe it, and how its weights differ.

Called by `metadata`, `tensors` and `write`.  An entry for each `model_type`; that it is right is shown by its trial
(`trial`, tests/architectures.py), never by this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from sqlft.errors import NotSupported
from sqlft_local.base.config import find_unusual_part, text_config

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import JsonMapping

Value: TypeAlias = bool | int | float | str | Sequence[bool] | Sequence[int] | Sequence[float] | None
KeyReader: TypeAlias = "Callable[[JsonMapping], Value]"
TensorChange: TypeAlias = "Callable[[Tensor, JsonMapping], Tensor]"
SOFTMAX, SIGMOID = 1, 2
"""llama.cpp's numbers for how scores of experts become weights."""


@dataclass(frozen=True)
class Change:
    """Tensors whose name has `pattern` become others: `parts` has their names, for `re.sub`, and what makes them."""

    pattern: str
    parts: Mapping[str, TensorChange]


@dataclass(frozen=True)
class Architecture:
    """An entry of `ARCHITECTURES`."""

    name: str
    """llama.cpp's."""
    changes: tuple[Change, ...] = ()
    keys: Mapping[str, KeyReader] = field(default_factory=dict)
    """Beside or instead of what `metadata` reads in any config; None leaves a key out."""
    trusted: bool = False
    """A config with nothing unusual in it needs no trial on the base."""


def find_architecture(config: JsonMapping) -> Architecture | None:
    """The entry of a base's text part.

    >>> find_architecture({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}).name
    'gemma3'
    """
    return ARCHITECTURES.get(text_config(config).get("model_type", ""))


def check_convertible(config: JsonMapping) -> Architecture:
    """The entry; NotSupported for a base of which no file can be made, as far as its config says."""
    found = find_architecture(config)
    if found is None:
        why = f"the architecture {text_config(config).get('model_type')}"
    elif config.get("quantization_config"):
        why = "weights that are quantized already"
    else:
        return found
    raise NotSupported(f"llama.cpp files are not made of {why} here.", "Use backend = 'transformers'.")


def find_reason_for_trial(config: JsonMapping) -> str | None:
    """What the base itself must show that llama.cpp computes as transformers does, if anything.

    >>> find_reason_for_trial({"model_type": "qwen3"}), find_reason_for_trial({"model_type": "gemma2"})
    (None, 'the architecture gemma2')
    """
    found = find_architecture(config)
    if found is None or not found.trusted or "text_config" in config:
        return f"the architecture {config.get('model_type')}"
    return find_unusual_part(config)


def count_heads(config: JsonMapping) -> int:
    """Heads of the queries."""
    return int(next((config[name] for name in ("num_attention_heads", "n_head", "n_heads") if config.get(name)), 0))


def count_kv_heads(config: JsonMapping) -> int:
    """Heads of keys and values."""
    if config.get("model_type") == "falcon" and config["multi_query"] and not config["new_decoder_architecture"]:
        return 1
    if config.get("model_type") == "gpt_bigcode" and config["multi_query"]:
        return 1
    return int(config.get("num_key_value_heads") or config.get("num_kv_heads") or count_heads(config))


def permute_rows(weight: Tensor, heads: int, share: float = 1.0) -> Tensor:
    """Rows (or values of a bias) of q or k, rotated by halves, in the order in which llama.cpp rotates neighbours.

    Only this share of a head is rotated.
    """
    import torch

    by_head = weight.unflatten(0, (heads, -1))
    rotated = int(by_head.shape[1] * share)
    turned, rest = by_head.split([rotated, by_head.shape[1] - rotated], 1)
    turned = turned.unflatten(1, (2, rotated // 2)).transpose(1, 2).flatten(1, 2)
    return torch.cat([turned, rest], 1).flatten(0, 1)


def _rotated_share(config: JsonMapping) -> float:
    return float((config.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0))


def _ungroup(weight: Tensor, groups: int, parts: Sequence[int]) -> Tensor:
    """Rows of groups that each have heads of q, of k and of v, as all of q, all of k, all of v."""
    import torch

    heads = weight.reshape(groups, sum(parts), -1, *weight.shape[1:])
    return torch.cat([part.flatten(0, 2) for part in heads.split(list(parts), 1)])


def _tile(weight: Tensor, config: JsonMapping, dim: int, size: int, first: int = 0) -> Tensor:
    """Heads of values beside each other by their place in a group instead of by their group, `first` rows kept."""
    import torch

    groups = config["linear_num_key_heads"]
    kept, heads = weight.split([first, weight.shape[dim] - first], dim)
    heads = heads.unflatten(dim, (groups, config["linear_num_value_heads"] // groups, size))
    return torch.cat([kept, heads.transpose(dim, dim + 1).flatten(dim, dim + 2)], dim)


def _split_qkvz(weight: Tensor, config: JsonMapping, wanted: slice) -> Tensor:
    import torch

    groups, key, value = (config[f"linear_{n}"] for n in ("num_key_heads", "key_head_dim", "value_head_dim"))
    values = config["linear_num_value_heads"] // groups * value
    parts = weight.unflatten(0, (groups, -1)).split([key, key, values, values], 1)
    return torch.cat([part.flatten(0, 1) for part in parts[wanted]])


def _keys_of_latent(weight: Tensor, config: JsonMapping, values: bool) -> Tensor:
    """DeepSeek's expansion of keys (transposed) or values, head by head."""
    sizes = [config["qk_nope_head_dim"], config["v_head_dim"]]
    keys, rest = weight.unflatten(0, (count_heads(config), sum(sizes))).split(sizes, 1)
    return rest if values else keys.transpose(1, 2)


def _chunk(index: int, of: int, dim: int = 0) -> TensorChange:
    return lambda t, c: t.chunk(of, dim)[index]


def _to_column(t: Tensor, c: JsonMapping) -> Tensor:
    return t.reshape(-1, 1)


def _is_kind(config: JsonMapping, *kinds: str) -> list[bool]:
    return [kind in kinds for kind in config["layer_types"]]


ATTENTION_KINDS = ("attention", "full_attention", "hybrid")


def _kv_heads_by_layer(config: JsonMapping) -> list[int]:
    return [count_kv_heads(config) * is_attention for is_attention in _is_kind(config, *ATTENTION_KINDS)]


def _window_pattern(config: JsonMapping) -> list[bool] | None:
    return _is_kind(config, "sliding_attention") if config.get("sliding_window") else None


PERMUTED = (
    Change(r"q_proj\.(weight|bias)$", {r"q_proj.\1": lambda t, c: permute_rows(t, count_heads(c), _rotated_share(c))}),
    Change(
        r"k_proj\.(weight|bias)$", {r"k_proj.\1": lambda t, c: permute_rows(t, count_kv_heads(c), _rotated_share(c))}
    ),
)
SHIFTED_NORMS = Change(r"norm\.weight$", {"norm.weight": lambda t, c: t + 1})
INTERLEAVED_HEADS = Change(
    r"query_key_value\.(weight|bias)$", {r"query_key_value.\1": lambda t, c: _ungroup(t, count_heads(c), (1, 1, 1))}
)
LATENT_KEYS = Change(
    r"kv_b_proj\.weight$",
    {
        "k_b_proj.weight": lambda t, c: _keys_of_latent(t, c, False),
        "v_b_proj.weight": lambda t, c: _keys_of_latent(t, c, True),
    },
)
STATE_COLUMNS = (
    Change(r"A_log$", {"A_log": lambda t, c: _to_column(-t.exp(), c)}),
    Change(r"\.D$", {".D": _to_column}),
)
DECAY = Change(r"A_log$", {"A_log": lambda t, c: -t.exp()})


def _group_norm(groups: str, name: str = "norm") -> Change:
    return Change(rf"(mamba|mixer)\.{name}\.weight$", {rf"\1.{name}.weight": lambda t, c: t.reshape(c[groups], -1)})


PLAIN_NORMS_OF_STATES = Change(r"(?<!linear_attn\.)norm\.weight$", {"norm.weight": lambda t, c: t + 1})
GRANITE: Mapping[str, KeyReader] = {
    "attention.scale": lambda c: c.get("attention_multiplier"),
    "embedding_scale": lambda c: c.get("embedding_multiplier"),
    "residual_scale": lambda c: c.get("residual_multiplier"),
    "logit_scale": lambda c: c.get("logits_scaling"),
    "expert_shared_feed_forward_length": lambda c: c.get("shared_intermediate_size"),
}
SPLIT_GRANITE_EXPERTS = Change(
    r"block_sparse_moe\.input_linear\.weight$",
    {"mlp.experts.gate_proj.weight": _chunk(0, 2, 1), "mlp.experts.up_proj.weight": _chunk(1, 2, 1)},
)
SHARED_GRANITE = (
    Change(
        r"shared_mlp\.input_linear\.weight$",
        {"mlp.shared_expert.gate_proj.weight": _chunk(0, 2), "mlp.shared_expert.up_proj.weight": _chunk(1, 2)},
    ),
    Change(r"shared_mlp\.output_linear\.", {"mlp.shared_expert.down_proj.": lambda t, c: t}),
)
HYBRID: Mapping[str, KeyReader] = {
    "attention.head_count_kv": _kv_heads_by_layer,
    "ssm.conv_kernel": lambda c: c["mamba_d_conv"],
    "ssm.state_size": lambda c: c["mamba_d_state"],
    "ssm.group_count": lambda c: c.get("mamba_n_groups"),
    "ssm.inner_size": lambda c: c["mamba_expand"] * c["hidden_size"],
    "ssm.time_step_rank": lambda c: c.get("mamba_n_heads") or c["mamba_dt_rank"],
}
LATENT: Mapping[str, KeyReader] = {
    "attention.head_count_kv": lambda c: 1,
    "attention.q_lora_rank": lambda c: c.get("q_lora_rank"),
    "attention.kv_lora_rank": lambda c: c["kv_lora_rank"],
    "attention.key_length": lambda c: c["kv_lora_rank"] + c["qk_rope_head_dim"],
    "attention.value_length": lambda c: c["kv_lora_rank"],
    "attention.key_length_mla": lambda c: c["qk_nope_head_dim"] + c["qk_rope_head_dim"],
    "attention.value_length_mla": lambda c: c["v_head_dim"],
    "rope.dimension_count": lambda c: c["qk_rope_head_dim"],
    "expert_feed_forward_length": lambda c: c.get("moe_intermediate_size") or c["intermediate_size"],
    "expert_shared_count": lambda c: c.get("n_shared_experts") or 0,
}
LINEAR_ATTENTION: Mapping[str, KeyReader] = {
    "ssm.conv_kernel": lambda c: c["linear_conv_kernel_dim"],
    "ssm.state_size": lambda c: c["linear_key_head_dim"],
    "ssm.group_count": lambda c: c["linear_num_key_heads"],
    "ssm.time_step_rank": lambda c: c["linear_num_value_heads"],
    "ssm.inner_size": lambda c: c["linear_value_head_dim"] * c["linear_num_value_heads"],
    "full_attention_interval": lambda c: c["layer_types"].index("full_attention") + 1,
}
TILED_HEADS = (
    Change(
        r"in_proj_qkv\.weight$",
        {
            "in_proj_qkv.weight": lambda t, c: _tile(
                t, c, 0, c["linear_value_head_dim"], 2 * c["linear_num_key_heads"] * c["linear_key_head_dim"]
            )
        },
    ),
    Change(
        r"linear_attn\.conv1d\.weight$",
        {
            "linear_attn.conv1d.weight": lambda t, c: _tile(
                t, c, 0, c["linear_value_head_dim"], 2 * c["linear_num_key_heads"] * c["linear_key_head_dim"]
            )
        },
    ),
    Change(r"in_proj_z\.weight$", {"in_proj_z.weight": lambda t, c: _tile(t, c, 0, c["linear_value_head_dim"])}),
    Change(r"in_proj_([ab])\.weight$", {r"in_proj_\1.weight": lambda t, c: _tile(t, c, 0, 1)}),
    Change(r"A_log$", {"A_log": lambda t, c: -_tile(t, c, 0, 1).exp()}),
    Change(r"dt_bias$", {"dt_bias": lambda t, c: _tile(t, c, 0, 1)}),
    Change(
        r"linear_attn\.out_proj\.weight$",
        {"linear_attn.out_proj.weight": lambda t, c: _tile(t, c, 1, c["linear_value_head_dim"])},
    ),
)
QWEN35_KEYS: Mapping[str, KeyReader] = {
    **LINEAR_ATTENTION,
    "rope.dimension_sections": lambda c: [*(c["rope_parameters"].get("mrope_section") or (11, 11, 10)), 0],
}
TRANSPOSED_EXPERTS = (
    Change(
        r"experts\.gate_up_proj$",
        {
            "experts.gate_proj.weight": lambda t, c: t.transpose(1, 2).chunk(2, 1)[0],
            "experts.up_proj.weight": lambda t, c: t.transpose(1, 2).chunk(2, 1)[1],
        },
    ),
    Change(r"experts\.down_proj$", {"experts.down_proj.weight": lambda t, c: t.transpose(1, 2)}),
)
ALTERNATING_EXPERTS = (
    Change(
        r"experts\.gate_up_proj$",
        {
            "experts.gate_proj.weight": lambda t, c: t.transpose(1, 2)[:, ::2],
            "experts.up_proj.weight": lambda t, c: t.transpose(1, 2)[:, 1::2],
        },
    ),
    Change(
        r"experts\.gate_up_proj_bias$",
        {"experts.gate_proj.bias": lambda t, c: t[:, ::2], "experts.up_proj.bias": lambda t, c: t[:, 1::2]},
    ),
    Change(r"experts\.down_proj$", {"experts.down_proj.weight": lambda t, c: t.transpose(1, 2)}),
    Change(r"experts\.down_proj_bias$", {"experts.down_proj.bias": lambda t, c: t}),
    Change(r"sinks$", {"sinks.weight": lambda t, c: t}),
)
CONV1D = Change(r"(c_attn|c_proj|c_fc)\.weight$", {r"\1.weight": lambda t, c: t.T})
SHORT_CONVOLUTION: Mapping[str, KeyReader] = {
    "attention.head_count_kv": _kv_heads_by_layer,
    "shortconv.l_cache": lambda c: c["conv_L_cache"],
}
WINDOWED: Mapping[str, KeyReader] = {"attention.sliding_window_pattern": _window_pattern}


def _adjusted_length(config: JsonMapping) -> int:
    """The width of LFM2's MLP, of which its config has only what it is computed from."""
    size = int(config.get("block_ff_dim") or config["intermediate_size"])
    if config["block_auto_adjust_ff_dim"]:
        size = int((config["block_ffn_dim_multiplier"] or 1) * int(2 * size / 3))
        size = -(-size // config["block_multiple_of"]) * config["block_multiple_of"]
    return size


MAMBA: Mapping[str, KeyReader] = {
    "feed_forward_length": lambda c: 0,
    "attention.head_count": lambda c: 0,
    "attention.layer_norm_rms_epsilon": lambda c: c["layer_norm_epsilon"],
    "ssm.conv_kernel": lambda c: c["conv_kernel"],
    "ssm.state_size": lambda c: c["state_size"],
}
MAMBA1: Mapping[str, KeyReader] = {
    **MAMBA,
    "ssm.inner_size": lambda c: c["intermediate_size"],
    "ssm.time_step_rank": lambda c: c["time_step_rank"],
    "ssm.dt_b_c_rms": lambda c: c["model_type"] == "falcon_mamba",
}
NEMOTRON_H: Mapping[str, KeyReader] = {
    "attention.head_count_kv": _kv_heads_by_layer,
    "feed_forward_length": lambda c: [c["intermediate_size"] * m for m in _is_kind(c, "mlp")],
    "attention.layer_norm_rms_epsilon": lambda c: c["layer_norm_epsilon"],
    "ssm.conv_kernel": lambda c: c["conv_kernel"],
    "ssm.state_size": lambda c: c["ssm_state_size"],
    "ssm.group_count": lambda c: c["n_groups"],
    "ssm.inner_size": lambda c: c["mamba_num_heads"] * c["mamba_head_dim"],
    "ssm.time_step_rank": lambda c: c["mamba_num_heads"],
    "rope.scaling.finetuned": lambda c: False,
    "expert_count": lambda c: None,
    "expert_used_count": lambda c: None,
    "expert_group_count": lambda c: None,
}


def _scale(pattern: str, *factors: str) -> Change:
    def scale(t: Tensor, c: JsonMapping) -> Tensor:
        for name, _, place in (factor.partition(".") for factor in factors):
            t = t * (c[name][int(place)] if place else c[name])
        return t

    return Change(rf"({pattern})\.weight$", {r"\1.weight": scale})


def _scale_state_inputs(t: Tensor, c: JsonMapping) -> Tensor:
    import torch

    inner, state = c["mamba_d_ssm"], c["mamba_n_groups"] * c["mamba_d_state"]
    sizes = torch.tensor([inner, inner, state, state, len(t) - 2 * inner - 2 * state])
    factors = torch.tensor(c["ssm_multipliers"]).repeat_interleave(sizes)
    return t * (c["ssm_in_multiplier"] * factors[:, None]).to(t.device)


SCALED_FALCON_H1 = (
    _scale("gate_proj", "mlp_multipliers.0"),
    _scale("down_proj", "mlp_multipliers.1"),
    _scale("k_proj", "key_multiplier", "attention_in_multiplier"),
    _scale("[qv]_proj", "attention_in_multiplier"),
    _scale("o_proj", "attention_out_multiplier"),
    _scale("out_proj", "ssm_out_multiplier"),
    Change(r"mamba\.in_proj\.weight$", {"mamba.in_proj.weight": _scale_state_inputs}),
    _scale("lm_head", "lm_head_multiplier"),
    _scale("embed_tokens", "embedding_multiplier"),
)
SIGMOID_EXPERTS: Mapping[str, KeyReader] = {"expert_gating_func": lambda c: SIGMOID}


def find_wide_head(config: JsonMapping) -> int:
    """The size of a head where Gemma 4 attends to all tokens."""
    given = [one["head_dim"] for one in (config.get("per_layer_config") or {}).values() if "head_dim" in one]
    return int(given[0] if given else config.get("global_head_dim") or config["head_dim"])


GEMMA4: Mapping[str, KeyReader] = {
    **WINDOWED,
    "attention.key_length": find_wide_head,
    "attention.value_length": find_wide_head,
    "attention.key_length_swa": lambda c: c["head_dim"],
    "attention.value_length_swa": lambda c: c["head_dim"],
    "attention.shared_kv_layers": lambda c: c["num_kv_shared_layers"],
    "embedding_length_per_layer_input": lambda c: c["hidden_size_per_layer_input"] or 0,
    "rope.dimension_count": find_wide_head,
    "rope.dimension_count_swa": lambda c: c["head_dim"],
    "expert_count": lambda c: c["num_experts"] if c["enable_moe_block"] else None,
    "expert_feed_forward_length": lambda c: c["moe_intermediate_size"] if c["enable_moe_block"] else None,
}


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", PERMUTED, trusted=True),
    "mistral": Architecture("llama", PERMUTED, trusted=True),
    "qwen2": Architecture("qwen2", trusted=True),
    "qwen3": Architecture("qwen3", trusted=True),
    "apertus": Architecture("apertus"),
    "arcee": Architecture("arcee", PERMUTED),
    "bamba": Architecture(
        "granitehybrid",
        (*STATE_COLUMNS, *PERMUTED, _group_norm("mamba_n_groups")),
        {**HYBRID, "rope.scaling.finetuned": lambda c: True},
    ),
    "bloom": Architecture(
        "bloom",
        (INTERLEAVED_HEADS, Change(r"^transformer\.", {"": lambda t, c: t})),
        {"context_length": lambda c: c.get("seq_length", 2048)},
    ),
    "cohere": Architecture("command-r", (), {"logit_scale": lambda c: c["logit_scale"]}),
    "cohere2": Architecture("cohere2", (), {"logit_scale": lambda c: c["logit_scale"]}),
    "deepseek_v2": Architecture("deepseek2", (LATENT_KEYS,), {**LATENT, "expert_gating_func": lambda c: SOFTMAX}),
    "deepseek_v3": Architecture("deepseek2", (LATENT_KEYS,), {**LATENT, **SIGMOID_EXPERTS}),
    "dots1": Architecture("dots1", (), SIGMOID_EXPERTS),
    "ernie4_5": Architecture("ernie4_5"),
    "ernie4_5_moe": Architecture(
        "ernie4_5-moe",
        (),
        {
            "expert_count": lambda c: c["moe_num_experts"],
            "expert_used_count": lambda c: c["moe_k"],
            "interleave_moe_layer_step": lambda c: c["moe_layer_interval"],
            "leading_dense_block_count": lambda c: c["moe_layer_start_index"],
            "expert_shared_count": lambda c: c["moe_num_shared_experts"],
            "expert_shared_feed_forward_length": lambda c: c["moe_intermediate_size"] * c["moe_num_shared_experts"],
        },
    ),
    "exaone4": Architecture("exaone4", (), WINDOWED),
    "exaone_moe": Architecture(
        "exaone-moe",
        (),
        {
            **WINDOWED,
            **SIGMOID_EXPERTS,
            "expert_shared_count": lambda c: c["num_shared_experts"],
            "expert_shared_feed_forward_length": lambda c: c["moe_intermediate_size"] * c["num_shared_experts"],
        },
    ),
    "falcon": Architecture(
        "falcon",
        (
            Change(
                r"query_key_value\.(weight|bias)$",
                {
                    r"query_key_value.\1": lambda t, c: _ungroup(
                        t, count_kv_heads(c), (count_heads(c) // count_kv_heads(c), 1, 1)
                    )
                },
            ),
        ),
        {"tensor_data_layout": lambda c: "jploski"},
    ),
    "falcon_h1": Architecture(
        "falcon-h1",
        (*SCALED_FALCON_H1, *STATE_COLUMNS, _group_norm("mamba_n_groups")),
        {
            **HYBRID,
            "attention.head_count_kv": count_kv_heads,
            "ssm.inner_size": lambda c: c["mamba_d_ssm"],
        },
    ),
    "falcon_mamba": Architecture("mamba", (DECAY,), MAMBA1),
    "gemma": Architecture("gemma", (SHIFTED_NORMS,)),
    "gemma2": Architecture("gemma2", (SHIFTED_NORMS,)),
    "gemma3_text": Architecture("gemma3", (SHIFTED_NORMS,)),
    "gemma4_text": Architecture("gemma4", (Change(r"layer_scalar$", {"layer_scalar.weight": lambda t, c: t}),), GEMMA4),
    "glm": Architecture("chatglm"),
    "glm4": Architecture("glm4"),
    "glm4_moe": Architecture("glm4moe", (), SIGMOID_EXPERTS),
    "glm4_moe_lite": Architecture("deepseek2", (LATENT_KEYS,), {**LATENT, **SIGMOID_EXPERTS}),
    "gpt2": Architecture("gpt2", (CONV1D,)),
    "gpt_bigcode": Architecture("starcoder"),
    "gpt_neox": Architecture(
        "gptneox", (INTERLEAVED_HEADS,), {"use_parallel_residual": lambda c: c["use_parallel_residual"]}
    ),
    "gpt_oss": Architecture(
        "gpt-oss", ALTERNATING_EXPERTS, {"expert_feed_forward_length": lambda c: c["intermediate_size"]}
    ),
    "granite": Architecture("granite", PERMUTED, GRANITE),
    "granitemoe": Architecture("granitemoe", (*PERMUTED, SPLIT_GRANITE_EXPERTS), GRANITE),
    "granitemoeshared": Architecture("granitemoe", (*PERMUTED, SPLIT_GRANITE_EXPERTS, *SHARED_GRANITE), GRANITE),
    "granitemoehybrid": Architecture(
        "granitehybrid",
        (*PERMUTED, SPLIT_GRANITE_EXPERTS, *SHARED_GRANITE, *STATE_COLUMNS, _group_norm("mamba_n_groups")),
        {**GRANITE, **HYBRID, "rope.scaling.finetuned": lambda c: c["position_embedding_type"] == "rope"},
    ),
    "hunyuan_v1_dense": Architecture("hunyuan-dense"),
    "hunyuan_v1_moe": Architecture(
        "hunyuan-moe",
        (),
        {
            "expert_shared_feed_forward_length": lambda c: c["intermediate_size"],
            "expert_feed_forward_length": lambda c: c["intermediate_size"],
            "expert_shared_count": lambda c: 1,
        },
    ),
    "iquestcoder": Architecture("llama", PERMUTED),
    "jais2": Architecture("jais2"),
    "jamba": Architecture(
        "jamba",
        (DECAY,),
        HYBRID,
    ),
    "lfm2": Architecture(
        "lfm2",
        (),
        {
            **SHORT_CONVOLUTION,
            "feed_forward_length": _adjusted_length,
            "attention.layer_norm_rms_epsilon": lambda c: c["norm_eps"],
        },
    ),
    "lfm2_moe": Architecture(
        "lfm2moe",
        (Change(r"expert_bias$", {"expert_bias.bias": lambda t, c: t}),),
        {
            **SHORT_CONVOLUTION,
            **SIGMOID_EXPERTS,
            "leading_dense_block_count": lambda c: c["num_dense_layers"],
            "attention.layer_norm_rms_epsilon": lambda c: c["norm_eps"],
        },
    ),
    "llama4_text": Architecture(
        "llama4",
        TRANSPOSED_EXPERTS,
        {
            "feed_forward_length": lambda c: c["intermediate_size_mlp"],
            "expert_feed_forward_length": lambda c: c["intermediate_size"],
            "interleave_moe_layer_step": lambda c: c["interleave_moe_layer_step"],
        },
    ),
    "mamba": Architecture("mamba", (DECAY,), MAMBA1),
    "mamba2": Architecture(
        "mamba2",
        (*STATE_COLUMNS, _group_norm("n_groups")),
        {
            **MAMBA,
            "ssm.inner_size": lambda c: c["expand"] * c["hidden_size"],
            "ssm.time_step_rank": lambda c: c["num_heads"],
            "ssm.group_count": lambda c: c["n_groups"],
        },
    ),
    "minicpm3": Architecture(
        "minicpm3",
        (),
        {
            "attention.q_lora_rank": lambda c: c["q_lora_rank"],
            "attention.kv_lora_rank": lambda c: c["kv_lora_rank"],
            "attention.key_length": lambda c: c["qk_nope_head_dim"] + c["qk_rope_head_dim"],
            "attention.value_length": lambda c: c["v_head_dim"],
            "rope.dimension_count": lambda c: c["qk_rope_head_dim"],
        },
    ),
    "minimax_m2": Architecture(
        "minimax-m2",
        (),
        {**SIGMOID_EXPERTS, "expert_feed_forward_length": lambda c: c["intermediate_size"]},
    ),
    "ministral3": Architecture(
        "mistral3",
        PERMUTED,
        {
            "rope.scaling.yarn_log_multiplier": lambda c: c["rope_parameters"].get("mscale_all_dim"),
            "attention.temperature_scale": lambda c: c["rope_parameters"].get("llama_4_scaling_beta"),
        },
    ),
    "mixtral": Architecture("llama", PERMUTED),
    "mpt": Architecture(
        "mpt",
        (),
        {
            "attention.max_alibi_bias": lambda c: float(
                c["attn_config"]["alibi_bias_max"] if c["attn_config"]["alibi"] else 0
            ),
            "attention.clamp_kqv": lambda c: c["attn_config"]["clip_qkv"],
            "feed_forward_length": lambda c: c["expansion_ratio"] * c["d_model"],
        },
    ),
    "nemotron": Architecture("nemotron", (SHIFTED_NORMS,), {"attention.layer_norm_epsilon": lambda c: c["norm_eps"]}),
    "nemotron_h": Architecture("nemotron_h", (*STATE_COLUMNS, _group_norm("n_groups")), NEMOTRON_H),
    "olmo": Architecture(
        "olmo",
        PERMUTED,
        {"attention.layer_norm_epsilon": lambda c: 1e-5, "attention.clamp_kqv": lambda c: c.get("clip_qkv")},
    ),
    "olmo2": Architecture("olmo2"),
    "olmo3": Architecture("olmo2", (), WINDOWED),
    "olmoe": Architecture("olmoe", (), {"attention.clamp_kqv": lambda c: c.get("clip_qkv")}),
    "phi": Architecture("phi2"),
    "phi3": Architecture("phi3", (), {"attention.sliding_window": lambda c: c.get("sliding_window") or 0}),
    "qwen2_moe": Architecture("qwen2moe"),
    "qwen3_moe": Architecture("qwen3moe"),
    "qwen3_next": Architecture(
        "qwen3next",
        (
            PLAIN_NORMS_OF_STATES,
            DECAY,
            Change(
                r"in_proj_qkvz\.weight$",
                {
                    "in_proj_qkv.weight": lambda t, c: _split_qkvz(t, c, slice(0, 3)),
                    "in_proj_z.weight": lambda t, c: _split_qkvz(t, c, slice(3, 4)),
                },
            ),
        ),
        LINEAR_ATTENTION,
    ),
    "qwen3_5_text": Architecture("qwen35", (PLAIN_NORMS_OF_STATES, *TILED_HEADS), QWEN35_KEYS),
    "qwen3_5_moe_text": Architecture("qwen35moe", (PLAIN_NORMS_OF_STATES, *TILED_HEADS), QWEN35_KEYS),
    "seed_oss": Architecture("seed_oss"),
    "smollm3": Architecture("smollm3", PERMUTED),
    "solar_open": Architecture("glm4moe", (), SIGMOID_EXPERTS),
    "stablelm": Architecture("stablelm", (), {"use_parallel_residual": lambda c: c["use_parallel_residual"]}),
    "starcoder2": Architecture("starcoder2"),
    "youtu": Architecture(
        "deepseek2", (LATENT_KEYS,), {**LATENT, "leading_dense_block_count": lambda c: c["num_hidden_layers"]}
    ),
}
"""transformers' `model_type` of a text model -> what llama.cpp makes of it."""
