"""What a training is estimated to take, and what is wrong with its rows: before anything is started."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlft.data import PreparedData
from sqlft.errors import DataError, NotSupported, SqlftError
from sqlft.handler import Estimate, TrainingOptions, read_options
from sqlft.inference.prices import find_training_pricing
from sqlft.inference.resolve import count_tokens, refuse_or_warn
from sqlft.session import Session, Tick

if TYPE_CHECKING:
    from sqlft.training.plan import TrainingPlan

GIGA = 1e9
TRY_ANYWAY_HINT = " USING check = 'warn' tries it anyway."
MAX_LISTED_ERRORS = 3
"""Errors of the data that one message lists."""


def check_training_notice(session: Session, plan: TrainingPlan) -> None:
    """Warn of what ends of a training and of what it makes; NotSupported where it has ended, unless `check` says so."""
    notice = plan.handler.notice(plan.spec, plan.start, training=True)
    if notice is not None and plan.settings.check != "error":
        notice = notice._replace(is_refusal=False)
    refuse_or_warn(session, notice, TRY_ANYWAY_HINT)


def estimate_training(session: Session, plan: TrainingPlan, prepared: PreparedData) -> Estimate | None:
    """What the handler says of this training, with its cost; where it says nothing, what can be counted here."""
    session.show_progress(Tick(f"estimating what {plan.model.key.name} takes", 0))
    try:
        estimate = plan.handler.estimate(plan.spec, plan.start, prepared.training_set, plan.options)
        estimate = estimate or _estimate_from_token_count(plan, prepared)
    except SqlftError:
        raise
    except Exception:  # a training is not stopped by what only estimates it
        return None
    if estimate is None or estimate.cost_usd is not None:
        return estimate
    pricing = find_training_pricing(session, plan.engine, plan.handler, plan.spec, plan.model.options)
    return replace(estimate, cost_usd=pricing.cost_of_training(estimate.tokens, estimate.seconds))


def check_estimate(session: Session, plan: TrainingPlan, estimate: Estimate | None) -> None:
    """NotSupported for what cannot be done, unless `check` says otherwise; else a notice of what it will take."""
    if estimate is None:
        return
    if estimate.why_not is None:
        session.show_notice(f"{plan.model.key.name}: {format_estimate(estimate)}")
        return
    why, next_step = estimate.why_not
    if plan.settings.check == "error":
        raise NotSupported(why, f"{next_step}{TRY_ANYWAY_HINT}")
    session.show_warning(f"{why} {next_step}")


def check_findings(session: Session, plan: TrainingPlan, prepared: PreparedData) -> None:
    """DataError for findings that are errors, unless `check` says otherwise; warnings are shown."""
    errors = [f for f in prepared.findings if f.level == "error"]
    if errors and plan.settings.check == "error":
        listed = "\n".join(str(f) for f in errors[:MAX_LISTED_ERRORS])
        raise DataError(
            f"The training data has {len(errors)} error{'s'[: len(errors) != 1]}:\n{listed}",
            "Correct the rows, or train anyway with USING check = 'warn'; ANALYZE TRAINING DATA shows the rows.",
        )
    for finding in prepared.findings:
        if finding.level != "info":
            session.show_warning(str(finding))


def format_estimate(estimate: Estimate) -> str:
    """An estimate in one line: `1,200 rows, 90 steps, about 5 minutes, 2.1 GB of 17.0 GB memory`."""
    parts = [f"{estimate.examples:,} rows", f"{estimate.tokens:,} tokens"]
    if estimate.steps is not None:
        parts.append(f"{estimate.steps:,} steps")
    if estimate.seconds is not None:
        parts.append(f"about {format_duration(estimate.seconds)}")
    if estimate.memory_bytes is not None:
        of = "" if estimate.memory_available is None else f" of {estimate.memory_available / GIGA:.1f} GB free"
        parts.append(f"{estimate.memory_bytes / GIGA:.1f} GB{of}")
    if estimate.cost_usd is not None:
        parts.append(f"${estimate.cost_usd:,.2f}")
    return ", ".join([*parts, *estimate.remarks])


def format_duration(seconds: float) -> str:
    """`40 seconds`, `5 minutes`, `2.5 hours`, `3.1 days`."""
    for name, size in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{max(1, round(seconds))} seconds"


def _estimate_from_token_count(plan: TrainingPlan, prepared: PreparedData) -> Estimate | None:
    """Tokens of the texts times the epochs, where the handler counts tokens."""
    column = prepared.training_set.train.column("messages").to_pylist()
    counts = count_tokens(plan.handler, ["\n".join(m["content"] for m in turns) for turns in column], plan.spec)
    epochs = read_options(TrainingOptions, plan.options).n_epochs
    if counts is None or isinstance(epochs, str):
        return None
    return Estimate(len(column), round(sum(counts) * (1.0 if epochs is None else float(epochs))))
