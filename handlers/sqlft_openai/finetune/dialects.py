"""How providers' fine-tuning differs: a table of paths, bodies and words, and no class hierarchy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from sqlft.errors import OptionError
from sqlft_openai.http.errors import Fault
from sqlft_openai.http.transport import Api

State = Literal["queued", "training", "complete", "failed", "cancelled"]
STATES: dict[str, State] = {
    **dict.fromkeys(("validating_files", "queued", "pending", "created", "creating", "validating"), "queued"),
    **dict.fromkeys(("succeeded", "completed", "complete", "early_stopped"), "complete"),
    **dict.fromkeys(("failed", "error", "user_error", "expired"), "failed"),
    **dict.fromkeys(("cancelled", "canceled"), "cancelled"),
}
"""Providers' words, in lower case and without JOB_STATE_; whatever is not here is training."""
RESULT = ("fine_tuned_model", "model_output_name", "outputModel", "output_name", "model_output_path")
TOKENS = ("trained_tokens", "token_count", "billable_tokens")
READY = ("processed", "ready", "succeeded", "completed", "success")
BROKEN = ("error", "failed", "deleted", "cancelled")
STEP = re.compile(r"step (\d+)(?:\s*/\s*(\d+))?", re.I)
NUMBERS = {
    "loss": re.compile(r"train(?:ing)?[ _]loss[ =:]+([\d.eE+-]+)", re.I),
    "valid_loss": re.compile(r"(?<!full )valid(?:ation)?[ _]loss[ =:]+([\d.eE+-]+)", re.I),
}
NAMES = {
    "train_loss": "loss",
    "loss": "loss",
    "training_loss": "loss",
    "valid_loss": "valid_loss",
    "validation_loss": "valid_loss",
    "eval_loss": "valid_loss",
    "full_valid_loss": "valid_full_loss",
    "train_mean_token_accuracy": "token_accuracy",
    "train_accuracy": "token_accuracy",
    "token_accuracy": "token_accuracy",
    "valid_mean_token_accuracy": "valid_token_accuracy",
    "full_valid_mean_token_accuracy": "valid_full_token_accuracy",
    "learning_rate": "learning_rate",
    "epoch": "epoch",
}
"""What providers call a metric, and what it is called here."""


class Wanted(NamedTuple):
    """A job to be made."""

    ours: str
    """Our own id of it."""
    model: str
    is_tuned: bool
    """Whether the model is itself a tuned one."""
    train: str
    valid: str | None
    options: Any
    epochs: int


class Dialect(NamedTuple):
    """One way to ask for training."""

    upload: Callable[[Api, str, bytes], str]
    """(api, a name that is ours alone, JSONL) to the file's id; it may be tried again."""
    file: str
    jobs: str
    """Where jobs are made and listed."""
    body: Callable[[Wanted], dict[str, Any]]
    cancel: str = "{job}/cancel"
    events: str | None = "{job}/events"
    id: str = "id"
    key: str = "data"
    """Under which a list has its items."""
    own_id: str | None = None
    """The parameter that lets us choose the job's id."""
    prefix: str = ""
    """What replaces the inference API's path."""
    files: str | None = "/files"
    """Where files are listed."""

    def job(self, name: str) -> str:
        """A job's path."""
        return f"{self.jobs}/{name.rpartition('/')[2]}"


def state_of(job: Mapping[str, Any]) -> tuple[State, str]:
    """(the state, the provider's word for it)."""
    word = str(job.get("status") if isinstance(job.get("status"), str) else job.get("state") or "")
    plain = word.lower().removeprefix("finetunejobstatus.").removeprefix("job_state_")
    return STATES.get(plain, "training"), word


def first_of(job: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these fields that has a value."""
    return next((job[n] for n in names if job.get(n)), None)


def reason_of(job: Mapping[str, Any], events: list[Any]) -> str:
    """Why a job failed, in the provider's words."""
    for said in (job.get("error"), job.get("status"), job.get("status_details"), job.get("error_message")):
        message = said.get("message") if isinstance(said, Mapping) else None
        code = said.get("code") if isinstance(said, Mapping) else None
        if message:
            return f"{message} ({code})" if code else str(message)
    if isinstance(job.get("error"), str) and job["error"]:
        return str(job["error"])
    told = [e.get("message") for e in events if isinstance(e, Mapping) and e.get("message")]
    errors = [e.get("message") for e in events if isinstance(e, Mapping) and e.get("level") == "error"]
    return str((errors or told or ["it gives no reason"])[-1])


def metrics_of(event: Any) -> tuple[int, int | None, dict[str, float]] | None:
    """(step, steps in all, numbers by our names) of an event that has some."""
    if not isinstance(event, Mapping):
        return None
    raw = event.get("data")
    data: Mapping[str, Any] = raw if isinstance(raw, Mapping) else event
    message = str(event.get("message") or "")
    found = STEP.search(message)
    step, total = data.get("step"), data.get("total_steps")
    if step is None and found:
        step, total = int(found[1]), int(found[2]) if found[2] else None
    numbers = {NAMES[k]: float(v) for k, v in data.items() if k in NAMES and _is_number(v)}
    for name, pattern in NUMBERS.items():
        if name not in numbers and (said := pattern.search(message)):
            numbers[name] = float(said[1].rstrip("."))
    if not _is_number(step) or not numbers:
        return None
    return int(step or 0), int(total) if total and _is_number(total) else None, numbers


def percent_of(job: Mapping[str, Any]) -> int | None:
    """How far a job says it is, where it tells of no steps."""
    known = job.get("jobProgress")
    share = known.get("percent") if isinstance(known, Mapping) else None
    return min(100, max(0, int(share))) if isinstance(share, (int, float)) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def ready(file: Any) -> bool | None:
    """Whether a file can be trained on; None where that is not said, Fault where it never will be."""
    status = str(file.get("status") or file.get("state") or "").lower() if isinstance(file, Mapping) else ""
    if status in BROKEN:
        raise Fault("bad_file", str(file.get("status_details") or file.get("error") or status))
    if status in READY or (isinstance(file, Mapping) and file.get("Processed") is True):
        return True
    return None if not status and "Processed" not in file else False


def is_worked_on(file: Any) -> bool:
    """Whether the provider says that it is looking at a file."""
    status = str(file.get("status") or file.get("state") or "").lower() if isinstance(file, Mapping) else ""
    return status in ("pending", "running", "processing", "validating", "uploading")


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


# OpenAI, and those shaped like it


def _upload(api: Api, name: str, content: bytes) -> str:
    return _id_of(api, api.upload("/files", content, name, purpose="fine-tune"))


def _id_of(api: Api, file: Any) -> str:
    found = file.get("id") if isinstance(file, Mapping) else None
    if not isinstance(found, str) or not found:
        raise Fault("malformed", f"{api.address.engine.title} took the file and gave it no id", True)
    return found


def _hyper(wanted: Wanted) -> dict[str, Any]:
    o = wanted.options
    named = (("n_epochs", o.n_epochs), ("batch_size", o.batch_size))
    found = {n: v for n, v in (*named, ("learning_rate_multiplier", o.learning_rate_multiplier)) if v != "auto"}
    found |= _given(beta=o.beta)
    return found or {"n_epochs": "auto"}


def _body(wanted: Wanted) -> dict[str, Any]:
    kind = wanted.options.method
    method = {"type": kind, kind: {"hyperparameters": _hyper(wanted)}}
    return {**_plain_body(wanted), "method": method, "metadata": {"sqlft": wanted.ours}}


def _plain_body(wanted: Wanted) -> dict[str, Any]:
    return _given(
        model=wanted.model,
        training_file=wanted.train,
        validation_file=wanted.valid,
        suffix=wanted.options.suffix,
        seed=wanted.options.seed,
    )


def old_body(wanted: Wanted) -> dict[str, Any]:
    """As OpenAI had it before `method`, and as Azure's and Anyscale's APIs still do for answers without pairs."""
    if wanted.options.method == "dpo":
        return _body(wanted)
    return {**_plain_body(wanted), "hyperparameters": _hyper(wanted)}


OPENAI = Dialect(_upload, "/files/{id}", "/fine_tuning/jobs", _body)


# Together


def _upload_together(api: Api, name: str, content: bytes) -> str:
    return _id_of(api, api.upload("/files/upload", content, name, purpose="fine-tune", file_name=name))


def _body_together(wanted: Wanted) -> dict[str, Any]:
    o = wanted.options
    kind = {"type": "Full"} if o.full else _given(type="Lora", lora_r=o.r, lora_alpha=o.lora_alpha)
    if o.r and not o.lora_alpha:
        kind["lora_alpha"] = 2 * o.r
    return _given(
        model=wanted.model,
        training_file=wanted.train,
        validation_file=wanted.valid,
        n_evals=5 if wanted.valid else None,
        n_epochs=o.n_epochs,
        batch_size=o.batch_size,
        learning_rate=o.learning_rate,
        random_seed=o.seed,
        suffix=o.suffix or f"sqlft-{wanted.ours[:12]}",
        training_type=kind,
        training_method=_given(method="dpo", dpo_beta=o.beta) if o.method == "dpo" else None,
    )


TOGETHER = Dialect(_upload_together, "/files/{id}", "/fine-tunes", _body_together)


# Fireworks


def _upload_fireworks(api: Api, name: str, content: bytes) -> str:
    named = name.removesuffix(".jsonl")
    count = str(content.count(b"\n"))
    try:
        dataset = {"userUploaded": {}, "exampleCount": count}
        made = api.once("POST", "/datasets", body={"datasetId": named, "dataset": dataset})
    except Fault as fault:
        if fault.status != 409:  # made before a crash
            raise
        made = {}
    api.upload(f"/datasets/{named}:upload", content, name)
    return str(made.get("name") or f"{account_of(api)}/datasets/{named}")


def account_of(api: Api) -> str:
    """accounts/NAME, out of the address that `fireworks_prefix` made."""
    return "accounts/" + api.address.base.rpartition("/accounts/")[2]


def _body_fireworks(wanted: Wanted) -> dict[str, Any]:
    o = wanted.options
    account = wanted.train.rpartition("/datasets/")[0]
    base = wanted.model if "/" in wanted.model else f"accounts/fireworks/models/{wanted.model}"
    named = re.sub(r"[^a-z0-9-]+", "-", (o.suffix or f"sqlft-{wanted.ours[:24]}").lower()).strip("-")
    return _given(
        displayName=f"sqlft {wanted.ours}",
        dataset=wanted.train,
        evaluationDataset=wanted.valid,
        **{"warmStartFrom" if wanted.is_tuned else "baseModel": base},
        outputModel=f"{account}/models/{named}",
        epochs=o.n_epochs,
        learningRate=o.learning_rate,
        loraRank=o.r,
        batchSize=o.batch_size,
    )


FIREWORKS = Dialect(
    _upload_fireworks,
    "/datasets/{id}",
    "/supervisedFineTuningJobs",
    _body_fireworks,
    cancel="{job}:cancel",
    events=None,
    id="name",
    key="supervisedFineTuningJobs",
    own_id="supervisedFineTuningJobId",
    files=None,
)


DIALECTS: dict[str, Dialect] = {
    "openai": OPENAI,
    "azure_openai": OPENAI._replace(body=old_body),
    "anyscale_endpoints": OPENAI._replace(body=old_body),
    "together": TOGETHER,
    "fireworks": FIREWORKS,
}


def dialect_of(engine: Any) -> Dialect:
    """An engine's dialect."""
    return DIALECTS.get(engine.name) or DIALECTS[engine.tuning]


def check_options(wanted: Any, engine: Any) -> None:
    """OptionError for what this provider cannot do, before anything is sent."""
    if getattr(wanted, "method", "") == "dpo" and engine.name == "anyscale_endpoints":
        raise OptionError(
            f"{engine.title} has no training by method = 'dpo'.",
            "Leave method out: supervised training learns from the answers.",
        )
    if getattr(wanted, "beta", None) is not None and wanted.method != "dpo":
        raise OptionError("beta is for method = 'dpo' only.", "Leave it out, or add method = 'dpo'.")
    most = 40 if engine.tuning == "together" else 64
    if wanted.suffix and len(wanted.suffix) > most:
        raise OptionError(
            f"The suffix has {len(wanted.suffix)} characters, and {engine.title} takes {most}.", "Cut it."
        )
