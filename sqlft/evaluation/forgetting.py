"""USING forgetting = true: what a version no longer does of what its base did, on texts and questions that ship here.

Called by `compare`, and by the report for its words.  In: versions.  Out: `general_perplexity` and `general_accuracy`
of each and of its base, compared with the base; made of the handler's `score`: nothing is generated or parsed.
Not covered: whether a version is good at what it was trained for, and other languages than English.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from sqlft._types import Row
from sqlft.catalog import records as catalog_rows
from sqlft.catalog.records import Evaluation, EvaluationRow, Version, VersionKey
from sqlft.evaluation.scoring import ScoredAnswers, Scorer, no_likelihood_error
from sqlft.handler import Artifact, Message, ModelSpec, ScoresAnswers
from sqlft.inference.resolve import DELIMITER_OPTIONS, ResolvedVersion
from sqlft.metrics import METRICS
from sqlft.metrics.statistics import NO_COMPARISON, is_beyond_chance
from sqlft.redact import redact_statement
from sqlft.session import Session
from sqlft.sql.statements import Evaluate

GENERAL_METRICS = {"general_perplexity": "perplexity", "general_accuracy": "exact_match"}
"""What is measured, and the metric that makes it of the shipped texts, and of the answers chosen."""
GENERAL_SET = Path(__file__).with_name("general.json")
NO_VERSION = 0
"""The number of a base that is no version: that of a model whose version 1 was trained."""
ADVICE = "A lower learning_rate, fewer epochs, or general rows among those of the training make it forget less."


@dataclass(frozen=True)
class GeneralQuestion:
    """A question with its right answer and three wrong ones."""

    kind: str
    question: str
    right: str
    wrong: Sequence[str]

    def choose(self, scores: Sequence[tuple[float, int]]) -> str:
        """The likeliest answer by a token's log-probability; `scores` are of the wrong ones, then of the right one.

        A tie, and a model whose numbers are none, is not right.

        >>> question = GeneralQuestion("fact", "What do bees make?", "Honey", ["Milk", "Wool", "Paper"])
        >>> question.choose([(-9.0, 2), (-8.0, 2), (-7.0, 2), (-9.0, 3)])
        'Honey'
        """
        means = [-math.inf if math.isnan(logprob) else logprob / max(tokens, 1) for logprob, tokens in scores]
        return [*self.wrong, self.right][means.index(max(means))]


@dataclass(frozen=True)
class GeneralSet:
    """What shows forgetting: texts, each the answer to a question, and questions with four answers to choose from."""

    name: str
    digest: str
    texts: Sequence[tuple[str, str]]
    questions: Sequence[GeneralQuestion]

    def actuals(self) -> tuple[pa.StringArray, pa.StringArray]:
        """What is right, for each of GENERAL_METRICS."""
        return pa.array([text for _, text in self.texts]), pa.array([q.right for q in self.questions])

    def conversations(self) -> list[tuple[Message, Message]]:
        """All that is scored: the texts, then of each question the wrong answers and the right one."""
        pairs = [*self.texts, *((q.question, answer) for q in self.questions for answer in (*q.wrong, q.right))]
        return [(Message("user", question), Message("assistant", answer)) for question, answer in pairs]


@cache
def load_general_set() -> GeneralSet:
    """The set that ships with sqlft.  Scores of sets with different digests are not comparable, and never compared.

    >>> len(load_general_set().questions), len(load_general_set().texts)
    (40, 12)
    """
    known = json.loads(GENERAL_SET.read_text(encoding="utf-8"))
    return GeneralSet(
        known["name"],
        sha256(json.dumps(known, sort_keys=True).encode()).hexdigest(),
        [(text["question"], text["answer"]) for text in known["texts"]],
        [GeneralQuestion(**question) for question in known["questions"]],
    )


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


def has_forgotten(e: Row) -> bool:
    """Whether one of GENERAL_METRICS is worse than the base's by more than chance.

    >>> has_forgotten({"metric": "general_accuracy", "difference_low": -0.3, "difference_high": -0.1, "p_value": 0.01})
    True
    """
    if not is_beyond_chance(e["difference_low"], e["difference_high"], e["p_value"]):
        return False
    return bool((e["difference_low"] > 0) == METRICS[GENERAL_METRICS[e["metric"]]].lower_is_better)


def describe_forgetting(e: Row) -> str:
    """How a version stands against its base in one of GENERAL_METRICS, in a sentence.

    >>> describe_forgetting({"model": "m", "version": 2, "metric": "general_accuracy", "value": 0.5, "baseline": "m.1",
    ...     "difference": -0.25, "difference_low": -0.35, "difference_high": -0.1, "p_value": 0.002})
    'm.2 forgot: its general_accuracy is 0.5, that of m.1 0.75 (95 % interval of the difference -0.35 to -0.1).'
    """
    name, metric, value, difference = f"{e['model']}.{e['version']}", e["metric"], e["value"], e["difference"]
    if value is None or difference is None:
        return f"{name}: its {metric} and that of {e['baseline']} cannot be compared, they are no finite numbers."
    figures = f"its {metric} is {value:.4g}, that of {e['baseline']} {value - difference:.4g}"
    interval = f"(95 % interval of the difference {e['difference_low']:+.3g} to {e['difference_high']:+.3g})"
    if has_forgotten(e):
        return f"{name} forgot: {figures} {interval}."
    return f"{name}: {figures} {interval}; that it forgot is not seen."
