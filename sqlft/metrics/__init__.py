"""Scores, one per row: ``METRICS[name](actual=pa.Array, prediction=pa.Array, **options) -> pa.DoubleArray``.

A row without an actual value has no score (NULL); one without a prediction scores 0.  Another package
adds a metric with `@metric(…)` and an entry point of the group ``sqlft.metrics``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from sqlft import plugins
from sqlft.errors import NotFound, NotSupported, did_you_mean
from sqlft.metrics.metric import Metric, as_metric, metric

__all__ = ["BUILT_IN", "ENTRY_POINT_GROUP", "METRICS", "Metric", "metric"]

ENTRY_POINT_GROUP = "sqlft.metrics"
BUILT_IN = {
    "exact_match": "sqlft.metrics.text",
    "token_f1": "sqlft.metrics.text",
    "rouge_l": "sqlft.metrics.text",
    "bleu": "sqlft.metrics.text",
    "accuracy": "sqlft.metrics.classification",
    "accuracy_score": "sqlft.metrics.classification",
    "balanced_accuracy_score": "sqlft.metrics.classification",
    "precision": "sqlft.metrics.classification",
    "precision_score": "sqlft.metrics.classification",
    "recall": "sqlft.metrics.classification",
    "recall_score": "sqlft.metrics.classification",
    "f1": "sqlft.metrics.classification",
    "f1_score": "sqlft.metrics.classification",
    "json_match": "sqlft.metrics.structured",
    "function_match": "sqlft.metrics.structured",
    "execution_accuracy": "sqlft.metrics.sql",
    "mean_absolute_error": "sqlft.metrics.regression",
    "mean_squared_error": "sqlft.metrics.regression",
    "root_mean_squared_error": "sqlft.metrics.regression",
    "rmse": "sqlft.metrics.regression",
    "mean_absolute_percentage_error": "sqlft.metrics.regression",
    "r2_score": "sqlft.metrics.regression",
    "r2": "sqlft.metrics.regression",
    "perplexity": "sqlft.metrics.text",
    "llm_judge": "sqlft.metrics.judge",
}


class _Metrics(Mapping[str, Metric]):
    """Names without import; a metric is loaded when it is looked up."""

    def __getitem__(self, name: str) -> Metric:
        if name in BUILT_IN:
            return getattr(import_module(BUILT_IN[name]), name)  # type: ignore[no-any-return]
        if name in plugins.find_entry_points(ENTRY_POINT_GROUP):
            return _load_entry_point(name)
        raise NotFound(
            f"There is no metric '{name}'.{did_you_mean(name, self)}", f"There are: {', '.join(sorted(self))}."
        )

    def __contains__(self, name: object) -> bool:
        return name in BUILT_IN or name in plugins.find_entry_points(ENTRY_POINT_GROUP)

    def __iter__(self) -> Iterator[str]:
        return iter({**BUILT_IN, **plugins.find_entry_points(ENTRY_POINT_GROUP)})

    def __len__(self) -> int:
        return len({**BUILT_IN, **plugins.find_entry_points(ENTRY_POINT_GROUP)})


def _load_entry_point(name: str) -> Metric:
    entry = plugins.find_entry_points(ENTRY_POINT_GROUP)[name]
    try:
        found = entry.load()
    except Exception as e:
        owner = entry.dist.name if entry.dist else entry.module
        raise NotSupported(
            f"The metric '{name}' could not be loaded: {type(e).__name__}: {e}",
            f"Install what the package {owner} needs, or take it out: pip uninstall {owner}.",
        ) from e
    return as_metric(found, name)


METRICS: Mapping[str, Metric] = _Metrics()
