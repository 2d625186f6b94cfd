"""Training at a provider: rules before anything is sent, one job, its end; the provider is the tests' own."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlft_openai
from sqlft_openai.finetune import jobs
from sqlft_openai.finetune.dialects import parse_metrics, parse_state
from sqlft_openai.finetune.rows import choose_epochs, format_jsonl, prepare_rows
from sqlft_openai.handler import make_handler
from sqlft_openai.http import api
from sqlft_openai.providers import Provider

from sqlft.errors import Cancelled, DataError, OptionError, ProviderError
from sqlft.handler import Artifact, Message, ModelSpec, Progress, Request, Trainer, TrainingSet
from sqlft.options import build_options

KIND = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def make_conversations(count: int, answer: str = "a", length: int = 0) -> TrainingSet:
    rows = [
        [{"role": "user", "content": f"q{i}{'x' * length}"}, {"role": "assistant", "content": f"{answer}{i}"}]
        for i in range(count)
    ]
    return TrainingSet(pa.table({"messages": pa.array(rows, KIND)}))


def upload_example(engine: str) -> list[dict[str, Any]]:
    """What goes up of a message with a name, and of an answer that is not to be learned."""
    kind = pa.list_(pa.struct([*KIND.value_type, ("weight", pa.int32()), ("name", pa.string())]))
    turns = [
        {"role": "user", "content": "q", "weight": 1, "name": "bob"},
        {"role": "assistant", "content": "WRONG", "weight": 0, "name": None},
        {"role": "user", "content": "again", "weight": 1, "name": "not a name"},
        {"role": "assistant", "content": "right", "weight": 1, "name": None},
    ]
    data = TrainingSet(pa.table({"messages": pa.array([turns] * 12, kind)}))
    cls = getattr(sqlft_openai, engine)
    rows = prepare_rows(cls.provider, "gpt-4o-mini", data, build_options(cls.train_options, {}, "FINETUNE"))
    sent: list[dict[str, Any]] = json.loads(format_jsonl(rows.train).splitlines()[0])["messages"]
    return sent


@pytest.mark.parametrize(("engine", "name"), [("OpenAI", {"name": "bob"}), ("Together", {}), ("Fireworks", {})])
def test_weights_go_along_and_names_where_they_are_taken(engine: str, name: dict[str, str]) -> None:
    assert upload_example(engine) == [
        {"role": "user", "content": "q", **name},
        {"role": "assistant", "content": "WRONG", "weight": 0},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "right"},
    ]


def make_pairs(count: int, worse: str = "worse") -> TrainingSet:
    train = make_conversations(count).train
    return TrainingSet(train.append_column("rejected", pa.array([worse] * count)))


class TrainingRun:
    """A handler, its workdir, and what it reported."""

    def __init__(self, provider: Any, workdir: Path, engine: str = "OpenAI", **options: Any) -> None:
        self.provider, self.workdir = provider, workdir
        cls = getattr(sqlft_openai, engine)
        to = {"azure_endpoint": provider.root} if engine == "AzureOpenAI" else {"base_url": provider.url}
        if engine == "Fireworks":
            to = {"base_url": f"{provider.root}/inference/v1"}
        given = {**to, "api_key": provider.key, "poll_seconds": 0.01, **options}
        self.handler = cls(build_options(cls.engine_options, given, "the engine"))
        self.reports: list[Progress] = []
        self.report: Callable[[Progress], None] = self.reports.append
        self.base = "accounts/fireworks/models/tiny" if engine == "Fireworks" else "gpt-4o-mini"

    def train(self, data: TrainingSet | None = None, start: Artifact | None = None, **using: Any) -> Artifact:
        options = build_options(self.handler.train_options, using, "FINETUNE")
        made: Artifact = self.handler.train(
            ModelSpec(self.base), start, data or make_conversations(12), options, self.workdir, lambda p: self.report(p)
        )
        return made

    def cancel(self) -> None:
        self.handler.cancel(ModelSpec(self.base), self.workdir)

    @property
    def job_body(self) -> Any:
        """What the only job was made with."""
        [job] = self.provider.jobs.values()
        return job["asked"]

    def read_record(self) -> Any:
        return json.loads((self.workdir / "job.json").read_text())


@pytest.fixture
def make_run(provider: Any, tmp_path: Path) -> Callable[..., TrainingRun]:
    def make(engine: str = "OpenAI", **options: Any) -> TrainingRun:
        return TrainingRun(provider, tmp_path, engine, **options)

    return make


ENGINES = ["OpenAI", "AzureOpenAI", "OpenAICompatible", "AnyscaleEndpoints", "Together", "Fireworks"]


@pytest.mark.parametrize("engine", ENGINES)
def test_trains_and_reports(provider: Any, make_run: Any, engine: str) -> None:
    run = make_run(engine)
    made = run.train(TrainingSet(make_conversations(12).train, make_conversations(3).train), n_epochs=2)
    assert provider.problems == []
    assert len(provider.created) == 1
    assert provider.tuned[made.remote_id]["q3"] == "a3"
    assert made.details["provider_status"].lower().endswith(("succeeded", "completed"))
    steps = [r.step for r in run.reports]
    assert steps == sorted(steps)
    if engine != "Fireworks":  # its jobs report no steps
        assert made.details["trained_tokens"] > 0
        assert run.reports[-1].metrics["loss"] == 0.5
        assert run.reports[-1].total_steps == 4
    assert provider.key not in json.dumps(run.read_record())


def test_openai_body(make_run: Any) -> None:
    run = make_run()
    run.train(n_epochs=3, batch_size=4, learning_rate_multiplier=0.5, suffix="mine", seed=7)
    assert run.job_body["method"] == {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 0.5}},
    }
    assert (run.job_body["suffix"], run.job_body["seed"]) == ("mine", 7)
    assert run.job_body["metadata"] == {"sqlft": run.read_record()["ours"]}


def test_bodies_of_dialects(provider: Any, tmp_path: Path) -> None:
    bodies = {}
    for engine, using in (("AzureOpenAI", {}), ("Together", {"r": 4}), ("Fireworks", {"r": 4, "suffix": "My Model"})):
        folder = tmp_path / engine
        folder.mkdir()
        TrainingRun(provider, folder, engine).train(n_epochs=2, **using)
        bodies[engine] = provider.jobs[provider.created[-1]]["asked"]
    assert bodies["AzureOpenAI"]["hyperparameters"] == {"n_epochs": 2}
    assert "method" not in bodies["AzureOpenAI"]
    assert bodies["Together"]["training_type"] == {"type": "Lora", "lora_r": 4, "lora_alpha": 8}
    assert bodies["Fireworks"]["outputModel"] == "accounts/me/models/my-model"
    assert bodies["Fireworks"]["loraRank"] == 4
    assert "accounts/me/models/my-model" in provider.deployed


@pytest.mark.parametrize("engine", ["OpenAI", "AzureOpenAI", "OpenAICompatible", "Together"])
def test_learns_from_better_and_worse_answers(provider: Any, make_run: Any, engine: str) -> None:
    run = make_run(engine)
    made = run.train(TrainingSet(make_pairs(12).train, make_pairs(3, "bad").train), method="dpo", beta=0.2)
    assert made.details["rows"] == 12
    lines = [json.loads(line) for line in provider.files[run.job_body["training_file"]]["content"].splitlines()]
    assert lines[3] == {
        "input": {"messages": [{"role": "user", "content": "q3"}]},
        "preferred_output": [{"role": "assistant", "content": "a3"}],
        "non_preferred_output": [{"role": "assistant", "content": "worse"}],
    }
    if engine == "Together":
        assert run.job_body["training_method"] == {"method": "dpo", "dpo_beta": 0.2}
    else:
        assert run.job_body["method"] == {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    assert not provider.problems


def test_a_model_that_is_not_trained_there(make_run: Any) -> None:
    run = make_run()
    run.base = "text-embedding-3-small"
    with pytest.raises(ProviderError, match="does not train the model 'text-embedding-3-small'") as caught:
        run.train()
    assert "lists those that it trains" in caught.value.next_step


def test_nobody_takes_the_rows(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_WAIT", 0.01)
    run = make_run(base_url="http://127.0.0.1:9/v1")
    with pytest.raises(
        ProviderError, match=r"could not be uploaded: http://127\.0\.0\.1:9/v1 is not reached"
    ) as caught:
        run.train()
    assert "Check base_url" in caught.value.next_step
    assert "RESUME MODEL" in caught.value.next_step


def test_pairs_where_there_is_no_such_training(provider: Any, make_run: Any) -> None:
    with pytest.raises(OptionError, match="Anyscale Endpoints has no training by"):
        make_run("AnyscaleEndpoints").train(make_pairs(12), method="dpo")
    provider.inject_fault(
        "400", times=None, path="/fine_tuning/jobs", message="Unknown argument: method", code="unknown"
    )
    with pytest.raises(ProviderError, match="did not make the job"):
        make_run("OpenAICompatible").train(make_pairs(12), method="dpo")
    assert not provider.jobs


def test_a_clock_that_jumps_changes_nothing(provider: Any, make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    true, hours = time.time, itertools.cycle((0, 1, -1, 24))
    monkeypatch.setattr(time, "time", lambda: true() + 3600 * next(hours))
    run = make_run()
    run.provider.inject_fault("429", times=2, path="/fine_tuning/jobs", retry_after=0)
    assert run.train().remote_id
    assert len(provider.created) == 1
    assert run.reports[-1].step > 0


def test_goes_on_from_a_tuned_model(provider: Any, make_run: Any) -> None:
    run = make_run()
    run.train(start=Artifact(remote_id="ft:gpt-4o-mini:org::1"))
    assert run.job_body["model"] == "ft:gpt-4o-mini:org::1"


@pytest.mark.parametrize(
    ("data", "using", "error", "expected"),
    [
        (make_conversations(9), {}, DataError, "10 rows or more, and there are 9"),
        (make_conversations(12, answer=""), {}, None, ""),
        (make_conversations(12), {"method": "dpo"}, DataError, "the rows have no worse ones"),
        (make_pairs(12, "a3"), {"method": "dpo"}, DataError, "training row 4 is its answer"),
        (make_pairs(12, ""), {"method": "dpo"}, DataError, "training row 1 has no worse answer"),
        (make_conversations(12), {"beta": 0.1}, OptionError, "beta is for"),
        (make_conversations(12), {"suffix": "x" * 65}, OptionError, "65 characters"),
        (make_conversations(12), {"max_train_tokens": 60}, DataError, "larger max_train_tokens"),
        (make_conversations(12, length=300_000), {}, DataError, "65,536 tokens"),
    ],
)
def test_rules_hold_before_anything_is_sent(
    provider: Any, make_run: Any, data: Any, using: Any, error: Any, expected: str
) -> None:
    run = make_run()
    if error is None:
        run.train(data, **using)
        return
    with pytest.raises(error, match=expected):
        run.train(data, **using)
    assert provider.calls == []


def test_the_last_message_is_the_assistants(provider: Any, make_run: Any) -> None:
    rows = [[{"role": "user", "content": "q"}]] * 12
    with pytest.raises(DataError, match="does not end with the assistant's answer"):
        make_run().train(TrainingSet(pa.table({"messages": pa.array(rows, KIND)})))
    assert provider.calls == []


def test_the_tokens_of_a_job(provider: Any, make_run: Any) -> None:
    run = make_run()
    run.base = "gpt-3.5-turbo"
    data = make_conversations(2000, length=40_000)
    with pytest.raises(
        DataError, match=r"2,000 rows have 60,\d+,\d+ tokens in 3 epochs.* takes 50,000,000: about 1,6\d\d rows fit"
    ):
        run.train(data, n_epochs=3)
    estimate = run.handler.estimate(
        ModelSpec(run.base),
        None,
        data,
        build_options(run.handler.train_options, {"n_epochs": 3, "max_train_tokens": 50_000_000, "seed": 3}, ""),
    )
    assert 1600 < estimate.examples < 1700
    assert 49_000_000 < estimate.tokens <= 50_000_000


def test_a_sample_is_the_seeds(provider: Any, make_run: Any) -> None:
    from sqlft_openai.finetune.rows import prepare_rows

    def drawn(seed: int) -> list[str]:
        run = make_run()
        options = build_options(run.handler.train_options, {"n_epochs": 1, "max_train_tokens": 400, "seed": seed}, "")
        rows = prepare_rows(run.handler.provider, "gpt-4o-mini", make_conversations(100), options)
        return [example.messages[0]["content"] for example in rows.train]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 10 <= len(drawn(1)) < 100


def test_auto_epochs() -> None:
    assert [choose_epochs("auto", n) for n in (10, 33, 50, 5000, 20000)] == [10, 3, 3, 3, 1]


def test_unknown_statuses_are_not_final(provider: Any, make_run: Any) -> None:
    provider.statuses = ["validating_files", "preparing", "quality_check", "running", "paused", "succeeded"]
    run = make_run()
    assert run.train().remote_id
    assert parse_state({"status": "moderating"}) == ("training", "moderating")
    assert parse_state({"state": "JOB_STATE_EARLY_STOPPED"})[0] == "complete"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_job_that_fails_says_why(provider: Any, make_run: Any, engine: str) -> None:
    provider.fails = "the rows are odd"
    run = make_run(engine)
    with pytest.raises(ProviderError, match=r"failed: .*the rows are odd"):
        run.train()
    provider.fails = None
    files = provider.count("/files", "POST") + provider.count(":upload", "POST")
    assert run.train().remote_id
    assert len(provider.created) == 2
    assert provider.count("/files", "POST") + provider.count(":upload", "POST") == files


def test_a_job_deleted_there(provider: Any, make_run: Any) -> None:
    run = make_run()

    def vanish(progress: Progress) -> None:
        if progress.step == 1:
            provider.jobs.clear()

    run.report = vanish
    with pytest.raises(ProviderError, match="is not at OpenAI any more"):
        run.train()
    run.report = run.reports.append
    assert run.train().remote_id


def test_a_wrong_key_in_the_middle(provider: Any, make_run: Any) -> None:
    run = make_run()
    fault = provider.inject_fault("401", None, path="/fine_tuning/jobs/", skip=1)
    with pytest.raises(ProviderError, match="does not take the key"):
        run.train()
    provider.faults.remove(fault)
    assert run.train().remote_id
    assert len(provider.created) == 1


@pytest.mark.parametrize("kind", ["429", "500", "503", "drop", "half", "html", "cut", "empty", "null", "408"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_one_job_whatever_becomes_of_the_request(provider: Any, make_run: Any, kind: str, after: bool) -> None:
    provider.inject_fault(kind, path="/fine_tuning/jobs", method="POST", after=after and kind != "429", retry_after=0)
    run = make_run()
    assert run.train().remote_id
    assert len(provider.created) == 1


def test_one_job_without_metadata(provider: Any, make_run: Any) -> None:
    provider.echo_metadata, provider.text_times = False, True
    provider.inject_fault("drop", path="/fine_tuning/jobs", method="POST", after=True)
    assert make_run().train().remote_id
    assert len(provider.created) == 1


def test_no_second_job_where_jobs_are_not_listed(provider: Any, make_run: Any) -> None:
    provider.list_jobs = False
    provider.inject_fault("drop", path="/fine_tuning/jobs", method="POST", after=True)
    with pytest.raises(ProviderError, match="does not list its jobs"):
        make_run().train()
    assert len(provider.created) == 1


@pytest.mark.parametrize("where", ["/files", "/fine_tuning/jobs/", "/events"])
@pytest.mark.parametrize("kind", ["429", "500", "drop", "html", "null", "half"])
def test_faults_on_the_way_pass(provider: Any, make_run: Any, where: str, kind: str) -> None:
    provider.inject_fault(kind, 2, path=where, retry_after=0)
    assert make_run().train().remote_id
    assert len(provider.created) == 1


def test_refusals_of_fields_are_heeded(provider: Any, make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from provider import tuning

    monkeypatch.setattr(tuning, "FIELDS", tuning.FIELDS - {"metadata", "method"})
    run = make_run("OpenAICompatible")
    assert run.train(n_epochs=2).remote_id
    assert run.job_body["hyperparameters"] == {"n_epochs": 2}


def test_files_that_take_long(provider: Any, make_run: Any) -> None:
    provider.file_polls = 3
    assert make_run().train().remote_id
    assert provider.problems == []
    run = make_run()
    (run.workdir / "job.json").unlink()
    fault = provider.inject_fault(
        "400", 3, path="/fine_tuning/jobs", method="POST", message="The file is still being processed"
    )
    provider.file_polls = 5
    assert run.train().remote_id
    assert fault.hits == 3


def test_a_job_that_names_no_model(provider: Any, make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MODEL_FIELDS", ("nothing",))
    with pytest.raises(ProviderError, match="is succeeded, and names no model"):
        make_run().train()


def test_a_model_without_fine_tuning(provider: Any, make_run: Any) -> None:
    run = make_run()
    run.base = "text-embedding-3-small"
    with pytest.raises(ProviderError, match=r"'text-embedding-3-small'.*not available for fine-tuning"):
        run.train()


@pytest.mark.parametrize("engine", ENGINES)
def test_leaving_and_coming_back(provider: Any, make_run: Any, engine: str) -> None:
    provider.hold = True
    run = make_run(engine)

    def leave(progress: Progress) -> None:
        if len(provider.created) == 1 and run.read_record()["phase"] == "created":
            raise Cancelled("The session ended.")

    run.report = leave
    with pytest.raises(Cancelled):
        run.train()
    assert next(iter(provider.jobs.values()))["fate"] is None
    provider.hold = False
    run.report = run.reports.append
    assert run.train().remote_id
    assert len(provider.created) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_cancelling(provider: Any, make_run: Any, engine: str) -> None:
    provider.hold = True
    run = make_run(engine)
    run.cancel()

    def leave(progress: Progress) -> None:
        if len(provider.created) == 1:
            raise Cancelled("Stopped on request.")

    run.report = leave
    with pytest.raises(Cancelled):
        run.train()
    run.cancel()
    [job] = provider.jobs.values()
    assert job["fate"] in ("cancelled", "JOB_STATE_CANCELLED")
    run.cancel()
    assert provider.count("cancel", "POST") == 1
    provider.hold = False
    run.report = run.reports.append
    assert run.train().remote_id
    assert len(provider.created) == 2


def test_cancelling_a_job_whose_making_nobody_saw(provider: Any, make_run: Any, tmp_path: Path) -> None:
    provider.hold = True
    run = make_run()

    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.JobRunner, "_get_job_name", die)
        with pytest.raises(Killed):
            run.train()
    assert run.read_record()["phase"] == "creating"
    run.cancel()
    [job] = provider.jobs.values()
    assert job["fate"] == "cancelled"


def test_a_job_cancelled_there(provider: Any, make_run: Any) -> None:
    provider.statuses = ["queued", "running", "cancelled"]
    with pytest.raises(Cancelled, match="cancelled at OpenAI"):
        make_run().train()


def test_a_provider_that_cannot_be_told(provider: Any, make_run: Any) -> None:
    provider.hold = True
    run = make_run()

    def leave(progress: Progress) -> None:
        if len(provider.created) == 1 and run.read_record()["phase"] == "created":
            raise Cancelled("Stopped on request.")

    run.report = leave
    with pytest.raises(Cancelled):
        run.train()
    fault = provider.inject_fault("403", None, path="/cancel")
    with pytest.raises(ProviderError):
        run.cancel()
    provider.faults.remove(fault)
    run.cancel()
    assert next(iter(provider.jobs.values()))["fate"] == "cancelled"


@pytest.mark.parametrize(
    ("event", "found"),
    [
        (
            {"message": "Step 10/200: training loss=0.25, validation loss=0.50"},
            (10, 200, {"loss": 0.25, "valid_loss": 0.5}),
        ),
        (
            {"data": {"step": 3, "train_loss": 1, "full_valid_loss": 2}},
            (3, None, {"loss": 1.0, "valid_full_loss": 2.0}),
        ),
        ({"step": 2, "loss": 0.5, "total_steps": 9}, (2, 9, {"loss": 0.5})),
        ({"message": "Fine-tuning job started", "data": None}, None),
        ({"data": {"step": "x", "train_loss": None}}, None),
    ],
)
def test_events(event: Any, found: Any) -> None:
    assert parse_metrics(event) == found


def test_no_key_of_the_environment_is_sent(provider: Any, make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "not-yours")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: not-yours")
    provider.key = ""
    assert make_run("OpenAICompatible", api_key=None).train().remote_id
    assert not [call for call in provider.calls if "not-yours" in str(call.headers)]


def test_a_further_provider_is_one_entry(provider: Any, tmp_path: Path) -> None:
    entry = Provider(
        "nebius", "Nebius", "Nebius", "Nebius.", base_url=provider.url, needs_key=False, dialect="openai", max_suffix=8
    )
    cls = make_handler(entry)
    provider.key = ""
    handler = cls(build_options(cls.engine_options, {"poll_seconds": 0.01}, "the engine"))
    assert isinstance(handler, Trainer)
    model = ModelSpec("tiny")
    predictor = handler.open(model, None, build_options(cls.predict_options, {}, "SELECT"))
    assert [done.text for done in predictor.predict([Request(0, [Message("user", "hello")])])] == ["A:hello"]
    predictor.close()
    options = build_options(handler.train_options, {"suffix": "too long for it"}, "FINETUNE")
    with pytest.raises(OptionError, match="Nebius takes 8"):
        handler.train(model, None, make_conversations(12), options, tmp_path, lambda progress: None)
    options = build_options(handler.train_options, {"suffix": "mine"}, "FINETUNE")
    assert handler.train(model, None, make_conversations(12), options, tmp_path, lambda progress: None).remote_id


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def make_tool_rows(without: str = "") -> TrainingSet:
    call = {name: value for name, value in CALL.items() if name != without}
    fields = ("role", "content", "tool_calls", "tool_call_id")
    kind = pa.list_(pa.struct([(name, pa.string()) for name in fields]))
    turns = [
        ("user", "1 + 2?", None, None),
        ("assistant", "", json.dumps([call]), None),
        ("tool", "3", None, None if without == "tool_call_id" else "c1"),
        ("assistant", "3.", None, None),
    ]
    messages = [dict(zip(fields, turn, strict=True)) for turn in turns]
    table = pa.table({"messages": pa.array([messages] * 12, kind), "tools": [json.dumps([TOOL])] * 12})
    return TrainingSet(table)


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_tools_and_calls_go_up_in_openai_s_form(method: str) -> None:
    cls, data = sqlft_openai.OpenAI, make_tool_rows()
    if method == "dpo":
        data = TrainingSet(data.train.append_column("rejected", pa.array(["4."] * 12)))
    options = build_options(cls.train_options, {"method": method}, "FINETUNE")
    sent = json.loads(format_jsonl(prepare_rows(cls.provider, "gpt-4o-mini", data, options).train).splitlines()[0])
    asked = sent["input"] if method == "dpo" else sent
    assert asked["tools"] == [TOOL]
    assert asked["messages"][:3] == [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("engine", "without", "said"),
    [("OpenAI", "id", "wants ids"), ("OpenAI", "tool_call_id", "wants ids"), ("Fireworks", "", "has tools")],
)
def test_tools_that_a_provider_would_refuse_are_named(engine: str, without: str, said: str) -> None:
    cls = getattr(sqlft_openai, engine)
    options = build_options(cls.train_options, {}, "FINETUNE")
    with pytest.raises(DataError, match=said):
        prepare_rows(cls.provider, "gpt-4o-mini", make_tool_rows(without), options)
