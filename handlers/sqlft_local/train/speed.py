"""How fast this machine trains a base: measured in seconds with blocks of its shape, then known from real trainings.

`estimate` asks for the speed of a kind of training; `training` keeps what its own steps took.  What was found while
other work took the processor is used once and not kept.  The model: a pass takes `fixed` seconds, whatever is in it,
and `each` second an operation; that holds from 80 to 1,800 tokens to within a tenth.  Not covered: reading the base,
validation's share of a training, the time that quantised weights take to be unpacked before a training was seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from sqlft_local import machine
from sqlft_local.base.config import DecoderShape
from sqlft_local.train.memory import DTYPE_BYTES, TrainingSetup

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import JsonMapping, JsonObject

MEASURE_SECONDS = 15.0
"""After that a measurement is given up; it takes about six, half of them for importing PyTorch."""
REPEATS, ENOUGH_SECONDS = 3, 4.0
"""Passes of a size that are timed, behind one that prepares products; no more begin after so many seconds."""
LEAST_BYTES = 64 << 20
"""Weights of the blocks that are measured: fewer would stay in a processor's caches."""
VOCABULARY = 4096
"""Of the base that is measured; a real one only takes longer to make."""
PASS_TOKENS = (64, 384)
"""Of the larger pass that is measured, at least and at most; the smaller has a quarter."""
PASS_OPERATIONS = {"cpu": 6e10}
"""Of the larger pass, about: half a second."""
ON_CARDS = 4e12
ROW, ANSWER = 64, 8
"""Tokens of a row of a measurement, and those of it that are learned."""
KNEE = 200
"""Tokens that take as long as a pass takes beside its tokens, where only real steps are known: 150 in float32 on a
processor, 320 in bfloat16 with matrix units."""
BUSY = 0.15
"""Share of its time that a measurement may wait for a processor and still be kept."""
KEPT = "speed.json"


@dataclass(frozen=True)
class Kind:
    """What decides how fast a training is, but for its rows."""

    shape: DecoderShape
    setting: TrainingSetup
    device: str
    threads: int
    """0: as many as PyTorch takes."""

    @property
    def key(self) -> str:
        """Its name in the file; another PyTorch is another speed."""
        s = self.setting
        targets = sorted(self.shape.linear_layers) if "all-linear" in s.targets else sorted(s.targets)
        key = {**asdict(self), "setting": asdict(replace(s, targets=targets)), "torch": _torch()}
        return sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Speed:
    """Seconds of a pass of no tokens, and of an operation, with the backward pass and without."""

    fixed: float
    each: float
    fixed_check: float
    each_check: float
    waited: float = 0.0
    """Share of the measurement that other work on this machine took: of what is kept, a little."""
    is_real: bool = False
    """Of the steps of a training."""
    around: float = 0.0
    """Seconds of that training beside its steps: libraries and base loaded, what is asked made; 0: not known."""

    def training(self, operations: float, passes: float) -> float:
        """Seconds of passes with so many operations together."""
        return self.fixed * passes + self.each * operations

    def checking(self, operations: float, passes: float) -> float:
        """The same without backward pass."""
        return self.fixed_check * passes + self.each_check * operations

    def scaled(self, by: float) -> Speed:
        """A machine that takes `by` times as long."""
        return replace(
            self,
            fixed=self.fixed * by,
            each=self.each * by,
            fixed_check=self.fixed_check * by,
            each_check=self.each_check * by,
        )


class Contention:
    """How much of the time since it was made this process has waited for a processor that other work had."""

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads or machine.resolve_threads(None)
        self._began = time.perf_counter()
        self._used = time.process_time()
        self._waited = _run_delay()

    @property
    def share(self) -> float:
        """0 on a machine that does nothing else, one half beside a process of as many threads."""
        used = time.process_time() - self._used
        waited = _run_delay()
        if self._waited is not None and waited is not None:
            delay = max(0.0, waited - self._waited)
            return delay / (used + delay) if used + delay else 0.0
        whole = (time.perf_counter() - self._began) * self._threads
        idle = 1 - used / whole if whole else 0.0
        return idle if idle > 2 * BUSY else 0.0  # threads also wait for each other


def known(kind: Kind, folder: Path, processor: str) -> Speed | None:
    """As it is kept in the folder."""
    found = _read(folder / KEPT).get(_name(kind, processor))
    try:
        return None if found is None else Speed(**found)
    except TypeError:  # an earlier sqlft wrote it
        return None


def measure(kind: Kind, folder: Path, processor: str) -> Speed | None:
    """Measured now, in a process of its own, and kept if the machine was quiet; None if this cannot be done here."""
    found = _measured_elsewhere(kind)
    if found is not None and found.waited <= BUSY:
        keep(kind, found, folder, processor)
    return found


def keep(kind: Kind, found: Speed, folder: Path, processor: str) -> None:
    """For later estimates; entries that an earlier sqlft wrote go."""
    entries = {name: entry for name, entry in _read(folder / KEPT).items() if "fixed" in entry}
    _write(folder / KEPT, {**entries, _name(kind, processor): asdict(found)})


def of_steps(kind: Kind, before: Speed | None, operations: float, passes: float, seconds: float) -> Speed:
    """The speed at which real passes took so long, in the proportions that were known before."""
    usual = before or _by_knee(kind)
    return replace(usual.scaled(seconds / usual.training(operations, passes)), waited=0.0, is_real=True, around=0.0)


def guessed(kind: Kind, operations_a_second: float) -> Speed:
    """That of a machine of which only its usual operations a second are known."""
    return _by_knee(kind).scaled(1 / operations_a_second)


def flops(shape: DecoderShape, setting: TrainingSetup, tokens: float, answers: float) -> float:
    """Multiplications and additions of a pass, forward and backward; the frozen weights take no gradients."""
    times = 6 if setting.checkpointing else 4
    return times * _of_blocks(shape, tokens) + 4 * shape.vocab_size * shape.hidden_size * answers


def flops_forward(shape: DecoderShape, tokens: float, answers: float) -> float:
    """The same without backward pass."""
    return 2 * _of_blocks(shape, tokens) + 2 * shape.vocab_size * shape.hidden_size * answers


def _of_blocks(shape: DecoderShape, tokens: float) -> float:
    return shape.layers * sum(a * b for a, b in shape.linear_layers.values()) * tokens


def _by_knee(kind: Kind) -> Speed:
    """In proportion only: one operation takes a second."""
    fixed, check = flops(kind.shape, kind.setting, KNEE, 0), flops_forward(kind.shape, KNEE, 0)
    return Speed(fixed, 1.0, check, 1.0)


def _name(kind: Kind, processor: str) -> str:
    return f"{processor}: {kind.key}"


def _torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _run_delay() -> float | None:
    """Seconds that the threads of this process were ready to run and did not, as Linux counts them; else None."""
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return None
    total, found = 0, False
    for thread in threads:
        try:
            total += int(Path(f"/proc/self/task/{thread}/schedstat").read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):  # it has just ended, or the kernel does not count
            continue
        found = True
    return total / 1e9 if found else None


def _measured_elsewhere(kind: Kind) -> Speed | None:
    command = machine.module_command("sqlft_local.train.speed", json.dumps(asdict(kind)))
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=MEASURE_SECONDS, env=machine.child_environment()
        )
        return Speed(**json.loads(result.stdout.splitlines()[-1])) if result.returncode == 0 else None
    except (OSError, ValueError, IndexError, TypeError, subprocess.TimeoutExpired):
        return None


def _read(path: Path) -> JsonObject:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _write(path: Path, entries: JsonMapping) -> None:
    """What cannot be kept is measured again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
        unfinished.write_text(json.dumps(entries), encoding="utf-8")
        unfinished.replace(path)
    except OSError:
        pass


def measured(kind: Kind) -> Speed:
    """From a small and a large pass through a few blocks of the base's shape, with made-up weights."""
    import torch

    if kind.threads:
        torch.set_num_threads(kind.threads)
    shape = _part_of(kind.shape, kind.setting)
    large = _tokens(shape, kind)
    sizes = [_rows(large // 4), _rows(large)]
    contention, training, checking = _timed(_Blocks(kind, shape), sizes, kind)
    pass_sizes = [(sum(rows), len(rows) * ANSWER) for rows in sizes]
    more = kind.shape.layers / shape.layers
    fixed, each = _line([flops(shape, kind.setting, *t) for t in pass_sizes], training)
    fixed_check, each_check = _line([flops_forward(shape, *t) for t in pass_sizes], checking)
    share = contention.share if kind.device == "cpu" else 0.0
    return Speed(fixed * more, each, fixed_check * more, each_check, share)


def _part_of(shape: DecoderShape, setting: TrainingSetup) -> DecoderShape:
    """So many blocks that their weights do not stay in the caches, and few words."""
    a_block = sum(a * b for a, b in shape.linear_layers.values()) * DTYPE_BYTES[setting.dtype]
    layers = min(shape.layers, max(1, -(-LEAST_BYTES // a_block)))
    return replace(shape, layers=layers, vocab_size=min(shape.vocab_size, VOCABULARY))


def _tokens(shape: DecoderShape, kind: Kind) -> int:
    few, many = PASS_TOKENS
    fits = PASS_OPERATIONS.get(kind.device, ON_CARDS) / flops(shape, kind.setting, 1, 0)
    return round(max(few, min(many if kind.device == "cpu" else 8 * many, fits)))


def _rows(tokens: int) -> list[int]:
    """Their lengths."""
    return [ROW] * (tokens // ROW) if tokens >= ROW else [max(2 * ANSWER, tokens)]


def _line(operations: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(seconds of nothing, seconds of an operation) through the small and the large pass; neither is negative."""
    (few, many), (short, long) = operations, seconds
    each = (long - short) / (many - few)
    fixed = long - each * many
    return (fixed, each) if each > 0 and fixed > 0 else (0.0, long / many)


def _timed(blocks: _Blocks, sizes: Sequence[Sequence[int]], kind: Kind) -> tuple[Contention, list[float], list[float]]:
    """What passes of each size usually take, with the backward pass and without."""
    for rows in sizes:
        blocks.run(rows, learn=True)
        blocks.run(rows, learn=False)
    contention, until = Contention(kind.threads), time.perf_counter() + ENOUGH_SECONDS
    found: dict[tuple[int, bool], list[float]] = {}
    for repeat in range(REPEATS):
        for i, rows in enumerate(sizes):
            for learn in (True, False):
                if repeat == 0 or time.perf_counter() < until:
                    found.setdefault((i, learn), []).append(blocks.run(rows, learn=learn))
    each = range(len(sizes))
    return contention, [median(found[i, True]) for i in each], [median(found[i, False]) for i in each]


class _Blocks:
    """A decoder of the shape, made of what `training` computes with; transformers and peft take too long to import."""

    def __init__(self, kind: Kind, shape: DecoderShape) -> None:
        import torch

        self._shape, self._device = shape, kind.device
        self._checkpointing = kind.setting.checkpointing
        dtype, r = getattr(torch, kind.setting.dtype), kind.setting.r

        def made(*size: int) -> Tensor:
            return torch.full(size, 1e-3, dtype=dtype, device=kind.device)

        chosen = shape.linear_layers if "all-linear" in kind.setting.targets else kind.setting.targets
        self._blocks = [
            {
                name: (made(o, i), *((made(r, i).float(), made(o, r).float()) if name in chosen else ()))
                for name, (i, o) in shape.linear_layers.items()
            }
            for _ in range(shape.layers)
        ]
        for block in self._blocks:
            for _, *matrices in block.values():
                for matrix in matrices:
                    matrix.requires_grad_(True)
        self._head, self._norm = made(shape.vocab_size, shape.hidden_size), made(shape.hidden_size)

    def run(self, rows: Sequence[int], *, learn: bool) -> float:
        """Seconds of a pass of rows of such lengths."""
        import torch

        tokens = torch.randn(sum(rows), self._shape.hidden_size, device=self._device).to(self._head.dtype)
        self._wait()
        began = time.perf_counter()
        with torch.set_grad_enabled(learn):
            loss = self._loss(tokens, rows)
        if learn:
            loss.backward()
        self._wait()
        return time.perf_counter() - began

    def _loss(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        import torch
        from torch.nn.functional import cross_entropy, linear
        from torch.utils.checkpoint import checkpoint

        for block in self._blocks:
            x = (
                checkpoint(self._block, x, rows, block, use_reentrant=False)
                if self._checkpointing
                else self._block(x, rows, block)
            )
        logits = linear(x[: ANSWER * len(rows)], self._head)
        return cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long, device=self._device))

    def _block(self, x: Tensor, rows: Sequence[int], block: Mapping[str, Sequence[Tensor]]) -> Tensor:
        from sqlft_local.kernels.fused import RmsNormFunction, SwiGluFunction

        h = RmsNormFunction.apply(x, self._norm, 1e-5)
        q, k, v = (_linear(h, *block[name]) for name in ("q_proj", "k_proj", "v_proj"))
        x = x + _linear(self._attention(q, k, v, rows), *block["o_proj"])
        h = RmsNormFunction.apply(x, self._norm, 1e-5)
        gated = SwiGluFunction.apply(_linear(h, *block["gate_proj"]), _linear(h, *block["up_proj"]))
        return x + _linear(gated, *block["down_proj"])

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, rows: Sequence[int]) -> Tensor:
        """Each row to itself."""
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        s, found = self._shape, []
        shared = s.heads // s.kv_heads
        for own in zip(*(t.split(list(rows)) for t in (q, k, v)), strict=True):
            heads, keys, values = (t.view(1, len(t), -1, s.head_dim).transpose(1, 2) for t in own)
            keys, values = (t.repeat_interleave(shared, 1) for t in (keys, values))
            a = scaled_dot_product_attention(heads, keys, values, is_causal=True)
            found.append(a[0].transpose(0, 1).reshape(len(own[0]), -1))
        return torch.cat(found)

    def _wait(self) -> None:
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()


def _linear(x: Tensor, weight: Tensor, *matrices: Tensor) -> Tensor:
    """With LoRA's two matrices where there are some."""
    from torch.nn.functional import linear

    y = linear(x, weight)
    if matrices:
        a, b = (m.to(x.dtype) for m in matrices)
        y = y + linear(linear(x, a), b)
    return y


def _kind(given: JsonMapping) -> Kind:
    return Kind(**{**given, "shape": DecoderShape(**given["shape"]), "setting": TrainingSetup(**given["setting"])})


if __name__ == "__main__":
    machine.configure_math_libraries()
    print(json.dumps(asdict(measured(_kind(json.loads(sys.argv[1]))))))
