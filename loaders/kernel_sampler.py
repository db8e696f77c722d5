"""Neighbour sampling by the kernels of a device, bit for bit that of the native sampler."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch_geometric.sampler import HeteroSamplerOutput
from torch_geometric.typing import NodeType

from gnnsys.errors import ArgumentError, DeviceError, UnsupportedError
from gnnsys.loaders.native_sampler import Draws, as_seed_ids
from gnnsys.loaders.typed_graph import TypedGraph
from gnnsys.memory.alloc import in_pages_of_its_own
from gnnsys.system.gpu import Device
from gnnsys.system.gpu.device import Mapping
from gnnsys.system.gpu.kernels import (
    MOST_BLOCKS,
    MOST_FANOUT,
    Choice,
    Faults,
    NodeTable,
    Sampling,
    Stream,
)
from gnnsys.system.once import warn_once

__all__ = ["KernelSampler"]

_log = logging.getLogger(__name__)


class KernelSampler:
    """Samples a homogeneous graph by ``csrc/cuda/sampler``: uniformly, without times and weights.

    The device reads the topology in host memory, or a copy where it cannot. The host waits twice a
    hop, for the number of sampled edges and of new nodes, and at the end; on a GPU for a stream of
    the sampler's own, not for what is trained meanwhile.

    Args:
        graph: of one node type and one relation.
        device: that samples.

    Raises:
        UnsupportedError: a graph that kernels do not sample.
        ResourceError, DeviceError: the device cannot read the topology.
    """

    def __init__(self, graph: TypedGraph, device: Device) -> None:
        what = "types" if len(graph.node_types) + len(graph.relations) > 2 else ""
        what = "times" if graph.is_temporal else "weights" if graph.is_weighted else what
        if what:
            raise _unsupported(f"a graph with {what}")
        self._graph, self._device = graph.relations[0].graph, device
        if self._graph.file is not None and self._graph.file.native is not None:
            warn_once(
                _log, "the sampler's kernels map the neighbours, all of them: what --topology read "
                "keeps in memory serves evaluation alone"
            )  # fmt: skip
        place = device.torch_device
        self._stream = torch.cuda.Stream(place) if place.type == "cuda" else None
        self._indptr, self._indices = (
            _mapped(device, x) for x in (self._graph.indptr, self._graph.indices)
        )

    def sample(
        self,
        seeds: dict[NodeType | None, Tensor],
        times: dict[NodeType | None, Tensor] | None,
        fanouts: list[list[int]],
        draws: Draws,
        induced: bool = False,
    ) -> HeteroSamplerOutput:
        """See ``NativeSampler.sample``.

        Raises:
            UnsupportedError: draws that kernels do not make, or more than 2048 of a node.
        """
        del times  # of seeds: ignored in a graph without times
        for what, is_so in (
            ("trees of their own for seeds", draws.disjoint),
            ("LABOR's draws", draws.labor),
            ("induced edges", induced),
            (f"more than {MOST_FANOUT} neighbours", max(fanouts[0], default=0) > MOST_FANOUT),
        ):
            if is_so:
                raise _unsupported(what)
        ids = as_seed_ids("seeds", seeds[None])
        count = self._graph.num_nodes
        outside = ((ids < 0) | (ids >= count)).nonzero()
        if len(outside):
            place = int(outside[0])
            raise ArgumentError(
                f"seed {int(ids[place])} at position {place} is outside the graph's nodes "
                f"[0, {count})"
            )
        with torch.cuda.stream(self._stream):  # None: nothing is changed
            return self._sample(ids, fanouts[0], draws)

    def _sample(self, seeds: Tensor, fanouts: list[int], draws: Draws) -> HeteroSamplerOutput:
        seeds = seeds.to(self._device.torch_device)
        faults = Faults(seeds.device)
        launches = Sampling(
            self._device, self._indptr.tensor, self._indices.tensor, faults, MOST_BLOCKS
        )
        node, begin, table = seeds, 0, NodeTable(len(seeds), seeds.device)
        launches.add_nodes(table, node, 0)
        rows, cols, positions = [seeds[:0]], [seeds[:0]], [seeds[:0]]
        nodes_per_hop, edges_per_hop = [len(seeds)], []
        for hop, fanout in enumerate(fanouts):
            choice = Choice(fanout, draws.replace)
            stream = Stream(draws.seed, draws.epoch, draws.group, draws.first_hop + hop, 0)
            end, targets = len(node), node[begin:]
            first, degree, counts = launches.count_edges(targets, choice)
            offsets = launches.prefix_sum(counts)
            edges = int(offsets[-1])
            position = torch.empty(edges, dtype=torch.int64, device=seeds.device)
            if fanout > 0 and edges > 0:
                launches.pick(targets, first, degree, offsets, choice, stream, position)
            source, col = launches.read_neighbors(first, degree, offsets, choice, begin, position)
            if table.capacity < 2 * (end + edges):
                table = NodeTable(end + edges, seeds.device)
                launches.add_nodes(table, node, 0)
            entry = launches.add_nodes(table, source, end)
            new_before = launches.prefix_sum(launches.mark_new(table, entry, end))
            new = int(new_before[-1])
            node = torch.cat([node, torch.empty(new, dtype=torch.int64, device=seeds.device)])
            launches.place_new_nodes(table, source, entry, new_before, end, node)
            rows.append(launches.read_places(table, entry))
            cols.append(col)
            positions.append(position)
            nodes_per_hop.append(new)
            edges_per_hop.append(edges)
            begin = end
        faults.raise_found()
        return HeteroSamplerOutput(
            node={None: node.cpu()},
            row={None: torch.cat(rows).cpu()},
            col={None: torch.cat(cols).cpu()},
            edge={None: torch.cat(positions).cpu()},
            batch=None,
            num_sampled_nodes={None: nodes_per_hop},
            num_sampled_edges={None: edges_per_hop},
        )


def _mapped(device: Device, array: Tensor) -> Mapping:
    try:
        return Mapping(device, array)
    except DeviceError:  # of a file that can only be read, or beside other memory
        return Mapping(device, in_pages_of_its_own(array))


def _unsupported(what: str) -> UnsupportedError:
    return UnsupportedError(f"sampler: {what}: kernels do not sample so yet; use the CPU's")
