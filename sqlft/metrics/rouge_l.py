"""The longest common subsequence of words, as summaries are scored."""

from __future__ import annotations

from typing import Any

from sqlft.metrics.kinds import package
from sqlft.metrics.rows import score_rows


def rouge_l(actual: Any, prediction: Any, *, stem: bool = False) -> Any:
    """ROUGE-L F1 of both texts, 0 to 1 a row, as the package rouge-score has it; `stem` cuts English endings."""
    scorer = package("rouge_score.rouge_scorer", "rouge_l").RougeScorer(["rougeL"], use_stemmer=stem)
    return score_rows(actual, prediction, lambda a, p: float(scorer.score(a, p)["rougeL"].fmeasure))
