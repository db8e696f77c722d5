"""``LinkNeighborLoader``: PyG's loader of links over the sampler and stores of gnnsys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch_geometric.loader
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.loader import LinkLoader
from torch_geometric.sampler import BaseSampler
from torch_geometric.typing import EdgeType

from gnnsys.errors import ArgumentError
from gnnsys.loaders.edge_layouts import Layout
from gnnsys.loaders.hidden_links import hidden_types
from gnnsys.loaders.loader_inputs import seed_links, seed_negatives
from gnnsys.loaders.lookahead_loader import (
    LookaheadLoader,
    LookaheadOptions,
    check_batching,
    sampler_of,
)
from gnnsys.loaders.stored_features import joining_stored_features
from gnnsys.loaders.time_limits import TimeLimit
from gnnsys.system.names import naming_keywords

__all__ = ["LinkNeighborLoader"]


class LinkNeighborLoader(LookaheadLoader, torch_geometric.loader.LinkNeighborLoader):
    """Mini-batches around links: PyG's ``LinkNeighborLoader``, made ahead in threads.

    Takes the arguments of ``torch_geometric.loader.LinkNeighborLoader`` and yields the same
    attributes: beside those of the nodes and edges ``edge_label_index`` and ``edge_label``, or with
    triplets ``src_index``, ``dst_pos_index`` and ``dst_neg_index``. Negative links are drawn at
    random and may be links of the graph; like everything else in a batch they depend on the data,
    ``seed``, the epoch and the batch's number alone. Where nodes have times, they are drawn among
    those that are not newer than their link. See ``NeighborLoader`` for how batches are
    made and for the arguments that are not described here.

    Args:
        data: PyG ``Data`` or ``HeteroData``, or ``(FeatureStore, GraphStore)``.
        num_neighbors: neighbours per node and hop; see ``NeighborLoader``.
        edge_label_index: (2, n) links, sources above targets; None for all edges. In heterogeneous
            graphs their edge type, or (edge type, links or None).
        edge_label: (n,) labels of the links.
        edge_label_time: (n,) int64 times of the links; needs ``time_attr``.
        neg_sampling: a ``NegativeSampling``, or "binary", "triplet" or a dict of its arguments;
            None for no negative links. A ``gnnsys.loaders.LinkNegatives`` draws none that are known
            links, and hard ones.
        neg_sampling_ratio: negative links for each link; deprecated by PyG in favour of
            ``neg_sampling``.
        hide_links: whether no edge of a batch joins the two ends of one of its links, in either
            direction, so that no message tells what is to be learnt; see ``NeighborSampler``.
        reverse_types: the edge types that hold reverses of the links, for ``hide_links``; None for
            ``rev_REL`` of REL, or else the only type that leads back. Beside a ``neighbor_sampler``
            both are the sampler's.

    Raises:
        ArgumentError, DTypeError, UnsupportedError: arguments that cannot be used, or not together.

    >>> import torch
    >>> from torch_geometric.data import Data
    >>> data = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]))
    >>> loader = LinkNeighborLoader(data, [-1], neg_sampling="binary", batch_size=2)
    >>> next(iter(loader)).edge_label.tolist()
    [1.0, 1.0, 0.0, 0.0]
    """

    _join = joining_stored_features(LinkLoader.filter_fn)

    @naming_keywords(DataLoader.__init__)
    def __init__(
        self,
        data: Any,
        num_neighbors: Any,
        edge_label_index: Any = None,
        edge_label: Tensor | None = None,
        edge_label_time: Tensor | None = None,
        replace: bool = False,
        subgraph_type: Any = "directional",
        disjoint: bool = False,
        temporal_strategy: str = "uniform",
        neg_sampling: Any = None,
        neg_sampling_ratio: float | None = None,
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
        keep_freed_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
        seed_block: int = 1,
        hide_links: bool = False,
        reverse_types: Sequence[EdgeType] | None = None,
        **kwargs: Any,
    ) -> None:
        given = dict(locals())
        options = LookaheadOptions.of(given)
        check_batching(kwargs, world_size)
        if (edge_label_time is None) != (time_attr is None):
            known, lacking = ("edge_label_time", "time_attr")[:: 1 if time_attr is None else -1]
            raise ArgumentError(
                f"{known}: Received conflicting 'edge_label_time' and 'time_attr' arguments: "
                f"'{known}' is set while '{lacking}' is not set. Both arguments must be provided "
                "for temporal sampling"
            )
        neg_sampling = seed_negatives(neg_sampling, neg_sampling_ratio, edge_label)
        neighbor_sampler = sampler_of(given)
        self.num_neighbors, self.time_attr = num_neighbors, time_attr
        self.neighbor_sampler = neighbor_sampler
        # As they are given, so that a loader can be made anew from its attributes.
        self.edge_label, self.edge_label_time = edge_label, edge_label_time
        self.input_id = input_id
        self.hide_links, self.reverse_types = hide_links, reverse_types
        links = seed_links(
            data, neighbor_sampler, edge_label_index, edge_label, edge_label_time, input_id
        )
        LinkLoader.__init__(
            self,
            data=data,
            link_sampler=neighbor_sampler,
            **links,
            neg_sampling=neg_sampling,
            transform=transform,
            transform_sampler_output=transform_sampler_output,
            filter_per_worker=filter_per_worker,
            custom_cls=custom_cls,
            **kwargs,
        )
        self.edge_label_index = edge_label_index
        if getattr(neighbor_sampler, "hide_links", False):
            # For its errors, which batches would tell later.
            hidden_types(
                self.input_data.input_type,
                neighbor_sampler.edge_types,
                neighbor_sampler.reverse_types,
            )
        self._init_lookahead(options, kwargs)

    def _the_sampler(self) -> Any:
        return self.link_sampler

    def _draw(self, inputs: Any, **place: int) -> Any:
        return self.link_sampler.sample_from_edges(inputs, self.neg_sampling, **place)
