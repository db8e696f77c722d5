"""The training loop and the command ``gnnsys train``."""

from __future__ import annotations

import dataclasses
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
import torch_geometric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from torch_geometric.data import Data
from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy

from gnnsys._version import __version__
from gnnsys.config import TrainConfig
from gnnsys.counters import Counters
from gnnsys.dataset import NodeDataset, load_dataset
from gnnsys.errors import ArgumentError
from gnnsys.loaders import NeighborLoader
from gnnsys.models import NodeClassifier

__all__ = ["EpochRecord", "TrainResult", "run_training"]


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch gave."""

    epoch: int
    """From 1."""

    loss: float
    """Mean cross entropy over the training nodes."""

    val: float
    """Validation score after the epoch."""

    test: float
    """Test score at the best validation epoch so far."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run gave."""

    config: TrainConfig
    """With every default filled in."""

    metric: str
    """accuracy or rocauc: what the best epoch was chosen by."""

    history: tuple[EpochRecord, ...]

    best_epoch: int
    """The first epoch with the best validation score, from 1."""

    best_val: dict[str, float]
    """Validation scores by metric at the best epoch; accuracy is always among them."""

    best_test: dict[str, float]
    """Test scores at the best epoch, likewise."""

    seconds: float
    """Wall time of training and validation."""

    counters: Counters
    """Feature rows and bytes served, by tier."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: scores, time, rows and bytes by tier, memory (bytes), versions, options."""
        return {
            **{f"test_{_JSON_NAMES[name]}": value for name, value in self.best_test.items()},
            **{f"val_{_JSON_NAMES[name]}": value for name, value in self.best_val.items()},
            "metric": self.metric,
            "best_epoch": self.best_epoch,
            "epochs": len(self.history),
            "loss": self.history[-1].loss,
            "seconds": self.seconds,
            **self.counters.as_dict(),
            "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "versions": {
                "gnnsys": __version__,
                "torch": torch.__version__,
                "torch_geometric": torch_geometric.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "config": dataclasses.asdict(self.config),
        }


class _Steps(Protocol):
    """How an epoch is trained and nodes are classified."""

    def train_epoch(self) -> float:
        """Trains one epoch; returns the mean loss."""

    def scores(self, nodes: Tensor) -> Tensor:
        """Class scores (len(nodes), classes) of the nodes, on the CPU."""


def run_training(
    config: TrainConfig, on_epoch: Callable[[EpochRecord], None] = lambda record: None
) -> TrainResult:
    """Trains as ``config`` says; ``on_epoch`` is called after every epoch.

    The same config gives the same losses for a fixed torch, number of torch threads and
    instruction set. torch's global random state is left as it was.

    Raises:
        GnnsysError: a dataset that is not there, or options that do not fit it.
    """
    config = config.filled_in()
    device = _choose_device(config.device)
    dataset = load_dataset(
        config.dataset,
        config.root,
        split=config.split,
        seed=config.seed,
        threads=config.threads,
        device=device.type,
    )
    metric = _choose_metric(config, dataset)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = _make_model(config, dataset).to(device)
        make_steps = _FullBatch if config.full_batch else _MiniBatch
        return _fit(config, dataset, metric, make_steps(config, dataset, model, device), on_epoch)


def _fit(
    config: TrainConfig,
    dataset: NodeDataset,
    metric: str,
    steps: _Steps,
    on_epoch: Callable[[EpochRecord], None],
) -> TrainResult:
    labels = dataset.data.y
    names = dict.fromkeys(("accuracy", metric))

    def evaluate(nodes: Tensor) -> dict[str, float]:
        scores = steps.scores(nodes)
        return {name: _METRICS[name](scores, labels[nodes]) for name in names}

    history: list[EpochRecord] = []
    best_epoch, best_val, best_test = 0, {metric: -1.0}, {metric: 0.0}
    start = time.perf_counter()
    for epoch in range(1, (config.epochs or 0) + 1):
        loss = steps.train_epoch()
        val = evaluate(dataset.val)
        if val[metric] > best_val[metric]:
            best_epoch, best_val, best_test = epoch, val, evaluate(dataset.test)
        history.append(EpochRecord(epoch, loss, val[metric], best_test[metric]))
        on_epoch(history[-1])
    return TrainResult(
        config=config,
        metric=metric,
        history=tuple(history),
        best_epoch=best_epoch,
        best_val=best_val,
        best_test=best_test,
        seconds=time.perf_counter() - start,
        counters=dataset.features.counters,
    )


class _FullBatch:
    def __init__(
        self, config: TrainConfig, dataset: NodeDataset, model: NodeClassifier, device: torch.device
    ) -> None:
        self._x = dataset.features.materialize()
        self._edge_index = dataset.data.edge_index.to(device)
        self._train = dataset.train.to(device)
        self._labels = dataset.data.y.to(device)[self._train]
        self._scores: Tensor | None = None  # of all nodes, after the last epoch
        self._model = model
        self._optimizer = _make_optimizer(config, model)

    def train_epoch(self) -> float:
        self._model.train()
        self._scores = None
        self._optimizer.zero_grad()
        out = self._model(self._x, self._edge_index)[self._train]
        loss = F.cross_entropy(out, self._labels)
        loss.backward()
        self._optimizer.step()
        return loss.item()

    @torch.no_grad()
    def scores(self, nodes: Tensor) -> Tensor:
        if self._scores is None:
            self._model.eval()
            self._scores = self._model(self._x, self._edge_index).cpu()
        return self._scores[nodes]


class _MiniBatch:
    """Trains on sampled neighbourhoods and classifies on whole ones, which is exact."""

    def __init__(
        self, config: TrainConfig, dataset: NodeDataset, model: NodeClassifier, device: torch.device
    ) -> None:
        self._config = config
        self._dataset = dataset
        self._model = model
        self._device = device
        self._optimizer = _make_optimizer(config, model)
        self._loader = self._make_loader(dataset.train, list(config.fanouts or ()), shuffle=True)

    def _make_loader(self, nodes: Tensor, fanouts: list[int], shuffle: bool) -> NeighborLoader:
        return NeighborLoader(
            self._dataset.data,
            fanouts,
            input_nodes=nodes,
            batch_size=self._config.batch_size,
            shuffle=shuffle,
            seed=self._config.seed,
            threads=self._config.threads,
        )

    def _forward(self, batch: Data) -> Tensor:
        out: Tensor = self._model(
            batch.x, batch.edge_index, batch.num_sampled_nodes, batch.num_sampled_edges
        )
        return out[: batch.batch_size]

    def train_epoch(self) -> float:
        self._model.train()
        total = 0.0
        for batch in self._loader:
            batch = batch.to(self._device)
            self._optimizer.zero_grad()
            loss = F.cross_entropy(self._forward(batch), batch.y[: batch.batch_size])
            loss.backward()
            self._optimizer.step()
            total += loss.item() * batch.batch_size
        return total / len(self._dataset.train)

    @torch.no_grad()
    def scores(self, nodes: Tensor) -> Tensor:
        self._model.eval()
        hops = self._config.layers + self._model.extra_hops
        loader = self._make_loader(nodes, [-1] * hops, shuffle=False)
        return torch.cat([self._forward(batch.to(self._device)).cpu() for batch in loader])


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return float(multiclass_accuracy(scores, labels, scores.shape[1], average="micro"))


def _rocauc(scores: Tensor, labels: Tensor) -> float:
    return float(binary_auroc(scores.softmax(dim=1)[:, 1], labels))


_METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "accuracy": _accuracy,
    "rocauc": _rocauc,
}


_JSON_NAMES = {"accuracy": "acc", "rocauc": "rocauc"}


def _choose_metric(config: TrainConfig, dataset: NodeDataset) -> str:
    metric = dataset.metric if config.metric == "auto" else config.metric
    if metric == "rocauc" and dataset.num_classes != 2:
        raise ArgumentError(
            f"--metric rocauc: {dataset.name} has {dataset.num_classes} classes, expected 2; "
            "use --metric accuracy"
        )
    return metric


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("--device cuda: torch finds no CUDA device; use --device cpu")
    return torch.device(device)


def _make_model(config: TrainConfig, dataset: NodeDataset) -> NodeClassifier:
    return NodeClassifier(
        config.model,
        in_channels=dataset.features.shape[1],
        hidden=config.hidden or 0,
        out_channels=dataset.num_classes,
        layers=config.layers,
        dropout=config.dropout,
    )


def _make_optimizer(config: TrainConfig, model: NodeClassifier) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


# The command -------------------------------------------------------------------------------------


def run_command(config: TrainConfig) -> int:
    """``gnnsys train``: progress on standard error, the result on standard output."""
    with _progress(config) as on_epoch:
        result = run_training(config, on_epoch)
    if config.json:
        print(json.dumps(result.as_dict()))
    else:
        Console().print(_result_table(result))
    return 0


@contextmanager
def _progress(config: TrainConfig) -> Iterator[Callable[[EpochRecord], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"train {config.dataset}", total=config.filled_in().epochs, state="")

        def show(record: EpochRecord) -> None:
            state = f"loss {record.loss:.4f}  val {record.val:.4f}  test {record.test:.4f}"
            bar.update(task, advance=1, state=state)

        yield show


def _result_table(result: TrainResult) -> Table:
    config = result.config
    mode = "full batch" if config.full_batch else "mini-batches"
    table = Table(title=f"{config.model} on {config.dataset}, {mode}", show_header=False)
    for name, value in result.best_test.items():
        table.add_row(f"test {name}", f"{value:.4f}")
    for name, value in result.best_val.items():
        table.add_row(f"validation {name}", f"{value:.4f}")
    table.add_row("best epoch", f"{result.best_epoch} of {len(result.history)}")
    table.add_row("time", f"{result.seconds:.1f} s")
    for tier, served in result.counters.tiers().items():
        table.add_row(f"served by {tier}", f"{served.rows:,} rows, {served.bytes:,} bytes")
    return table
