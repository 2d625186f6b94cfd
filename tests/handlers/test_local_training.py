"""Training: the same twice, the same when broken off, and clear about what it cannot do."""

from __future__ import annotations

import gc
import itertools
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sqlft_local import Local
from sqlft_local.base import loading
from sqlft_local.base.tokenization import Renderer
from sqlft_local.kernels import fused
from sqlft_local.options import ModelOptions, PredictOptions, TrainOptions
from sqlft_local.train import rows
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from sqlft.errors import Cancelled, DataError, NotSupported, OptionError, ProviderError
from sqlft.handler import Artifact, Message, ModelSpec, Progress, Request, TrainingSet

KIND = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
NAMES = [f"singer{i}" for i in range(20)]


def table(pairs: Sequence[tuple[str, str]]) -> pa.Table:
    """Conversations of a question and an answer."""
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    return pa.table({"messages": pa.array(turns, KIND)})


PAIRS = [(f"How many in {n}?", f"SELECT count(*) FROM {n}") for n in NAMES]
DATA = TrainingSet(table(PAIRS[:16]), table(PAIRS[16:]))


class Recorder:
    """Keeps what is reported, and stops at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.seen: list[Progress] = []

    def __call__(self, progress: Progress) -> None:
        """Called by the training."""
        self.seen.append(progress)
        if self.stop_at is not None and progress.step >= self.stop_at:
            raise Cancelled("enough", "go on")

    def values(self, name: str) -> list[float]:
        """A metric over time."""
        return [p.metrics[name] for p in self.seen if name in p.metrics]


def train(
    base: Path,
    workdir: Path,
    data: TrainingSet = DATA,
    start: Artifact | None = None,
    report: Callable[[Progress], None] | None = None,
    model: ModelOptions | None = None,
    **options: Any,
) -> Artifact:
    """A training with options that suit a tiny model; checkpoints do not depend on how fast it is."""
    given = {"n_epochs": 4, "batch_size": 4, "learning_rate": 0.02, "checkpoint_seconds": 1e9, **options}
    workdir.mkdir(exist_ok=True)
    return Local().train(ModelSpec(str(base), model), start, data, TrainOptions(**given), workdir, report or Recorder())


def tensors(artifact: Artifact) -> dict[str, torch.Tensor]:
    """The adapter's matrices."""
    assert artifact.path is not None
    found: dict[str, torch.Tensor] = load_file(artifact.path / "adapter_model.safetensors")
    return found


def farthest(a: Artifact, b: Artifact) -> float:
    """The largest difference between two adapters."""
    one, other = tensors(a), tensors(b)
    assert one.keys() == other.keys()
    return max((one[k] - other[k]).abs().max().item() for k in one)


def test_it_learns_and_reports(tiny: Path, tmp_path: Path) -> None:
    """Loss falls, on rows it does not see too, and the metrics are those of the contract."""
    seen = Recorder()
    made = train(tiny, tmp_path / "a", report=seen, n_epochs=8)
    losses, valid = seen.values("loss"), seen.values("valid_loss")
    assert losses[-1] < losses[0] / 2
    assert valid[-1] < valid[0]
    last = [p for p in seen.seen if p.metrics][-1]
    assert last.step == last.total_steps == 32
    assert last.metrics.keys() >= {"loss", "valid_loss", "examples_per_second", "tokens", "epoch"}
    assert seen.values("learning_rate")[-1] < max(seen.values("learning_rate"))
    assert made.details["examples"] == 16
    assert made.details["validation_examples"] == 4
    json.dumps(dict(made.details))


def test_the_same_seed_gives_the_same_adapter(tiny: Path, tmp_path: Path) -> None:
    """And another seed another one."""
    one, two = train(tiny, tmp_path / "one", seed=5), train(tiny, tmp_path / "two", seed=5)
    assert farthest(one, two) == 0.0
    assert farthest(one, train(tiny, tmp_path / "three", seed=6)) > 0.0


@pytest.mark.parametrize("stop_at", [1, 6, 15])
def test_a_training_that_was_broken_off_ends_like_an_unbroken_one(tiny: Path, tmp_path: Path, stop_at: int) -> None:
    """Adapter, optimizer, order and dropout go on where they stopped."""
    whole = train(tiny, tmp_path / "whole")
    with pytest.raises(Cancelled):
        train(tiny, tmp_path / "broken", report=Recorder(stop_at))
    again = Recorder()
    broken = train(tiny, tmp_path / "broken", report=again)
    assert again.seen[0].step == stop_at
    assert farthest(whole, broken) == 0.0
    assert math.isclose(whole.details["loss"], broken.details["loss"], rel_tol=1e-6)
    assert broken.details["steps"] == 16


@pytest.mark.parametrize("change", [{"unheard_of": 1}, {"fingerprint": None}])
def test_a_checkpoint_of_another_version_of_sqlft_is_left_aside(
    tiny: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    """The training starts from its first step."""
    with pytest.raises(Cancelled):
        train(tiny, tmp_path, report=Recorder(stop_at=3))
    [kept] = (tmp_path / "checkpoints").iterdir()
    state = {**json.loads((kept / "state.json").read_text(encoding="utf-8")), **change}
    (kept / "state.json").write_text(json.dumps({k: v for k, v in state.items() if v is not None}), encoding="utf-8")
    seen: list[int] = []

    def first(progress: Progress) -> None:
        if "loss" in progress.metrics:
            seen.append(progress.step)
            raise Cancelled("enough", "go on")

    with pytest.raises(Cancelled):
        train(tiny, tmp_path, report=first)
    assert seen == [1]


def test_answers_of_weight_0_are_read_and_count_nothing(tiny: Path) -> None:
    """Also where prompts count; and a row that the template refuses costs that row."""
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("weight", pa.int32())]))
    turns = [("user", "q", 1), ("assistant", "WRONG", 0), ("user", "Again.", 1), ("assistant", "right", 1)]
    strict = (
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tool') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id], strict)
    given = [[dict(zip(("role", "content", "weight"), t, strict=True)) for t in row] for row in (turns, turns)]
    given[0].insert(0, {"role": "tool", "content": "s", "weight": 1})
    table = pa.table({"messages": pa.array(given, kind)})
    found = rows.render_rows(table, renderer, TrainOptions(prompt_loss_weight=0.5), 1000)
    [example] = found.examples
    by_weight = {
        weight: tokenizer.decode([i for i, w in zip(example.ids, example.weights, strict=True) if w == weight])
        for weight in (0.0, 1.0)
    }
    assert by_weight == {0.0: "WRONG<|im_end|>", 1.0: "right<|im_end|>"}
    assert found.dropped == 1
    with pytest.raises(NotSupported, match="no tool"):
        rows.render_rows(table.slice(0, 1), renderer, TrainOptions(), 1000)


def test_a_kill_loses_only_what_came_after_the_last_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """Nothing is written when a process is killed; the checkpoint of every second step is there."""

    def killed(progress: Progress) -> None:
        if progress.step == 7:
            (tmp_path / "work").rename(tmp_path / "survives")
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, ProviderError)):
        train(tiny, tmp_path / "work", report=killed, checkpoint_steps=2)
    again = Recorder()
    made = train(tiny, tmp_path / "survives", report=again)
    assert again.seen[0].step == 6
    assert farthest(made, train(tiny, tmp_path / "whole", checkpoint_steps=2)) == 0.0


def test_a_finished_training_is_not_done_twice(tiny: Path, tmp_path: Path) -> None:
    """The worker may have died between the last step and the catalog."""
    first = train(tiny, tmp_path / "work")
    seen = Recorder()
    second = train(tiny, tmp_path / "work", report=seen)
    assert second.path == first.path
    assert not seen.values("loss")


def test_an_adapter_is_peft_s(tiny: Path, tmp_path: Path) -> None:
    """Whoever has the base and peft gets the same answers from it."""
    made = train(tiny, tmp_path / "work")
    assert made.path is not None
    assert sorted(f.name for f in made.path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), made.path)
    ours = loading.apply_adapter(
        loading.load_base(tiny, ModelOptions(dtype="float32"), "cpu", training=True), made.path
    ).model
    ours.set_attn_implementation("sdpa")
    ids = torch.tensor([[1, 20, 30, 40, 50]])
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


def test_training_goes_on_from_a_tuned_version(tiny: Path, tmp_path: Path) -> None:
    """Its first loss is where the last one ended, and its rank is the adapter's."""
    first = train(tiny, tmp_path / "first", n_epochs=8, r=4)
    seen = Recorder()
    second = train(tiny, tmp_path / "second", start=first, report=seen, learning_rate=0.0)
    assert seen.values("loss")[0] < 1.5 * first.details["loss"]
    assert second.details["r"] == 4
    assert second.details["continues"]
    assert farthest(first, second) == 0.0


def test_an_adapter_of_another_base_is_refused(tiny: Path, tmp_path: Path, model_maker: Callable[..., Path]) -> None:
    """In training and in asking."""
    other = model_maker(num_hidden_layers=1, hidden_size=32)
    first = train(tiny, tmp_path / "first", n_epochs=1)
    with pytest.raises(ProviderError, match="another base"):
        train(other, tmp_path / "second", start=first)
    with pytest.raises(ProviderError, match="another base"):
        Local().open(ModelSpec(str(other)), first, PredictOptions())


def test_a_damaged_adapter_is_refused(tiny: Path, tmp_path: Path) -> None:
    """Cut short or missing."""
    made = train(tiny, tmp_path / "first", n_epochs=1)
    assert made.path is not None
    file = made.path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ProviderError, match="cannot be read"):
        Local().open(ModelSpec(str(tiny)), made, PredictOptions())
    file.unlink()
    with pytest.raises(ProviderError, match="cannot be read"):
        Local().open(ModelSpec(str(tiny)), made, PredictOptions())


LONG = [("word " * 200, "yes"), *PAIRS[:4]]


def test_long_rows_are_cut_in_the_prompt(tiny: Path, tmp_path: Path) -> None:
    """The answer stays; how many were cut is told."""
    made = train(tiny, tmp_path / "cut", TrainingSet(table(LONG)), max_length=64)
    assert (made.details["cut_rows"], made.details["dropped_rows"], made.details["examples"]) == (1, 0, 5)


def test_long_rows_are_dropped_or_refused(tiny: Path, tmp_path: Path) -> None:
    """As the option says."""
    data = TrainingSet(table(LONG))
    made = train(tiny, tmp_path / "drop", data, max_length=64, long_rows="drop")
    assert (made.details["cut_rows"], made.details["dropped_rows"], made.details["examples"]) == (0, 1, 4)
    with pytest.raises(DataError, match="more than max_length = 64"):
        train(tiny, tmp_path / "error", data, max_length=64, long_rows="error")
    with pytest.raises(DataError, match="No row is left"):
        train(tiny, tmp_path / "none", TrainingSet(table(LONG[:1])), max_length=64, long_rows="drop")


def test_a_loss_that_is_no_number_stops_it(tiny: Path, tmp_path: Path) -> None:
    """The last good state is kept, and the error says what to do."""
    with pytest.raises(ProviderError, match="diverged") as caught:
        train(tiny, tmp_path / "work", learning_rate=1e30, max_grad_norm=0.0, n_epochs=20)
    assert "learning_rate" in caught.value.next_step
    [kept] = (tmp_path / "work" / "checkpoints").iterdir()
    saved = load_file(kept / "tensors.safetensors")
    assert all(torch.isfinite(t).all() for k, t in saved.items() if k.startswith("adapter."))


FULL = """
import resource, sys, torch
torch.set_num_threads(1)
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import test_local_training as t
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
t.train(Path(sys.argv[1]), Path(sys.argv[2]), checkpoint_steps=2)
"""


def test_a_full_disk_is_explained(tiny: Path, tmp_path: Path) -> None:
    """Here a file may have 20,000 bytes."""
    given = [str(tiny), str(tmp_path / "work"), str(Path(__file__).parent)]
    done = subprocess.run([sys.executable, "-c", FULL, *given], capture_output=True, text=True)
    assert "The checkpoint of step 2 cannot be written" in done.stderr
    assert "Make room on the disk, then RESUME" in done.stderr
    assert not list((tmp_path / "work").rglob("*.safetensors"))


def test_unknown_layers_are_named(tiny: Path, tmp_path: Path) -> None:
    """With those that there are."""
    with pytest.raises(OptionError, match="q_proj"):
        train(tiny, tmp_path / "work", target_modules=["query"])


def test_all_linear_layers_may_be_trained(tiny: Path, tmp_path: Path) -> None:
    """`all-linear` in place of names."""
    made = train(tiny, tmp_path / "work", target_modules=["all-linear"], n_epochs=1)
    assert any("gate_proj" in k for k in tensors(made))
    Local().open(ModelSpec(str(tiny)), made, PredictOptions()).close()


def test_early_stopping_keeps_the_best_state(tiny: Path, tmp_path: Path) -> None:
    """Rows of noise can only be learned by heart: validation loss soon rises."""
    noise = [(f"{i}", f"{i * 7919 % 1000} {i * 104729 % 1000}") for i in range(20)]
    data = TrainingSet(table(noise[:8]), table(noise[8:]))
    seen = Recorder()
    made = train(tiny, tmp_path / "work", data, report=seen, n_epochs=100, early_stopping=True, learning_rate=0.02)
    assert made.details["steps"] < 200
    assert made.details["valid_loss"] == min(seen.values("valid_loss"))
    assert made.details["best_step"] < made.details["steps"]


def test_the_base_is_out_of_memory_before_the_files_that_are_asked_are_made(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take as much again: a training's peak would be theirs."""

    def count_models() -> int:
        return sum(type(o) is LlamaForCausalLM for o in gc.get_objects())

    before, left = count_models(), []
    monkeypatch.setattr(Local, "_prepare_weights", lambda *_: left.append(count_models()))
    train(tiny, tmp_path, n_epochs=1)
    assert left == [before]


def test_max_minutes_ends_it_in_time(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate still comes down; the clock is one that ticks when it is read."""
    ticks = itertools.count()
    monkeypatch.setattr("sqlft_local.train.loop.time", SimpleNamespace(monotonic=lambda: next(ticks) * 0.02))
    seen = Recorder()
    made = train(tiny, tmp_path / "work", report=seen, n_epochs=10000, max_minutes=0.1, early_stopping=False)
    assert 50 < made.details["steps"] < 300
    assert made.details["seconds"] <= 6
    assert seen.values("learning_rate")[-1] < max(seen.values("learning_rate")) / 10
    totals = [p.total_steps for p in seen.seen if p.step > 50]
    assert all(t is not None and abs(t - made.details["steps"]) < 30 for t in totals)
    loading, *left = [p.seconds_left for p in seen.seen]
    assert loading is None
    assert all(seconds is not None and 0 <= seconds <= 6 for seconds in left)
    assert left[-1] < 0.2
    assert left == sorted(left, key=lambda seconds: -(seconds or 0))


def test_the_seconds_that_are_left_are_those_of_its_steps(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the steps that are left, not of the loading before them."""
    ticks = itertools.count()
    monkeypatch.setattr("sqlft_local.train.loop.time", SimpleNamespace(monotonic=lambda: next(ticks) * 0.02))
    seen = Recorder()
    train(tiny, tmp_path / "work", TrainingSet(DATA.train), report=seen, n_epochs=20, early_stopping=False)
    told = [(p.step, p.total_steps, p.seconds_left) for p in seen.seen]
    assert told[0][2] is None, "before a step nothing is known"
    steps = [(step, total, left) for step, total, left in told if step and left is not None]
    a_step = steps[0][2] / (steps[0][1] - steps[0][0])
    assert all(left == pytest.approx((total - step) * a_step, rel=0.2, abs=0.01) for step, total, left in steps)


def test_the_tuned_model_answers_what_it_was_taught(tiny: Path, tmp_path: Path) -> None:
    """Training and asking see the same tokens."""
    made = train(tiny, tmp_path / "work", TrainingSet(table(PAIRS[:4])), n_epochs=60, lora_dropout=0.0)
    predictor = Local().open(ModelSpec(str(tiny)), made, PredictOptions(max_tokens=40))
    asked = [Request(i, (Message("user", q),)) for i, (q, _) in enumerate(PAIRS[:4])]
    answers = {c.id: c.text for c in predictor.predict(asked)}
    assert [answers[i] for i in range(4)] == [a for _, a in PAIRS[:4]]


def test_asking_and_training_in_one_process(tiny: Path, tmp_path: Path) -> None:
    """Whichever comes first."""
    asked = [Request(i, (Message("user", q),)) for i, (q, _) in enumerate(PAIRS[:8])]
    assert len(list(Local().open(ModelSpec(str(tiny)), None, PredictOptions(max_tokens=4)).predict(asked))) == 8
    made = train(tiny, tmp_path / "work", TrainingSet(table(PAIRS[:8])), n_epochs=1, batch_size=8)
    assert len(list(Local().open(ModelSpec(str(tiny)), made, PredictOptions(max_tokens=4)).predict(asked))) == 8


def test_checkpointing_changes_no_number(tiny: Path, tmp_path: Path) -> None:
    """Blocks computed twice drop the same elements."""
    one = train(tiny, tmp_path / "one", n_epochs=1)
    other = train(tiny, tmp_path / "other", n_epochs=1, gradient_checkpointing=True)
    assert farthest(one, other) <= 1e-6


def test_what_cannot_fit_is_refused_with_figures(tiny: Path, tmp_path: Path) -> None:
    """And with the setting that would do."""
    with pytest.raises(ProviderError, match=r"takes about .* and 100MB may be used") as caught:
        train(tiny, tmp_path, max_memory="100MB")
    assert "max_memory" in caught.value.next_step


def test_it_goes_on_with_less_memory(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that runs out leaves the last whole step, and what bounds memory may be another when it goes on."""
    plain, steps = fused.compute_loss, []

    def greedy(model: Any, packed: Any) -> Any:
        steps.append(packed)
        if len(steps) == 6:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return plain(model, packed)

    alone = TrainingSet(DATA.train)
    monkeypatch.setattr(fused, "compute_loss", greedy)
    with pytest.raises(ProviderError, match="after step 5 is kept") as caught:
        train(tiny, tmp_path / "work", alone, lora_dropout=0.0)
    monkeypatch.undo()
    assert "RESUME MODEL" in caught.value.next_step
    seen = Recorder()
    less = {"max_tokens_per_pass": 64, "max_memory": "3GB", "lora_dropout": 0.0}
    broken = train(tiny, tmp_path / "work", alone, report=seen, **less)
    whole = train(tiny, tmp_path / "whole", alone, lora_dropout=0.0)
    assert seen.seen[0].step == 5
    assert math.isclose(
        broken.details["loss"], whole.details["loss"], rel_tol=1e-2
    )  # bfloat16 rounds otherwise in passes of other sizes


def test_validation_leaves_the_time_to_training(tiny: Path, tmp_path: Path) -> None:
    """Of many rows it looks at the same few."""
    data = TrainingSet(table(PAIRS[:8]), table(PAIRS * 10))
    made = train(tiny, tmp_path / "work", data, n_epochs=1)
    assert made.details["validated_on"] == 16
    assert train(tiny, tmp_path / "all", n_epochs=1).details["validated_on"] == 4


def test_a_shape_that_cannot_be_had_is_remarked(tiny: Path, tmp_path: Path) -> None:
    """A version that goes on with matrices keeps their shape, and says so to who asked for another."""
    first = train(tiny, tmp_path / "first", n_epochs=1, r=4)
    [said] = train(tiny, tmp_path / "second", start=first, n_epochs=1, r=32).details["remarks"]
    assert said.startswith("r stays 4")
    assert train(tiny, tmp_path / "third", start=first, n_epochs=1).details["remarks"] == []


KILLED = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[3])
import test_local_training as t
def die(progress):
    if progress.step == 9:
        os.kill(os.getpid(), signal.SIGKILL)
t.train(Path(sys.argv[1]), Path(sys.argv[2]), report=die, checkpoint_steps=4)
"""


def test_a_killed_process_s_training_ends_like_an_unbroken_one(tiny: Path, tmp_path: Path) -> None:
    """It goes on from the last checkpoint to the same loss and, on one machine, the same bits."""
    given = [str(tiny), str(tmp_path / "work"), str(Path(__file__).parent)]
    assert subprocess.run([sys.executable, "-c", KILLED, *given], capture_output=True).returncode == -signal.SIGKILL
    seen = Recorder()
    resumed = train(tiny, tmp_path / "work", report=seen, checkpoint_steps=4)
    whole = train(tiny, tmp_path / "whole", checkpoint_steps=4)
    assert seen.seen[0].step == 8
    assert math.isclose(resumed.details["loss"], whole.details["loss"], rel_tol=1e-4)
    assert farthest(resumed, whole) == 0.0
