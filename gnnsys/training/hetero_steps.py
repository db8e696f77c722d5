"""Training and evaluation on sampled mini-batches of graphs with several node or edge types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from gnnsys.config.resolve import Run
from gnnsys.loaders import NeighborSampler
from gnnsys.nn import Embedding
from gnnsys.nn.stored_weight import StoredWeight
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.divergence import all_finite
from gnnsys.training.embedding_tables import EmbeddingTables
from gnnsys.training.evaluation import Evaluation
from gnnsys.training.hetero_exact import exact_logits
from gnnsys.training.hetero_models import HeteroEncoder, HeteroModel
from gnnsys.training.step_parts import make_sampler
from gnnsys.training.steps import BLOCK, MiniBatch

__all__ = ["HeteroMiniBatch", "bad_inputs", "typed_inputs"]


class HeteroMiniBatch(MiniBatch):
    """``MiniBatch`` of a heterogeneous graph: seeds are of the target type, and scores are those of
    sampled neighbourhoods, or of all nodes layer by layer where ``--eval`` says so."""

    def __init__(self, run: Run, dataset: NodeDataset, model: HeteroModel) -> None:
        self._tables = EmbeddingTables(model, run.config.threads)
        super().__init__(run, dataset, model)

    def _make_sampler(self) -> NeighborSampler:
        dataset = self._dataset
        return make_sampler(self._config, dataset.source, time_attr=dataset.time_attr)

    def _make_evaluation(self) -> Evaluation | None:
        return None

    def _seeds(self, nodes: Tensor) -> Any:
        return self._dataset.target, nodes

    def _of_seeds(self, batch: HeteroData) -> Any:
        return batch[self._dataset.target]

    def _forward(self, batch: HeteroData, model: Callable[..., Tensor]) -> Tensor:
        out = model(*typed_inputs(batch))
        return out[: self._of_seeds(batch).batch_size]

    def _announced(self, batches: Iterable[HeteroData]) -> Iterator[HeteroData]:
        """Rows of a batch's embeddings are read from the disk while the one before is computed."""
        if not self._tables.stores:
            yield from batches
            return
        current = None
        for batch in batches:
            self._prefetch(batch)
            if current is not None:
                yield current
            current = batch
        if current is not None:
            yield current

    def _prefetch(self, batch: HeteroData) -> None:
        assert isinstance(self._model, HeteroEncoder)
        for kind, layer in self._model.inputs.items():
            if isinstance(layer, Embedding):
                layer.prefetch(batch[kind].n_id)

    def train(self, batch: HeteroData) -> tuple[float, int]:
        """See ``Steps.train``."""
        found = super().train(batch)
        self._tables.look_at_gradients()
        return found

    def is_finite(self) -> bool:
        """See ``Steps.is_finite``."""
        groups = self.optimizer.param_groups
        weights = (each for group in groups for each in group["params"])
        in_memory = (each for each in weights if not isinstance(each, StoredWeight))
        return self._tables.finite and all_finite(in_memory)

    def keep_best(self, epoch: int) -> dict[str, Tensor]:
        """See ``Steps.keep_best``; rows in files are copied where somebody will read the copy."""
        if self.test_at_end or self._config.out or self._config.resume:
            self._tables.keep_best(epoch)
        return super().keep_best(epoch)

    @contextmanager
    def with_weights(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """See ``Steps.with_weights``; rows in files are those that were kept last."""
        with self._tables.judging(), super().with_weights(weights):
            yield

    def committing(self, checkpoint: Path) -> AbstractContextManager[dict[str, Any]]:
        """See ``Steps.committing``."""
        return self._tables.committing(checkpoint)

    def restore(self, tables: Mapping[str, Any], best_epoch: int, checkpoint: Path) -> None:
        """See ``Steps.restore``."""
        self._tables.restore(tables, best_epoch, checkpoint)

    def facts(self) -> dict[str, Any]:
        """See ``Steps.facts``; with the rows of embeddings in files that were read, by tier."""
        if not self._tables.stores:
            return super().facts()
        return {**super().facts(), "embeddings": self._tables.counters().as_dict()}

    @torch.no_grad()
    def logits(self, nodes: Tensor) -> Iterator[Tensor]:
        """See ``Steps.logits``."""
        if self._config.eval != "layerwise":
            yield from super().logits(nodes)
            return
        if self._logits is None:
            assert isinstance(self._model, HeteroModel)
            told = self.progress or (lambda what, done, total: None)
            self._logits, self._folder = exact_logits(
                self._config, self._dataset, self._model, told
            )
        for part in self._dataset.node_task.node_ids(nodes).split(BLOCK):
            yield self._logits[part]
        self.served = self._dataset.served()

    def evaluation(self) -> dict[str, Any]:
        """See ``Steps.evaluation``; nothing of sampled neighbourhoods, but of seeds with times."""
        if self._config.eval != "layerwise":
            return super().evaluation()
        nodes = self._dataset.task.num_seeds("val") + self._dataset.task.num_seeds("test")
        return {
            "way": "layerwise",
            "nodes": nodes,
            "test_at_end": self.test_at_end,
            "why": f"layerwise, {nodes:,} nodes scored with all their neighbours",
        }

    def inputs(self, batch: HeteroData) -> Any:
        """See ``bad_inputs``."""
        return bad_inputs(batch)


def typed_inputs(batch: HeteroData) -> tuple[dict[Any, Any], ...]:
    """What a ``HeteroModel`` takes of a batch."""
    nodes, edges = (
        batch.node_items(),
        [item for item in batch.edge_items() if "edge_index" in item[1]],
    )
    return (
        {kind: store.x for kind, store in nodes if "x" in store},
        {kind: store.edge_index for kind, store in edges},
        {kind: store.n_id for kind, store in nodes},
        {kind: store.num_sampled_nodes for kind, store in nodes},
        {kind: store.num_sampled_edges for kind, store in edges},
    )


def bad_inputs(batch: HeteroData) -> Data:
    """Inputs of the first node type whose features are not finite; else of none."""
    for kind, store in batch.node_items():
        if "x" in store and not all_finite([store.x]):
            return Data(x=store.x, n_id=store.n_id, of=f" of type {kind!r}")
    return Data()
