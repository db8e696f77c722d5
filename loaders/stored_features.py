"""Features of edges in a ``(FeatureStore, GraphStore)`` without types.

Such a store does not say what has a feature. What has a row for each edge belongs to the edges; PyG
takes its rows by node id all the same. Batches leave it out, as they do with the features of edges
in stores with types: their rows are those of ``batch.e_id``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch_geometric.data import TensorAttr

from gnnsys.errors import UnsupportedError
from gnnsys.feature_store import FeatureStore
from gnnsys.loaders.neighbor_sampler import NeighborSampler
from gnnsys.memory.store import is_announced

__all__ = ["check_stored", "joining_features_of_nodes"]


def joining_features_of_nodes(join: Callable[[Any, Any], Any]) -> Any:
    """PyG's ``filter_fn`` ``join`` without the features of edges."""

    def joined(loader: Any, out: Any) -> Any:
        hidden = _edge_features(loader.data, loader.node_sampler)
        if hidden:
            features, graphs = loader.data
            attrs = [
                attr
                for attr in features.get_all_tensor_attrs()
                if (attr.group_name, attr.attr_name) not in hidden
            ]
            shown = SimpleNamespace(
                get_all_tensor_attrs=lambda: attrs, multi_get_tensor=features.multi_get_tensor
            )
            loader = SimpleNamespace(**{**vars(loader), "data": (shown, graphs)})
        return join(loader, out)

    return joined


def check_stored(data: Any, sampler: Any) -> None:
    """Raises UnsupportedError for features of edges in a store that is told node ids ahead."""
    for group, name in _edge_features(data, sampler):
        if isinstance(data[0], FeatureStore) and is_announced(data[0].table(group, name).store):
            raise UnsupportedError(
                f"FeatureStore: {name!r} has a row for each edge and a cache, which serves rows by "
                "node; put it without one"
            )


def _edge_features(data: Any, sampler: Any) -> set[tuple[Any, str]]:
    """Groups and names of the features of edges in stores without types."""
    stored = isinstance(data, (tuple, list)) and isinstance(sampler, NeighborSampler)
    if not stored or sampler.is_hetero:
        return set()
    return {
        (attr.group_name, attr.attr_name)
        for attr in data[0].get_all_tensor_attrs()
        if _is_of_edges(attr, data[0], sampler)
    }


def _is_of_edges(attr: TensorAttr, features: Any, sampler: NeighborSampler) -> bool:
    """By the number of rows; where there are as many nodes as edges, by the name, as in ``Data``.

    The attribute that has the times is what the sampler took it for.
    """
    if attr.attr_name == sampler.time_attr:
        return sampler.edge_time is not None
    known = sampler.stored_of_edges
    key = attr.group_name, attr.attr_name
    if key not in known:  # asked once: a store may have to look far for it
        rows = (features.get_tensor_size(copy.copy(attr)) or (-1,))[0]
        nodes, edges = sampler.num_nodes, sampler.graph.num_edges
        known[key] = rows == edges and (rows != nodes or "edge" in attr.attr_name)
    return known[key]
