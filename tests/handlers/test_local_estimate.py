"""What a training would take, told from shapes, rows and the machine; against models that are built and trained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from sqlft_local import Local, machine
from sqlft_local.base import hub, loading
from sqlft_local.base.config import DecoderShape, describe_layout, read_shape
from sqlft_local.base.presets import PRESETS, default_learning_rate
from sqlft_local.estimate import training as estimating
from sqlft_local.estimate.training import (
    BaseDescription,
    describe_base,
    estimate,
    find_inference_dtype,
    find_max_row_tokens,
    find_training_dtype,
    list_bases,
)
from sqlft_local.machine import Gpu, Machine
from sqlft_local.options import ModelOptions, TrainOptions
from sqlft_local.train import loop, memory, speed
from sqlft_local.train.memory import TrainingSetup
from transformers import AutoConfig, AutoModelForCausalLM

from sqlft.errors import NotSupported, OptionError, ProviderError
from sqlft.handler import ModelSpec, TrainingSet

GIGA = 10**9
LAPTOP = Machine("test", 4, 16 * GIGA, 12 * GIGA, ("avx2",), ())
CARD = replace(LAPTOP, gpus=(Gpu("card", 48 * GIGA, 47 * GIGA, 8.6),))
SHAPES = {name: preset.shape for name, preset in PRESETS.items() if preset.shape is not None}


def rows(count: int, words: int = 12) -> pa.Table:
    """Conversations of a common start and an own part."""
    turns = [
        [
            {"role": "system", "content": "You answer with one word, whatever you are asked."},
            {"role": "user", "content": f"Row {i}: " + "name of the singer " * (words // 4)},
            {"role": "assistant", "content": f"SELECT {i}"},
        ]
        for i in range(count)
    ]
    return pa.table({"messages": turns})


def estimate_training(
    base: BaseDescription, data: pa.Table, here: Machine = LAPTOP, folder: Path = Path("/nowhere"), **options: Any
) -> Any:
    given = ModelOptions(**{k: options.pop(k) for k in ("dtype", "context_length") if k in options})
    return estimate(base, given, TrainOptions(**options), TrainingSet(data), here, "cpu", None, folder)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_the_presets_are_those_of_real_models(name: str) -> None:
    """Built on the meta device, which holds no weights; biases and norms of some are not counted."""
    shape = SHAPES[name]
    config = AutoConfig.for_model(
        PRESETS[name].family.model_type,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(shape.parameters, rel=1e-3)
    assert read_shape(config.to_dict()) == shape


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("smollm2-135m", 0.1345),
        ("smollm3-3b", 3.0751),
        ("qwen2.5-coder-7b", 7.62),
        ("qwen3-0.6b", 0.59605),
        ("qwen3-1.7b", 1.72057),
        ("qwen3-4b", 4.02247),
        ("qwen3-8b", 8.19074),
        ("qwen3-14b", 14.76831),
        ("gemma-3-270m", 0.2681),
        ("gemma-3-1b", 0.99989),
        ("llama-3.2-1b", 1.236),
        ("llama-3.2-3b", 3.213),
        ("phi-4-mini", 3.836),
        ("mistral-7b-instruct", 7.25),
        ("codellama-34b", 33.74),
    ],
)
def test_parameters_are_those_that_the_makers_name(name: str, billions: float) -> None:
    assert SHAPES[name].parameters / 1e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("smollm2-135m", 4e-3),
        ("smollm2-360m", 4e-3),
        ("smollm2-1.7b", 4.9e-4),
        ("llama-3.2-1b", 4.9e-4),
        ("codellama-34b", 1.7e-4),
        ("qwen2.5-coder-7b", 4.8e-4),
        ("qwen3.5-0.8b", 5.3e-4),
    ],
)
def test_learning_rates_follow_the_width_unless_they_were_measured(name: str, rate: float) -> None:
    options = Local().resolve_options(ModelSpec(name), TrainOptions())
    assert options.learning_rate == pytest.approx(rate)
    assert options.target_modules == ["all-linear"]
    assert options.batch_size == (8 if name.startswith("smollm2") else 16)


def test_the_learning_rate_of_a_folder_is_by_the_width_in_its_config(tiny: Path, tmp_path: Path) -> None:
    def resolve(base: str, **given: Any) -> TrainOptions:
        return Local().resolve_options(ModelSpec(base), TrainOptions(**given))

    assert resolve(str(tiny)).learning_rate == default_learning_rate(64, "llama")
    assert resolve(str(tiny), learning_rate=1e-5, batch_size=2).learning_rate == 1e-5
    assert resolve(str(tiny), target_modules=["q_proj"]).target_modules == ["q_proj"]
    assert resolve("someone/unknown").learning_rate == 3e-4
    assert (resolve("someone/unknown").batch_size, resolve("someone/unknown").layers) == (16, ["all-linear"])
    folder = shutil.copytree(tiny, tmp_path / "odd")
    (folder / "config.json").write_text('{"model_type": "odd"}')
    assert resolve(str(folder)).learning_rate == 3e-4


@pytest.mark.parametrize("name", ["lfm2-350m", "someone/unknown"])
def test_a_base_of_unknown_shape_has_an_estimate_of_its_rows(name: str) -> None:
    found = Local().estimate(ModelSpec(name), None, TrainingSet(rows(160)), TrainOptions(n_epochs=2.0))
    assert found is not None
    assert (found.examples, found.steps, found.memory_bytes, found.seconds) == (160, 20, None, None)
    assert any(f"sqlft pull {name}" in remark for remark in found.remarks)
    assert any("0.7 GB in bfloat16" in remark for remark in found.remarks) == (name in PRESETS)


def test_tokens_and_steps_are_those_of_the_training(tiny: Path, tmp_path: Path) -> None:
    base = describe_base(str(tiny), tiny, ModelOptions())
    assert base is not None
    options = {"n_epochs": 2.0, "batch_size": 4, "early_stopping": False, "max_length": 48}
    found = estimate_training(base, rows(10, 40), **options)
    made = Local().train(
        ModelSpec(str(tiny)), None, TrainingSet(rows(10, 40)), TrainOptions(**options), tmp_path, lambda _: None
    )
    assert (found.tokens, found.steps, found.examples) == (made.details["tokens"], made.details["steps"], 10)
    assert found.seconds > 0
    assert found.why_not is None


def test_many_rows_are_told_from_some(tiny: Path) -> None:
    base = describe_base(str(tiny), tiny, ModelOptions())
    assert base is not None
    few, many = estimate_training(base, rows(500), n_epochs=1), estimate_training(base, rows(5_000), n_epochs=1)
    assert many.examples == 5_000
    assert many.tokens == pytest.approx(10 * few.tokens, rel=0.05)
    assert many.steps == 313


def test_a_base_that_is_not_here_is_told_by_its_shape() -> None:
    base = describe_base("CodeLlama-34b", None, ModelOptions())
    assert base is not None
    found = estimate_training(base, rows(100))
    assert found.why_not is not None
    why, what_to_do = found.why_not
    assert "12.0 GB may be used" in why
    assert "nf4" in why
    assert "smaller base" in what_to_do
    assert any("guess from letters" in remark for remark in found.remarks)
    assert describe_base("someone/unknown", None, ModelOptions()) is None


def test_the_articles_34b_fits_their_card_in_eight_bits() -> None:
    """A little over 40 GB on a card of 48."""
    base = describe_base("codellama-34b", None, ModelOptions())
    assert base is not None
    where = replace(CARD, free=200 * GIGA)
    cuda = estimate(base, ModelOptions(), TrainOptions(), TrainingSet(rows(50)), where, "cuda", None, Path("/nowhere"))
    assert cuda.why_not is not None
    assert "47.0 GB may be used on the GPU" in cuda.why_not[0]
    assert "quantization = 'int8'" in cuda.why_not[1]
    eight = memory.estimate_training_bytes(base.shape, TrainingSetup("bfloat16", "int8", checkpointing=True), 2048)
    assert 35 * GIGA < eight < 45 * GIGA


def test_processes_share_the_machine_and_have_cards_of_their_own(tiny: Path) -> None:
    """So many times the memory and a share of the work; fewer cards than processes are refused."""
    base = describe_base(str(tiny), tiny, ModelOptions())
    assert base is not None
    alone, together = (estimate_training(base, rows(50), num_processes=n) for n in (1, 3))
    assert together.memory_available == alone.memory_available // 3
    assert any("each of 3 processes" in remark for remark in together.remarks)
    cards = replace(CARD, gpus=(*CARD.gpus, Gpu("older", 24 * GIGA, 23 * GIGA, 8.0)))
    assert [cards.available("cuda", n) for n in (1, 2)] == [47 * GIGA, 23 * GIGA]
    found = [
        estimate(base, ModelOptions(), TrainOptions(num_processes=n), TrainingSet(rows(50)), cards, "cuda", None, tiny)
        for n in (1, 2, 3)
    ]
    assert found[1].seconds < found[0].seconds
    assert found[1].why_not is None
    assert found[2].why_not is not None
    assert "num_processes = 2 at most" in found[2].why_not[1]


@pytest.mark.parametrize(
    ("free", "cure"),
    [(60, "checkpointing|bfloat16"), (20, "quantization = 'int8'"), (11, "quantization = 'nf4'"), (3, "smaller base")],
)  # fmt: skip
def test_the_nearest_setting_that_would_do(free: int, cure: str) -> None:
    base = describe_base("codellama-13b", None, ModelOptions())
    assert base is not None
    found = estimate_training(base, rows(50), replace(LAPTOP, free=free * GIGA), dtype="float32")
    if found.why_not is None:
        assert found.memory_bytes <= free * GIGA
    else:
        assert any(word in found.why_not[1] for word in cure.split("|")), found.why_not


def test_shorter_rows_are_the_cure_where_they_would_do(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "larger", ignore=shutil.ignore_patterns("*.safetensors"))
    larger = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 24, "head_dim": 128}
    config = json.loads((folder / "config.json").read_text()) | larger | {"max_position_embeddings": 40_000}
    (folder / "config.json").write_text(json.dumps(config))
    base = describe_base(str(folder), folder, ModelOptions())
    assert base is not None
    free = memory.estimate_fixed_bytes(base.shape, TrainingSetup()) + 1000 * memory.estimate_token_bytes(
        base.shape, TrainingSetup(checkpointing=True)
    )
    found = estimate_training(base, rows(2, 16_000), replace(LAPTOP, free=free), max_length=20_000)
    assert found.why_not is not None
    assert "max_length = " in found.why_not[1]


def test_max_minutes_ends_the_estimate_too() -> None:
    base = describe_base("smollm2-1.7b", None, ModelOptions())
    assert base is not None
    found = estimate_training(base, rows(2_000), max_minutes=1.0)
    assert 60 < found.seconds < 150, "a minute of steps, after the base is loaded and before what is asked is written"
    assert any("max_minutes ends it after less than 1% of the steps" in remark for remark in found.remarks)


def test_the_longest_row_that_stays_whole() -> None:
    base = BaseDescription("x", DecoderShape(2, 64, 96, 4, 2, 16, 400, True), 512)
    assert find_max_row_tokens(base, TrainOptions()) == 512
    assert find_max_row_tokens(base, TrainOptions(max_length=100)) == 100
    assert find_max_row_tokens(replace(base, context=9_000), TrainOptions()) == 2048
    assert find_max_row_tokens(None, TrainOptions()) is None


def test_a_config_without_sizes_is_refused_with_bases_that_work(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2}')
    with pytest.raises(NotSupported, match="mamba") as caught:
        describe_base(str(tmp_path), tmp_path, ModelOptions())
    assert "smollm2-135m" in caught.value.next_step
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ProviderError, match="cannot be read"):
        describe_base(str(tmp_path), tmp_path, ModelOptions())


def test_max_memory_bounds_the_passes(tiny: Path) -> None:
    base = describe_base("smollm2-135m", None, ModelOptions())
    assert base is not None
    wide, narrow = (estimate_training(base, rows(200), max_memory=m) for m in ("8GB", "1.9GB"))
    assert narrow.memory_bytes < wide.memory_bytes
    assert narrow.memory_bytes < 1.9e9
    assert estimate_training(base, rows(200), max_memory="1GB").why_not is not None


def test_a_card_computes_more_tokens_at_once(tiny: Path) -> None:
    """As the training plans it there: that is more memory, too."""
    base = describe_base(str(tiny), tiny, ModelOptions())
    assert base is not None
    given, options, data = ModelOptions(dtype="float32"), TrainOptions(batch_size=200), TrainingSet(rows(200, 60))
    on_card, on_processor = (
        estimate(base, given, options, data, CARD, device, None, Path("/nowhere")) for device in ("cuda", "cpu")
    )
    assert on_card.memory_bytes > on_processor.memory_bytes
    budget = memory.fit_passes(base.shape, TrainingSetup(), options, "cuda", 47 * GIGA, 2 * GIGA)
    assert budget == memory.PassBudget(16384, budget.above, budget.longest, 47 * GIGA)


@pytest.mark.parametrize(("wanted", "above"), [(None, "plain"), (True, "always"), (False, "never")])
def test_blocks_are_computed_twice_where_memory_asks_for_it(wanted: bool | None, above: str) -> None:
    """Or where gradient_checkpointing says so."""
    shape, options = DecoderShape(8, 64, 128, 4, 4, 16, 300, True), TrainOptions(gradient_checkpointing=wanted)
    budget = memory.fit_passes(shape, TrainingSetup(), options, "cpu", 50_000_000, 0)
    plain, twice = (
        memory.fit_tokens(shape, TrainingSetup(checkpointing=again), round(50_000_000 * memory.PLANNED_SHARE))
        for again in (False, True)
    )
    assert budget.above == {"plain": plain, "always": 0, "never": memory.UNLIMITED_TOKENS}[above]
    assert budget.longest == (plain if wanted is False else twice)
    assert memory.fit_passes(shape, TrainingSetup(), options, "cpu", None, 0).tokens == 2048


def test_over_long_rows_are_found_without_a_max_length(tiny: Path) -> None:
    """The context of the tiny model is 512 tokens."""
    assert Local().max_row_tokens(ModelSpec(str(tiny)), TrainOptions()) == 512


SMALL = speed.Kind(DecoderShape(4, 32, 48, 2, 2, 16, 300, True), TrainingSetup(dropout=0.0), "cpu", 1)


def test_a_speed_is_measured_and_kept_if_the_machine_was_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MEASURE_SECONDS", 1200.0)
    found = speed.measure(SMALL, tmp_path, "here")
    assert found is not None
    assert found.training(1e9, 10) > 0
    assert found.checking(1e9, 10) > 0
    assert speed.known(SMALL, tmp_path, "here") == (found if found.waited <= speed.BUSY else None)
    assert speed.known(SMALL, tmp_path, "elsewhere") is None
    assert speed.measure(replace(SMALL, device="nowhere"), tmp_path, "here") is None


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux counts how long threads wait")
def test_a_speed_that_was_measured_beside_other_work_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "MEASURE_SECONDS", 1200.0)
    spin = [sys.executable, "-c", "while True: pass"]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # what is started now shares it, and leaves the others alone
    others = [subprocess.Popen(spin) for _ in range(3)]
    try:
        found = speed.measure(SMALL, tmp_path, "here")
    finally:
        os.sched_setaffinity(0, cores)
        for other in others:
            other.kill()
            other.wait()
    assert found is not None
    assert found.waited > speed.BUSY
    assert speed.known(SMALL, tmp_path, "here") is None


def test_an_estimate_tells_that_other_work_ran(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = describe_base(str(tiny), tiny, ModelOptions())
    assert base is not None
    monkeypatch.setattr(estimating, "WORTH_MEASURING", 0.0)
    monkeypatch.setattr(speed, "measure", lambda *_: speed.Speed(1.0, 0.0, 0.0, 0.0, waited=0.75))
    found = estimate_training(base, rows(480), folder=tmp_path, n_epochs=1, early_stopping=False)
    assert any("took 75% of the measurement: alone it would be about 0.12 minutes" in r for r in found.remarks)


def test_what_an_earlier_sqlft_kept_is_measured_again(tmp_path: Path) -> None:
    kept = tmp_path / "speed.json"
    kept.write_text(json.dumps({f"here: {SMALL.key}": {"training": 7.0, "checking": 3.0}}))
    assert speed.known(SMALL, tmp_path, "here") is None
    found = speed.Speed(1.0, 2.0, 0.5, 1.0)
    speed.keep(SMALL, found, tmp_path, "here")
    assert speed.known(SMALL, tmp_path, "here") == found
    assert len(json.loads(kept.read_text())) == 1


@pytest.mark.parametrize("before", [None, speed.Speed(0.5, 1e-9, 0.1, 5e-10)])
def test_real_steps_take_what_they_took(before: speed.Speed | None) -> None:
    found = speed.of_steps(SMALL, before, 3e9, 12, 42.0)
    assert found.training(3e9, 12) == pytest.approx(42)
    assert found.is_real
    assert found.checking(3e9, 12) < 42


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True, "target_modules": ["all-linear"], "r": 4}])
def test_the_steps_of_a_training_tell_the_next_estimate(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """And the estimate before it did not know them: the kinds of both are found to be the same."""
    monkeypatch.setattr(loop, "KNOWN_SECONDS", 0.0)
    monkeypatch.setattr(speed, "BUSY", 1.0)
    local, spec, data = Local(), ModelSpec(str(tiny)), TrainingSet(rows(40))
    given = TrainOptions(n_epochs=4.0, batch_size=8, **options)
    before = local.estimate(spec, None, data, given)
    real_clock = time.monotonic
    slept = 1000.0

    def prepare_slowly(*_: object) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: real_clock() + slept)

    monkeypatch.setattr(Local, "_prepare_weights", prepare_slowly)
    local.train(spec, None, data, given, tmp_path, lambda _: None)
    after = local.estimate(spec, None, data, given)
    assert before is not None
    assert after is not None
    assert any("guess" in remark for remark in before.remarks)
    assert any("steps of an earlier training" in remark for remark in after.remarks)
    assert speed.KEPT in os.listdir(hub.bases_folder())
    assert after.seconds is not None
    assert slept < after.seconds < slept + 600


def test_without_rows_to_validate_nothing_stops_early(tiny: Path) -> None:
    base = describe_base(str(tiny), tiny, ModelOptions())
    assert base is not None
    assert not any("early stopping" in remark for remark in estimate_training(base, rows(5)).remarks)


def test_more_blocks_take_longer_and_more_work() -> None:
    small, large = (DecoderShape(n, 64, 128, 4, 4, 16, 300, True) for n in (2, 8))
    assert speed.flops(large, TrainingSetup(), 100, 0) == 4 * speed.flops(small, TrainingSetup(), 100, 0)
    assert speed.flops(large, TrainingSetup(), 0, 10) == 4 * 300 * 64 * 10


def test_the_machine_is_looked_at_without_torch() -> None:
    here = machine.detect_machine()
    assert here.cores >= 1
    assert here.memory is not None
    assert here.free is not None
    assert 0 < here.free <= here.memory
    assert here.device("cuda:1") == "cuda"
    assert here.device("auto") == loading.resolve_device("auto")


@pytest.mark.parametrize("training", [False, True])
def test_dtypes_are_those_that_loading_chooses(processor: str, training: bool) -> None:
    here = machine.detect_machine()
    device = here.device("auto")
    assert here.dtype("auto", device, training) == str(loading.resolve_dtype("auto", device, training)).split(".")[1]


def test_the_environment_names_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what no processor has is refused."""
    monkeypatch.setenv("SQLFT_CPU_FEATURES", "amx_bf16, avx2")
    assert machine.detect_machine().flags == ("avx2", "amx_bf16")
    monkeypatch.setenv("SQLFT_CPU_FEATURES", "avx2,amx")
    with pytest.raises(OptionError, match="no feature of a processor: amx") as caught:
        machine.detect_cpu_features()
    assert "amx_bf16" in caught.value.next_step
    monkeypatch.delenv("SQLFT_CPU_FEATURES")
    assert set(machine.detect_cpu_features()) <= set(machine.FEATURES)


def test_dtypes_of_other_machines() -> None:
    assert LAPTOP.fast_dtypes("cpu") == ("float32",)
    assert LAPTOP.dtype("auto", "cpu") == "float32"
    assert replace(LAPTOP, flags=("amx_bf16",)).dtype("auto", "cpu") == "bfloat16"
    assert replace(LAPTOP, flags=("avx512_bf16",)).dtype("auto", "cpu") == "bfloat16"
    assert replace(LAPTOP, flags=("avx512_bf16",)).dtype("auto", "cpu", training=False) == "float32"
    assert CARD.dtype("auto", "cuda") == "bfloat16"
    old = replace(CARD, gpus=(replace(CARD.gpus[0], capability=7.5),))
    assert (old.dtype("auto", "cuda"), old.available("cuda")) == ("float32", 47 * GIGA)


def test_what_fits_is_told_a_preset() -> None:
    large, small = (SHAPES[name] for name in ("codellama-34b", "smollm2-135m"))
    assert find_training_dtype(small, TrainingSetup(), 8 * GIGA) == "float32"
    assert [find_training_dtype(large, TrainingSetup(), n * GIGA) for n in (45, 26, 8)] == ["int8", "nf4", None]
    assert [find_inference_dtype(large, n * GIGA) for n in (90, 45, 8)] == ["f16", "q8_0", None]


def test_every_preset_has_a_row() -> None:
    found = {row["base"]: row for row in list_bases(CARD)}
    assert set(found) == set(PRESETS)
    assert found["smollm2-135m"]["training"] in ("float32", "bfloat16")


def test_the_doctor_says_how_rows_of_a_base_are_trained_on(tmp_path: Path) -> None:
    for config, said in (
        ({"model_type": "llama"}, "packed"),
        ({"model_type": "lfm2", "layer_types": ["conv"]}, "padded: it has layers that are no attention (conv)"),
        ({"model_type": "gpt2"}, "packed, if a trial gives the same numbers"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert describe_layout(tmp_path) == said
    (tmp_path / "config.json").write_text("{")
    assert describe_layout(tmp_path).startswith("unknown: its config.json cannot be read")


def test_a_base_whose_weights_alone_are_too_large_fits_in_no_numbers() -> None:
    found = {row["base"]: row for row in list_bases(replace(LAPTOP, free=8 * GIGA))}
    assert [found["gpt-oss-20b"][way] for way in ("training", "asking")] == [None, None]
    assert [found["lfm2-350m"][way] for way in ("training", "asking")] == ["unknown", "unknown"]
