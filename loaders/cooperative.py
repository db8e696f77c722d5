"""``CooperativeSampler``: mini-batches that several ranks draw and compute together.

Each node has an owner among the ranks (``gnnsys.ranks.owners``), who draws its neighbours, reads
its row and computes its hidden vectors, once for all; in a cache that the ranks share the row is
that rank's, too. What others need of it they are sent, and the gradients that come back are summed
at the owner (Balın, LaSalle, Çatalyürek: "Cooperative Minibatching in Graph Neural Networks", TMLR
2025, algorithm 1). Invariants: the ranks' parts together are the batch that one process draws; all
ranks take part in every exchange, in the same order, with empty parts where they have nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch_geometric.sampler import SamplerOutput
from torch_geometric.sampler.base import SubgraphType

from gnnsys.cache.shared.setup import owners_of_rows
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.loaders.joint_iteration import JointIteration
from gnnsys.loaders.native_sampler import as_seed_ids
from gnnsys.loaders.neighbor_sampler import NeighborSampler
from gnnsys.ranks.exchange import all_to_all, all_to_all_lengths
from gnnsys.ranks.group import group_transport, transport_for_thread
from gnnsys.ranks.local_hub import LocalHub
from gnnsys.ranks.owners import Owners
from gnnsys.ranks.transport import Driver, Transport, Work, all_gather_objects
from gnnsys.unified_tensor import UnifiedTensor

__all__ = ["CooperativeSampler", "JointBatch"]

_KIND = "joint"


class CooperativeSampler:
    """Draws mini-batches that all ranks of the process group compute together.

    Each node is drawn for, read and computed by its owner alone, so that W ranks read and compute
    what one process does for the same batch, not W overlapping neighbourhoods. The batch is that
    which ``sampler.sample`` draws in one process for the same seeds. Without other ranks it is
    the process's own.

    Args:
        sampler: the same on all ranks, over a homogeneous graph; with fanouts for each layer.
        features: (nodes, …) a tensor or what ``gnnsys.unified`` gave; ``batches`` reads its rows.
            Rows beside each other, of the same pages, go to the same rank.
        transport: what ranks talk by; that of the default process group if left out, all of whose
            ranks then make their samplers at the same time.
        drawing: what they talk by while they draw, in a thread of ``batches``; another one.

    Raises:
        UnsupportedError: a sampler of a typed graph, or disjoint, temporal, bidirectional, induced
            or forward.
        ArgumentError: ranks of the default process group were given different features.

    >>> from torch_geometric.data import Data
    >>> from torch_geometric.nn import SAGEConv
    >>> data = Data(x=torch.eye(4), edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]))
    >>> sampler = CooperativeSampler(NeighborSampler(data, num_neighbors=[-1, -1]), data.x)
    >>> convs = [SAGEConv(4, 8), SAGEConv(8, 3)]
    >>> for batch in sampler.batches(torch.tensor([[2, 0], [1, 3]])):  # the same on all ranks
    ...     x = batch.x
    ...     for layer, conv in enumerate(convs):
    ...         x = conv(*batch.exchange(x, layer))
    ...     x.shape, batch.n_id[: batch.batch_size].tolist()
    (torch.Size([2, 3]), [2, 0])
    (torch.Size([2, 3]), [1, 3])

    Each rank has the rows of its own seeds at the end. Of the losses' sum over them divided by
    ``batch.num_seeds``, the gradients of the parameters are to be summed over ranks.
    """

    def __init__(
        self,
        sampler: NeighborSampler,
        features: Tensor | None = None,
        *,
        transport: Driver | None = None,
        drawing: Driver | None = None,
    ) -> None:
        directional = sampler.subgraph_type == SubgraphType.directional
        for what, is_so in (
            ("a graph with types", sampler.is_hetero),
            ("disjoint or temporal batches", sampler.disjoint or sampler.is_temporal),
            (f"subgraph_type {sampler.subgraph_type.value!r}", not directional),
            ("out-neighbours", sampler.sample_direction == "backward"),
        ):
            if is_so:
                raise UnsupportedError(f"sampler: {what}: ranks do not sample it together yet")
        is_of_group = transport is None
        if transport is None and (transport := group_transport()) is not None:
            drawing = drawing or transport_for_thread()
        self._transport = transport or LocalHub(1).transports[0]
        self._drawing = drawing or self._transport
        self._sampler, self._features = sampler, features
        self._is_iterated = False
        world = self._transport.world
        self._owners = Owners(sampler.num_nodes, world)
        if features is not None:
            row_bytes = features.element_size() * math.prod(features.shape[1:])
            if isinstance(features, UnifiedTensor):
                row_bytes = features.store.row_bytes  # as stored, which a cache goes by
            self._owners = owners_of_rows(len(features), row_bytes, world)
        if is_of_group:
            self._check_alike()

    def _check_alike(self) -> None:
        """Raises ArgumentError where ranks would differ in who owns what."""
        own = self._sampler.num_nodes, self._owners.num_ids, self._owners.block
        told = self._transport.drive(all_gather_objects(self._transport, own, "control"))
        other = next((rank for rank, each in enumerate(told) if each != own), None)
        if other is not None:
            raise ArgumentError(
                f"features: ranks {self._transport.rank} and {other} have others, or other graphs; "
                "give all ranks the same, of the same type, or none"
            )

    def sample(self, seeds: Tensor, group: int, epoch: int = 0) -> JointBatch:
        """This rank's part of one batch; every rank has to call it, with the same arguments.

        Args:
            seeds: (n,) distinct node ids, of all ranks together.
            group: number of the batch in its epoch.
            epoch: number of the epoch.

        Raises:
            ArgumentError: a seed that is given twice, or is outside the graph; or an iteration of
                ``batches`` is under way.
            DTypeError: seeds that are no integers.
            RankFailedError: another rank is gone.
        """
        self._check_free()
        return self._draw(seeds, group, epoch)

    def _draw(self, seeds: Tensor, group: int, epoch: int) -> JointBatch:
        seeds, count = as_seed_ids("seeds", seeds), self._sampler.num_nodes
        outside = seeds[(seeds < 0) | (seeds >= count)]
        if len(outside):  # else its owner alone would tell, and the others wait for it
            raise ArgumentError(
                f"seeds: {int(outside[0])} is outside the graph's nodes [0, {count})"
            )
        if len(seeds.unique()) < len(seeds):
            raise ArgumentError("seeds: some are given twice, and a joint batch has each node once")
        work = _sample(
            self._drawing, self._sampler, self._owners, seeds, group, epoch, self._transport
        )
        return self._drawing.drive(work)

    def batches(
        self,
        seeds: Iterable[Tensor],
        epoch: int = 0,
        first: int = 0,
        transform: Callable[[JointBatch], Any] = lambda batch: batch,
    ) -> Generator[Any, None, None]:
        """This rank's part of a batch for each of ``seeds``, with its rows of the features.

        Batches are drawn while those before are trained on, as many ahead as a cache of the
        features asks for and memory takes; rows are gathered one batch ahead. Every rank has to
        iterate, and may leave the loop where all others do.

        Args:
            seeds: of each batch, see ``sample``.
            epoch: number of the epoch.
            first: number of the first batch in its epoch.
            transform: is given each batch in the thread that has gathered its rows; what it returns
                is yielded.

        Raises:
            ArgumentError: the sampler has no features; and as of ``sample``.
            StorageError, FileFormatError, RankFailedError: as of the features' store.
        """
        if self._features is None:
            raise ArgumentError(
                "features: None, and batches have their rows; give the sampler some"
            )
        self._check_free()
        self._is_iterated = True
        try:
            yield from JointIteration(
                lambda group, some: self._draw(some, group, epoch),
                enumerate(seeds, first),
                self._features,
                self._transport,
                transform,
            ).batches()
        finally:
            self._is_iterated = False

    def _check_free(self) -> None:
        """What two threads sent would be mixed up."""
        if self._is_iterated:
            raise ArgumentError(
                "sampler: an iteration of this sampler's batches is under way; end it first, or "
                "make another sampler on all ranks"
            )


@dataclass(frozen=True, slots=True)
class JointBatch:
    """One rank's part of a batch: its own nodes, and the edges to them."""

    n_id: Tensor
    """(n,) ids of the rank's own nodes: its seeds, then those that each hop found."""

    e_id: Tensor
    """(edges,) positions in the CSC of the edges to own nodes."""

    edge_index: Tensor
    """(2, edges): targets as places in ``n_id``; sources too, or in the rows of others, which
    follow. What a layer needs of it ``exchange`` gives."""

    num_sampled_nodes: list[int]
    """Own nodes of each hop, the seeds first."""

    num_sampled_edges: list[int]
    """Edges of each hop."""

    num_seeds: int
    """Of all ranks."""

    _transport: Driver
    _sends: list[list[Tensor]]
    """[rank][hop] own nodes, as places in ``n_id``, that a rank needs since that hop."""
    _receives: list[list[int]]
    """[rank][hop] nodes of a rank that are needed here since that hop."""

    x: Tensor | None = None
    """(n, …) rows of own nodes, in what ``CooperativeSampler.batches`` yields."""

    @property
    def batch_size(self) -> int:
        """Own seeds."""
        return self.num_sampled_nodes[0]

    @property
    def num_received(self) -> int:
        """Rows of others that the first layer needs."""
        return sum(map(sum, self._receives))

    def exchange(self, x: Tensor, layer: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The inputs of a layer, for a convolution that takes a pair of sources and targets.

        Differentiable: backward, the ranks send gradients back. Every rank has to call it for
        each layer in order, also one that owns no node of it, and to go backward through what it
        got.

        Args:
            x: (nodes, ...) rows of own nodes: all of them for the first layer, else what the layer
                before computed.
            layer: from 0, that of the inputs.

        Returns:
            Rows of the sources, first of which are x; those of the targets; and the
            (2, edges) edges between them.

        Raises:
            ArgumentError: rows that are not those of the layer.
            RankFailedError: another rank is gone.
        """
        hops = len(self.num_sampled_edges) - layer
        sources, targets = (sum(self.num_sampled_nodes[: hops + end]) for end in (1, 0))
        if not hops > 0 or len(x) != sources:
            raise ArgumentError(
                f"x: {len(x)} rows for layer {layer} of {len(self.num_sampled_edges)}, expected "
                f"{sources}: those of own nodes, each layer's results in turn"
            )
        sends = [torch.cat(each[:hops]).to(x.device) for each in self._sends]
        receives = [sum(each[:hops]) for each in self._receives]
        rows: Tensor = _Exchange.apply(x, self._transport, sends, receives)
        edges = self._edges_among(sources, receives, hops)
        return (rows, rows[:targets]), edges.to(x.device)

    def _edges_among(self, sources: int, receives: list[int], hops: int) -> Tensor:
        """The edges of the first hops, their sources as places in the rows that are there."""
        edges = self.edge_index[:, : sum(self.num_sampled_edges[:hops])]
        if hops == len(self.num_sampled_edges):
            return edges
        there, begin = [torch.arange(sources)], len(self.n_id)
        for each, received in zip(self._receives, receives, strict=True):
            there.append(torch.arange(begin, begin + received))
            begin += sum(each)
        places = torch.empty(begin, dtype=torch.int64)
        kept = torch.cat(there)
        places[kept] = torch.arange(len(kept))
        return torch.stack([places[edges[0]], edges[1]])


class _Exchange(torch.autograd.Function):
    """Appends the rows that other ranks send; backward, sums the gradients that they send back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, transport: Driver, sends: list[Tensor], receives: list[int]
    ) -> Tensor:
        ctx.transport, ctx.sends, ctx.receives = transport, sends, receives
        parts = [x[places] for places in sends]
        return torch.cat([x, *transport.drive(all_to_all(transport, parts, receives, _KIND))])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        parts = gradient.split([len(gradient) - sum(ctx.receives), *ctx.receives])
        lengths = [len(places) for places in ctx.sends]
        work = all_to_all(ctx.transport, parts[1:], lengths, _KIND)
        total = parts[0].clone()
        for places, part in zip(ctx.sends, ctx.transport.drive(work), strict=True):
            total.index_add_(0, places, part)
        return total, None, None, None


def _sample(
    transport: Transport,
    sampler: NeighborSampler,
    owners: Owners,
    seeds: Tensor,
    group: int,
    epoch: int,
    of_rows: Driver,
) -> Work[JointBatch]:
    ranks = range(transport.world)

    def owner_of(ids: Tensor) -> Tensor:
        return torch.from_numpy(owners.locate(ids.numpy())[0])

    frontier = seeds[owner_of(seeds) == transport.rank]
    own = [frontier]
    known = frontier  # ids of own nodes, and of those of others that were asked for
    draws: list[SamplerOutput] = []
    asked_of: list[list[Tensor]] = [[] for _ in ranks]
    asked_by: list[list[Tensor]] = [[] for _ in ranks]
    for hop in range(sampler.num_neighbors.num_hops):
        out = sampler.sample_hop(frontier, hop, group, epoch)
        draws.append(out)
        new = out.node[len(frontier) :]
        new = new[~torch.isin(new, known)]
        owner = owner_of(new)
        asked = [new[owner == rank] for rank in ranks]
        lengths = yield from all_to_all_lengths(transport, asked, _KIND)
        told = yield from all_to_all(transport, asked, lengths, _KIND)
        frontier = torch.cat(told).unique()
        frontier = frontier[~torch.isin(frontier, known)]
        own.append(frontier)
        asked[transport.rank] = told[transport.rank] = seeds[:0]
        for rank in ranks:
            asked_of[rank].append(asked[rank])
            asked_by[rank].append(told[rank])
        known = torch.cat([known, frontier, *asked])
    ids = torch.cat([*own, *(each for of_rank in asked_of for each in of_rank)])
    in_order, order = ids.sort()

    def places(of: Tensor) -> Tensor:
        return order[torch.searchsorted(in_order, of)]

    rows, columns, begin = [], [], 0
    for out, nodes in zip(draws, own, strict=False):
        rows.append(places(out.node)[out.row])
        columns.append(out.col + begin)
        begin += len(nodes)
    return JointBatch(
        n_id=torch.cat(own),
        e_id=torch.cat([out.edge for out in draws]),
        edge_index=torch.stack([torch.cat(rows), torch.cat(columns)]),
        num_sampled_nodes=[len(nodes) for nodes in own],
        num_sampled_edges=[len(out.row) for out in draws],
        num_seeds=len(seeds),
        _transport=of_rows,
        _sends=[[places(each) for each in by_rank] for by_rank in asked_by],
        _receives=[[len(each) for each in of_rank] for of_rank in asked_of],
    )
