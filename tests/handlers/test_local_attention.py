"""Attention over a packed row: the processor's own against torch's."""

from __future__ import annotations

import pytest
import torch
from sqlft_local.kernels import attention, packing

WIDTH = 8


def gradients(function: object, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    """What is computed, and the gradients for some weights."""
    given = [t.clone().requires_grad_() for t in (q, k, v)]
    out = function(*given)  # type: ignore[operator]
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), *(t.grad for t in given if t.grad is not None)]


@pytest.mark.parametrize("window", [None, 7, 300])
@pytest.mark.parametrize(
    ("prefix", "lengths"),
    [
        (0, (9,)),
        (0, (600, 590, 31)),
        (13, (20, 19, 18, 3, 3)),
        (300, (40, 2)),
        (260, (270, 265)),
    ],
)
def test_it_equals_torch_s(prefix: int, lengths: tuple[int, ...], window: int | None) -> None:
    """Long rows a block of queries at a time, rows of like lengths together, prefixes that are read by all."""
    numbers = torch.Generator().manual_seed(1)
    tokens = prefix + sum(lengths)
    q, k, v = (torch.randn(1, heads, tokens, WIDTH, generator=numbers) for heads in (6, 2, 2))
    scale = WIDTH**-0.5
    groups = attention.group_parts(prefix, lengths)

    def ours(*given: torch.Tensor) -> torch.Tensor:
        return attention.PackedAttention.apply(*given, groups, scale, window)

    def torch_s(*given: torch.Tensor) -> torch.Tensor:
        nothing = torch.zeros(1)
        packed = packing.PackedExamples(nothing, nothing, prefix, lengths, nothing, nothing, nothing)
        return packed.attend_with_torch(*given, scale, window)

    for one, other in zip(gradients(ours, q, k, v), gradients(torch_s, q, k, v), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long row no weights, of which there are as many as tokens squared."""
    q, k, v = (torch.randn(1, heads, 600, WIDTH, requires_grad=True) for heads in (4, 2, 2))
    kept: list[int] = []

    def note(t: torch.Tensor) -> torch.Tensor:
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        attention.PackedAttention.apply(q, k, v, attention.group_parts(0, (600,)), 0.3, None)
    assert sum(kept) == q.numel() + k.numel() + v.numel()
