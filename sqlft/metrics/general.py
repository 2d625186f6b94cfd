"""The general set, on which a version's forgetting is measured, and what scores on it say in words.

`sqlft.evaluation.forgetting` scores versions on it; the report and exports need the rest.  general.json has texts and
questions, written for sqlft.  A set that is changed gets another name: its scores are not those of the old one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import pyarrow as pa

from sqlft._types import Row
from sqlft.handler import Message
from sqlft.metrics import METRICS
from sqlft.metrics.statistics import is_beyond_chance

GENERAL_METRICS = {"general_perplexity": "perplexity", "general_accuracy": "exact_match"}
"""What is measured, and the metric that makes it of the shipped texts, and of the answers chosen."""
GENERAL_SET = Path(__file__).with_name("general.json")
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
