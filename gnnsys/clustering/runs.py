"""All seeds of ``gnnsys cluster``, and the files of their result."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from gnnsys.clustering.batches import make_batches
from gnnsys.clustering.checkpoint import (
    ClusterCheckpoint,
    ClusterEpoch,
    SeedResult,
    SeedState,
    load_clusters,
    save_clusters,
)
from gnnsys.clustering.graph import ClusterGraph, open_graph
from gnnsys.clustering.metrics import METRICS
from gnnsys.clustering.picture import draw_embedding
from gnnsys.clustering.trainer import ClusterTask, scale_of_features, train_seed
from gnnsys.config.cluster import ClusterConfig
from gnnsys.config.file import OF_THE_CALL, check_resumed, config_to_toml, fixed_options
from gnnsys.config.run_files import CONFIG, LOCK, PICTURE, RESULT
from gnnsys.config.run_files import METRICS as RECORDS
from gnnsys.errors import ArgumentError, DivergedError
from gnnsys.system.device import choose_device
from gnnsys.system.files import check_folder_of, replace_file, replace_npy, replacing
from gnnsys.system.gpu.placement import kernels_for
from gnnsys.system.interrupts import on_signals
from gnnsys.system.progress import Progress
from gnnsys.system.records import json_text
from gnnsys.training.checkpoint import CHECKPOINT
from gnnsys.training.result import machine, versions
from gnnsys.training.run_folder import describe, lock_run, make_run_folder, removing_unused
from gnnsys.training.run_log import RunLog
from gnnsys.training.steps import AskedToEndError
from gnnsys.training.tensor_file import write_safetensors

__all__ = ["ENCODER", "ENCODER_OPTIONS", "WEIGHTS", "finished_result", "run_clustering"]

_log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
ENCODER = "encoder.json"
ENCODER_OPTIONS = ("kind", "in_channels", "hidden", "dim", "normalize")
"""What that file holds: arguments of ``make_encoder``; the scale is with the weights."""


def run_clustering(
    config: ClusterConfig, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Trains all seeds, and writes the files that the options ask for.

    The same options give the same clusters for a fixed torch, number of torch threads and
    instruction set, also when the run was broken off and resumed in between. SIGINT, SIGTERM,
    SIGHUP and SIGUSR1 end the run after the batch in hand, with a checkpoint where there is
    ``config.out``; a second SIGINT or SIGTERM at once.

    Returns:
        What ``result.json`` holds: the options, each seed's losses, metrics and selected epoch, and
        mean and deviation over seeds. Of a run that was interrupted, with the ``reason``
        "interrupted": what is known of the seeds that are trained, and the ``place`` it is at.

    Raises:
        GnnsysError: a dataset that cannot be clustered, files that cannot be written, a checkpoint
            that is damaged or of another graph.

    >>> import tempfile
    >>> from gnnsys.generate import generate_community
    >>> folder = generate_community(tempfile.mkdtemp() + "/g", nodes=60, classes=2, degree=4)
    >>> config = ClusterConfig(
    ...     dataset=str(folder), hidden=(8,), dim=2, epochs=2, pretrain_epochs=1
    ... )
    >>> run_clustering(config)["clusters"]
    2
    """
    if config.resume:
        check_resumed(config)
    if config.plot is not None:
        check_folder_of(Path(config.plot), f"--plot {config.plot}")
    config = config.filled_in()
    with ExitStack() as held:
        folder = _open_folder(config, held)
        graph = held.enter_context(open_graph(config))
        held.enter_context(kernels_for(config.device))
        run = _Run(config, graph, folder, progress)
        with on_signals(run.interrupt):
            return run.go()


def finished_result(config: ClusterConfig) -> dict[str, Any] | None:
    """What the run in ``config.resume`` has come to, where nothing of it is left to do."""
    if config.resume is None or (config.plot is not None and not Path(config.plot).exists()):
        return None
    try:
        result = json.loads((Path(config.resume) / RESULT).read_text(encoding="utf-8"))
        return result if len(result["seeds"]) == config.seeds else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open_folder(config: ClusterConfig, held: ExitStack) -> Path | None:
    """The folder of the run, for this process alone."""
    if config.resume:
        held.enter_context(lock_run(Path(config.resume)))
        return Path(config.resume)
    if config.out is None:
        return None
    out = Path(config.out)
    if (out / LOCK).is_file():
        with lock_run(out):  # says who has it, or removes what a killed process left
            pass
    folder = make_run_folder(config.out, config)
    held.enter_context(removing_unused(folder, RECORDS))
    held.enter_context(lock_run(folder))
    return folder


class _Run:
    def __init__(
        self, config: ClusterConfig, graph: ClusterGraph, folder: Path | None, progress: Progress
    ) -> None:
        self._config, self._graph, self._folder = config, graph, folder
        self._clusters = _check(config, graph)
        self._seeds: list[dict[str, Any]] = []
        self._first: SeedResult | None = None
        self._seed: SeedState | None = None
        self._asked_to_end = False
        device = choose_device(config.device)
        batches = make_batches(graph, config, device)
        scale = scale_of_features(batches, graph.num_nodes, config.normalize or "none")
        self._task = ClusterTask(
            config, graph, batches, self._clusters, device, progress, scale,
            on_epoch=self._log_epoch, between=self._between,
        )  # fmt: skip
        written = self._restore() if config.resume else 0
        self._log = RunLog(folder, written, board=False)
        self._log_start(resumed=written > 0)
        self._last_checkpoint = time.monotonic()

    def interrupt(self) -> None:
        """Ends the run after the batch in hand."""
        self._asked_to_end = True

    def go(self) -> dict[str, Any]:
        """Trains the seeds that are left, and writes the result."""
        config, seeds = self._config, self._seeds
        try:
            while len(seeds) < config.seeds:
                found = train_seed(self._task, config.seed + len(seeds), self._seed)
                self._first = self._first or found
                seeds.append(_describe(found, self._clusters))
                self._log.write("seed", **{k: v for k, v in seeds[-1].items() if k not in _CURVES})
                self._seed = None
                self._checkpoint(None)
        except AskedToEndError:
            assert self._seed is not None
            self._end("interrupted")
            return {**self._result("interrupted"), "place": _place(self._seed)}
        except DivergedError:
            self._end("diverged")
            raise
        result = self._result("done")
        self._write(result)
        self._end("done", result=_without_curves(result))
        return result

    def _result(self, reason: str) -> dict[str, Any]:
        options = describe(self._config)
        return {
            "format": 1,
            "dataset": self._graph.name,
            "nodes": self._graph.num_nodes,
            "edges": self._graph.data.edge_index.shape[1],
            "clusters": self._clusters,
            "reason": reason,
            "options": {key: value for key, value in options.items() if key not in OF_THE_CALL},
            "seeds": self._seeds,
            "summary": {name: _summary(self._seeds, name) for name in ("selected", "last")},
        }

    def _write(self, result: dict[str, Any]) -> None:
        """The files of the result, ``result.json`` last."""
        config, graph, first, out = self._config, self._graph, self._first, self._folder
        assert first is not None
        if config.plot is not None:
            picture = draw_embedding(graph, first)
            replace_file(Path(config.plot), picture)
            if out is not None:
                replace_file(out / PICTURE, picture)
        if out is None:
            return
        replace_npy(out / "assignments.npy", first.assignments)
        replace_npy(out / "embeddings.npy", first.embeddings)
        shape = config.encoder, graph.data.x.shape[1], config.hidden, config.dim, config.normalize
        encoder = dict(zip(ENCODER_OPTIONS, shape, strict=True))
        weights = {name: tensor.cpu().contiguous() for name, tensor in first.state.items()}
        with replacing(out / WEIGHTS) as file:
            write_safetensors(file, weights, {})
        replace_file(out / ENCODER, json_text(encoder).encode())
        replace_file(out / RESULT, json_text(result).encode())

    # What is kept ---------------------------------------------------------------------------------

    def _between(self, state: Callable[[], SeedState]) -> None:
        minutes = (time.monotonic() - self._last_checkpoint) / 60
        due = self._folder is not None and minutes >= self._config.checkpoint_minutes
        if due or self._asked_to_end:
            self._seed = state()
            self._checkpoint(self._seed)
        if self._asked_to_end:
            raise AskedToEndError

    def _checkpoint(self, seed: SeedState | None) -> None:
        """Writes all that the next batch depends on."""
        if self._folder is None:
            return
        checkpoint = ClusterCheckpoint(
            config=_fixed(self._config),
            dataset=self._graph.digest,
            seeds=self._seeds,
            first=self._first,
            seed=seed,
            metrics_bytes=self._log.length,
        )
        save_clusters(self._folder, checkpoint)
        self._last_checkpoint = time.monotonic()

    def _restore(self) -> int:
        """Takes up the checkpoint; returns the length of the records that it goes with."""
        config, folder = self._config, self._folder
        assert folder is not None
        path = folder / CHECKPOINT
        written = 0
        if path.exists():
            checkpoint = load_clusters(folder)
            self._check_fits(checkpoint, path)
            self._seeds, self._first, self._seed = (
                checkpoint.seeds, checkpoint.first, checkpoint.seed
            )  # fmt: skip
            written = checkpoint.metrics_bytes
        else:
            _log.warning("%s: ended before its first checkpoint, so it begins again", folder)
        replace_file(folder / CONFIG, config_to_toml(config).encode())
        return written

    def _check_fits(self, checkpoint: ClusterCheckpoint, path: Path) -> None:
        config, digest = self._config, self._graph.digest
        if checkpoint.dataset != digest:
            raise ArgumentError(
                f"{path}: of another dataset: {checkpoint.dataset}, expected {digest}; give the "
                "dataset it was trained on, or start another run with --out"
            )
        had, asked = checkpoint.config, _fixed(config)
        for name in asked:
            if had.get(name) != asked[name]:
                raise ArgumentError(
                    f"{path}: of other options: {name} is {had.get(name)}, config.toml says "
                    f"{asked[name]}; mend config.toml, or start another run with --out"
                )
        if config.seeds < len(checkpoint.seeds):
            raise ArgumentError(
                f"--seeds {config.seeds}: the run in {path.parent} has trained "
                f"{len(checkpoint.seeds)} already; leave it out"
            )

    # What is told ---------------------------------------------------------------------------------

    def _log_start(self, resumed: bool) -> None:
        if resumed:
            self._log.write(
                "resume", time=time.time(), seeds=len(self._seeds), **_place(self._seed)
            )
            return
        self._log.write(
            "start",
            command="cluster",
            time=time.time(),
            dataset=self._graph.facts(),
            clusters=self._clusters,
            versions=versions(),
            machine=machine(),
            config=describe(self._config),
        )

    def _log_epoch(self, result: SeedResult) -> None:
        if self._folder is None:
            return
        assert result.selected is not None
        epoch = result.epochs[-1]
        self._log.write(
            "epoch",
            seed=result.seed,
            **_epoch(epoch),
            contrastive=epoch.contrastive,
            clustering=epoch.clustering,
            selected=result.selected.number,
            seconds=result.seconds,
            rss=psutil.Process().memory_info().rss,
        )

    def _end(self, reason: str, **more: Any) -> None:
        self._log.write("end", time=time.time(), reason=reason, **more)


def _fixed(config: ClusterConfig) -> dict[str, Any]:
    """Options that must be those of the checkpoint; the dataset may lie elsewhere."""
    options = describe(config)
    return {key: options[key] for key in fixed_options(config) if key != "dataset"}


def _place(seed: SeedState | None) -> dict[str, Any]:
    """Where a seed is, for JSON; None begins the next one."""
    if seed is None:
        return {"epoch": 0, "batch": 0}
    place = {"phase": seed.phase, "epoch": seed.epoch, "batch": seed.batch}
    return {"seed": seed.result.seed, **place}


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


_CURVES = ("losses", "contrastive", "clustering", "modularity", "acc")


def _describe(found: SeedResult, clusters: int) -> dict[str, Any]:
    assert found.selected is not None
    return {
        "seed": found.seed,
        "seconds": found.seconds,
        "selected": _epoch(found.selected),
        "last": _epoch(found.epochs[-1]),
        "sizes": np.bincount(found.assignments, minlength=clusters).tolist(),
        "losses": [epoch.loss for epoch in found.epochs],
        "contrastive": [epoch.contrastive for epoch in found.epochs],
        "clustering": [epoch.clustering for epoch in found.epochs],
        "modularity": [epoch.modularity for epoch in found.epochs if epoch.modularity is not None],
        "acc": [epoch.metrics["acc"] for epoch in found.epochs if epoch.metrics],
    }


def _without_curves(result: dict[str, Any]) -> dict[str, Any]:
    """For the records, which have each epoch already."""
    seeds = [{k: v for k, v in seed.items() if k not in _CURVES} for seed in result["seeds"]]
    return {**result, "seeds": seeds}


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
