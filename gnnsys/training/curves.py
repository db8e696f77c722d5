"""What TensorBoard is told: curves over epochs, and a run's hyperparameters with its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gnnsys.config.train import TrainConfig
from gnnsys.features.statistics import FeatureStats

__all__ = ["epoch_curves", "final_scores", "hyperparameters"]

_HYPERPARAMETERS = (
    "dataset", "model", "hidden", "layers", "fanouts", "sampling", "dependent_batches", "sums",
    "precision", "static_shapes", "compile", "full_batch", "batch_size", "seed_block",
    "reuse_samples", "epochs", "optimizer", "momentum", "lr", "lr_schedule", "warmup_epochs",
    "lr_factor", "lr_every", "lr_patience", "lr_min", "lr_epochs", "clip_norm", "class_weights",
    "loss", "weight_decay", "dropout", "task", "decoder", "negatives", "negative_sampling",
    "link_loss", "seed", "split", "parallel", "cooperative", "stages", "ways", "chunks",
)  # fmt: skip


def epoch_curves(
    record: Mapping[str, Any], served: FeatureStats, batches: int, seeds: int
) -> dict[str, float]:
    """Values of an epoch by the name of their curve.

    Args:
        record: of the epoch, as ``metrics.jsonl`` has it.
        served: in the epoch, its evaluation included.
        batches: that were trained on.
        seeds: of these.
    """
    seconds = record["epoch_seconds"]
    curves = {
        "loss/epoch": record["loss"],
        "lr": record["lr"],
        "seconds/epoch": seconds,
        "seconds/loading": record["load_seconds"],
        "seconds/evaluation": record["eval_seconds"],
        "throughput/seeds_per_second": seeds / max(seconds, 1e-9),
        "throughput/batches_per_second": batches / max(seconds, 1e-9),
    }
    for part in ("val", "test"):
        curves |= {f"{part}/{name}": value for name, value in (record[part] or {}).items()}
    rows = sum(served.rows.values())
    for tier, count in served.rows.items():
        curves[f"tiers/{tier}_share"] = count / max(1, rows)
        curves[f"tiers/{tier}_bytes"] = served.bytes[tier]
    curves |= {f"reads/{name}": value for name, value in served.reads.items()}
    for layer, value in enumerate(record.get("staleness", ())):
        curves[f"staleness/layer{layer}"] = value
    return curves


def final_scores(val: Mapping[str, float], test: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the best epoch by the name that the table of runs has for them."""
    parts = (("val", val), ("test", test))
    return {f"final/{part}_{name}": value for part, found in parts for name, value in found.items()}


def hyperparameters(config: TrainConfig) -> dict[str, Any]:
    """Options that losses depend on and that are set, as TensorBoard takes them."""
    values = {name: getattr(config, name) for name in _HYPERPARAMETERS}
    return {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not None
    }
