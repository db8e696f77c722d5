"""``NeighborLoader``: PyG's loader over the sampler and stores of gnnsys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch_geometric.loader
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.loader import NodeLoader
from torch_geometric.sampler import BaseSampler

from gnnsys.errors import ArgumentError
from gnnsys.loaders.edge_layouts import Layout
from gnnsys.loaders.loader_inputs import seed_nodes
from gnnsys.loaders.lookahead_loader import (
    LookaheadLoader,
    LookaheadOptions,
    check_batching,
    sampler_of,
)
from gnnsys.loaders.static_shapes import static_shapes_of
from gnnsys.loaders.stored_features import joining_stored_features
from gnnsys.loaders.time_limits import TimeLimit
from gnnsys.system.names import naming_keywords

__all__ = ["NeighborLoader"]


class NeighborLoader(LookaheadLoader, torch_geometric.loader.NeighborLoader):
    """Mini-batches of sampled neighbourhoods: PyG's ``NeighborLoader``, made ahead in threads.

    Takes the arguments of ``torch_geometric.loader.NeighborLoader`` and yields the same attributes:
    ``x``, ``y``, ``edge_index``, ``n_id``, ``e_id``, ``input_id``, ``batch_size``,
    ``num_sampled_nodes``, ``num_sampled_edges``. Needs neither pyg-lib nor torch-sparse.

    While a batch is trained on, one thread samples the next ``window`` batches and another gathers
    the next one's features into memory that is used again when its batch is let go. A batch depends
    on the data, ``seed``, the epoch and the batch's number alone: not on ``window``, ``threads`` or
    ``num_workers``. ``num_workers=0`` is as fast as any: other values are taken, and start no
    process. ``data`` is not changed, and read anew at the beginning of each epoch.

    Args:
        data: PyG ``Data`` or ``HeteroData``, or ``(FeatureStore, GraphStore)``; features may be
            unified tensors.
        num_neighbors: neighbours per node and hop, nearest the seeds first; -1 takes all. In
            heterogeneous graphs for each edge type, or a dict by edge type.
        input_nodes: (n,) ids or (nodes,) mask of the seeds; None for all nodes. In heterogeneous
            graphs their type, or (type, ids or mask or None).
        input_time: (n,) int64 times of the seeds, instead of those that ``time_attr`` names.
        replace: whether to sample with replacement.
        subgraph_type: "directional" (the sampled edges), "bidirectional" (and their reverses) or
            "induced" (all edges between sampled nodes).
        disjoint: whether each seed gets a subgraph of its own; ``batch.batch`` says which.
        temporal_strategy: "uniform" among, or "last" of, the neighbours that are old enough.
        time_attr: attribute of nodes or edges with int64 times; makes neighbours older than or as
            old as their seed.
        weight_attr: attribute of edges by whose weights neighbours are drawn.
        transform: applied to every batch when it is handed over, in the consumer's thread; with
            ``filter_per_worker=True`` earlier, in the thread that gathers.
        transform_sampler_output: applied to the sampler's output in the thread that samples.
        is_sorted: ``edge_index`` is sorted by target already; with times, each target's edges by
            time, too.
        filter_per_worker: see ``transform``.
        neighbor_sampler: a sampler to use instead of making one.
        directed: deprecated by PyG; False means ``subgraph_type="induced"``.
        custom_cls: class of batches for ``(FeatureStore, GraphStore)``.
        input_id: (n,) names for the seeds, instead of their positions.
        seed: of the draws and of the order of shuffled seeds; with DataLoader's ``generator`` the
            order comes from that instead, as in torch.
        threads: that sample, and that gather; 0 for all cores this process may use, divided by the
            ranks of its machine under torchrun.
        window: batches sampled ahead, and more where a cached unified tensor asks for it; 0 does
            everything in the consumer's thread, for debugging.
        window_bytes: of sampled batches that may wait for a cache's sake, as a number or a text
            ("256MB"); 0 for a 32nd of the available memory, and at least 64 MiB.
        layout: "coo" for an ``edge_index`` that is a plain tensor, as PyG's loaders hand out;
            "csr" for PyG's ``EdgeIndex`` over the same edges, of which nothing is claimed.
        sampling: "uniform", or "labor": LABOR-0, fewer distinct nodes for the same fanouts (Balin
            and Çatalyürek, NeurIPS 2023).
        dependent_batches: consecutive batches that share their draws (Balin et al., "Cooperative
            Minibatching in Graph Neural Networks", TMLR 2025).
        time_window: neighbours are at most this much older than their seed, in the unit of the
            times; a number, or a dict of numbers for some edge types.
        last_n: of the neighbours of those times only the newest this many may be sampled for a
            node, and the fanout chooses among them; a number, or a dict.
        static_shapes: whether to pad all batches to the same numbers of nodes and edges in each
            hop, so that a model is compiled once. Batches get ``pad_node_mask`` and
            ``pad_edge_mask``; see docs/loaders.md.
        rank: takes its share of the batches: step t is batch ``t * world_size + rank`` of the
            epoch, the same batch as in one process, so that all ranks together draw what one would.
            At the end some ranks may have a batch less; ``drop_last`` is about the last of all.
        world_size: number of ranks. The default, 1, takes all batches also where
            ``torch.distributed`` is initialised: a script may have divided its seeds already.
        seed_block: seeds with neighbouring ids (links that stand together) that are shuffled as
            one. Where rows needed together lie together (``gnnsys convert --order``), they share
            rows and pages. It changes what batches are made of: their seeds resemble each other.
        keep_freed_memory: whether to call ``gnnsys.keep_freed_memory``, which makes training steps
            on the CPU faster and is a setting of the whole process.
        **kwargs: of ``torch.utils.data.DataLoader``, such as ``batch_size`` or ``shuffle``.

    Raises:
        ArgumentError, DTypeError, UnsupportedError: arguments that cannot be used, or not together.

    >>> import torch
    >>> from torch_geometric.data import Data
    >>> data = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]))
    >>> batch = next(iter(NeighborLoader(data, num_neighbors=[-1], batch_size=2)))
    >>> batch.n_id.tolist(), batch.batch_size
    ([0, 1, 2], 2)
    """

    _join = joining_stored_features(NodeLoader.filter_fn)

    @naming_keywords(DataLoader.__init__)
    def __init__(
        self,
        data: Any,
        num_neighbors: Any,
        input_nodes: Any = None,
        input_time: Tensor | None = None,
        replace: bool = False,
        subgraph_type: Any = "directional",
        disjoint: bool = False,
        temporal_strategy: str = "uniform",
        time_attr: str | None = None,
        weight_attr: str | None = None,
        transform: Callable[..., Any] | None = None,
        transform_sampler_output: Callable[..., Any] | None = None,
        is_sorted: bool = False,
        filter_per_worker: bool | None = None,
        neighbor_sampler: BaseSampler | None = None,
        directed: bool = True,
        custom_cls: Any = None,
        input_id: Tensor | None = None,
        *,
        seed: int = 0,
        threads: int = 0,
        window: int = 4,
        window_bytes: int | str = 0,
        layout: Layout = "coo",
        sampling: Literal["uniform", "labor"] = "uniform",
        dependent_batches: int = 1,
        time_window: TimeLimit = None,
        last_n: TimeLimit = None,
        static_shapes: bool = False,
        keep_freed_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
        seed_block: int = 1,
        **kwargs: Any,
    ) -> None:
        given = dict(locals())
        options = LookaheadOptions.of(given)
        check_batching(kwargs, world_size)
        if input_time is not None and time_attr is None:
            raise ArgumentError(
                "input_time: Received conflicting 'input_time' and 'time_attr' arguments: "
                "'input_time' is set while 'time_attr' is not set. Name the times it is of"
            )
        neighbor_sampler = sampler_of(given)
        self.num_neighbors, self.time_attr = num_neighbors, time_attr
        self.neighbor_sampler = neighbor_sampler
        seeds = seed_nodes(data, neighbor_sampler, input_nodes, input_time, input_id)
        NodeLoader.__init__(
            self,
            data=data,
            node_sampler=neighbor_sampler,
            **seeds,
            transform=transform,
            transform_sampler_output=transform_sampler_output,
            filter_per_worker=filter_per_worker,
            custom_cls=custom_cls,
            **kwargs,
        )
        self.input_nodes = input_nodes  # as it is given; see _init_lookahead
        self.static_shapes = static_shapes
        if static_shapes:
            self._shapes = static_shapes_of({**given, **kwargs}, neighbor_sampler)
        self._init_lookahead(options, kwargs)

    def _the_sampler(self) -> Any:
        return self.node_sampler

    def _draw(self, inputs: Any, **place: int) -> Any:
        return self.node_sampler.sample_from_nodes(inputs, **place)
