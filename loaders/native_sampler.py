"""The native sampler behind PyG's outputs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.sampler import HeteroSamplerOutput
from torch_geometric.typing import NodeType

from gnnsys.errors import ArgumentError, DTypeError, StorageError
from gnnsys.loaders.typed_graph import TypedGraph
from gnnsys.loaders.user_graph import as_times
from gnnsys.system.extension import core

__all__ = ["Draws", "NativeSampler", "as_seed_ids"]

_ID_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Draws(NamedTuple):
    """How neighbours are drawn, and the words below 2**64 that the draws are made from.

    The seeds draw as the nodes that hop ``first_hop`` expands. ``window`` and ``newest`` are what
    ``limits_by_relation`` gives.
    """

    replace: bool
    disjoint: bool
    last: bool
    labor: bool
    seed: int
    epoch: int
    group: int
    first_hop: int = 0
    window: Sequence[int] = ()
    newest: Sequence[int] = ()


class NativeSampler:
    """The native sampler of a graph, made when it is first used, by whichever thread.

    Several threads may sample at once. It holds on to the arrays that it was made over; where the
    graph has got other ones, or torch has moved them, it is made anew.
    """

    def __init__(self, graph: TypedGraph, threads: int, isa: str) -> None:
        self._graph = graph
        self._threads = threads
        self._isa = isa
        self._making = threading.Lock()
        self._made: tuple[core.Sampler, list[int]] | None = None

    def get(self) -> core.Sampler:
        """The sampler over the graph's arrays of now."""
        made = self._made  # what is made needs no lock, which a fork might copy locked
        if made is None or made[1] != self._addresses():
            with self._making:
                addresses = self._addresses()
                made = self._made
                if made is None or made[1] != addresses:
                    made = self._made = (self._graph.native(self._threads, self._isa), addresses)
        return made[0]

    def _addresses(self) -> list[int]:
        arrays = [array.data_ptr() for array in self._graph.arrays()]
        return [*arrays, *(id(file.native) for file in self._graph.files())]

    def sample(
        self,
        seeds: dict[NodeType | None, Tensor],
        times: dict[NodeType | None, Tensor] | None,
        fanouts: list[list[int]],
        draws: Draws,
        induced: bool = False,
    ) -> HeteroSamplerOutput:
        """One batch; the dicts' key is None where the graph has no types.

        Args:
            seeds: (n,) node ids by type.
            times: (n,) times of the seeds; None to take those of their nodes. Ignored in a graph
                without times.
            fanouts: for each relation and hop.
            draws: how to draw; ``disjoint`` where the graph has times.
            induced: whether to give all edges among the sampled nodes, as torch-sparse does with
                ``directed=False``; hops are not counted then.

        Raises:
            ArgumentError: seeds outside the graph or of an unknown type, or without a time.
            DTypeError: seeds that are no integers.
            FileFormatError: the graph's file became shorter.
            StorageError: the graph's file cannot be read.
        """
        self._graph.check_files()
        given = times if times is not None and self._graph.is_temporal else {}
        native = self.get()
        request = [self._seeds_of(kind, ids, given.get(kind)) for kind, ids in seeds.items()]
        try:
            node, batch, edge_index, edge, nodes_per_hop, edges_per_hop = native.sample(
                request, fanouts, *draws
            )
            if induced:
                edge_index, edge = native.induce(node)
        except StorageError:
            self._graph.check_files()
            raise
        except (IndexError, ValueError, RuntimeError) as error:
            raise ArgumentError(str(error)) from error
        nodes, edges = self._graph.node_types, self._graph.edge_types
        pairs = [torch.from_numpy(pair) for pair in edge_index]  # (2, edges) each
        return HeteroSamplerOutput(
            node=_tensors(nodes, node),
            row={key: pair[0] for key, pair in zip(edges, pairs, strict=True)},
            col={key: pair[1] for key, pair in zip(edges, pairs, strict=True)},
            edge=_tensors(edges, edge),
            batch=None if batch is None else _tensors(nodes, batch),
            num_sampled_nodes=None if induced else dict(zip(nodes, nodes_per_hop, strict=True)),
            num_sampled_edges=None if induced else dict(zip(edges, edges_per_hop, strict=True)),
        )

    def _seeds_of(self, kind: NodeType | None, ids: Tensor, time: Tensor | None) -> tuple[Any, ...]:
        name = "seeds" if kind is None else f"seeds of {kind!r}"
        if kind not in self._graph.node_types:
            raise ArgumentError(f"{name}: the graph has the node types {self._graph.node_types}")
        number = self._graph.node_types.index(kind)
        ids = as_seed_ids(name, ids)
        count = self._graph.num_nodes[number]
        if self._graph.num_nodes != [count]:  # the native message tells only a type's number
            outside = ((ids < 0) | (ids >= count)).nonzero()
            if len(outside):
                place = int(outside[0])
                raise ArgumentError(
                    f"{name}: seed {int(ids[place])} at position {place} is outside the graph's "
                    f"nodes [0, {count})"
                )
        if time is not None:
            time = as_times(f"times of the {name}", time, len(ids))
        elif self._graph.is_temporal and self._graph.node_time[number] is None:
            raise ArgumentError(
                f"{name}: have no times, and the graph has none for these nodes; give each seed "
                "its time (input_time or edge_label_time)"
            )
        return number, ids.numpy(), None if time is None else time.numpy()


def as_seed_ids(name: str, ids: Tensor) -> Tensor:
    """Seeds of any integer type as (n,) int64, contiguous.

    Raises:
        DTypeError: they are no integers.
    """
    if ids.dtype not in _ID_DTYPES and len(ids):  # torch.tensor([]) has real numbers
        raise DTypeError(f"{name}: dtype {ids.dtype}, expected node ids")
    return ids.to(torch.int64).contiguous()


def _tensors(keys: Sequence[Any], arrays: Sequence[Any]) -> dict[Any, Tensor]:
    return {key: torch.from_numpy(array) for key, array in zip(keys, arrays, strict=True)}
