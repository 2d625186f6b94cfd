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
FAMILIES = {
    "sqlft.metrics.text": ("exact_match", "token_f1", "rouge_l", "bleu", "perplexity"),
    "sqlft.metrics.classification": (
        *("accuracy", "accuracy_score", "balanced_accuracy_score"),
        *("precision", "precision_score", "recall", "recall_score", "f1", "f1_score"),
    ),
    "sqlft.metrics.structured": ("json_match", "function_match"),
    "sqlft.metrics.sql": ("execution_accuracy",),
    "sqlft.metrics.regression": (
        *("mean_absolute_error", "mean_squared_error", "root_mean_squared_error", "rmse"),
        *("mean_absolute_percentage_error", "r2_score", "r2"),
    ),
    "sqlft.metrics.judge": ("llm_judge",),
}
BUILT_IN = {name: module for module, names in FAMILIES.items() for name in names}


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
        loaded = entry.load()
    except Exception as e:
        owner = entry.dist.name if entry.dist else entry.module
        raise NotSupported(
            f"The metric '{name}' could not be loaded: {type(e).__name__}: {e}",
            f"Install what the package {owner} needs, or take it out: pip uninstall {owner}.",
        ) from e
    return as_metric(loaded, name)


METRICS: Mapping[str, Metric] = _Metrics()
