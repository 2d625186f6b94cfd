"""How providers' fine-tuning differs: a table of paths, bodies and words, and no class hierarchy."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

from sqlft.errors import OptionError, ProviderError
from sqlft_openai.http.address import Address
from sqlft_openai.http.api import ApiClient
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.parsing import JsonObject, get_object, get_objects, get_text
from sqlft_openai.options import (
    AzureTrainOptions,
    EngineOptions,
    FireworksEngineOptions,
    FireworksTrainOptions,
    HostedTrainOptions,
    LoraTrainOptions,
    PairOptions,
    TogetherTrainOptions,
    TrainOptions,
    learns_from_pairs,
)
from sqlft_openai.providers import Provider

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

    tag: str
    """Our own id of it."""
    model: str
    is_tuned: bool
    """Whether the model is itself a tuned one."""
    train: str
    valid: str | None
    options: HostedTrainOptions


class Dialect(NamedTuple):
    """One way to ask for training."""

    upload: Callable[[ApiClient, str, bytes], str]
    """(api, a name that is ours alone, JSONL) to the file's id; it may be tried again."""
    file_path: str
    jobs_path: str
    """Where jobs are made and listed."""
    build_body: Callable[[JobSpec], JsonObject]
    cancel_path: str = "{job}/cancel"
    events_path: str | None = "{job}/events"
    id_field: str = "id"
    job_id_parameter: str | None = None
    """The parameter that lets us choose the job's id."""
    files_path: str | None = "/files"
    """Where files are listed."""
    find_account: Callable[[Address, EngineOptions], Address] = lambda address, options: address
    """The address of jobs and files, where that is not the one of answers."""
    deploy: Callable[[ApiClient, str, HostedTrainOptions], JsonObject] = lambda api, model, options: {}
    """Makes a tuned model answer, where it does not by itself; what the artifact's details say of it."""

    def get_job_path(self, name: str) -> str:
        """The path of a job."""
        return f"{self.jobs_path}/{name.rpartition('/')[2]}"


def parse_state(job: JsonObject) -> tuple[JobState, str]:
    """(the state, the provider's word for it).

    >>> parse_state({"state": "JOB_STATE_EARLY_STOPPED"})
    ('complete', 'JOB_STATE_EARLY_STOPPED')
    >>> parse_state({"status": "moderating"})
    ('training', 'moderating')
    """
    word = get_text(job, "status", "state") or ""
    plain = word.lower().removeprefix("finetunejobstatus.").removeprefix("job_state_")
    return JOB_STATES.get(plain, "training"), word


def find_failure_reason(job: JsonObject, events: Sequence[JsonObject]) -> str:
    """Why a job failed, in the provider's words."""
    for field in ("error", "status", "status_details", "error_message"):
        detail = get_object(job.get(field))
        if message := get_text(detail, "message"):
            return f"{message} ({detail['code']})" if detail.get("code") else message
    messages = [text for e in events if (text := get_text(e, "message"))]
    errors = [text for e in events if e.get("level") == "error" and (text := get_text(e, "message"))]
    return get_text(job, "error") or (errors or messages or ["it gives no reason"])[-1]


def parse_metrics(event: JsonObject) -> tuple[int, int | None, dict[str, float]] | None:
    """(step, steps in all, numbers by our names) of an event that has some.

    >>> parse_metrics({"message": "Step 10/200: training loss=0.25"})
    (10, 200, {'loss': 0.25})
    """
    data = get_object(event.get("data")) or event
    message = get_text(event, "message") or ""
    step, total = _get_number(data, "step"), _get_number(data, "total_steps")
    if data.get("step") is None and (match := STEP_PATTERN.search(message)):
        step, total = float(match[1]), float(match[2]) if match[2] else None
    numbers = {METRIC_NAMES[k]: n for k in data if k in METRIC_NAMES and (n := _get_number(data, k)) is not None}
    for name, pattern in LOSS_PATTERNS.items():
        if name not in numbers and (match := pattern.search(message)):
            numbers[name] = float(match[1].rstrip("."))
    if step is None or not numbers:
        return None
    return int(step), int(total) if total else None, numbers


def parse_percent(job: JsonObject) -> int | None:
    """How far a job says it is, where it reports no steps."""
    share = _get_number(get_object(job.get("jobProgress")), "percent")
    return None if share is None else min(100, max(0, int(share)))


def _get_number(data: JsonObject, name: str) -> float | None:
    value = data.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _drop_none(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def check_options(options: HostedTrainOptions, provider: Provider) -> None:
    """OptionError for what this provider cannot do, before anything is sent."""
    if learns_from_pairs(options) and not provider.trains_pairs:
        raise OptionError(
            f"{provider.title} has no training by method = 'dpo'.",
            "Leave method out: supervised training learns from the answers.",
        )
    if isinstance(options, PairOptions) and options.beta is not None and options.method != "dpo":
        raise OptionError("beta is for method = 'dpo' only.", "Leave it out, or add method = 'dpo'.")
    if options.suffix and len(options.suffix) > provider.max_suffix:
        raise OptionError(
            f"The suffix has {len(options.suffix)} characters, and {provider.title} takes {provider.max_suffix}.",
            "Cut it.",
        )


# OpenAI, and those shaped like it


def _upload_file(path: str, api: ApiClient, name: str, content: bytes, **fields: str) -> str:
    file = api.upload(path, name, content, purpose="fine-tune", **fields)
    if found := get_text(file, "id"):
        return found
    raise RequestError("malformed", f"{api.address.provider.title} took the file and gave it no id", True)


def _build_hyperparameters(options: TrainOptions) -> dict[str, object]:
    names = ("n_epochs", "batch_size", "learning_rate_multiplier")
    chosen = {name: value for name in names if (value := getattr(options, name)) != "auto"}
    return chosen | _drop_none(beta=options.beta) or {"n_epochs": "auto"}


def _build_body(spec: JobSpec) -> JsonObject:
    assert isinstance(spec.options, TrainOptions)
    method = spec.options.method
    hyperparameters = {"hyperparameters": _build_hyperparameters(spec.options)}
    return {
        **_build_common_fields(spec),
        "method": {"type": method, method: hyperparameters},
        "metadata": {"sqlft": spec.tag},
    }


def _build_common_fields(spec: JobSpec) -> dict[str, object]:
    return _drop_none(
        model=spec.model,
        training_file=spec.train,
        validation_file=spec.valid,
        suffix=spec.options.suffix,
        seed=spec.options.seed,
    )


def build_hyperparameters_body(spec: JobSpec) -> JsonObject:
    """As OpenAI had it before `method`, and as Azure's and Anyscale's APIs still do for answers without pairs."""
    assert isinstance(spec.options, TrainOptions)
    if spec.options.method == "dpo":
        return _build_body(spec)
    return {**_build_common_fields(spec), "hyperparameters": _build_hyperparameters(spec.options)}


def _name_deployment(api: ApiClient, model: str, options: HostedTrainOptions) -> JsonObject:
    """At Azure the user deploys it."""
    return {"tuned_deployment": options.tuned_deployment} if isinstance(options, AzureTrainOptions) else {}


OPENAI = Dialect(partial(_upload_file, "/files"), "/files/{id}", "/fine_tuning/jobs", _build_body)


# Together


def _upload_together(api: ApiClient, name: str, content: bytes) -> str:
    return _upload_file("/files/upload", api, name, content, file_name=name)


def _build_together_body(spec: JobSpec) -> JsonObject:
    o = spec.options
    assert isinstance(o, TogetherTrainOptions)
    alpha = 2 * o.r if o.r and not o.lora_alpha else o.lora_alpha
    kind = {"type": "Full"} if o.full else _drop_none(type="Lora", lora_r=o.r, lora_alpha=alpha)
    return _drop_none(
        model=spec.model,
        training_file=spec.train,
        validation_file=spec.valid,
        n_evals=5 if spec.valid else None,
        n_epochs=o.n_epochs,
        batch_size=o.batch_size,
        learning_rate=o.learning_rate,
        random_seed=o.seed,
        suffix=o.suffix or f"sqlft-{spec.tag[:12]}",
        training_type=kind,
        training_method=_drop_none(method="dpo", dpo_beta=o.beta) if o.method == "dpo" else None,
    )


TOGETHER = Dialect(_upload_together, "/files/{id}", "/fine-tunes", _build_together_body)


# Fireworks


def _upload_fireworks(api: ApiClient, name: str, content: bytes) -> str:
    dataset = name.removesuffix(".jsonl")
    known: JsonObject = {}
    try:
        about = {"userUploaded": {}, "exampleCount": str(content.count(b"\n"))}
        known = api.post("/datasets", {"datasetId": dataset, "dataset": about})
    except RequestError as error:
        if error.status != 409:  # made before a crash
            raise
    api.upload(f"/datasets/{dataset}:upload", name, content)
    return get_text(known, "name") or f"accounts/{api.address.base.rpartition('/accounts/')[2]}/datasets/{dataset}"


def _build_fireworks_body(spec: JobSpec) -> JsonObject:
    o = spec.options
    assert isinstance(o, LoraTrainOptions)
    account = spec.train.rpartition("/datasets/")[0]
    base = spec.model if "/" in spec.model else f"accounts/fireworks/models/{spec.model}"
    name = re.sub(r"[^a-z0-9-]+", "-", (o.suffix or f"sqlft-{spec.tag[:24]}").lower()).strip("-")
    return _drop_none(
        displayName=f"sqlft {spec.tag}",
        dataset=spec.train,
        evaluationDataset=spec.valid,
        **{"warmStartFrom" if spec.is_tuned else "baseModel": base},
        outputModel=f"{account}/models/{name}",
        epochs=o.n_epochs,
        learningRate=o.learning_rate,
        loraRank=o.r,
        batchSize=o.batch_size,
    )


def _find_fireworks_account(address: Address, options: EngineOptions) -> Address:
    """The account is part of the address; without one in the options the first that the key may use."""
    base = re.sub(r"/inference(/v\d+)?$", r"\1", address.base)
    account = options.account if isinstance(options, FireworksEngineOptions) else None
    if not account:
        try:
            accounts = ApiClient(address._replace(bases=(base,)), options).get("/accounts")
            account = get_text(get_objects(accounts.get("accounts"))[0], "name")
        except (RequestError, IndexError):
            pass
    if not account:
        raise ProviderError(
            "Which account of Fireworks is to train is not known.",
            "Say it: CREATE ML_ENGINE … FROM fireworks USING account = '…'.",
        )
    return address._replace(bases=(f"{base}/accounts/{account.rpartition('/')[2]}",))


def _deploy_fireworks(api: ApiClient, model: str, options: HostedTrainOptions) -> JsonObject:
    if not (isinstance(options, FireworksTrainOptions) and options.deploy):
        return {}
    try:
        return {"deployed_model": api.post("/deployedModels", {"model": model}).get("name")}
    except (RequestError, ProviderError) as e:
        return {"not_deployed": e.message}


FIREWORKS = Dialect(
    _upload_fireworks,
    "/datasets/{id}",
    "/supervisedFineTuningJobs",
    _build_fireworks_body,
    cancel_path="{job}:cancel",
    events_path=None,
    id_field="name",
    job_id_parameter="supervisedFineTuningJobId",
    files_path=None,
    find_account=_find_fireworks_account,
    deploy=_deploy_fireworks,
)

DIALECTS = {
    "openai": OPENAI,
    "hyperparameters": OPENAI._replace(build_body=build_hyperparameters_body, deploy=_name_deployment),
    "together": TOGETHER,
    "fireworks": FIREWORKS,
}


def get_dialect(provider: Provider) -> Dialect:
    """The dialect that a provider's entry names."""
    return DIALECTS[provider.dialect or "openai"]
