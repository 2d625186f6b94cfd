"""What a training would take here: tokens after packing, steps, memory and time, and what to do where it cannot fit.

Here too: which bases this machine can train and ask, for `sqlft doctor`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import NotSupported, ProviderError
from sqlft.handler import TOKENS_PER_MESSAGE, Estimate, TrainingSet, estimate_tokens
from sqlft_local.base.config import (
    DecoderShape,
    describe_layout,
    find_packing_obstacle,
    limit_context,
    read_config,
    read_context,
    read_shape,
)
from sqlft_local.base.presets import PRESETS, Preset
from sqlft_local.base.tokenization import NO_DELIMITERS, Delimiters
from sqlft_local.machine import Machine
from sqlft_local.options import ModelOptions, TrainOptions
from sqlft_local.train import memory, speed
from sqlft_local.train.memory import TrainingSetup
from sqlft_local.train.speed import Speed

if TYPE_CHECKING:
    import pyarrow as pa

    from sqlft_local.kernels.batching import RowLayout
    from sqlft_local.kernels.packing import Example

from sqlft_local.base import hub

SAMPLE_ROWS = 512
"""Rows that are rendered; of more, evenly spaced ones stand for the others."""
PROCESS_SECONDS = 2.0
"""Until a worker process calls the handler, and from its end to that of the statement."""
STARTUP_SECONDS = 7.0
"""Importing torch, transformers and peft, and loading a small base."""
PREPARED_PER_SECOND = 30e6
"""Weights of the base, while the files that are asked are written."""
WORTH_MEASURING = 60.0
"""Seconds of work from which on the machine is measured; shorter ones are estimated from what such cores do."""
MEASURED = "time measured on this machine"
FLOPS_PER_CORE = 25e9
"""Of a core with AVX2 in float32, what is left of it in a training; twice that with AVX-512."""
BFLOAT16_GAIN = {"amx_bf16": 4, "avx512_bf16": 3}
"""How much faster a training is in bfloat16 with these features: benchmarks/train.py."""
MAX_VALIDATIONS, CHECKED = 10, 0.15
"""Validations of a training, at most two an epoch, and the share of its operations that they are at most."""
GIGA = 1e9
GUESSED_TOKENS = "tokens are a guess from letters: the base is not on this machine yet"


@dataclass(frozen=True)
class EpochPasses:
    """The passes of one epoch, and what is in all of them together."""

    examples: int
    steps: int
    count: float
    tokens: float
    """Computed in the epoch, common starts once a pass."""
    answers: float
    whole: int
    """Tokens of the rows as they are, of the epoch."""
    longest: int
    """Tokens of the longest row."""
    fullest: tuple[int, int]
    """Tokens, and tokens that count in the loss, of the largest pass."""


@dataclass(frozen=True)
class BaseDescription:
    """What is known of a base without its weights."""

    name: str
    shape: DecoderShape
    context: int
    folder: Path | None = None
    """None while it is not on this machine."""
    obstacle: str | None = None
    """Why its rows are not packed; None where they are."""

    @property
    def layout(self) -> RowLayout:
        """How its rows are put into a pass."""
        return "packed" if self.obstacle is None else "padded"


def describe_base(name: str, folder: Path | None, options: ModelOptions) -> BaseDescription | None:
    """By its config.json, or as a preset by its shape; None for what is neither here nor known."""
    preset: Preset | None = PRESETS.get(name.lower())
    if folder is not None and (folder / "config.json").exists():
        return _read_base(name, folder, options)
    if preset is None or preset.shape is None:
        return None
    return BaseDescription(name, preset.shape, limit_context(preset.family.context, options.context_length))


def _read_base(name: str, folder: Path, options: ModelOptions) -> BaseDescription:
    try:
        config = read_config(folder)
        context = read_context(config, options.context_length)
        return BaseDescription(name, read_shape(config), context, folder, find_packing_obstacle(config))
    except (ValueError, AttributeError) as e:
        raise ProviderError(f"{folder / 'config.json'} cannot be read: {e}.", "Get the base again.") from e
    except (KeyError, TypeError) as e:
        kind = config.get("model_type", "of no type")
        raise NotSupported(
            f"The sizes of {folder.name} ({kind}) cannot be read: its config lacks {e}.",
            "Use a base that transformers knows as a decoder, or a preset such as 'smollm2-135m' or 'qwen3-0.6b'.",
        ) from e


def find_max_row_tokens(base: BaseDescription | None, options: TrainOptions) -> int | None:
    """Most tokens of a row that is trained on whole; what `max_length` says where the base is not known."""
    return options.max_length if base is None else options.limit_row(base.context)


def estimate(
    base: BaseDescription,
    given: ModelOptions,
    options: TrainOptions,
    data: TrainingSet,
    here: Machine,
    device: str,
    threads: int | None,
    kept: Path,
    delimiters: Delimiters = NO_DELIMITERS,
) -> Estimate:
    """What training would take; `kept` is the folder where this machine's speed is remembered."""
    train, taught, refused = _sample_examples(base, given, options, data.train, delimiters)
    valid, checked, _ = (
        _sample_examples(base, given, options, data.valid, delimiters) if data.valid is not None else ([], 0, None)
    )
    place = here.device(device)
    together = options.num_processes
    free = here.available(place, together)
    room = memory.limit_bytes(options, free)
    longest = max((len(e.ids) for e in (*train, *valid)), default=1)
    setting, most = _fit_passes(base, _plan_setup(given, options, here, place), options, place, room, longest)
    passes = _estimate_passes(train, taught, options.rows_per_step, most, base.layout)
    needed = memory.estimate_training_bytes(base.shape, setting, passes.fullest[0])
    limit = room if options.max_memory else free
    steps = max(1, round(passes.steps * options.n_epochs))
    work = _work(base, setting, passes, steps, (valid, checked, most))
    kind = speed.Kind(base.shape, setting, place, threads or 0)
    known = speed.known(kind, kept, here.processor)
    seconds, remarks = _estimate_seconds(kind, known, work, base, here, kept)
    if place == "cuda":
        seconds /= together
    if options.max_minutes and seconds > options.max_minutes * 60:
        share = options.max_minutes * 60 / seconds
        remarks.append(
            f"max_minutes ends it after {f'about {share:.0%}' if share >= 0.01 else 'less than 1%'} of the steps"
        )
        seconds = options.max_minutes * 60
    return Estimate(
        examples=taught,
        tokens=round(passes.whole * options.n_epochs),
        steps=steps,
        seconds=PROCESS_SECONDS + _estimate_around(base, known) + seconds,
        memory_bytes=needed,
        memory_available=free,
        remarks=(
            *([f"rows are left out: {refused}"] if refused else []),
            *_list_remarks(base, setting, options, place, bool(valid)),
            *remarks,
        ),
        why_not=_refuse_too_few_gpus(here, place, together)
        or _refuse_too_little_memory(base, setting, passes, needed, limit, place),
    )


def estimate_without_config(name: str, options: TrainOptions, table: pa.Table) -> Estimate:
    """For a base that is not on this machine and no preset of known shape: rows, tokens by letters, and steps."""
    rows = table.column("messages").to_pylist()
    tokens = sum(TOKENS_PER_MESSAGE + estimate_tokens(turn["content"]) for turns in rows for turn in turns)
    remarks = [GUESSED_TOKENS, f"memory and time are estimated from the base's config.json: sqlft pull {name} gets it"]
    if preset := PRESETS.get(name.lower()):
        remarks.insert(0, f"its weights alone are {preset.size.parameters * 2 / GIGA:.1f} GB in bfloat16")
    return Estimate(
        examples=len(rows),
        tokens=round(tokens * options.n_epochs),
        steps=max(1, round(len(rows) / options.rows_per_step * options.n_epochs)),
        remarks=tuple(remarks),
    )


def _sample_examples(
    base: BaseDescription, given: ModelOptions, options: TrainOptions, table: pa.Table, delimiters: Delimiters
) -> tuple[list[Example], int, NotSupported | None]:
    """Rows as the trainer makes them, a sample where there are many; how many all would be; why any is refused."""
    count = table.num_rows
    step = -(-count // SAMPLE_ROWS)
    sample = table.take(list(range(0, count, step))) if step > 1 else table
    is_here = base.folder is not None and (base.folder / "tokenizer.json").exists()
    try:
        found, refused = (
            _render_examples(base, given, options, sample, delimiters)
            if is_here
            else (_guess_examples(base, options, sample), None)
        )
    except ImportError:
        found, refused = _guess_examples(base, options, sample), None
    return found, round(len(found) * count / max(1, sample.num_rows)), refused


def _render_examples(
    base: BaseDescription, given: ModelOptions, options: TrainOptions, table: pa.Table, delimiters: Delimiters
) -> tuple[list[Example], NotSupported | None]:
    from sqlft_local.base import tokenization
    from sqlft_local.base.tokenization import Renderer
    from sqlft_local.train import rows

    assert base.folder is not None
    tokenizer = tokenization.ChatTokenizer(base.folder, tokenization.read_tokenizer_settings(base.folder))
    renderer = Renderer(tokenizer, tokenizer.stop_ids, given.chat_template, given.thinking)
    renderer = renderer.with_delimiters(delimiters)
    lenient = replace(options, long_rows="cut") if options.long_rows == "error" else options
    rendered = rows.render_rows(table, renderer, lenient, base.context)
    return rendered.examples, rendered.refused


def _guess_examples(base: BaseDescription, options: TrainOptions, table: pa.Table) -> list[Example]:
    """By letters; rows then share no start, so the estimate is rather too high."""
    from sqlft_local.kernels.packing import Example

    most = options.limit_row(base.context)
    examples = []
    for i, turns in enumerate(table.column("messages").to_pylist()):
        sizes = [TOKENS_PER_MESSAGE + estimate_tokens(t["content"]) for t in turns]
        tokens = min(most, sum(sizes))
        answer = min(tokens - 1, sizes[-1])
        examples.append(Example([i + 1, *[0] * (tokens - 1)], [0.0] * (tokens - answer) + [1.0] * answer))
    return examples


def _plan_setup(given: ModelOptions, options: TrainOptions, here: Machine, place: str) -> TrainingSetup:
    dtype = here.dtype(given.dtype, place)
    return TrainingSetup(dtype, given.quantization, options.r, tuple(options.layers), options.lora_dropout)


def _fit_passes(
    base: BaseDescription, setting: TrainingSetup, options: TrainOptions, place: str, room: int | None, longest: int
) -> tuple[TrainingSetup, int]:
    """With blocks computed twice where memory asks for it, and the tokens of a pass; at least the longest row."""
    fixed = memory.estimate_fixed_bytes(base.shape, setting)
    budget = memory.fit_passes(base.shape, setting, options, place, room, fixed)
    tokens = max(budget.tokens, longest)
    return replace(setting, checkpointing=tokens > budget.above), tokens


def _estimate_passes(
    train: Sequence[Example], taught: int, batch_size: int, most: int, layout: RowLayout
) -> EpochPasses:
    """The epoch, estimated from the sample's."""
    from sqlft_local.kernels.batching import count_pass_tokens

    order = list(train)
    random.Random(0).shuffle(order)
    sizes = [
        size for i in range(0, len(order), batch_size) for size in count_pass_tokens(order[i : i + batch_size], most)
    ]
    whole = sum(len(e.ids) for e in order)
    times = taught / max(1, len(order))
    return EpochPasses(
        examples=taught,
        steps=math.ceil(taught / batch_size),
        count=len(sizes) * times,
        tokens=sum(tokens for tokens, _ in sizes) * times,
        answers=sum(answers for _, answers in sizes) * times,
        whole=round(whole * times),
        longest=max(len(e.ids) for e in order),
        fullest=max(sizes),
    )


@dataclass(frozen=True)
class Work:
    """What a training computes: (operations, passes) with the backward pass, and of its validations without."""

    training: tuple[float, float]
    checking: tuple[float, float]

    def at(self, found: Speed) -> float:
        """Its seconds."""
        return found.training(*self.training) + found.checking(*self.checking)


def _work(
    base: BaseDescription,
    setting: TrainingSetup,
    passes: EpochPasses,
    steps: int,
    validation: tuple[Sequence[Example], int, int],
) -> Work:
    epochs = steps / passes.steps
    operations = speed.flops(base.shape, setting, passes.tokens * epochs, passes.answers * epochs)
    return Work(
        (operations, passes.count * epochs), _count_validation_flops(base, validation, steps, passes.steps, operations)
    )


def _count_validation_flops(
    base: BaseDescription, validation: tuple[Sequence[Example], int, int], steps: int, per_epoch: int, operations: float
) -> tuple[float, float]:
    """(operations, passes) of all validations; of many rows the trainer looks at some, a tenth of its work at most."""
    examples, count, most = validation
    if not examples:
        return 0.0, 0.0
    times = -(-steps // max(1, -(-per_epoch // 2), -(-steps // MAX_VALIDATIONS)))
    one = _estimate_passes(examples, count, len(examples), most, base.layout)
    whole = times * speed.flops_forward(base.shape, one.tokens, one.answers)
    share = min(1.0, CHECKED * operations / whole) if whole else 1.0
    return whole * share, times * one.count * share


def _estimate_seconds(
    kind: speed.Kind, known: Speed | None, work: Work, base: BaseDescription, here: Machine, kept: Path
) -> tuple[float, list[str]]:
    """Of the steps and validations, and what the figure is worth; `known` is what an earlier time has shown."""
    if known is not None:
        return work.at(known), ["time by the steps of an earlier training" if known.is_real else MEASURED]
    guess = work.at(
        speed.guessed(kind, _guess_flops(here, kind.device, kind.setting.dtype, kind.threads or here.cores))
    )
    if guess < WORTH_MEASURING or kind.setting.quantization != "none" or base.folder is None:
        return guess, ["the time is a guess from the machine's kind, it was not measured"]
    found = speed.measure(kind, kept, here.processor)
    if found is None:
        return guess, [
            f"the time is a guess: this machine could not be measured in {speed.MEASURE_SECONDS:.0f} seconds"
        ]
    if found.waited <= speed.BUSY:
        return work.at(found), [MEASURED]
    alone = work.at(found.scaled(1 - found.waited)) / 60
    return work.at(found), [
        f"other work took {found.waited:.0%} of the measurement: alone it would be about {alone:.2g} minutes; "
        "the next estimate measures again"
    ]


def _estimate_around(base: BaseDescription, known: Speed | None) -> float:
    """Seconds of a training beside its steps: as an earlier one took, else by the base's size."""
    measured = known.around if known is not None else 0.0
    return measured or STARTUP_SECONDS + base.shape.parameters / PREPARED_PER_SECOND


def _guess_flops(here: Machine, place: str, dtype: str, cores: int) -> float:
    """Operations a second that such a machine does in a training, about."""
    if place == "cuda":
        return 60e12 if dtype != "float32" else 15e12
    if place == "mps":
        return 2e12
    wide = 2 if "avx512f" in here.flags else 1
    gains = [gain for feature, gain in BFLOAT16_GAIN.items() if feature in here.flags and dtype == "bfloat16"]
    return cores * FLOPS_PER_CORE * wide * max(gains, default=1)


def _list_remarks(
    base: BaseDescription, setting: TrainingSetup, options: TrainOptions, place: str, is_validated: bool
) -> Iterator[str]:
    yield f"{setting.dtype} on {place}"
    if setting.quantization != "none":
        yield f"base in {setting.quantization}"
    if base.obstacle:
        yield f"rows are padded, not packed: {base.obstacle}"
    if setting.checkpointing:
        yield "blocks are computed again for the backward pass"
    if options.num_processes > 1:
        yield f"memory in each of {options.num_processes} processes"
    if base.folder is None:
        yield GUESSED_TOKENS
    if options.early_stopping and is_validated:
        yield "early stopping may end it sooner"


def _refuse_too_few_gpus(here: Machine, place: str, together: int) -> tuple[str, str] | None:
    """A process has a GPU of its own."""
    there = len(here.gpus)
    if place != "cuda" or together <= there:
        return None
    return f"num_processes = {together} needs as many GPUs; there are {there}.", f"Say num_processes = {there} at most."


def _refuse_too_little_memory(
    base: BaseDescription, setting: TrainingSetup, passes: EpochPasses, needed: int, free: int | None, place: str
) -> tuple[str, str] | None:
    """Figures, and the nearest setting that would do."""
    if free is None or needed <= free:
        return None
    where = "on the GPU" if place == "cuda" else "on this machine"
    why = (
        f"Training {base.name} in {name_dtype(setting)} needs about {needed / GIGA:.1f} GB, "
        f"and {free / GIGA:.1f} GB may be used {where}{_describe_smaller_dtypes(base, setting, passes)}."
    )
    return why, _suggest_setup(base, setting, passes, free)


def _describe_smaller_dtypes(base: BaseDescription, setting: TrainingSetup, passes: EpochPasses) -> str:
    """What it would need in fewer bits."""
    again = replace(setting, dtype="bfloat16", checkpointing=True)
    less = [replace(again, quantization=q) for q in ("int8", "nf4") if setting.quantization == "none"]
    tokens = max(passes.longest, min(passes.fullest[0], 1024))
    change = [f"{name_dtype(s)} {memory.estimate_training_bytes(base.shape, s, tokens) / GIGA:.1f} GB" for s in less]
    return f" ({', '.join(change)})" if change else ""


def name_dtype(setting: TrainingSetup) -> str:
    """The numbers that the base is kept in, as people say them."""
    return setting.quantization if setting.quantization != "none" else setting.dtype


def _suggest_setup(base: BaseDescription, setting: TrainingSetup, passes: EpochPasses, free: int) -> str:
    """The first of: computing blocks again, 8 bits, 4 bits, shorter rows, a smaller base."""
    tokens = passes.fullest[0]
    for change, other in _smaller_setups(setting):
        if (needs := memory.estimate_training_bytes(base.shape, other, max(passes.longest, min(tokens, 1024)))) <= free:
            return f"{change}: about {needs / GIGA:.1f} GB."
    for change, other in _smaller_setups(setting):
        left = round(free * (1 - memory.FREE_MARGIN)) - memory.estimate_fixed_bytes(base.shape, other)
        if (fits := memory.fit_tokens(base.shape, other, left)) >= 64:
            return f"{change}, and max_length = {fits // 64 * 64} in FINETUNE … USING."
    for name, size in sorted(_smaller_presets(base.shape), key=lambda item: -item[1].parameters):
        for change, other in _smaller_setups(setting):
            if (needs := memory.estimate_training_bytes(size, other, 512)) <= free:
                return f"Take a smaller base: '{name}' fits ({needs / GIGA:.1f} GB). {change} for it."
    return "Use a machine with more memory, or a GPU."


def _smaller_setups(setting: TrainingSetup) -> Iterator[tuple[str, TrainingSetup]]:
    again = replace(setting, checkpointing=True)
    if not setting.checkpointing:
        yield "Say gradient_checkpointing = true in FINETUNE … USING", again
    if setting.dtype == "float32" and setting.quantization == "none":
        yield "Make the model with dtype = 'bfloat16'", replace(again, dtype="bfloat16")
    for quantization in ("int8", "nf4"):
        if quantization != setting.quantization and setting.quantization != "nf4":
            other = replace(again, quantization=quantization, dtype="bfloat16")
            yield f"Make the model with quantization = '{quantization}'", other


def _smaller_presets(shape: DecoderShape) -> Iterator[tuple[str, DecoderShape]]:
    for name, preset in PRESETS.items():
        if preset.shape is not None and preset.shape.parameters < shape.parameters:
            yield name, preset.shape


INFERENCE_DTYPES = {"f16": 2.0, "q8_0": 34 / 32}
"""Bytes of a weight in the files that are asked; q8_0 has a scale for every 32."""
INFERENCE_TOKENS = 4096
"""Tokens whose states asking keeps: sixteen prompts of some hundreds."""
LLAMA_BYTES = 200 << 20
"""The engine that asks, beside the weights."""


def describe_machine(here: Machine) -> dict[str, object]:
    """As people read it."""
    device = here.device()
    cards = [f"{g.name}, {g.memory / GIGA:.0f} GB, {g.free / GIGA:.0f} GB free" for g in here.gpus]
    return {
        "processor": here.processor,
        "cores": here.cores,
        "memory": _format_gigabytes(here.memory),
        "free": _format_gigabytes(here.free),
        "flags": list(here.flags) or ["none that matter"],
        "gpu": cards or ["Apple's, through Metal"] if here.metal or cards else ["none"],
        "device": device,
        "fast dtypes": list(here.fast_dtypes(device)),
        "training in": here.dtype("auto", device),
    }


def list_bases(here: Machine) -> list[dict[str, object]]:
    """One row per preset: whether it is here, the numbers in which this machine can train and ask it, if any, and how
    rows are trained on.
    """
    device = here.device()
    free = here.available(device)
    setting = TrainingSetup(here.dtype("auto", device), targets=TrainOptions().layers)
    rows = []
    for name, preset in PRESETS.items():
        training, asking = _find_dtypes(preset, setting, free)
        folder = hub.find_local_folder(name)
        rows.append(
            {
                "base": name,
                "weights": f"{preset.size.parameters / 1e9:.3g} B",
                "here": folder is not None,
                "training": training,
                "asking": asking,
                "rows": "" if folder is None else describe_layout(folder),
            }
        )
    return rows


def _find_dtypes(preset: Preset, setting: TrainingSetup, free: int | None) -> tuple[str | None, str | None]:
    """For training and for asking; without a shape nothing is known but that the weights alone are too large."""
    if free is None:
        return "unknown", "unknown"
    if preset.shape is not None:
        return find_training_dtype(preset.shape, setting, free), find_inference_dtype(preset.shape, free)
    smallest = memory.QUANTISED_BYTES["nf4"], INFERENCE_DTYPES["q8_0"]
    training, asking = ("unknown" if preset.size.parameters * each <= free else None for each in smallest)
    return training, asking


def find_training_dtype(shape: DecoderShape, setting: TrainingSetup, free: int, tokens: int = 1024) -> str | None:
    """The most exact of float32, bfloat16, int8 and nf4 in which a base can be trained in so many free bytes."""
    exact = [replace(setting, dtype=d, quantization="none") for d in dict.fromkeys((setting.dtype, "bfloat16"))]
    packed = [replace(setting, dtype="bfloat16", quantization=q) for q in ("int8", "nf4")]
    for one in (*exact, *packed):
        if memory.estimate_training_bytes(shape, replace(one, checkpointing=True), tokens) <= free:
            return name_dtype(one)
    return None


def find_inference_dtype(shape: DecoderShape, free: int) -> str | None:
    """The most exact of f16 and q8_0 in which a base can be asked."""
    states = INFERENCE_TOKENS * shape.layers * 2 * shape.kv_heads * shape.head_dim * 2
    for name, each in INFERENCE_DTYPES.items():
        if shape.parameters * each + states + LLAMA_BYTES <= free:
            return name
    return None


def _format_gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIGA:.1f} GB"
