"""How a model is trained and evaluated, and how on the full graph."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from gnnsys.config.resolve import Run
from gnnsys.counters import Counters
from gnnsys.errors import GnnsysError
from gnnsys.loaders.static_shapes import Sizes
from gnnsys.nn.checkpoint import restore_tables
from gnnsys.system.once import warn_once
from gnnsys.system.progress import Progress
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.divergence import all_finite
from gnnsys.training.metrics import make_loss, measure
from gnnsys.training.models import NodeClassifier
from gnnsys.training.optimisation import make_optimizer, sparse_weights
from gnnsys.training.step_parts import make_autocast
from gnnsys.training.task import Part

if TYPE_CHECKING:
    from gnnsys.offload import ActivationOffload, StepStats

__all__ = [
    "BLOCK",
    "AskedToEndError",
    "FullBatch",
    "Steps",
    "WholeGraph",
]

_log = logging.getLogger(__name__)

BLOCK = 1 << 16
"""Nodes whose logits are handed out at a time."""


class AskedToEndError(GnnsysError):
    """Leaves an evaluation that takes long, for a run that was asked to end."""


class Steps(ABC):
    """One way to train and to evaluate; what is not said otherwise is that of one process, whose
    model it is."""

    optimizer: torch.optim.Optimizer
    served: Counters
    """Rows and bytes served for what was trained on and evaluated, not for batches made ahead."""

    reads: Mapping[str, float] | None = None
    """Counts of the caches and reads of all ranks so far; None where this process has them all."""

    load_seconds: float = 0.0
    """For which training waited for batches in this process; none where the whole graph is one."""

    divides_state: bool = False
    """Whether ``weights`` and ``optimizer_state`` are parts, those of this process."""

    batches_a_step: int = 1
    """Ranks that share the batches take one each."""

    test_at_end: bool = False
    """Whether the test nodes are to be scored once, by the best weights at the end."""

    progress: Progress | None = None
    """Told how far an evaluation is, where training is on mini-batches."""

    padded_sizes: Sequence[Sizes | None] | None = None
    """For each rank, nodes and edges of each hop of its batch trained on last, where batches are
    padded; and of those to come, unless one of them is larger."""

    offload: ActivationOffload | None = None
    """What activations leave memory by."""

    _offloaded: StepStats | None = None
    """Of the last step that was foretold; of the first before there is one."""

    _dataset: NodeDataset
    _model: nn.Module

    @abstractmethod
    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        """The batches of an epoch (from 0) from number ``first`` on."""

    @abstractmethod
    def num_batches(self) -> int:
        """Batches of an epoch."""

    def step(self, batch: Any) -> tuple[float, int]:
        """``train``, where activations leave memory if they are to."""
        if self.offload is None:
            return self.train(batch)
        with self.offload:
            told = self.train(batch)
        stats = self.offload.stats
        if self._offloaded is None or stats.predicted_peak is not None:
            self._offloaded = stats
        return told

    @abstractmethod
    def train(self, batch: Any) -> tuple[float, int]:
        """One step; returns the mean loss and the number of seeds it is over, on all ranks."""

    @abstractmethod
    def logits(self, nodes: Tensor) -> Iterator[Tensor]:
        """Of seeds, as ``NodeTask.nodes`` has them, block by block (n, classes), on the CPU, by the
        weights as they are."""

    def evaluate(self, metrics: Iterable[str], part: Part) -> dict[str, float]:
        """Metrics of the seeds of a part, by the weights as they are; none without labels."""
        task = self._dataset.node_task
        if not task.has_truth(part):
            warn_once(_log, "%s: no %s label is known, so there is no score of it", task.name, part)
            return {}
        nodes = task.nodes(part)
        return measure(metrics, self.logits(nodes), task.labels, nodes)

    def inputs(self, batch: Any) -> Any:
        """Features ``x`` and node ids ``n_id`` that a step on a batch took, if they are at hand."""
        return batch

    @contextmanager
    def with_weights(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """Evaluates by other weights meanwhile."""
        last = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self._model.load_state_dict(weights)
        self.forget()
        try:
            yield
        finally:
            self._model.load_state_dict(last)
            self.forget()

    def weights(self) -> dict[str, Tensor]:
        """Of the model, by the names that it has in one process."""
        return self._model.state_dict()

    def keep_best(self, epoch: int) -> dict[str, Tensor]:
        """A copy of ``weights`` as they are, which are the best so far."""
        return {name: tensor.detach().clone() for name, tensor in self.weights().items()}

    def is_finite(self) -> bool:
        """Whether no weight of this process is NaN or infinite."""
        return all_finite(p for group in self.optimizer.param_groups for p in group["params"])

    def committing(self, checkpoint: Path) -> AbstractContextManager[dict[str, Any]]:
        """Saves weights that lie in files together with a checkpoint that is written inside, and
        has what this yields; or neither."""
        return nullcontext({})

    def restore(self, tables: Mapping[str, Any], best_epoch: int, checkpoint: Path) -> None:
        """Goes back to the weights in files that ``committing`` saved with a checkpoint; here are
        none."""
        restore_tables(tables, {}, checkpoint)

    def optimizer_state(self) -> dict[str, Any]:
        """What the optimizer carries from step to step."""
        return self.optimizer.state_dict()

    def snapshot_epoch(self) -> int | None:
        """The epoch before which the rows of ``snapshot`` were computed, from 0; None without."""
        return None

    def snapshot(self) -> dict[int, dict[str, Tensor]]:
        """What else the next step depends on: rows of an earlier epoch, as each rank of this
        process has them."""
        return {}

    def load(
        self,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        snapshot: Iterable[Mapping[str, Tensor]] | None,
        epoch: int,
    ) -> None:
        """Goes on from a state, at an epoch from 0."""
        self._model.load_state_dict(model)
        self.optimizer.load_state_dict(dict(optimizer))

    @abstractmethod
    def forget(self) -> None:
        """The weights are others: what was computed by them is void."""

    def evaluation(self) -> dict[str, Any]:
        """How the run is evaluated, for JSON, where there is a choice."""
        return {}

    def padding(self) -> dict[str, Any]:
        """How much of the batches is padding, for JSON, where they are padded."""
        return {}

    def end_offload(self) -> dict[str, Any]:
        """Removes the file of activations; what they did in the last step that was foretold, for
        JSON: the last mini-batch of an epoch, which is smaller, seldom is."""
        if self.offload is not None:
            self.offload.close()
        return {} if self._offloaded is None else self._offloaded.as_dict()

    def facts(self) -> dict[str, Any]:
        """What there is to tell of the last epoch, for JSON."""
        return {}

    def ranks(self) -> list[dict[str, Any]]:
        """What each of several ranks that share mini-batches did and needed, for JSON."""
        return []

    def any_rank(self, wish: bool) -> bool:
        """Whether a rank of the run has a wish; all come to the same answer."""
        return wish


class WholeGraph(Steps):
    """Training whose every step takes the whole graph: one batch an epoch."""

    _logits: Tensor | None = None
    """Of all nodes, by the weights as they are; a step makes them void."""

    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        return iter([None][first:])

    def num_batches(self) -> int:
        return 1

    def forget(self) -> None:
        self._logits = None

    def logits(self, nodes: Tensor) -> Iterator[Tensor]:
        if self._logits is None:
            self._logits = self._compute_all()
        for part in nodes.split(BLOCK):
            yield self._logits[part]

    @abstractmethod
    def _compute_all(self) -> Tensor:
        """(nodes, classes), on the CPU."""


class FullBatch(WholeGraph):
    """Every step computes the whole graph."""

    def __init__(self, run: Run, dataset: NodeDataset, model: NodeClassifier) -> None:
        config, device, task = run.config, run.device, dataset.node_task
        self.optimizer = make_optimizer(config, model.parameters(), sparse_weights(model))
        self._loss_of = make_loss(config, task.labels, task.train, task.num_classes)
        self._dataset = dataset
        self._x = dataset.features.materialize()
        self._edge_index = dataset.edge_index().to(device)
        self._train = task.train.to(device)
        self._labels = task.labels.to(device)[self._train]
        self._model = model
        self._autocast = make_autocast(config, device)
        self.served = dataset.features.counters

    def train(self, batch: Any) -> tuple[float, int]:
        self._model.train()
        self._logits = None
        self.optimizer.zero_grad()
        with self._autocast:
            out = self._model(self._x, self._edge_index)
        loss = self._loss_of(out[self._train].float(), self._labels)
        loss.backward()
        self.optimizer.step()
        return loss.item(), len(self._train)

    def inputs(self, batch: Any) -> Any:
        return Data(x=self._x, n_id=torch.arange(len(self._x)))

    @torch.no_grad()
    def _compute_all(self) -> Tensor:
        self._model.eval()
        return self._model(self._x, self._edge_index).cpu()
