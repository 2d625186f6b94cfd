"""The training loop: examples in, a PEFT adapter out, checkpoints on the way."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import shutil
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from sqlft.errors import DataError, NotSupported, ProviderError, SqlftError
from sqlft.handler import Artifact, Progress
from sqlft_local.base import config
from sqlft_local.base.loading import LoadedModel
from sqlft_local.errors import is_out_of_memory, out_of_memory_error
from sqlft_local.kernels import fused
from sqlft_local.kernels.batching import count_pass_tokens, find_layout, split_passes
from sqlft_local.kernels.packing import Example
from sqlft_local.options import RESUME_OPTIONS, TrainOptions
from sqlft_local.train import lora, memory, rows, speed
from sqlft_local.train.parallel import WorkerGroup
from sqlft_local.train.speed import Contention
from sqlft_local.train.step import StepSettings, backward, compute_loss

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft.handler import TrainingSet
    from sqlft_local._types import AdapterConfig, JsonObject

PATIENCE, WORSE = 3, 1.05
"""Early stopping ends a training after so many validations in a row whose loss is so many times the best one.

Without a new best alone is no reason: on few rows the loss stands still while the learning rate is high, and falls when
that falls (the demo's training, stopped there: 0.154, and 0.136 at its end).
"""
VALIDATIONS = (4, 10)
"""How many a training has at least and at most; by default two an epoch."""
VALIDATION_SHARE = 0.1
"""Share of the work that validation may be; a token costs it a third of what training does."""
MIN_VALIDATION_ROWS = 16
"""Rows that validation has at least."""
TRIM_SECONDS = 10.0
"""Seconds after which freed memory goes back to the system."""
TIMED_STEPS = 3
"""Steps after which their time says how many there will be."""
TIMED = 100
"""Steps by whose time the speed of later trainings is known."""
KNOWN_SECONDS = 5.0
"""Steps that took less together tell no speed."""
ReportStep = Callable[[Progress], None]


@dataclass
class TrainingState:
    """How far a training is: all that a checkpoint keeps beside the tensors."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    valid_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0
    """Validations in a row that were clearly worse than the best one."""
    validations: int = 0
    """How many tenths, or what `VALIDATIONS` makes of them, are done."""
    valid_rows: int = 0
    """Rows that validation looks at; 0 before the first."""


@dataclass
class TrainingLoop:
    """One run over examples; `train` them to the end or until `report` raises."""

    loaded: LoadedModel
    base: str
    options: TrainOptions
    learning_rate: float
    train: Sequence[Example]
    valid: Sequence[Example]
    workdir: Path
    report: ReportStep
    start: Path | None = None
    workers: WorkerGroup | None = None
    """The other processes, if several train together."""
    state: TrainingState = field(default_factory=TrainingState)

    def __post_init__(self) -> None:
        torch.manual_seed(self.options.seed)
        self.layout = find_layout(self.loaded.model)
        if self.layout == "packed":
            fused.fuse_modules(self.loaded.model)
        self.lora = lora.attach(self.loaded.model, self.options, self.start)
        parameters = list(self.lora.trained.values())
        is_fused = self.loaded.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=self.options.weight_decay, fused=is_fused)
        self.steps_per_epoch = -(-len(self.train) // self.options.rows_per_step)
        self.total = max(1, round(self.steps_per_epoch * self.options.n_epochs))
        few, many = VALIDATIONS
        self.validations = many if self.options.max_minutes else min(many, max(few, round(2 * self.options.n_epochs)))
        self.best: dict[str, Tensor] | None = None
        self.saved_at = self.trimmed_at = time.monotonic()
        self.speed = _StepTimes()
        self.timed: list[tuple[int, float]] = []
        """Steps of this run, and the seconds of each."""
        self.contention: Contention | None = None
        """Since the first steps, which prepare products."""
        self.validation_seconds = 0.0
        self.earlier_seconds = 0.0
        """Of the run that this one goes on from."""
        longest = max(len(e.ids) for e in (*self.train, *self.valid))
        if self.workers:
            self.workers.join(parameters, self._report_progress)
        together = self.workers.count if self.workers else 1
        self.budget = memory.plan_passes(self.loaded.model, self.options, self.lora, longest, together)

    def run(self) -> None:
        """All steps that are left, and at the end the best state if validation chose one."""
        try:
            self._resume()
            self._report_progress()
            while not self._is_over():
                self._run_step()
                if self.valid and (
                    self._progress_share() * self.validations >= self.state.validations + 1 or self._is_over()
                ):
                    self._validate()
                self._save_if_due()
            if self.best is not None and self.options.early_stopping:
                lora.load_parameters(self.lora, self.best)
        except RuntimeError as e:
            if "does not require grad" in str(e):
                raise NotSupported(
                    f"Layers of {self.base} hand no gradients to LoRA matrices, so it cannot be trained here.",
                    "Use a base of another architecture.",
                ) from e
            if isinstance(e, SqlftError) or not is_out_of_memory(e):
                raise
            raise self._out_of_memory() from e
        except MemoryError as e:
            raise self._out_of_memory() from e

    def _out_of_memory(self) -> ProviderError:
        """Keep what there is, and say how to go on."""
        self.optimizer.zero_grad(set_to_none=True)
        if not self.state.step:
            return out_of_memory_error("training")
        self._save()
        tokens = self.budget.tokens
        return ProviderError(
            f"The memory ran out in step {self.state.step + 1}, at {tokens:,} tokens a pass. "
            f"The state after step {self.state.step} is kept.",
            f"RESUME MODEL name.N USING max_tokens_per_pass = {max(16, tokens // 2)} or a smaller max_memory.",
        )

    def _is_over(self) -> bool:
        stopped = self.options.early_stopping and self.state.stale >= PATIENCE
        return self.state.step >= self.total or self._time_share() >= 1 or stopped

    def _run_step(self) -> None:
        began = time.monotonic()
        batch = self._select_batch(self.state.step)
        seed = self.options.seed * 1_000_003 + self.state.step + 1
        job: StepSettings = {"whole": rows.sum_weights(batch), "tokens": self.budget.tokens, "above": self.budget.above}
        mine = self.workers.begin(batch, seed, job) if self.workers else batch
        torch.manual_seed(seed)
        self.loaded.model.train()
        loss, tokens = backward(self.loaded.model, self.lora, mine, job, self._report_progress)
        if self.workers:
            loss, tokens = self.workers.finish(loss, tokens)
        norm = torch.nn.utils.clip_grad_norm_(list(self.lora.trained.values()), self.options.max_grad_norm or math.inf)
        self._check_finite(loss, norm.item())
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if time.monotonic() - self.trimmed_at >= TRIM_SECONDS:
            trim_heap()
            self.trimmed_at = time.monotonic()
        seconds = time.monotonic() - began
        self.speed.add(len(batch), seconds)
        state = self.state
        if len(self.timed) < TIMED:
            self.timed.append((state.step, seconds))
        if len(self.timed) == TIMED_STEPS:
            self.contention = Contention(torch.get_num_threads())
        state.step, state.tokens, state.seconds, state.loss = (
            state.step + 1,
            state.tokens + tokens,
            state.seconds + seconds,
            loss,
        )
        self._report_progress(loss=loss, learning_rate=rate)

    def _select_batch(self, step: int) -> list[Example]:
        """The rows of a step; every epoch has an order of its own that depends on nothing but the seed."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = torch.randperm(
            len(self.train), generator=torch.Generator().manual_seed(self.options.seed * 7919 + epoch)
        )
        size = self.options.rows_per_step
        return [self.train[i] for i in order[place * size : (place + 1) * size].tolist()]

    def _learning_rate(self) -> float:
        """Up linearly during the warm-up, then down linearly to nothing at the end of the steps or of the time."""
        done = min(1.0, max((self.state.step + 0.5) / self.total, self._time_share(1)))
        up = min(1.0, done / self.options.warmup) if self.options.warmup else 1.0
        return self.learning_rate * up * (1 - done) / (1 - min(self.options.warmup, 0.999))

    def _progress_share(self) -> float:
        """How much of the training is done, by steps or by time."""
        return max(self.state.step / self.total, self._time_share())

    def _time_share(self, ahead: int = 0) -> float:
        """How much of `max_minutes` is gone `ahead` half steps from now, what the last validation takes set aside."""
        if not self.options.max_minutes:
            return 0.0
        a_step = self.speed.step
        left_for_steps = max(self.options.max_minutes * 60 - self.validation_seconds - a_step, 1e-3)
        return (self.state.seconds + ahead * a_step / 2) / left_for_steps

    def _estimate_total_steps(self) -> int:
        """Steps at the end, as far as one can tell: the time may end it before the rows do."""
        if self.state.step < TIMED_STEPS or not (share := self._time_share()):
            return self.total
        return max(self.state.step, min(self.total, round(self.state.step / share)))

    def _seconds_left(self) -> float | None:
        """By the steps so far, validations among them; at most what `max_minutes` leaves."""
        state, most = self.state, (self.options.max_minutes or math.inf) * 60
        ahead = math.inf
        if self.timed:
            checks = self.validations - state.validations if self.valid else 0
            ahead = (self.total - state.step) * self.speed.step + checks * self.validation_seconds
        left = max(0.0, min(ahead, most - state.seconds))
        return left if math.isfinite(left) else None

    def _select_validation_rows(self) -> list[Example]:
        """Validation rows, by chance but always the same; as many as leave the time to training."""
        if not self.state.valid_rows:
            expected = self.state.tokens / max(self._progress_share(), 1e-6)
            tokens = sum(len(e.ids) for e in self.valid)
            share = VALIDATION_SHARE * 3 * expected / max(self.validations * tokens, 1)
            self.state.valid_rows = min(len(self.valid), max(MIN_VALIDATION_ROWS, round(share * len(self.valid))))
        order = torch.randperm(len(self.valid), generator=torch.Generator().manual_seed(self.options.seed))
        return [self.valid[i] for i in order[: self.state.valid_rows].tolist()]

    def _validate(self) -> None:
        began = time.monotonic()
        self.loaded.model.eval()
        rows_now = self._select_validation_rows()
        total = 0.0
        with torch.no_grad():
            for part in split_passes(rows_now, self.budget.tokens, self.layout):
                total += compute_loss(self.loaded.model, part).item()
                self._report_progress()
        state = self.state
        state.validations = int(self._progress_share() * self.validations)
        state.valid_loss = total / rows.sum_weights(rows_now)
        is_worse = state.best_loss is not None and state.valid_loss > WORSE * state.best_loss
        state.stale = state.stale + 1 if is_worse else 0
        if state.best_loss is None or state.valid_loss < state.best_loss:
            state.best_loss, state.best_step = state.valid_loss, state.step
            self.best = lora.copy_parameters(self.lora)
        self.validation_seconds = time.monotonic() - began
        state.seconds += self.validation_seconds
        self._report_progress(loss=state.loss, valid_loss=state.valid_loss)

    def _report_progress(self, **metrics: float) -> None:
        """Report; without metrics only to be heard.  Whoever stops training there finds the last whole step saved."""
        if metrics:
            epoch = self.state.step / self.steps_per_epoch
            metrics = {**metrics, "tokens": self.state.tokens, "epoch": epoch, **self.speed.metrics()}
        try:
            self.report(Progress(self.state.step, self._estimate_total_steps(), metrics, self._seconds_left()))
        except BaseException:
            if self.state.step:
                self._save()
            raise

    @property
    def seconds(self) -> float:
        """Of this run's steps and validations."""
        return self.state.seconds - self.earlier_seconds

    def work(self) -> tuple[speed.Kind, float, float, float]:
        """(what was trained, operations, passes, seconds) of the steps of this run behind its first ones."""
        setting = replace(
            memory.read_setup(self.loaded.model, self.options, self.lora), checkpointing=not self.budget.above
        )
        kind = speed.Kind(config.read_shape(self.loaded.model.config.to_dict()), setting, self.loaded.device.type, 0)
        sizes = [
            s
            for step, _ in self.timed[TIMED_STEPS:]
            for s in count_pass_tokens(self._select_batch(step), self.budget.tokens, self.layout)
        ]
        operations = sum(speed.flops(kind.shape, setting, *size) for size in sizes)
        return kind, operations, len(sizes), sum(seconds for _, seconds in self.timed[TIMED_STEPS:])

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self.optimizer.zero_grad(set_to_none=True)
        self._save()
        raise ProviderError(
            f"Training diverged: in step {self.state.step + 1} the loss is {loss} and the gradient's norm {norm}. "
            f"The state after step {self.state.step} is kept.",
            f"FINETUNE again with a lower learning_rate than {self.learning_rate:g}, or dtype = 'float32'.",
        )

    def _save_if_due(self) -> None:
        every = self.options.checkpoint_steps
        due = time.monotonic() - self.saved_at >= self.options.checkpoint_seconds
        if due or (every and self.state.step % every == 0):
            self._save()

    def _save(self) -> None:
        tensors = {f"adapter.{k}": v for k, v in lora.copy_parameters(self.lora).items()}
        tensors |= {f"best.{k}": v for k, v in (self.best or {}).items()}
        for name, parameter in self.lora.trained.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value.detach().cpu()
        state = {**asdict(self.state), "fingerprint": self.fingerprint}
        write_checkpoint(self.workdir / CHECKPOINT_FOLDER, self.state.step, Checkpoint(state, tensors))
        self.saved_at = time.monotonic()

    def _resume(self) -> None:
        found = read_latest_checkpoint(self.workdir / CHECKPOINT_FOLDER)
        if found is None or found.state.pop("fingerprint", None) != self.fingerprint:
            return
        if set(found.state) != {f.name for f in fields(TrainingState)}:  # of another version of sqlft
            return
        self.state = TrainingState(**found.state)
        self.earlier_seconds = self.state.seconds
        lora.load_parameters(
            self.lora, {k.removeprefix("adapter."): v for k, v in found.tensors.items() if k.startswith("adapter.")}
        )
        best = {k.removeprefix("best."): v for k, v in found.tensors.items() if k.startswith("best.")}
        self.best = best or None
        for name, parameter in self.lora.trained.items():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (value := found.tensors.get(f"optimizer.{key}.{name}")) is not None:
                    self.optimizer.state[parameter][key] = value.to(parameter.device)

    @cached_property
    def fingerprint(self) -> str:
        """What must be the same for a checkpoint to be gone on from."""
        options = {k: v for k, v in asdict(self.options).items() if k not in RESUME_OPTIONS}
        digest = hashlib.sha256(repr((self.base, str(self.start), options)).encode())
        for e in (*self.train, *self.valid):
            digest.update(array("i", e.ids).tobytes() + array("f", e.weights).tobytes())
        return digest.hexdigest()


def trim_heap() -> None:
    """Give freed memory back to the system: rows of ever other lengths leave gaps that would add up over a training."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


class _StepTimes:
    """Examples a second over the last steps."""

    def __init__(self) -> None:
        self._recent: list[tuple[int, float]] = []

    def add(self, examples: int, seconds: float) -> None:
        self._recent = [*self._recent[-7:], (examples, seconds)]

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(s for _, s in self._recent) / len(self._recent) if self._recent else 0.0

    def metrics(self) -> dict[str, float]:
        seconds = sum(s for _, s in self._recent)
        return {"examples_per_second": sum(n for n, _ in self._recent) / seconds} if seconds else {}


def train(
    loaded: LoadedModel,
    base: str,
    options: TrainOptions,
    learning_rate: float,
    data: TrainingSet,
    start: Path | None,
    workdir: Path,
    report: ReportStep,
    workers: WorkerGroup | None = None,
    learn: Callable[[TrainingLoop], None] = lambda _: None,
) -> Artifact:
    """Train to the end, or on from the workdir's checkpoint; the adapter and what is known of it.

    `workers` are the other processes; `learn` is called with the training once it has ended.
    """
    done = workdir / "done.json"
    target = workdir / "adapter"
    if done.exists():
        return Artifact(target, details=json.loads(done.read_text(encoding="utf-8")))
    taught = rows.render_rows(data.train, loaded.renderer, options, loaded.context)
    checked = (
        rows.render_rows(data.valid, loaded.renderer, options, loaded.context)
        if data.valid is not None
        else rows.TrainingRows([])
    )
    if not taught.examples:
        raise DataError(
            f"No row is left to train on: {taught.dropped} are longer than max_length.",
            "Raise max_length, or say long_rows = 'cut'.",
        )
    training = TrainingLoop(
        loaded, base, options, learning_rate, taught.examples, checked.examples, workdir, report, start, workers
    )
    training.run()
    learn(training)
    details = _collect_details(training, taught, checked)
    _publish(training, target, done, details)
    return Artifact(target, details=details)


def _publish(training: TrainingLoop, target: Path, done: Path, details: JsonObject) -> None:
    unfinished = target.with_name(".adapter.unfinished")
    try:
        for old in (unfinished, target):
            shutil.rmtree(old, ignore_errors=True)
        unfinished.mkdir(parents=True)
        lora.save_adapter(training.lora, unfinished, training.base)
        unfinished.rename(target)
        done.write_text(json.dumps(details), encoding="utf-8")
    except OSError as e:
        raise ProviderError(
            f"The adapter cannot be written to {target}: {e}.", "Make room on the disk, then RESUME MODEL name.N."
        ) from e
    shutil.rmtree(training.workdir / CHECKPOINT_FOLDER, ignore_errors=True)


def _describe_unchanged_options(options: TrainOptions, config: AdapterConfig) -> list[str]:
    """What was asked of matrices that have their shape already."""
    usual = TrainOptions()
    by_itself: dict[str, list[object]] = {
        "r": [usual.r],
        "lora_alpha": [usual.lora_alpha],
        "target_modules": [usual.layers],
    }
    asked = {"r": options.r, "lora_alpha": options.lora_alpha, "target_modules": sorted(options.layers)}
    has = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": _sort_names(config.target_modules)}
    return [
        f"{name} stays {has[name]}, as in the version it started from; RETRAIN could make it {asked[name]}."
        for name in asked
        if asked[name] not in (has[name], *by_itself[name])
    ]


def _sort_names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else sorted(names)


def _collect_details(training: TrainingLoop, taught: rows.TrainingRows, checked: rows.TrainingRows) -> JsonObject:
    state, options, config = training.state, training.options, training.lora.config
    stopped = options.early_stopping and state.best_loss is not None
    return {
        "base": training.base,
        **training.loaded.renderer.delimiters.details(),
        "continues": "training went on with its adapter" if training.start else None,
        "remarks": [
            *(_describe_unchanged_options(options, config) if training.start else []),
            *(f"Rows were left out: {r.refused.message}" for r in (taught, checked) if r.refused),
        ],
        "max_tokens_per_pass": training.budget.tokens,
        "memory_bytes": training.budget.bytes,
        "examples": len(taught.examples),
        "validation_examples": len(checked.examples),
        "validated_on": state.valid_rows,
        "cut_rows": taught.cut + checked.cut,
        "dropped_rows": taught.dropped + checked.dropped,
        "steps": state.step,
        "best_step": state.best_step if stopped else state.step,
        "tokens": state.tokens,
        "loss": state.loss,
        "valid_loss": state.best_loss if stopped else state.valid_loss,
        "seconds": round(state.seconds, 3),
        "learning_rate": training.learning_rate,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "device": str(training.loaded.device),
        "processes": training.workers.count if training.workers else 1,
        "dtype": str(training.loaded.model.dtype).removeprefix("torch."),
    }


CHECKPOINT_FOLDER = "checkpoints"


class Checkpoint(NamedTuple):
    """What a training goes on from: its counters, and tensors by name."""

    state: JsonObject
    tensors: Mapping[str, Tensor]


def write_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Write `step-N` by rename and remove older ones; ProviderError when the disk refuses, older ones staying."""
    from safetensors.torch import save_file

    target = folder / f"step-{step:08d}"
    unfinished = folder / ".unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file(dict(checkpoint.tensors), unfinished / "tensors.safetensors")
        (unfinished / "state.json").write_text(json.dumps(checkpoint.state), encoding="utf-8")
        _sync_to_disk(unfinished)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    except Exception as e:
        shutil.rmtree(unfinished, ignore_errors=True)
        kept = _list_checkpoints(folder)
        last = f"the checkpoint of {kept[-1].name} is kept" if kept else "there is none yet"
        raise ProviderError(
            f"The checkpoint of step {step} cannot be written ({e}); {last}.",
            "Make room on the disk, then RESUME MODEL name.N.",
        ) from e
    for old in _list_checkpoints(folder):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def read_latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, or None."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for path in reversed(_list_checkpoints(folder)):
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(state, load_file(path / "tensors.safetensors"))
        except (OSError, ValueError, SafetensorError):
            continue
    return None


def find_latest_step(folder: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    steps = _list_checkpoints(folder)
    return int(steps[-1].name.removeprefix("step-")) if steps else 0


def _list_checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _sync_to_disk(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as f:
            os.fsync(f.fileno())
