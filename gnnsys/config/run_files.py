"""Names of the files in a run's folder, and of the scores in them."""

from __future__ import annotations

__all__ = [
    "CONFIG",
    "EMBEDDINGS",
    "LOCK",
    "METRICS",
    "PICTURE",
    "RESULT",
    "TIMELINE",
    "result_name",
]

CONFIG = "config.toml"
EMBEDDINGS = "embeddings"
LOCK = "lock"
METRICS = "metrics.jsonl"
PICTURE = "embedding.png"
RESULT = "result.json"
TIMELINE = "timeline.json"


def result_name(metric: str) -> str:
    """How a metric is called in a run's result.

    >>> f"val_{result_name('accuracy')}"
    'val_acc'
    """
    return {"accuracy": "acc"}.get(metric, metric)
