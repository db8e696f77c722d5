"""Training on sampled mini-batches, which is evaluated exactly or on samples, too."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gnnsys.config.resolve import Run
from gnnsys.config.train import TrainConfig
from gnnsys.counters import Counters
from gnnsys.loaders import LinkNeighborLoader, NeighborLoader, NeighborSampler
from gnnsys.loaders.static_shapes import Padding, Sizes
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.divided_layers import DividedLayers
from gnnsys.training.evaluation import (
    Evaluation,
    Scope,
    sampled_test_waits,
    scope_of,
    warn_of_sums,
)
from gnnsys.training.exact_inference import run_layers
from gnnsys.training.hetero_models import HeteroModel
from gnnsys.training.link_models import LinkModel
from gnnsys.training.memory import activation_folder, evaluation_of, reclaim_activations
from gnnsys.training.metrics import Loss, make_loss
from gnnsys.training.model_layers import ModelLayer, model_layers
from gnnsys.training.models import NodeClassifier
from gnnsys.training.optimisation import make_optimizer, sparse_weights
from gnnsys.training.packing import EpochSamples
from gnnsys.training.seed_times import facts_at_times
from gnnsys.training.step_parts import compile_model, make_autocast, make_sampler
from gnnsys.training.steps import BLOCK, Steps
from gnnsys.training.task import PARTS

__all__ = ["MiniBatch", "note_served"]

_log = logging.getLogger(__name__)


class MiniBatch(Steps):
    """Trains on sampled neighbourhoods; evaluates exactly, or on sampled ones too.

    Args:
        run: what to do.
        dataset: what on.
        model: its weights are trained.
        evaluation: how it is evaluated, where that was planned.
    """

    _rank, _world = 0, 1
    """Which of how many ranks this is that share the batches."""

    _divided: DividedLayers | None = None
    """How ranks evaluate exactly together."""

    _sizes: Sizes | None = None
    """Nodes and edges of each hop of this rank's last batch, where batches are padded."""

    def __init__(
        self,
        run: Run,
        dataset: NodeDataset,
        model: NodeClassifier | HeteroModel | LinkModel,
        evaluation: Evaluation | None = None,
    ) -> None:
        config, device = run.config, run.device
        self.optimizer = make_optimizer(config, model.parameters(), sparse_weights(model))
        self._loss_of = self._make_loss(config, dataset)
        self._config = config
        self._dataset = dataset
        self._model = model
        self._trained: Callable[..., Tensor] = (
            compile_model(model, device) if config.compile else model
        )
        self._device = device
        self._autocast = make_autocast(config, device)
        self._sampler = self._make_sampler()
        self._loader = self._make_train_loader()
        self._samples = EpochSamples(config, dataset, self._sampler)
        self.served = Counters()
        self._evaluation = self._make_evaluation() if evaluation is None else evaluation
        if self._evaluation is not None:
            warn_of_sums(config, dataset.graph)
            reclaim_activations(config)
            self.test_at_end = self._evaluation.test_at_end
        else:
            self.test_at_end = self._test_waits()
        self._layers: list[ModelLayer] | None = None  # of the model, taken apart
        self._scope: Scope | None = None  # of which there are logits, by the weights as they are
        self._logits: Tensor | None = None
        self._folder: ScratchFolder | None = None  # where those lie

    def _make_loss(self, config: TrainConfig, dataset: NodeDataset) -> Loss:
        task = dataset.node_task
        return make_loss(config, task.labels, task.train, task.num_classes)

    def _make_sampler(self) -> NeighborSampler:
        dataset = self._dataset
        if dataset.time_attr is None:
            return make_sampler(self._config, dataset.graph)
        return make_sampler(self._config, dataset.source, time_attr=dataset.time_attr)

    def _make_train_loader(self) -> NeighborLoader | LinkNeighborLoader:
        return self._make_loader(self._dataset.node_task.train, trains=True)

    def _make_evaluation(self) -> Evaluation | None:
        """How scores are made where that was not planned; None for sampled neighbourhoods."""
        config = self._config
        return None if config.eval == "sampled" else evaluation_of(config, self._dataset)

    def _test_waits(self) -> bool:
        """Whether test nodes are scored once, where no exact evaluation was planned."""
        if self._config.eval == "layerwise":
            return False
        return sampled_test_waits(*map(self._dataset.task.num_seeds, PARTS))

    def _seeds(self, nodes: Tensor) -> Any:
        """Nodes as a loader takes them."""
        return nodes

    def _of_seeds(self, batch: Any) -> Any:
        """The part of a batch that has its seeds and their labels."""
        return batch

    def _make_loader(self, nodes: Tensor, trains: bool) -> NeighborLoader:
        task = self._dataset.node_task
        return NeighborLoader(
            self._dataset.source,
            self._sampler.num_neighbors,
            input_nodes=self._seeds(task.node_ids(nodes)),
            input_time=task.times(nodes),
            input_id=None if task.seed_nodes is None else nodes,
            time_attr=self._dataset.time_attr,
            neighbor_sampler=self._sampler,
            batch_size=self._config.batch_size,
            shuffle=trains,
            static_shapes=self._config.static_shapes and trains,
            seed=self._config.seed,
            seed_block=self._config.seed_block if trains else 1,
            threads=self._config.threads,
            transform=partial(note_served, self._dataset),
            rank=self._rank,
            world_size=self._world,
            filter_per_worker=True,  # right after the batch's rows, in the thread that gathers
        )

    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        self._loader.set_epoch(self._samples.begin(epoch, first, self.progress), first)
        known = dict(enumerate(self.padded_sizes or ()))  # of a run that had other ranks, perhaps
        if (sizes := known.get(self._rank)) is not None:
            self._loader.padded_sizes = sizes
        return self._announced(_Timed(self, self._loader))

    def _announced(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same batches; who reads rows of its own for them is told of each beforehand."""
        return iter(batches)

    def num_batches(self) -> int:
        return -(-self._dataset.task.num_seeds("train") // self._config.batch_size)

    def train(self, batch: Any) -> tuple[float, int]:
        self._begin_step()
        loss = self._loss(batch)
        loss.backward()
        self.optimizer.step()
        self.padded_sizes = [self._sizes]
        return loss.item(), self._num_seeds(batch)

    def _num_seeds(self, batch: Any) -> int:
        found: int = self._of_seeds(batch).batch_size
        return found

    def _begin_step(self) -> None:
        self._model.train()
        self.forget()
        self.optimizer.zero_grad()

    def _loss(self, batch: Any) -> Tensor:
        self.served = batch.served
        batch = batch.to(self._device)
        with self._autocast:
            out = self._forward(batch, self._trained)
        if self._config.static_shapes:
            self._sizes = batch.num_sampled_nodes, batch.num_sampled_edges
        if self._config.precision == "bf16":
            out = out.float()
        labels = self._dataset.node_task.labels_in(self._of_seeds(batch))[: len(out)]
        return self._loss_of(out, labels.to(self._device))

    def _forward(self, batch: Any, model: Callable[..., Tensor]) -> Tensor:
        sizes = batch.num_sampled_nodes, batch.num_sampled_edges
        out = model(batch.x, batch.edge_index, *sizes, self._degrees(batch.n_id))
        return out[: batch.batch_size]

    def _degrees(self, ids: Tensor) -> Tensor | None:
        """Of nodes in the whole graph, where a sum is scaled by them."""
        if self._config.sums != "scaled":
            return None
        indptr, ids = self._dataset.graph.indptr, ids.cpu()
        return (indptr[ids + 1] - indptr[ids]).to(self._device)

    @torch.no_grad()
    def logits(self, nodes: Tensor) -> Iterator[Tensor]:
        if self._evaluation is None:
            self._model.eval()
            done = 0
            for batch in self._announced(self._make_loader(nodes, trains=False)):
                yield self._forward(batch.to(self._device), self._model).cpu()
                done = min(done + self._num_seeds(batch) * self._world, len(nodes))
                if self.progress is not None:
                    self.progress("sampled batches: nodes", done, len(nodes))
        else:
            yield from self._kept(nodes, *self._exact(nodes, self._evaluation))
        self.served = self._dataset.served()

    def forget(self) -> None:
        self._logits = self._scope = self._folder = None

    @staticmethod
    def _kept(nodes: Tensor, scope: Scope, logits: Tensor) -> Iterator[Tensor]:
        return (logits[scope.places(part)] for part in nodes.split(BLOCK))

    def _exact(self, nodes: Tensor, evaluation: Evaluation) -> tuple[Scope, Tensor]:
        """A scope in which nodes are, and (nodes of the scope, classes)."""
        scope = evaluation.scope
        if evaluation.test_at_end and nodes is self._dataset.node_task.test:
            columns = self._dataset.features.shape[1]
            scope = scope_of(self._config, self._dataset.graph, (nodes,), columns)
        if self._logits is None or self._scope is not scope:
            self.forget()
            self._scope, self._logits = scope, self._compute(scope)
        return scope, self._logits

    def _compute(self, scope: Scope) -> Tensor:
        dataset = self._dataset
        self._model.eval()
        if self._layers is None:
            self._layers = model_layers(self._model, dataset.graph)
        sizes = scope.sizes(dataset.graph.num_nodes, self._config.layers)
        self._folder = self._make_folder(sizes)
        layers = run_layers(
            self._layers,
            dataset.features,
            dataset.graph,
            device=self._device,
            out=self._folder.path / "out.npy" if self._folder else None,
            threads=self._config.threads,
            only=scope.layers,
            progress=self.progress or (lambda what, done, total: None),
            ranks=self._divided,
            reads=self._evaluation.reads if self._evaluation else None,
        )
        return deque(layers, maxlen=1).pop()  # two are there at a time

    def _make_folder(self, rows: Sequence[int]) -> ScratchFolder | None:
        return activation_folder(self._config, self._dataset.task.outputs, rows)

    def padding(self) -> dict[str, Any]:
        found, sizes = self._padding(), (self.padded_sizes or [None])[0]
        if found is None or sizes is None:
            return {}
        shares = {"node_share": found.node_share, "edge_share": found.edge_share}
        return {**shares, "nodes": sizes[0], "edges": sizes[1]}

    def _padding(self) -> Padding | None:
        """Of the batches that all ranks have made so far."""
        return self._loader.padding

    def facts(self) -> dict[str, Any]:
        return {"padding": told} if (told := self.padding()) else {}

    def evaluation(self) -> dict[str, Any]:
        if self._evaluation is not None:
            return self._evaluation.facts()
        dataset = self._dataset
        return {} if dataset.time_attr is None else facts_at_times(dataset.task, self.test_at_end)


class _Timed(Iterator[Any]):
    """Batches of a loader; how long each was waited for is added to ``steps.load_seconds``."""

    def __init__(self, steps: Steps, loader: Iterable[Any]) -> None:
        self._steps = steps
        self._batches = iter(loader)

    def __next__(self) -> Any:
        began = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._steps.load_seconds += time.perf_counter() - began


def note_served(dataset: NodeDataset, batch: Any) -> Any:
    """The batch, with what has been served by now."""
    batch.served = dataset.served()
    return batch
