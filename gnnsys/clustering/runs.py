"""All seeds of ``gnnsys cluster``, and the files of their result."""

from __future__ import annotations

import dataclasses
import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from gnnsys.clustering.batches import make_batches
from gnnsys.clustering.graph import ClusterGraph, open_graph
from gnnsys.clustering.metrics import METRICS
from gnnsys.clustering.picture import draw_embedding
from gnnsys.clustering.trainer import (
    ClusterEpoch,
    ClusterTask,
    SeedResult,
    scale_of_features,
    train_seed,
)
from gnnsys.config.cluster import ClusterConfig
from gnnsys.config.run_files import LOCK, RESULT
from gnnsys.errors import ArgumentError
from gnnsys.system.device import choose_device
from gnnsys.system.files import (
    as_storage_error,
    check_folder_of,
    replace_file,
    replace_npy,
    replacing,
)
from gnnsys.system.progress import Progress
from gnnsys.system.records import json_text
from gnnsys.training.run_folder import lock_run
from gnnsys.training.tensor_file import write_safetensors

__all__ = ["ENCODER", "ENCODER_OPTIONS", "WEIGHTS", "run_clustering"]

WEIGHTS = "model.safetensors"
ENCODER = "encoder.json"
ENCODER_OPTIONS = ("kind", "in_channels", "hidden", "dim", "normalize")
"""What that file holds: arguments of ``make_encoder``; the scale is with the weights."""


def run_clustering(
    config: ClusterConfig, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Trains all seeds, and writes the files that the options ask for.

    Returns:
        What ``result.json`` holds: the options, each seed's losses, metrics and selected epoch, and
        mean and deviation over seeds.

    Raises:
        GnnsysError: a dataset that cannot be clustered, or files that cannot be written.

    >>> import tempfile
    >>> from gnnsys.generate import generate_community
    >>> folder = generate_community(tempfile.mkdtemp() + "/g", nodes=60, classes=2, degree=4)
    >>> config = ClusterConfig(
    ...     dataset=str(folder), hidden=(8,), dim=2, epochs=2, pretrain_epochs=1
    ... )
    >>> run_clustering(config)["clusters"]
    2
    """
    config = config.filled_in()
    out = _make_folder(config)
    try:
        with open_graph(config) as graph, lock_run(out) if out else nullcontext():
            return _run(config, graph, out, progress)
    except BaseException:
        if out is not None and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise


def _run(
    config: ClusterConfig, graph: ClusterGraph, out: Path | None, progress: Progress
) -> dict[str, Any]:
    clusters = _check(config, graph)
    device = choose_device(config.device)
    batches = make_batches(graph, config, device)
    scale = scale_of_features(batches, graph.num_nodes, config.normalize or "none")
    task = ClusterTask(config, graph, batches, clusters, device, progress, scale)
    first: SeedResult | None = None
    seeds = []
    for seed in range(config.seed, config.seed + config.seeds):
        found = train_seed(task, seed)
        seeds.append(_describe(found))
        first = first or found
    assert first is not None
    result: dict[str, Any] = {
        "format": 1,
        "dataset": graph.name,
        "nodes": graph.num_nodes,
        "edges": graph.data.edge_index.shape[1],
        "clusters": clusters,
        "options": dataclasses.asdict(config),
        "seeds": seeds,
        "summary": {name: _summary(seeds, name) for name in ("selected", "last")},
    }
    if config.plot is not None:
        draw_embedding(Path(config.plot), graph, first)
    if out is not None:
        _write(out, config, graph, first, result)
    return result


def _check(config: ClusterConfig, graph: ClusterGraph) -> int:
    """The number of clusters."""
    clusters = config.k or graph.num_classes
    if clusters is None:
        raise ArgumentError(f"{config.dataset}: has no classes; say how many clusters with --k")
    for name, count in (("k", clusters), ("warm-clusters", config.warm_clusters or 1)):
        if count > graph.num_nodes:
            raise ArgumentError(f"--{name} {count} > {graph.num_nodes} nodes: use fewer clusters")
    if config.select == "labels" and graph.labels is None:
        raise ArgumentError(f"--select labels: {config.dataset} has none")
    return clusters


def _make_folder(config: ClusterConfig) -> Path | None:
    if config.plot is not None:
        check_folder_of(Path(config.plot), f"--plot {config.plot}")
    if config.out is None:
        return None
    out = Path(config.out)
    if (out / LOCK).is_file():
        with lock_run(out):  # says who has it, or removes what a killed process left
            pass
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArgumentError(f"--out {out}: exists already; give another folder")
    with as_storage_error(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def _describe(found: SeedResult) -> dict[str, Any]:
    assert found.selected is not None
    return {
        "seed": found.seed,
        "seconds": found.seconds,
        "selected": _epoch(found.selected),
        "last": _epoch(found.epochs[-1]),
        "losses": [epoch.loss for epoch in found.epochs],
        "contrastive": [epoch.contrastive for epoch in found.epochs],
        "clustering": [epoch.clustering for epoch in found.epochs],
        "modularity": [epoch.modularity for epoch in found.epochs if epoch.modularity is not None],
        "acc": [epoch.metrics["acc"] for epoch in found.epochs if epoch.metrics],
    }


def _epoch(epoch: ClusterEpoch) -> dict[str, Any]:
    graded = {} if epoch.modularity is None else {"modularity": epoch.modularity}
    return {"epoch": epoch.number, "loss": epoch.loss, **graded, **epoch.metrics}


def _summary(seeds: list[dict[str, Any]], which: str) -> dict[str, Any]:
    """Mean and deviation over seeds."""
    told = {}
    for name in METRICS:
        values = [seed[which][name] for seed in seeds if name in seed[which]]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            told[name] = {"mean": statistics.mean(values), "std": deviation}
    return told


def _write(
    out: Path,
    config: ClusterConfig,
    graph: ClusterGraph,
    first: SeedResult,
    result: dict[str, Any],
) -> None:
    replace_npy(out / "assignments.npy", first.assignments)
    replace_npy(out / "embeddings.npy", first.embeddings)
    shape = config.encoder, graph.data.x.shape[1], config.hidden, config.dim, config.normalize
    encoder = dict(zip(ENCODER_OPTIONS, shape, strict=True))
    weights = {name: tensor.cpu().contiguous() for name, tensor in first.state.items()}
    with replacing(out / WEIGHTS) as file:
        write_safetensors(file, weights, {})
    replace_file(out / ENCODER, json_text(encoder).encode())
    replace_file(out / RESULT, json_text(result).encode())
