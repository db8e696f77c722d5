"""Training and evaluation on sampled mini-batches of graphs with several node or edge types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from gnnsys.loaders import NeighborSampler
from gnnsys.training.divergence import all_finite
from gnnsys.training.evaluation import Evaluation
from gnnsys.training.hetero_exact import exact_logits
from gnnsys.training.hetero_models import HeteroModel
from gnnsys.training.step_parts import make_sampler
from gnnsys.training.steps import BLOCK
from gnnsys.training.table_steps import TableMiniBatch

__all__ = ["HeteroMiniBatch", "bad_inputs", "typed_inputs"]


class HeteroMiniBatch(TableMiniBatch):
    """``MiniBatch`` of a heterogeneous graph: seeds are of the target type, and scores are those of
    sampled neighbourhoods, or of all nodes layer by layer where ``--eval`` says so."""

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
    nodes = batch.node_items()
    edges = [(kind, store) for kind, store in batch.edge_items() if "edge_index" in store]
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
