"""USING forgetting = true: what a version no longer does of what its base did, on the general set.

Called by `compare`.  In: versions.  Out: `general_perplexity` and `general_accuracy` of each and of its base, compared
with the base; made of the handler's `score`: nothing is generated or parsed.  Not covered: whether a version is good at
what it was trained for, and other languages than English.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from sqlft.catalog import records as catalog_rows
from sqlft.catalog.records import Evaluation, EvaluationRow, Version, VersionKey
from sqlft.evaluation.scoring import ScoredAnswers, Scorer, no_likelihood_error
from sqlft.handler import Artifact, ModelSpec, ScoresAnswers
from sqlft.inference.resolve import DELIMITER_OPTIONS, ResolvedVersion
from sqlft.metrics import METRICS
from sqlft.metrics.general import GENERAL_METRICS, GeneralSet, load_general_set
from sqlft.metrics.statistics import NO_COMPARISON
from sqlft.redact import redact_statement
from sqlft.session import Session
from sqlft.sql.statements import Evaluate

NO_VERSION = 0
"""The number of a base that is no version: that of a model whose version 1 was trained."""


class MeasuredVersion(NamedTuple):
    """A version's score in each of GENERAL_METRICS, and which version is its base."""

    base: VersionKey
    scores: Sequence[ScoredAnswers]


def measure_forgetting(
    session: Session, versions: Sequence[ResolvedVersion], statement: Evaluate, seed: int, place: int
) -> list[tuple[Evaluation, list[EvaluationRow]]]:
    """Evaluations of versions and, before them, of their bases, and the rows to keep; `place` is the first one's."""
    started, general = catalog_rows.utc_now(), load_general_set()
    scorers = [
        Scorer(name, METRICS[metric], {}, (), seed, session.show_warning, lambda: session.interrupted)
        for name, metric in GENERAL_METRICS.items()
    ]
    measured: dict[VersionKey, MeasuredVersion] = {}
    for resolved in versions:
        base = _find_base(session.versions(resolved.model), resolved)
        for key, artifact in ((base, None), (resolved.version.key, resolved.artifact)):
            if key not in measured:
                measured[key] = MeasuredVersion(base, _score_version(resolved, artifact, scorers))
    found = []
    for key, (base, scores) in measured.items():
        for i, (scorer, actual, scored) in enumerate(zip(scorers, general.actuals(), scores, strict=True)):
            paired = NO_COMPARISON if key == base else scorer.compare(actual, measured[base].scores[i], scored)
            evaluation = Evaluation(
                key,
                scorer.name,
                general.digest,
                options={"set": general.name},
                value=scored.result.value,
                n=scored.result.n,
                **scored.result.interval._asdict(),
                **paired._asdict(),
                baseline=None if key == base else str(base),
                statement=redact_statement(statement.text),
                place=place + i,
                created_at=started,
            )
            found.append((evaluation, _build_rows(general, scored)))
    return found


def _find_base(versions: Sequence[Version], resolved: ResolvedVersion) -> VersionKey:
    """Version 1, but where that was trained, too, or is gone."""
    key = resolved.version.key
    if resolved.artifact is None:
        return key
    first = next((v for v in versions if v.key.number == 1), None)
    if first is None or first.status != "complete" or first.artifact_path or first.remote_id:
        return key._replace(number=NO_VERSION)
    return first.key


def _score_version(
    resolved: ResolvedVersion, artifact: Artifact | None, scorers: Sequence[Scorer]
) -> list[ScoredAnswers]:
    """The version with this artifact, None being its base, in each metric."""
    handler, general = resolved.handler, load_general_set()
    scored = None
    if isinstance(handler, ScoresAnswers):
        scored = handler.score(general.conversations(), *_ask_plainly(resolved.spec, artifact))
    if scored is None:
        raise no_likelihood_error(resolved, "forgetting")
    texts, answers = scored[: len(general.texts)], scored[len(general.texts) :]
    logprobs, tokens = zip(*texts, strict=True)
    chosen = [q.choose(answers[4 * i : 4 * i + 4]) for i, q in enumerate(general.questions)]
    columns: list[tuple[pa.Array, dict[str, pa.Array]]] = [
        (pa.array(logprobs, pa.float64()), {"tokens": pa.array(tokens, pa.int64())}),
        (pa.array(chosen), {}),
    ]
    return [
        ScoredAnswers(prediction, scorer.score(actual, prediction, **inputs), inputs)
        for scorer, actual, (prediction, inputs) in zip(scorers, general.actuals(), columns, strict=True)
    ]


def _ask_plainly(spec: ModelSpec, artifact: Artifact | None) -> tuple[ModelSpec, Artifact | None]:
    """Without what a model puts around its own questions and answers: the base is not to be judged by that."""
    own = {name: None for name in DELIMITER_OPTIONS if getattr(spec.options, name, None)}
    options = dataclasses.replace(spec.options, **own) if own else spec.options
    plain = dataclasses.replace(spec, schema=None, options=options)
    if artifact is None:
        return plain, None
    details = {name: value for name, value in artifact.details.items() if name not in DELIMITER_OPTIONS}
    return plain, dataclasses.replace(artifact, details=details)


def _build_rows(general: GeneralSet, scored: ScoredAnswers) -> list[EvaluationRow]:
    """One per question; what is measured of all texts together has none."""
    if scored.result.scores is None:
        return []
    columns = zip(general.questions, scored.prediction.to_pylist(), scored.result.scores, strict=True)
    return [
        EvaluationRow(n, catalog_rows.to_json({"kind": q.kind, "question": q.question}), q.right, answer, score, None)
        for n, (q, answer, score) in enumerate(columns, 1)
    ]
