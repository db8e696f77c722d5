"""``NeighborSampler``: PyG's sampler over the native one, with draws that can be replayed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch_geometric.sampler
from torch import Tensor
from torch_geometric.sampler import (
    EdgeSamplerInput,
    HeteroSamplerOutput,
    NegativeSampling,
    NodeSamplerInput,
    SamplerOutput,
)
from torch_geometric.sampler.base import NumNeighbors, SubgraphType
from torch_geometric.sampler.neighbor_sampler import edge_sample, node_sample
from torch_geometric.typing import EdgeType, NodeType

from gnnsys import rng
from gnnsys.errors import ArgumentError, DeviceError, UnsupportedError
from gnnsys.loaders.bidirectional import GraphEdges, make_bidirectional
from gnnsys.loaders.fanouts import fanouts_by_relation
from gnnsys.loaders.graph_inputs import read_graph
from gnnsys.loaders.hidden_links import HiddenLinks
from gnnsys.loaders.kernel_sampler import KernelSampler
from gnnsys.loaders.links import (
    as_negative_sampling,
    check_links,
    flatten_links,
    trees_by_link,
)
from gnnsys.loaders.native_sampler import Draws, NativeSampler
from gnnsys.loaders.negatives import KeyedNegatives, NegativeNodes
from gnnsys.loaders.sampler_checks import check_input_type, check_options, choice
from gnnsys.loaders.time_limits import TimeLimit, limits_by_relation
from gnnsys.loaders.topology import CSC
from gnnsys.system.gpu import kernel_device
from gnnsys.system.gpu.provider import INSTALL
from gnnsys.system.names import naming_keywords
from gnnsys.system.threads import num_threads

__all__ = ["NeighborSampler"]

_log = logging.getLogger(__name__)
_MASK64 = (1 << 64) - 1


class NeighborSampler(torch_geometric.sampler.NeighborSampler):
    """Samples in-neighbours hop by hop, in C++, the same for any number of threads.

    Takes the arguments of ``torch_geometric.sampler.NeighborSampler`` and needs neither pyg-lib nor
    torch-sparse. Semantics are those of PyG: seeds come first, nodes follow in the order in which
    they are sampled, each hop expands only the nodes that the hop before added, and an edge runs
    from the neighbour to the node that it was sampled for. Draws are counter-based
    (``gnnsys.rng``), so a batch can be replayed from (seed, epoch, group) alone. Several threads
    may sample at once.

    Args:
        data: PyG ``Data``, ``HeteroData`` or ``(FeatureStore, GraphStore)``, or a ``CSC``.
        num_neighbors: neighbours per node and hop, nearest the seeds first, for all edge types or
            in a dict for each, or ``NumNeighbors`` with a default; -1 takes all.
        time_attr: name of the integer times of nodes or of edges. Implies ``disjoint``. Types of
            nodes or edges that lack it are sampled without regard to time.
        weight_attr: name of the edges' weights; draws are proportional to them, and where the
            fanout reaches the number of neighbours all are taken. Edge types that lack it are
            sampled uniformly.
        share_memory: whether to move the topology to memory that processes share.
        sample_direction: "backward" samples out-neighbours instead, without times.
        isa: "auto", or an instruction set of ``gnnsys._core.isas()``.
        sampling: "uniform", or "labor" for LABOR-0, in which a node has one draw in a hop that all
            its targets share, so that they tend to sample the same nodes and a batch has fewer.
            About the fanout's number of edges are kept. (Balin, Catalyurek: "Layer-Neighbor
            Sampling: Defusing Neighborhood Explosion in GNNs", NeurIPS 2023.)
        dependent_batches: this many batches, one after another, share their draws, so that a node
            samples the same neighbours in them and a cache sees them again. (Balin et al.:
            "Cooperative Minibatching in Graph Neural Networks", TMLR 2025.) Needs
            batches that are numbered. Negative nodes are drawn anew in each.
        time_window: neighbours are at most this much older than their seed, in the unit of the
            times: of times t those with ``seed_time - time_window <= t <= seed_time`` may be
            sampled, in every hop. A number for all edges that have times (of their own or by their
            source), or a dict of numbers for some edge types; None for no limit.
        last_n: of the neighbours of those times only the newest this many may be sampled, for each
            node that a hop expands: the fanout chooses among them. Of equal times those that come
            later in the data are newer. A number or a dict, as ``time_window``.
        device: "cpu", or "cuda" to sample by the kernels of a GPU, which reads the topology in host
            memory: the same batches, of homogeneous graphs without times and weights, on the CPU.
            "simt" executes these kernels on the CPU, thread by thread: slow, and for tests.
        hide_links: whether batches around links have no edge between the two ends of a link of the
            batch, neither of its own edge type nor, the other way, of the types of its reverses;
            without types, in either direction. Fanouts are drawn before, so that a node may have
            fewer neighbours or none. In disjoint batches all trees lack the links of all.
        reverse_types: the edge types that hold reverses of the links, for ``hide_links``; None for
            ``rev_REL`` of REL, or else the only type that leads back.

    The other arguments are those of ``NeighborLoader``.

    Raises:
        ArgumentError, DTypeError: options, attributes or edges that do not fit together.
        UnsupportedError: weights with times or of stores, times backward, limits of time in
            bidirectional subgraphs.
        DeviceError: a GPU that nothing reaches, or that cannot read the topology.

    >>> from torch_geometric.data import Data
    >>> data = Data(edge_index=torch.tensor([[1, 2, 3], [0, 0, 1]]), num_nodes=4)
    >>> sampler = NeighborSampler(data, num_neighbors=[-1, -1])
    >>> out = sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([0])))
    >>> out.node.tolist(), out.row.tolist(), out.col.tolist()
    ([0, 1, 2, 3], [1, 2, 3], [0, 0, 1])
    """

    @naming_keywords()
    def __init__(
        self,
        data: Any,
        num_neighbors: Any,
        subgraph_type: SubgraphType | str = "directional",
        replace: bool = False,
        disjoint: bool = False,
        temporal_strategy: str = "uniform",
        time_attr: str | None = None,
        weight_attr: str | None = None,
        is_sorted: bool = False,
        share_memory: bool = False,
        directed: bool = True,
        sample_direction: Literal["forward", "backward"] = "forward",
        *,
        seed: int = 0,
        threads: int = 0,
        isa: str = "auto",
        sampling: Literal["uniform", "labor"] = "uniform",
        dependent_batches: int = 1,
        time_window: TimeLimit = None,
        last_n: TimeLimit = None,
        device: Literal["cpu", "cuda", "simt"] = "cpu",
        hide_links: bool = False,
        reverse_types: Sequence[EdgeType] | None = None,
    ) -> None:
        if not directed:
            subgraph_type = SubgraphType.induced
            warnings.warn(
                f"The usage of the 'directed' argument in '{type(self).__name__}' is deprecated. "
                "Use `subgraph_type='induced'` instead.",
                FutureWarning,
                stacklevel=3,
            )
        if dependent_batches < 1:
            raise ArgumentError(f"dependent_batches: {dependent_batches}, expected at least 1")
        self.subgraph_type = SubgraphType(choice("subgraph_type", subgraph_type))
        self.temporal_strategy = choice("temporal_strategy", temporal_strategy)
        self.sample_direction = choice("sample_direction", sample_direction)
        self.sampling = choice("sampling", sampling)
        self.device = choice("device", device)
        self.replace = replace
        self.keep_orig_edges = False
        self.seed = seed
        self.threads = num_threads(threads)
        self.isa = isa
        self.dependent_batches = dependent_batches
        self.time_attr = time_attr
        self.time_window, self.last_n = time_window, last_n
        self.hide_links, self.reverse_types = hide_links, reverse_types
        self.stored_of_edges: dict[tuple[Any, str], bool] = {}  # see stored_features
        self.epoch: int | None = None
        self._first_group: int | None = None
        if time_attr is not None and self._is_backward:
            raise UnsupportedError(
                "time_attr: Temporal Sampling not yet supported for backward sampling "
                "(sample_direction='backward')"
            )
        self.data_type, self._typed_graph = read_graph(
            data,
            time_attr=time_attr,
            weight_attr=weight_attr,
            is_sorted=is_sorted,
            backward=self._is_backward,
        )
        if share_memory:
            self._typed_graph.share_memory()
        self.disjoint = disjoint
        self.num_neighbors = num_neighbors
        check_options(self)
        self._time_limits()  # for its errors
        self._make_native()

    # What PyG's inherited parts read: tensors where the graph is homogeneous, otherwise dicts ----

    @property
    def node_types(self) -> list[NodeType | None]:
        """Names of the node types."""
        return self._typed_graph.node_types

    @property
    def edge_types(self) -> list[EdgeType | None]:
        """Names of the edge types."""
        return self._typed_graph.edge_types

    @property
    def num_nodes(self) -> Any:
        """Number of nodes, by type if there are any."""
        graph = self._typed_graph
        if not self.is_hetero:
            return graph.num_nodes[0]
        return dict(zip(graph.node_types, graph.num_nodes, strict=True))

    @property
    def node_time(self) -> Any:
        """Times of nodes: a tensor, or a dict by type if there are any; None without times."""
        return self._per_type(self.node_types, self._typed_graph.node_time)

    @property
    def edge_time(self) -> Any:
        """Times of edges in the order of the CSC, as those of nodes."""
        return self._per_type(self.edge_types, [p.time for p in self._typed_graph.relations])

    @property
    def edge_weight(self) -> Any:
        """Weights of edges in the order of the CSC, as those of nodes."""
        return self._per_type(self.edge_types, [p.weight for p in self._typed_graph.relations])

    def _per_type(self, types: list[Any], values: list[Tensor | None]) -> Any:
        if not self.is_hetero:
            return values[0]
        present = {
            key: value for key, value in zip(types, values, strict=True) if value is not None
        }
        return present or None

    @property
    def num_neighbors(self) -> NumNeighbors:
        """The fanouts as they were given."""
        return self._num_neighbors

    @num_neighbors.setter
    def num_neighbors(self, num_neighbors: Any) -> None:
        if not isinstance(num_neighbors, NumNeighbors):
            num_neighbors = NumNeighbors(num_neighbors)
        self._fanouts = fanouts_by_relation(num_neighbors, self._typed_graph.edge_types)
        self._num_neighbors = num_neighbors

    @property
    def edge_permutation(self) -> Any:
        """The user's number of the edge at each position of the CSC, by edge type if there are any;
        None where the positions are the numbers."""
        perms = {part.edge_type: part.graph.perm for part in self._typed_graph.relations}
        return perms if self.is_hetero else perms[None]

    @property
    def graph(self) -> CSC:
        """The topology of a homogeneous graph.

        Raises:
            ArgumentError: the graph has several types; see ``graphs``.
        """
        if self.is_hetero:
            raise ArgumentError("graph: the sampler's graph has types of edges; use graphs")
        return self._typed_graph.relations[0].graph

    @property
    def graphs(self) -> dict[EdgeType | None, CSC]:
        """The topology of each edge type, in the direction of sampling."""
        return {part.edge_type: part.graph for part in self._typed_graph.relations}

    # Sampling ---------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Tells which epoch the batches to come belong to, so that each epoch draws anew.

        ``gnnsys.NeighborLoader`` does this by itself; PyG's ``NodeLoader`` does not.
        """
        self.epoch = epoch

    def sample(
        self, seeds: Tensor | dict[NodeType, Tensor], group: int, epoch: int = 0
    ) -> SamplerOutput | HeteroSamplerOutput:
        """One batch.

        Args:
            seeds: (n,) node ids of any integer type, or a dict of them by node type.
            group: number of the batch in its epoch.
            epoch: number of the epoch.

        Returns:
            ``SamplerOutput``, or ``HeteroSamplerOutput`` for a graph with types: ``edge`` holds
            positions in the CSC, which ``edge_permutation`` maps to the user's edges.

        Raises:
            ArgumentError: a seed outside the graph, or seeds without a type where there are types.
        """
        if isinstance(seeds, dict) != self.is_hetero:
            expected = "a dict by node type" if self.is_hetero else "a tensor"
            raise ArgumentError(f"seeds: {type(seeds).__name__}, expected {expected}")
        return self._sample(seeds, group=group, epoch=epoch)

    def sample_hop(self, nodes: Tensor, hop: int, group: int, epoch: int = 0) -> SamplerOutput:
        """The neighbours that one hop of a batch draws for some of the nodes that it expands.

        Nodes draw independently of each other, so that a hop's parts may be sampled apart. For
        homogeneous graphs, directional and not disjoint.

        Args:
            nodes: (n,) node ids: of the seeds, or of nodes that the hop before added.
            hop: from 0, that of the seeds.
            group: number of the batch in its epoch.
            epoch: number of the epoch.
        """
        out: SamplerOutput = self._sample(nodes, group=group, epoch=epoch, hops=slice(hop, hop + 1))
        return out

    def sample_from_nodes(
        self, inputs: NodeSamplerInput, *, group: int | None = None, epoch: int | None = None
    ) -> SamplerOutput | HeteroSamplerOutput:
        """One batch around seed nodes.

        PyG's ``NodeLoader`` tells neither ``group`` nor ``epoch``: the group is then a hash of the
        batch's input ids, the epoch that of ``set_epoch``.

        Args:
            inputs: seeds with, optionally, their times and type.
            group: number of the batch in its epoch.
            epoch: number of the epoch.

        Raises:
            ArgumentError: seeds outside the graph, or without a time where one is needed.
        """
        check_input_type(self, inputs.input_type)
        ids = inputs.node if inputs.input_id is None else inputs.input_id
        group, epoch = self._batch_number(ids, group, epoch)
        return node_sample(inputs, self._sampling(group, epoch))

    def sample_from_edges(
        self,
        inputs: EdgeSamplerInput,
        neg_sampling: NegativeSampling | None = None,
        *,
        group: int | None = None,
        epoch: int | None = None,
    ) -> SamplerOutput | HeteroSamplerOutput:
        """One batch around the ends of seed links and of negative ones.

        Labels, and how many negatives are drawn for what, are PyG's; negatives come from the
        counter-based stream of the batch, and are no newer than their link where nodes have times.

        Args:
            inputs: links with, optionally, their labels, times and edge type.
            neg_sampling: binary or triplet; None for no negatives.
            group: number of the batch in its epoch; a hash of the input ids without it.
            epoch: number of the epoch; that of ``set_epoch`` without it.

        Raises:
            ArgumentError: nodes outside the graph, no links, labels beside triplets, times where
                there are none or the reverse, a link older than all nodes, or no negatives left.
        """
        check_input_type(self, inputs.input_type)
        neg_sampling = as_negative_sampling(neg_sampling)
        inputs = flatten_links(inputs)
        check_links(self, inputs, neg_sampling)
        ids = torch.cat([inputs.row, inputs.col]) if inputs.input_id is None else inputs.input_id
        group, epoch = self._batch_number(ids, group, epoch)
        if neg_sampling is not None:
            neg_sampling = KeyedNegatives(
                neg_sampling,
                inputs,
                self._negative_nodes,
                disjoint=self.disjoint,
                seed=self.seed,
                epoch=epoch,
                group=group,
            )
        sample = self._sampling(group, epoch)
        if self.hide_links:
            most = max(self._typed_graph.num_nodes)
            hidden = HiddenLinks(inputs, self.edge_types, most, self.reverse_types)
            sample = partial(sample, hidden=hidden)
        if self.disjoint:
            sample = trees_by_link(sample, len(inputs.row), neg_sampling)
        # Without the times of nodes, which PyG compares with those of negatives already drawn.
        return edge_sample(inputs, sample, self.num_nodes, self.disjoint, None, neg_sampling)

    def _sampling(self, group: int, epoch: int) -> Callable[..., Any]:
        return partial(self._sample, group=group, epoch=epoch)

    def _batch_number(self, ids: Tensor, group: int | None, epoch: int | None) -> tuple[int, int]:
        if group is None:
            if self.dependent_batches > 1:
                raise ArgumentError(
                    f"dependent_batches: {self.dependent_batches}, but the batch has no number; "
                    "use gnnsys.NeighborLoader, or pass group and epoch"
                )
            group = rng.hash_ids(ids.numpy())
            self._note_repetition(group)
        return group, (self.epoch or 0) if epoch is None else epoch

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

    def _sample(
        self,
        seed: Any,
        seed_time: Any = None,
        *,
        group: int = 0,
        epoch: int = 0,
        hops: slice = slice(None),
        hidden: HiddenLinks | None = None,
        **kwargs: Any,
    ) -> Any:
        """The sampled subgraph, or some hops of it; PyG's functions call this too."""
        draws = Draws(
            replace=self.replace,
            disjoint=self.disjoint,
            last=self.temporal_strategy == "last" and self.is_temporal,
            labor=self.sampling == "labor",
            seed=self.seed & _MASK64,
            epoch=epoch & _MASK64,
            group=group // self.dependent_batches & _MASK64,
            first_hop=hops.start or 0,
            **self._time_limits(),
        )
        if not self.is_hetero:
            seed = {None: seed}
            seed_time = None if seed_time is None else {None: seed_time}
        induced = self.subgraph_type == SubgraphType.induced
        fanouts = [each[hops] for each in self._fanouts]
        out: Any = self._native.sample(seed, seed_time, fanouts, draws, induced)
        if self._is_backward:
            out.row, out.col = out.col, out.row
        if hidden is not None:
            hidden.take_from(out)
        if self.subgraph_type == SubgraphType.bidirectional:
            assert isinstance(self._native, NativeSampler)
            times = None if seed_time is None else torch.cat(list(seed_time.values()))  # by tree
            edges = GraphEdges(self._typed_graph, self._native, self._is_backward, times)
            out = make_bidirectional(out, edges, self.keep_orig_edges)
            if hidden is not None:  # whose reverses may be of a type that hides none
                hidden.take_from(out)
        return out if self.is_hetero else _without_types(out)

    def _time_limits(self) -> dict[str, list[int]]:
        graph = self._typed_graph
        return {
            "window": limits_by_relation("time_window", self.time_window, graph, least=0),
            "newest": limits_by_relation("last_n", self.last_n, graph, least=1),
        }

    @property
    def _is_backward(self) -> bool:
        return self.sample_direction == "backward"

    def _make_native(self) -> None:
        graph = self._typed_graph
        self._native: NativeSampler | KernelSampler
        gpu = kernel_device(self.device)
        if gpu is not None:
            self._native = KernelSampler(graph, gpu)
        elif self.device != "cpu":
            raise DeviceError(f"device: {self.device!r}, but nothing reaches CUDA: {INSTALL}")
        else:
            self._native = NativeSampler(graph, self.threads, self.isa)
            self._native.get()  # at once, so that its errors are raised here
        self._negative_nodes = NegativeNodes(
            dict(zip(graph.node_types, graph.node_time, strict=True)),
            dict(zip(graph.node_types, graph.num_nodes, strict=True)),
        )

    def __getstate__(self) -> dict[str, Any]:
        made = ("_native", "_negative_nodes")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_native()

    def __repr__(self) -> str:
        graph = self._typed_graph
        nodes, edges = sum(graph.num_nodes), sum(part.graph.num_edges for part in graph.relations)
        return f"NeighborSampler({self.num_neighbors}, nodes={nodes}, edges={edges})"


def _without_types(out: HeteroSamplerOutput) -> SamplerOutput:
    parts = [out.node, out.row, out.col, out.edge, out.batch]
    parts += [out.num_sampled_nodes, out.num_sampled_edges, out.orig_row, out.orig_col]
    return SamplerOutput(*(None if part is None else part[None] for part in parts))
