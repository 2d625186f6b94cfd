"""Training on a node of a Ray cluster: the same artifact, reports and checkpoints at home, stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from safetensors.torch import load_file
from sqlft_local import Local

from sqlft import errors, plugins
from sqlft.catalog.files import FILES_FOLDER, LOCK_FILE
from sqlft.handler import Artifact, Completion, Message, ModelSpec, Progress, Request, Trainer, TrainingSet
from sqlft.options import build_options

CONVERSATIONS = [(f"The capital of {country}?", city) for country, city in zip("abcdefgh", "stuvwxyz", strict=True)]
pytestmark = pytest.mark.usefixtures("ray_cluster")


def make_data() -> TrainingSet:
    """The rows as trainers get them."""
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in CONVERSATIONS]
    return TrainingSet(pa.table({"messages": pa.array(turns, kind)}))


@pytest.fixture
def fleet(ray_cluster: None, connection_with_model: Any) -> Any:
    """The stranger's model `f`, which is trained on the cluster."""
    connection_with_model.run(
        "CREATE ML_ENGINE fleet FROM ray USING handler = 'stranger', actors = 1, num_cpus = 0.5, keep_seconds = 0"
    )
    connection_with_model.run(
        "CREATE MODEL f PREDICT answer USING engine = 'fleet', base = 'tiny', prompt_template = '{{question}}'"
    )
    connection_with_model.warnings.clear()
    return connection_with_model


def find_files(fleet: Any, number: int) -> Path:
    """The handler's workdir at home."""
    return Path(fleet.catalog.work_folder(fleet.version(number, "f").key) / FILES_FOLDER)


def test_a_node_that_dies_is_followed_by_another_from_the_last_checkpoint(
    fleet: Any, until: Callable[..., Any]
) -> None:
    fleet.training.script({4: "listen"})
    fleet.train("steps = 6, wait = false", "FINETUNE f")
    pid = fleet.training.wait_for("at-4")
    checkpoint = find_files(fleet, 2) / "checkpoint.json"
    until(lambda: checkpoint.exists() and json.loads(checkpoint.read_text())["step"] == 3)
    fleet.training.script({})
    os.kill(pid, signal.SIGKILL)
    until(lambda: fleet.version(2, "f").status == "complete")
    details = fleet.version(2, "f").details
    assert (details["first_step"], details["tokens"], details["trained_on"]) == (4, 123, os.uname().nodename)
    assert fleet.ask("q3", "f") == "a3"
    steps = fleet.run("SELECT step FROM sqlft.metrics WHERE model = 'f' AND version = 2 AND name = 'loss'")
    assert {step for (step,) in steps} == {1, 2, 3, 4, 5, 6}


def test_what_is_cancelled_or_killed_goes_on_where_it_was(fleet: Any, until: Callable[..., Any]) -> None:
    """CANCEL; then the worker of the next training, which starts from that version, is killed, and nothing runs on."""
    fleet.training.script({4: "listen"})
    fleet.train("steps = 6, wait = false", "FINETUNE f")
    fleet.training.wait_for("at-4")
    fleet.run("CANCEL MODEL f.2")
    assert fleet.version(2, "f").status == "cancelled"
    fleet.training.script({})
    fleet.run("RESUME MODEL f.2")
    assert fleet.version(2, "f").details["first_step"] == 4
    fleet.training.script({4: "listen"})
    fleet.train("steps = 6, wait = false", "FINETUNE f", "SELECT 'q9' AS question, 'nine' AS answer")
    pid = fleet.training.wait_for("at-4")
    until(lambda: (find_files(fleet, 3) / "checkpoint.json").exists())
    os.kill(int((fleet.catalog.work_folder(fleet.version(3, "f").key) / LOCK_FILE).read_text()), signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())
    fleet.training.script({})
    fleet.run("RESUME MODEL f.3")
    assert fleet.version(3, "f").details["first_step"] == 4
    assert (fleet.ask("q9", "f"), fleet.ask("q3", "f")) == ("nine", "a3")


def test_errors_of_the_handler_come_home(ray_cluster: None, training_control: Any, tmp_path: Path) -> None:
    """And a process that dies again and again is one."""
    cls = plugins.load_engine_class("ray", {"handler": "stranger"})
    assert issubclass(cls, Trainer)
    handler = cls(build_options(cls.engine_options, {"handler": "stranger", "num_cpus": 0.5}, "it"))
    options = build_options(cls.train_options, {"control": str(training_control.folder)}, "it")
    for what, kind, words in (
        ("refuse", errors.ProviderError, "closed on Sundays"),
        ("crash", errors.HandlerError, "ValueError: boom"),
        ("nospace", errors.HandlerError, "No space left"),
        ("kill", errors.HandlerError, "died 3 times"),
    ):
        training_control.script({2: what})
        (tmp_path / what).mkdir()
        with pytest.raises(kind, match=words) as caught:
            handler.train(ModelSpec("tiny"), None, make_data(), options, tmp_path / what, lambda progress: None)
        assert cast("errors.SqlftError", caught.value).next_step


# -- models on this machine ------------------------------------------------------------------------------------


@pytest.fixture
def local_fleet(ray_cluster: None) -> Any:
    """The local engine on the cluster, an actor of one thread as the tests have it in process."""
    cls = plugins.load_engine_class("ray", {"handler": "local"})
    made = cls(build_options(cls.engine_options, {"handler": "local", "threads": 1, "actors": 1}, "it"))
    yield made
    made.unload(ModelSpec("x"), None)


def ask(handler: Any, base: Path, artifact: Artifact | None) -> list[Completion]:
    """Answers to the questions, with how probable they are."""
    options = build_options(Local.predict_options, {"max_tokens": 6, "logprobs": True, "backend": "transformers"}, "it")
    predictor = handler.open(ModelSpec(str(base)), artifact, options)
    requests = [Request(i, (Message("user", question),)) for i, (question, _) in enumerate(CONVERSATIONS)]
    answers = [event for event in predictor.predict(iter(requests)) if isinstance(event, Completion)]
    predictor.close()
    return sorted(answers, key=lambda answer: answer.id)


def test_a_local_model_is_trained_and_asked_as_in_process(local_fleet: Any, tiny: Path, tmp_path: Path) -> None:
    """Adapter, answers, vectors and likelihoods are the same."""
    data = make_data()
    here, spec = Local(build_options(Local.engine_options, {"threads": 1}, "it")), ModelSpec(str(tiny))
    options = build_options(Local.train_options, {"n_epochs": 2, "batch_size": 4, "learning_rate": 0.01}, "it")
    made = {}
    for name, handler in (("here", here), ("there", local_fleet)):
        (tmp_path / name).mkdir()
        reports: list[Progress] = []
        made[name] = handler.train(spec, None, data, options, tmp_path / name, reports.append), reports
    (artifact, reports), (other, other_reports) = made["here"], made["there"]
    assert [p.step for p in reports] == [p.step for p in other_reports]
    tensors, others = (load_file(a.path / "adapter_model.safetensors") for a in (artifact, other))
    assert tensors.keys() == others.keys()
    assert all((tensors[name] - others[name]).abs().max() < 1e-4 for name in tensors)
    assert json.loads((other.path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny)
    answers, others_answers = ask(here, tiny, artifact), ask(local_fleet, tiny, artifact)
    assert [(a.text, a.output_tokens) for a in answers] == [(a.text, a.output_tokens) for a in others_answers]
    assert all(abs(a.logprob - b.logprob) < 1e-4 for a, b in zip(answers, others_answers, strict=True))
    texts = [question for question, _ in CONVERSATIONS]
    vectors = zip(here.embed(texts, spec, None), local_fleet.embed(texts, spec, None), strict=True)
    assert all(abs(x - y) < 1e-4 for a, b in vectors for x, y in zip(a, b, strict=True))
    asked = [(Message("user", q), Message("assistant", a)) for q, a in CONVERSATIONS]
    scores = zip(here.score(asked, spec, artifact), local_fleet.score(asked, spec, artifact), strict=True)
    assert all(abs(a[0] - b[0]) < 1e-4 and a[1] == b[1] for a, b in scores)
    estimate = local_fleet.estimate(spec, None, data, options)
    assert estimate.steps == here.estimate(spec, None, data, options).steps
    assert local_fleet.count_tokens(texts, spec) == here.count_tokens(texts, spec)
