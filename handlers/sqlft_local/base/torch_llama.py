"""Llama, Mistral and Qwen2 on torch alone, for asking: importing transformers' own takes longer than an answer.

The modules have transformers' names, so that weights and adapters fit, and in float32 every number is made in its
order, so that answers are the same; a test compares them bit by bit.  In 16 bits only what matrices are multiplied with
is rounded: what the layers add up stays in float32, and so do the logits among which the next token is chosen.  So
more answers are float32's than with everything rounded: 95 % where it was 89 % (docs/handlers/local.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sqlft_local.base import config
from sqlft_local.base.config import DecoderShape

if TYPE_CHECKING:
    from sqlft_local._types import Device, Dtype, JsonMapping
    from sqlft_local.kernels.packing import Layout

MODEL_TYPES = {"llama", "mistral", "qwen2"}
ROUNDING_TOLERANCE = 2.0**-6
"""What rounding to bfloat16 may change of a logit and of the largest one, relative to it, twice over."""


@dataclass(frozen=True)
class TorchLlamaConfig(DecoderShape):
    """What of a config.json the numbers depend on."""

    norm_eps: float
    rope_theta: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool


def parse_config(config_json: JsonMapping) -> TorchLlamaConfig | None:
    """None for what only transformers knows how to run."""
    if config_json.get("model_type") not in MODEL_TYPES or config.find_unusual_part(config_json):
        return None
    try:
        is_qwen, bias = config_json["model_type"] == "qwen2", bool(config_json.get("attention_bias"))
        return TorchLlamaConfig(
            **asdict(config.read_shape(config_json)),
            norm_eps=float(config_json["rms_norm_eps"]),
            rope_theta=config.read_rope_theta(config_json),
            qkv_bias=bias or is_qwen,
            o_bias=bias,
            mlp_bias=bool(config_json.get("mlp_bias")),
        )
    except (KeyError, TypeError, ValueError):
        return None


class Linear(nn.Linear):  # type: ignore[misc]  # torch is untyped here
    """Without first weights, whose drawing imports torch's compiler."""

    def reset_parameters(self) -> None:
        """The file has them."""


class Embedding(nn.Embedding):  # type: ignore[misc]  # torch is untyped here
    """Likewise."""

    def reset_parameters(self) -> None:
        """The file has them."""


class RmsNorm(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """RMSNorm, in float32."""

    def __init__(self, c: TorchLlamaConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c.hidden_size))
        self.norm_eps = c.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        """x (…, hidden)."""
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.norm_eps)
        return self.weight.to(torch.float32) * wide


class Attention(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Grouped-query attention; what sees what is the layout's to say."""

    def __init__(self, c: TorchLlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, c.head_dim
        self.q_proj = Linear(c.hidden_size, c.heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = Linear(c.hidden_size, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = Linear(c.hidden_size, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = Linear(c.heads * c.head_dim, c.hidden_size, bias=c.o_bias)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], layout: Layout) -> Tensor:
        """x (rows, tokens, hidden)."""
        x = x.to(self.q_proj.weight.dtype)
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (p(x).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        out = layout.attend(
            self.layer, _apply_rotary(q, rotary), _apply_rotary(k, rotary), v, self.head_dim**-0.5, None
        )
        out_states: Tensor = self.o_proj(out.reshape(*x.shape[:-1], -1).contiguous())
        return out_states


class Mlp(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """The gated feed-forward part."""

    def __init__(self, c: TorchLlamaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.up_proj = Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, hidden)."""
        x = x.to(self.up_proj.weight.dtype)
        out_states: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out_states


class Block(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """One layer."""

    def __init__(self, c: TorchLlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(c, layer)
        self.mlp = Mlp(c)
        self.input_layernorm = RmsNorm(c)
        self.post_attention_layernorm = RmsNorm(c)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], layout: Layout) -> Tensor:
        """x (rows, tokens, hidden)."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, layout)
        out_states: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out_states


class DecoderStack(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Embeddings, layers and the last norm."""

    def __init__(self, c: TorchLlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c, i) for i in range(c.layers))
        self.norm = RmsNorm(c)


class TorchLlama(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """The model, called as transformers' own are."""

    def __init__(self, c: TorchLlamaConfig) -> None:
        super().__init__()
        self.model = DecoderStack(c)
        self.lm_head = Linear(c.hidden_size, c.vocab_size, bias=False)
        self._tied, self._rope_theta, self._width = c.tied, c.rope_theta, c.head_dim

    @property
    def device(self) -> Device:
        """Where its inputs go."""
        return self.model.norm.weight.device

    @property
    def dtype(self) -> Dtype:
        """Of its weights."""
        return self.model.norm.weight.dtype

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, layout: Layout, logits_to_keep: Tensor, use_cache: bool = False
    ) -> SimpleNamespace:
        """ids and positions (rows, tokens) -> .logits (rows, tokens kept, words)."""
        x = self.model.embed_tokens(input_ids).to(torch.float32)
        rotary = self._rotary_embedding(position_ids)
        for block in self.model.layers:
            x = block(x, rotary, layout)
        return SimpleNamespace(logits=self._compute_logits(self.model.norm(x)[:, logits_to_keep]))

    def _compute_logits(self, states: Tensor) -> Tensor:
        """In float32: those that 16 bits may have mistaken for the largest are computed again."""
        found: Tensor = self.lm_head(states.to(self.dtype)).to(torch.float32)
        if self.dtype != torch.float32:
            largest = found.amax(-1, keepdim=True)
            near = (found >= largest - largest.abs() * ROUNDING_TOLERANCE).nonzero(as_tuple=True)
            found[near] = (states[near[:-1]] * self.lm_head.weight[near[-1]].to(torch.float32)).sum(-1)
        return found

    def _rotary_embedding(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary embedding (rows, 1, tokens, width)."""
        steps = torch.arange(0, self._width, 2, dtype=torch.float, device=positions.device) / self._width
        angles = positions[..., None].float() * (1.0 / (self._rope_theta**steps))
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(self.dtype)[:, None], both.sin().to(self.dtype)[:, None]


def _apply_rotary(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * rotary[0]) + (torch.cat((-second, first), dim=-1) * rotary[1])


def load(folder: Path, files: Iterable[Path], dtype: Dtype, device: str) -> TorchLlama | None:
    """The base in `folder`, its weights from `files` in the wanted numbers; None where they are of another kind."""
    from safetensors import safe_open

    parsed = parse_config(config.read_config(folder))
    if parsed is None:
        return None
    with torch.device("meta"):
        model = TorchLlama(parsed)
    found: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt", device="cpu") as tensors:
            found |= {name: tensors.get_tensor(name).to(device, dtype) for name in tensors.keys()}  # noqa: SIM118
    if parsed.tied:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    expected = {name: weight.shape for name, weight in model.state_dict().items()}
    if expected != {name: weight.shape for name, weight in found.items()}:
        return None
    model.load_state_dict(found, assign=True)
    if parsed.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model
