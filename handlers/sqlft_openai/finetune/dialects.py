"""How providers' fine-tuning differs: a table of paths, bodies and words, and no class hierarchy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from sqlft.errors import OptionError
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.transport import ApiClient

JobState = Literal["queued", "training", "complete", "failed", "cancelled"]
JOB_STATES: dict[str, JobState] = {
    **dict.fromkeys(("validating_files", "queued", "pending", "created", "creating", "validating"), "queued"),
    **dict.fromkeys(("succeeded", "completed", "complete", "early_stopped"), "complete"),
    **dict.fromkeys(("failed", "error", "user_error", "expired"), "failed"),
    **dict.fromkeys(("cancelled", "canceled"), "cancelled"),
}
"""Providers' words, in lower case and without JOB_STATE_; whatever is not here is training."""
MODEL_FIELDS = ("fine_tuned_model", "model_output_name", "outputModel", "output_name", "model_output_path")
TOKEN_FIELDS = ("trained_tokens", "token_count", "billable_tokens")
READY_STATUSES = ("processed", "ready", "succeeded", "completed", "success")
BROKEN_STATUSES = ("error", "failed", "deleted", "cancelled")
STEP_PATTERN = re.compile(r"step (\d+)(?:\s*/\s*(\d+))?", re.I)
LOSS_PATTERNS = {
    "loss": re.compile(r"train(?:ing)?[ _]loss[ =:]+([\d.eE+-]+)", re.I),
    "valid_loss": re.compile(r"(?<!full )valid(?:ation)?[ _]loss[ =:]+([\d.eE+-]+)", re.I),
}
METRIC_NAMES = {
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


class JobSpec(NamedTuple):
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

    upload: Callable[[ApiClient, str, bytes], str]
    """(api, a name that is ours alone, JSONL) to the file's id; it may be tried again."""
    file_path: str
    jobs_path: str
    """Where jobs are made and listed."""
    build_body: Callable[[JobSpec], dict[str, Any]]
    cancel_path: str = "{job}/cancel"
    events_path: str | None = "{job}/events"
    id_field: str = "id"
    items_key: str = "data"
    """Under which a list has its items."""
    job_id_parameter: str | None = None
    """The parameter that lets us choose the job's id."""
    prefix: str = ""
    """What replaces the inference API's path."""
    files_path: str | None = "/files"
    """Where files are listed."""

    def get_job_path(self, name: str) -> str:
        """The path of a job."""
        return f"{self.jobs_path}/{name.rpartition('/')[2]}"


def parse_state(job: Mapping[str, Any]) -> tuple[JobState, str]:
    """(the state, the provider's word for it)."""
    word = str(job.get("status") if isinstance(job.get("status"), str) else job.get("state") or "")
    plain = word.lower().removeprefix("finetunejobstatus.").removeprefix("job_state_")
    return JOB_STATES.get(plain, "training"), word


def get_first_value(job: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these fields that has a value."""
    return next((job[n] for n in names if job.get(n)), None)


def find_failure_reason(job: Mapping[str, Any], events: list[Any]) -> str:
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


def parse_metrics(event: Any) -> tuple[int, int | None, dict[str, float]] | None:
    """(step, steps in all, numbers by our names) of an event that has some."""
    if not isinstance(event, Mapping):
        return None
    raw = event.get("data")
    data: Mapping[str, Any] = raw if isinstance(raw, Mapping) else event
    message = str(event.get("message") or "")
    found = STEP_PATTERN.search(message)
    step, total = data.get("step"), data.get("total_steps")
    if step is None and found:
        step, total = int(found[1]), int(found[2]) if found[2] else None
    numbers = {METRIC_NAMES[k]: float(v) for k, v in data.items() if k in METRIC_NAMES and _is_number(v)}
    for name, pattern in LOSS_PATTERNS.items():
        if name not in numbers and (said := pattern.search(message)):
            numbers[name] = float(said[1].rstrip("."))
    if not _is_number(step) or not numbers:
        return None
    return int(step or 0), int(total) if total and _is_number(total) else None, numbers


def parse_percent(job: Mapping[str, Any]) -> int | None:
    """How far a job says it is, where it tells of no steps."""
    known = job.get("jobProgress")
    share = known.get("percent") if isinstance(known, Mapping) else None
    return min(100, max(0, int(share))) if isinstance(share, (int, float)) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_ready(file: Any) -> bool | None:
    """Whether a file can be trained on; None where that is not said, RequestError where it never will be."""
    status = str(file.get("status") or file.get("state") or "").lower() if isinstance(file, Mapping) else ""
    if status in BROKEN_STATUSES:
        raise RequestError("bad_file", str(file.get("status_details") or file.get("error") or status))
    if status in READY_STATUSES or (isinstance(file, Mapping) and file.get("Processed") is True):
        return True
    return None if not status and "Processed" not in file else False


def is_processing(file: Any) -> bool:
    """Whether the provider says that it is looking at a file."""
    status = str(file.get("status") or file.get("state") or "").lower() if isinstance(file, Mapping) else ""
    return status in ("pending", "running", "processing", "validating", "uploading")


def _drop_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


# OpenAI, and those shaped like it


def _upload_openai(api: ApiClient, name: str, content: bytes) -> str:
    return _get_file_id(api, api.upload("/files", content, name, purpose="fine-tune"))


def _get_file_id(api: ApiClient, file: Any) -> str:
    found = file.get("id") if isinstance(file, Mapping) else None
    if not isinstance(found, str) or not found:
        raise RequestError("malformed", f"{api.address.provider.title} took the file and gave it no id", True)
    return found


def _build_hyperparameters(spec: JobSpec) -> dict[str, Any]:
    o = spec.options
    named = (("n_epochs", o.n_epochs), ("batch_size", o.batch_size))
    found = {n: v for n, v in (*named, ("learning_rate_multiplier", o.learning_rate_multiplier)) if v != "auto"}
    found |= _drop_none(beta=o.beta)
    return found or {"n_epochs": "auto"}


def _build_body(spec: JobSpec) -> dict[str, Any]:
    kind = spec.options.method
    method = {"type": kind, kind: {"hyperparameters": _build_hyperparameters(spec)}}
    return {**_build_common_fields(spec), "method": method, "metadata": {"sqlft": spec.ours}}


def _build_common_fields(spec: JobSpec) -> dict[str, Any]:
    return _drop_none(
        model=spec.model,
        training_file=spec.train,
        validation_file=spec.valid,
        suffix=spec.options.suffix,
        seed=spec.options.seed,
    )


def build_legacy_body(spec: JobSpec) -> dict[str, Any]:
    """As OpenAI had it before `method`, and as Azure's and Anyscale's APIs still do for answers without pairs."""
    if spec.options.method == "dpo":
        return _build_body(spec)
    return {**_build_common_fields(spec), "hyperparameters": _build_hyperparameters(spec)}


OPENAI = Dialect(_upload_openai, "/files/{id}", "/fine_tuning/jobs", _build_body)


# Together


def _upload_together(api: ApiClient, name: str, content: bytes) -> str:
    return _get_file_id(api, api.upload("/files/upload", content, name, purpose="fine-tune", file_name=name))


def _build_together_body(spec: JobSpec) -> dict[str, Any]:
    o = spec.options
    kind = {"type": "Full"} if o.full else _drop_none(type="Lora", lora_r=o.r, lora_alpha=o.lora_alpha)
    if o.r and not o.lora_alpha:
        kind["lora_alpha"] = 2 * o.r
    return _drop_none(
        model=spec.model,
        training_file=spec.train,
        validation_file=spec.valid,
        n_evals=5 if spec.valid else None,
        n_epochs=o.n_epochs,
        batch_size=o.batch_size,
        learning_rate=o.learning_rate,
        random_seed=o.seed,
        suffix=o.suffix or f"sqlft-{spec.ours[:12]}",
        training_type=kind,
        training_method=_drop_none(method="dpo", dpo_beta=o.beta) if o.method == "dpo" else None,
    )


TOGETHER = Dialect(_upload_together, "/files/{id}", "/fine-tunes", _build_together_body)


# Fireworks


def _upload_fireworks(api: ApiClient, name: str, content: bytes) -> str:
    named = name.removesuffix(".jsonl")
    count = str(content.count(b"\n"))
    try:
        dataset = {"userUploaded": {}, "exampleCount": count}
        made = api.send_once("POST", "/datasets", body={"datasetId": named, "dataset": dataset})
    except RequestError as error:
        if error.status != 409:  # made before a crash
            raise
        made = {}
    api.upload(f"/datasets/{named}:upload", content, name)
    return str(made.get("name") or f"{get_account(api)}/datasets/{named}")


def get_account(api: ApiClient) -> str:
    """accounts/NAME, out of the address that `fireworks_prefix` made."""
    return "accounts/" + api.address.base.rpartition("/accounts/")[2]


def _build_fireworks_body(spec: JobSpec) -> dict[str, Any]:
    o = spec.options
    account = spec.train.rpartition("/datasets/")[0]
    base = spec.model if "/" in spec.model else f"accounts/fireworks/models/{spec.model}"
    named = re.sub(r"[^a-z0-9-]+", "-", (o.suffix or f"sqlft-{spec.ours[:24]}").lower()).strip("-")
    return _drop_none(
        displayName=f"sqlft {spec.ours}",
        dataset=spec.train,
        evaluationDataset=spec.valid,
        **{"warmStartFrom" if spec.is_tuned else "baseModel": base},
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
    _build_fireworks_body,
    cancel_path="{job}:cancel",
    events_path=None,
    id_field="name",
    items_key="supervisedFineTuningJobs",
    job_id_parameter="supervisedFineTuningJobId",
    files_path=None,
)


DIALECTS: dict[str, Dialect] = {
    "openai": OPENAI,
    "azure_openai": OPENAI._replace(build_body=build_legacy_body),
    "anyscale_endpoints": OPENAI._replace(build_body=build_legacy_body),
    "together": TOGETHER,
    "fireworks": FIREWORKS,
}


def get_dialect(provider: Any) -> Dialect:
    """The dialect of a provider."""
    return DIALECTS.get(provider.name) or DIALECTS[provider.dialect]


def check_options(options: Any, provider: Any) -> None:
    """OptionError for what this provider cannot do, before anything is sent."""
    if getattr(options, "method", "") == "dpo" and provider.name == "anyscale_endpoints":
        raise OptionError(
            f"{provider.title} has no training by method = 'dpo'.",
            "Leave method out: supervised training learns from the answers.",
        )
    if getattr(options, "beta", None) is not None and options.method != "dpo":
        raise OptionError("beta is for method = 'dpo' only.", "Leave it out, or add method = 'dpo'.")
    most = 40 if provider.dialect == "together" else 64
    if options.suffix and len(options.suffix) > most:
        raise OptionError(
            f"The suffix has {len(options.suffix)} characters, and {provider.title} takes {most}.", "Cut it."
        )
