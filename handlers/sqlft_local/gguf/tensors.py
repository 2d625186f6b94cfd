"""Which tensors a file for llama.cpp has, and of which of the base's each is made.

Called by `write`.  In: names and shapes of a base's tensors, its config, its architecture.  Out: a plan, in which one
tensor after the other can be made, so that never more than one (or a layer's experts) is in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import NotSupported
from sqlft_local.base.config import read_shape
from sqlft_local.gguf.architectures import Architecture, Change, TensorChange

if TYPE_CHECKING:
    from gguf import TensorNameMap
    from torch import Tensor

    from sqlft_local._types import JsonMapping

UNUSED = re.compile(
    r"(^|\.)(mtp|visual|vision_\w+|audio_\w+|embed_vision|embed_audio|multi_modal_projector)\.|inv_freq$|masked_bias$"
    r"|\.attn\.bias$|\.attention\.bias$"
)
"""Tensors that no text reaches, or that are computed anew."""
LAYER = re.compile(r"(?:layers|h|blocks)\.(\d+)\.")
EXPERT = re.compile(r"experts\.(\d+)\.")
EXPERT_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
UNQUANTIZED = re.compile(r"norm\.weight$|ffn_gate_inp|conv|position_embd|ssm_a$|ssm_d$|ssm_dt|sinks|attn_gate_inp")
"""Tensors of llama.cpp that are read in float32 only."""
GENERAL_CHANGES = (
    Change(r"dt_bias$", {"dt_proj.bias": lambda t, c: t}),
    Change(r"conv1d\.weight$", {"conv1d.weight": lambda t, c: t.squeeze(1)}),
    Change(r"conv\.conv\.weight$", {"conv.conv.weight": lambda t, c: t.squeeze(1)}),
    Change(r"e_score_correction_bias$", {"e_score_correction.bias": lambda t, c: t}),
    Change(
        r"experts\.gate_up_proj$",
        {
            "experts.gate_proj.weight": lambda t, c: t.chunk(2, 1)[0],
            "experts.up_proj.weight": lambda t, c: t.chunk(2, 1)[1],
        },
    ),
    Change(r"experts\.down_proj$", {"experts.down_proj.weight": lambda t, c: t}),
)
"""Of any architecture, after its own."""


@dataclass(frozen=True)
class Target:
    """A tensor of the file."""

    name: str
    sources: tuple[str, ...]
    make: Callable[[Sequence[Tensor]], Tensor]
    shape: tuple[int, ...]


def read_tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every tensor of a base."""
    return {n: shape for file in sorted(folder.glob("*.safetensors")) for n, shape in read_file_shapes(file).items()}


def read_file_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of one file."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  # no mapping


def find_layer_key(name: str) -> str:
    """What a layer is called in its block: checkpoints and modules differ in what comes before.

    >>> find_layer_key("model.language_model.layers.3.mlp.up_proj"), find_layer_key("lm_head")
    ('3.mlp.up_proj', 'lm_head')
    """
    found = LAYER.search(name)
    return name[found.start(1) :] if found else name.rpartition(".")[2]


def plan_tensors(
    shapes: Mapping[str, tuple[int, ...]], config: JsonMapping, architecture: Architecture
) -> list[Target]:
    """The tensors of the file; NotSupported where llama.cpp has no place for one of the base's."""
    import torch

    layers, names = read_shape(config).layers, create_name_map(config, architecture)
    groups: dict[str, list[tuple[str, Callable[[Tensor], Tensor]]]] = {}
    for source in sorted(shapes, key=_sort_key):
        for name, make in change_tensor(source, config, architecture):
            layer = LAYER.search(name)
            if layer is None or int(layer[1]) < layers:
                groups.setdefault(_map_name(names, name, source), []).append((source, make))
    if read_shape(config).tied:
        groups.pop("output.weight", None)
    plan = []
    for name, parts in groups.items():
        join = _join_parts([make for _, make in parts], stacked=EXPERT.search(parts[0][0]) is not None)
        sources = tuple(source for source, _ in parts)
        shape = tuple(join([torch.empty(shapes[s], device="meta") for s in sources]).shape)
        plan.append(Target(name, sources, join, shape))
    return plan


def change_tensor(
    source: str, config: JsonMapping, architecture: Architecture
) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """What becomes of one of the base's tensors: names as transformers would write them, and how each is made."""
    if UNUSED.search(source) or find_activation_key(source):
        return []
    name = re.sub(r"^(model\.language_model|language_model\.model)\.", "model.", source)
    found: list[tuple[str, Callable[[Tensor], Tensor]]] = [(name.removeprefix("language_model."), lambda t: t)]
    for change in (*architecture.changes, *GENERAL_CHANGES):
        found = [piece for name, make in found for piece in _apply(change, name, make, config)]
    return found


def _apply(
    change: Change, name: str, make: Callable[[Tensor], Tensor], config: JsonMapping
) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    if not re.search(change.pattern, name):
        yield name, make
        return
    for part, how in change.parts.items():
        yield re.sub(change.pattern, part, name), _chain(make, how, config)


def _chain(make: Callable[[Tensor], Tensor], how: TensorChange, config: JsonMapping) -> Callable[[Tensor], Tensor]:
    return lambda t: how(make(t), config)


def find_activation_key(source: str) -> str | None:
    """The key whose list has this number of a layer's activation."""
    match = re.search(r"act_fn\.(alpha_n|alpha_p|beta|eps)$", source)
    return f"xielu.{match[1]}" if match else None


def create_name_map(config: JsonMapping, architecture: Architecture) -> TensorNameMap:
    """The package's names of this architecture's tensors."""
    from gguf import get_tensor_name_map
    from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES

    known = next((a for a in MODEL_ARCH if MODEL_ARCH_NAMES[a] == architecture.name), None)
    if known is None:
        raise NotSupported(
            f"The package gguf that is installed does not know the architecture {architecture.name}.",
            "Install a newer one, or use backend = 'transformers'.",
        )
    return get_tensor_name_map(known, read_shape(config).layers)


def _map_name(names: TensorNameMap, name: str, source: str) -> str:
    wanted = name
    if EXPERT.search(name) and (layer := LAYER.search(name)):
        part, _, kind = name.rpartition(".")
        part = part.rpartition(".")[2]
        wanted = f"model.layers.{layer[1]}.mlp.experts.{EXPERT_PARTS.get(part, part)}.{kind}"
    found: str | None = names.get_name(wanted, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise NotSupported(f"llama.cpp has no place for {source}.", "Use backend = 'transformers'.")
    return found


def _sort_key(name: str) -> tuple[str, int]:
    """Experts by their number."""
    match = EXPERT.search(name)
    return (EXPERT.sub("", name), int(match[1])) if match else (name, 0)


def _join_parts(makers: Sequence[Callable[[Tensor], Tensor]], stacked: bool) -> Callable[[Sequence[Tensor]], Tensor]:
    import torch

    def make(sources: Sequence[Tensor]) -> Tensor:
        made = [make(t) for make, t in zip(makers, sources, strict=True)]
        return torch.stack(made) if stacked else torch.cat(made) if len(made) > 1 else made[0]

    return make


class WeightReader:
    """The tensors of a base's files by name; a context in which the files are open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Callable[[str], Tensor]:
        from safetensors import safe_open

        files = [
            self._stack.enter_context(safe_open(file, framework="pt"))
            for file in sorted(self._folder.glob("*.safetensors"))
        ]
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # no mapping
        return lambda name: where[name].get_tensor(name)

    def __exit__(self, *_: object) -> None:
        self._stack.close()
