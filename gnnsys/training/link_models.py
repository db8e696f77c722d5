"""Models that score links: an encoder, which gives embeddings of nodes, and a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn.module_dict import ModuleDict

from gnnsys.dataset.format import EdgeType
from gnnsys.training.hetero_models import HeteroEncoder

__all__ = ["HeteroEmbedder", "LinkModel"]


class HeteroEmbedder(HeteroEncoder):
    """Embeddings of some node types of a heterogeneous graph: a linear layer on the rows of each.

    Args:
        model: rgcn, rgat, hgt, sage or gat.
        kinds: the node types.
        **shape: the other arguments of ``HeteroEncoder``.

    >>> net = HeteroEmbedder(
    ...     "rgcn", ["a"], in_channels={"a": 3}, num_nodes={"a": 2}, edge_types=[("a", "to", "a")],
    ...     hidden=4, layers=1,
    ... )
    >>> net({"a": torch.ones(2, 3)}, {("a", "to", "a"): torch.tensor([[0], [1]])})["a"].shape
    torch.Size([2, 4])
    """

    def __init__(self, model: str, kinds: Sequence[str], **shape: Any) -> None:
        super().__init__(model, **shape)
        hidden = shape["hidden"]
        self.heads = ModuleDict({kind: nn.Linear(hidden, hidden) for kind in dict.fromkeys(kinds)})

    def forward(
        self,
        x: Mapping[str, Tensor],
        edge_index: Mapping[EdgeType, Tensor],
        n_id: Mapping[str, Tensor] | None = None,
        num_sampled_nodes: Mapping[str, list[int]] | None = None,
        num_sampled_edges: Mapping[EdgeType, list[int]] | None = None,
    ) -> dict[str, Tensor]:
        """(nodes, hidden) of each of the node types; arguments as of ``HeteroEncoder.rows_of``."""
        sizes = num_sampled_nodes, num_sampled_edges
        rows = self.rows_of([*self.heads.keys()], x, edge_index, n_id, *sizes)
        return {kind: self.heads[kind](each) for kind, each in rows.items()}

    def results(
        self, x: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor]
    ) -> dict[str, Tensor]:
        """See ``HeteroModel.results``."""
        return self(x, edge_index)


class LinkModel(nn.Module):
    """Scores links by the embeddings of their ends: ``sum_d w_d * source_d * target_d``.

    With w = 1 that is the inner product. A trained w is the relation's vector of DistMult (Yang et
    al.: "Embedding Entities and Relations for Learning and Inference in Knowledge Bases", ICLR
    2015, eq. 3), of one relation.

    Args:
        encoder: gives (nodes, width) embeddings.
        width: of these.
        decoder: "dot" or "distmult".

    >>> model = LinkModel(nn.Identity(), width=2, decoder="distmult")
    >>> model.queries(torch.tensor([[1.0, 2.0]])) @ torch.ones(2)
    tensor([3.], grad_fn=<MvBackward0>)
    """

    def __init__(self, encoder: nn.Module, width: int, decoder: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.relation = nn.Parameter(torch.ones(width)) if decoder == "distmult" else None

    def forward(self, *inputs: Any) -> Any:
        """What the encoder gives of them."""
        return self.encoder(*inputs)

    def queries(self, sources: Tensor) -> Tensor:
        """(n, width) embeddings of sources to what targets' are multiplied with."""
        return sources if self.relation is None else sources * self.relation
