"""How fast this machine trains a base: blocks of its shape with random weights, trained for a moment.

Run as a process of its own, so that the session keeps no PyTorch; what was measured is kept beside the bases.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from sqlft_local import machine
from sqlft_local.base.config import DecoderShape
from sqlft_local.train.memory import TrainingSetup, estimate_weight_bytes

MEASURE_SECONDS = 120.0
"""Longer than that no measurement takes."""
REPEATS = 3
"""Passes that are timed, behind one that prepares products."""
SMALL_BASE_BYTES = 1 << 30
"""Bytes of a base up to which all of it is measured: a few blocks of a small one would stay in the caches."""
SPEED_FILE = "speed.json"


@dataclass(frozen=True)
class SpeedTrial:
    """What is measured: passes like those that the training will have."""

    shape: DecoderShape
    setting: TrainingSetup
    device: str
    threads: int
    rows: tuple[int, ...]
    """Tokens of each row, the common start included."""
    prefix: int
    answer: int
    """Tokens of a row at its end that are learned."""


@dataclass(frozen=True)
class PassTime:
    """Seconds of a pass: forward and backward, and forward alone."""

    training: float
    checking: float


def load_or_measure(trial: SpeedTrial, folder: Path, processor: str) -> PassTime | None:
    """Measured now, or as it was kept in the folder; None if this cannot be measured here."""
    key = sha256(json.dumps([processor, asdict(trial)], sort_keys=True).encode()).hexdigest()[:16]
    known = _read_speeds(folder / SPEED_FILE)
    if key not in known:
        found = _measure_in_process(trial)
        if found is None:
            return None
        known[key] = asdict(found)
        _write_speeds(folder / SPEED_FILE, known)
    return PassTime(**known[key])


def count_flops(shape: DecoderShape, setting: TrainingSetup, tokens: float, answers: float) -> float:
    """Multiplications and additions of a pass, forward and backward; the frozen weights take no gradients."""
    blocks = shape.layers * sum(a * b for a, b in shape.linear_layers.values())
    times = 6 if setting.checkpointing else 4
    return times * blocks * tokens + 4 * shape.vocab_size * shape.hidden_size * answers


def _measure_in_process(trial: SpeedTrial) -> PassTime | None:
    command = machine.module_command("sqlft_local.estimate.speed", json.dumps(asdict(trial)))
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=MEASURE_SECONDS, env=machine.child_environment()
        )
        return PassTime(**json.loads(said.stdout.splitlines()[-1])) if said.returncode == 0 else None
    except (OSError, ValueError, IndexError, TypeError, subprocess.TimeoutExpired):
        return None


def _read_speeds(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_speeds(path: Path, known: dict[str, Any]) -> None:
    """What cannot be kept is measured again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(known), encoding="utf-8")
        unfinished.replace(path)
    except OSError:
        pass


def measure_here(trial: SpeedTrial) -> PassTime:
    """Seconds of a pass of the whole base; of a large one told from blocks of it: one, and then two more."""
    import torch

    if trial.threads:
        torch.set_num_threads(trial.threads)
    if estimate_weight_bytes(trial.shape, trial.setting.dtype) <= SMALL_BASE_BYTES:
        return PassTime(*_time_passes(trial, trial.shape.layers))
    few, more = (_time_passes(trial, layers) for layers in (1, 3))
    whole = [a + (b - a) / 2 * (trial.shape.layers - 1) for a, b in zip(few, more, strict=True)]
    return PassTime(max(whole[0], few[0]), max(whole[1], few[1]))


def _time_passes(trial: SpeedTrial, layers: int) -> tuple[float, float]:
    """What passes through so many blocks usually take: with the backward pass, and without."""
    import torch

    from sqlft_local.train.step import compute_loss

    model, parameters = _create_model(trial, layers)
    examples = _create_examples(trial)
    training, checking = [], []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        compute_loss(model.train(), examples).backward()
        _synchronize(trial.device)
        training.append(time.perf_counter() - began)
        for parameter in parameters:
            parameter.grad = None
        began = time.perf_counter()
        with torch.no_grad():
            compute_loss(model.eval(), examples)
        _synchronize(trial.device)
        checking.append(time.perf_counter() - began)
    return median(training[1:]), median(checking[1:])


def _create_model(trial: SpeedTrial, layers: int) -> tuple[Any, Sequence[Any]]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sqlft_local.kernels import fused, packing
    from sqlft_local.options import TrainOptions
    from sqlft_local.train import lora

    packing.register_attention()
    s, setting = trial.shape, trial.setting
    config = LlamaConfig(
        vocab_size=s.vocab_size,
        hidden_size=s.hidden_size,
        intermediate_size=s.intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        head_dim=s.head_dim,
        tie_word_embeddings=s.tied,
        attn_implementation=packing.ATTENTION_NAME,
    )
    torch.manual_seed(0)
    with torch.device(trial.device):
        model: Any = LlamaForCausalLM._from_config(config, dtype=getattr(torch, setting.dtype))
    model.requires_grad_(False)
    fused.fuse_modules(model)
    options = TrainOptions(r=setting.r, lora_dropout=setting.dropout, target_modules=list(setting.targets))
    return model, list(lora.attach(model, options, None).trained.values())


def _create_examples(trial: SpeedTrial) -> list[Any]:
    import torch

    from sqlft_local.kernels.packing import Example

    drawn = torch.Generator().manual_seed(0)
    start = torch.randint(trial.shape.vocab_size, (trial.prefix,), generator=drawn).tolist()
    examples = []
    for tokens in trial.rows:
        own = max(1, tokens - trial.prefix)
        ids = start + torch.randint(trial.shape.vocab_size, (own,), generator=drawn).tolist()
        answer = min(trial.answer, own)
        examples.append(Example(ids, [0.0] * (len(ids) - answer) + [1.0] * answer))
    return examples


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def _parse_trial(given: dict[str, Any]) -> SpeedTrial:
    return SpeedTrial(
        **{
            **given,
            "rows": tuple(given["rows"]),
            "shape": DecoderShape(**given["shape"]),
            "setting": TrainingSetup(**given["setting"]),
        }
    )


if __name__ == "__main__":
    machine.configure_math_libraries()
    print(json.dumps(asdict(measure_here(_parse_trial(json.loads(sys.argv[1]))))))
