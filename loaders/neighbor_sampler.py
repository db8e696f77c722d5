"""Uniform neighbour sampling as a PyG ``BaseSampler``."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, GraphStore
from torch_geometric.sampler import BaseSampler, NodeSamplerInput, SamplerOutput

from gnnsys import rng
from gnnsys._extension import core
from gnnsys.errors import ArgumentError, DTypeError, UnsupportedError
from gnnsys.loaders.topology import CSC

__all__ = ["NeighborSampler"]

_log = logging.getLogger(__name__)
_MASK64 = (1 << 64) - 1


class NeighborSampler(BaseSampler):
    """Samples in-neighbours hop by hop, in C++, the same for any number of threads.

    Semantics are those of PyG: seeds come first, nodes follow in the order in which they are
    sampled, each hop expands only the nodes that the hop before added, and an edge runs from the
    neighbour to the node that it was sampled for. Draws are counter-based (``gnnsys.rng``), so a
    batch can be replayed from (seed, epoch, group) alone.

    Args:
        data: PyG ``Data``, a ``CSC``, or PyG's ``(FeatureStore, GraphStore)``; homogeneous.
        num_neighbors: neighbours per node and hop, nearest the seeds first; -1 takes all.
        replace: whether to sample with replacement.
        seed: of the draws.
        threads: that sample; 0 for all cores this process may use.
        is_sorted: ``data.edge_index`` is sorted by target already.
        isa: "auto", or an instruction set of ``gnnsys._core.isas()``.

    Raises:
        ArgumentError, DTypeError: a fanout below -1, or edges outside the graph.
        UnsupportedError: heterogeneous data.

    >>> data = Data(edge_index=torch.tensor([[1, 2, 3], [0, 0, 1]]), num_nodes=4)
    >>> sampler = NeighborSampler(data, num_neighbors=[-1, -1])
    >>> out = sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([0])))
    >>> out.node.tolist(), out.row.tolist(), out.col.tolist()
    ([0, 1, 2, 3], [1, 2, 3], [0, 0, 1])
    """

    def __init__(
        self,
        data: Any,
        num_neighbors: Sequence[int],
        *,
        replace: bool = False,
        seed: int = 0,
        threads: int = 0,
        is_sorted: bool = False,
        isa: str = "auto",
        **later: Any,
    ) -> None:
        del later
        if threads < 0:
            raise ArgumentError(f"threads: {threads} < 0; give 0 for all cores or a number")
        self.graph = _as_csc(data, is_sorted)
        self.num_neighbors = _check_fanouts(num_neighbors)
        self.replace = replace
        self.seed = seed
        self.threads = threads or len(os.sched_getaffinity(0))
        self.isa = isa
        self.epoch: int | None = None
        self._first_group: int | None = None
        self._native = self._make_native()

    def _make_native(self) -> core.Sampler:
        graph = self.graph
        return core.Sampler(graph.indptr.numpy(), graph.indices.numpy(), self.threads, self.isa)

    @property
    def edge_permutation(self) -> Tensor | None:
        """The user's number of the edge at each position of the CSC."""
        return self.graph.perm

    def set_epoch(self, epoch: int) -> None:
        """Tells which epoch the batches to come belong to, so that each epoch draws anew.

        ``gnnsys.NeighborLoader`` does this by itself; PyG's ``NodeLoader`` does not.
        """
        self.epoch = epoch

    def sample(self, seeds: Tensor, group: int, epoch: int = 0) -> SamplerOutput:
        """One batch.

        Args:
            seeds: (n,) node ids of any integer type.
            group: number of the batch in its epoch.
            epoch: number of the epoch.

        Returns:
            SamplerOutput: ``edge`` holds positions in the CSC, which ``edge_permutation`` maps to
            the user's edges.

        Raises:
            ArgumentError: a seed outside the graph.
        """
        if seeds.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise DTypeError(f"seeds: dtype {seeds.dtype}, expected node ids")
        try:
            node, row, col, edge, nodes_per_hop, edges_per_hop = self._native.sample(
                seeds.to(torch.int64).contiguous().numpy(),
                self.num_neighbors,
                self.replace,
                self.seed & _MASK64,
                epoch & _MASK64,
                group & _MASK64,
            )
        except (IndexError, ValueError, RuntimeError) as error:
            raise ArgumentError(str(error)) from error
        return SamplerOutput(
            node=torch.from_numpy(node),
            row=torch.from_numpy(row),
            col=torch.from_numpy(col),
            edge=torch.from_numpy(edge),
            num_sampled_nodes=nodes_per_hop,
            num_sampled_edges=edges_per_hop,
        )

    def sample_from_nodes(
        self, inputs: NodeSamplerInput, group: int | None = None, epoch: int | None = None
    ) -> SamplerOutput:
        """One batch under PyG's ``NodeLoader``, which tells neither its number nor the epoch.

        The group is a hash of the batch's input ids, the epoch that of ``set_epoch``.
        """
        if inputs.time is not None:
            raise UnsupportedError("input_time: temporal sampling is not offered yet")
        if group is None:
            ids = inputs.node if inputs.input_id is None else inputs.input_id
            group = rng.hash_ids(ids.numpy())
            self._note_repetition(group)
        out = self.sample(inputs.node, group, (epoch if epoch is not None else self.epoch) or 0)
        out.metadata = (inputs.input_id, inputs.time)
        return out

    def _note_repetition(self, group: int) -> None:
        if self.epoch is not None or self._first_group == -1:
            return
        if self._first_group is None:
            self._first_group = group
        elif self._first_group == group:
            self._first_group = -1
            _log.warning(
                "the same batch was sampled again with the same draws: call "
                "sampler.set_epoch(epoch) before each epoch, or use gnnsys.NeighborLoader"
            )

    def sample_from_edges(self, *args: Any, **kwargs: Any) -> SamplerOutput:
        """Raises UnsupportedError: sampling for links is not offered yet."""
        raise UnsupportedError(
            "sampling from edges is not offered yet; use PyG's LinkNeighborLoader"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_native"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._native = self._make_native()

    def __repr__(self) -> str:
        return (
            f"NeighborSampler(num_neighbors={self.num_neighbors}, nodes={self.graph.num_nodes}, "
            f"edges={self.graph.num_edges})"
        )


def _as_csc(data: Any, is_sorted: bool) -> CSC:
    if isinstance(data, CSC):
        return data
    if isinstance(data, Data):
        edge_index = data.edge_index
        if edge_index is None:
            raise ArgumentError("data: has no edge_index to sample from")
        if isinstance(edge_index, EdgeIndex):
            edge_index = edge_index.as_tensor()
        return CSC.from_edge_index(edge_index, data.num_nodes, is_sorted)
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[1], GraphStore):
        return _from_graph_store(data[1])
    raise UnsupportedError(
        f"data: a {type(data).__name__}; this version samples homogeneous Data, CSC or "
        "(FeatureStore, GraphStore)"
    )


def _from_graph_store(store: GraphStore) -> CSC:
    if len({attr.edge_type for attr in store.get_all_edge_attrs()}) != 1:
        raise UnsupportedError("GraphStore: heterogeneous sampling is not offered yet")
    row, colptr, perm = store.csc()
    if isinstance(row, dict):
        row, colptr, perm = (next(iter(part.values())) for part in (row, colptr, perm))
    index = row if row.dtype in (torch.int32, torch.int64) else row.long()
    return CSC(colptr.long().contiguous(), index.contiguous(), perm)


def _check_fanouts(num_neighbors: Any) -> list[int]:
    if isinstance(num_neighbors, dict):
        raise UnsupportedError("num_neighbors: a dict; fanouts per edge type are not offered yet")
    if hasattr(num_neighbors, "get_mapped_values"):
        num_neighbors = num_neighbors.get_mapped_values()
    fanouts = [int(fanout) for fanout in num_neighbors]
    if any(fanout < -1 for fanout in fanouts):
        raise ArgumentError(f"num_neighbors: {fanouts}; each is -1 (all neighbours) or at least 0")
    return fanouts
