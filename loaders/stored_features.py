"""Features of edges in a ``(FeatureStore, GraphStore)``.

PyG puts no features of edges from stores into batches, and takes the rows of those in a store
without types by node id, for such a store does not say what has a feature. Of a ``FeatureStore`` of
gnnsys, batches get them: the rows of ``batch.e_id``. Of others they are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch_geometric.data import Data, TensorAttr

from gnnsys.compat import store_of
from gnnsys.feature_store import FeatureStore
from gnnsys.loaders.neighbor_sampler import NeighborSampler
from gnnsys.loaders.row_tables import Place, TicketFeatures

__all__ = ["joining_stored_features", "names_of_rows", "stored_of_edges"]


def joining_stored_features(join: Callable[[Any, Any], Any]) -> Any:
    """PyG's ``filter_fn`` ``join``, of stores with the features of edges that batches get."""

    def joined(loader: Any, out: Any) -> Any:
        of_edges = stored_of_edges(loader.data, loader.node_sampler)
        if not of_edges:
            return join(loader, out)
        features, graphs = loader.data
        attrs = features.get_all_tensor_attrs()
        shown = SimpleNamespace(
            get_all_tensor_attrs=lambda: [attr for attr in attrs if _place(attr) not in of_edges],
            multi_get_tensor=features.multi_get_tensor,
        )
        batch = join(SimpleNamespace(**{**vars(loader), "data": (shown, graphs)}), out)
        if isinstance(features, (FeatureStore, TicketFeatures)):
            for attr in attrs:
                if _place(attr) in of_edges:
                    _join_rows(features, attr, store_of(batch, attr.group_name))
        return batch

    return joined


def _join_rows(features: Any, attr: TensorAttr, store: Any) -> None:
    """Adds the rows of a batch's edges, unless their numbers are not known."""
    if "e_id" in store:
        attr.index = store.e_id
        (store[attr.attr_name],) = features.multi_get_tensor([attr])


def stored_of_edges(data: Any, sampler: Any) -> set[Place]:
    """Which features in a pair of stores have a row for each edge; none in other data."""
    if not isinstance(data, (tuple, list)) or not isinstance(sampler, NeighborSampler):
        return set()
    attrs = data[0].get_all_tensor_attrs()
    if sampler.is_hetero:
        return {_place(attr) for attr in attrs if attr.group_name in sampler.edge_types}
    return {_place(attr) for attr in attrs if _is_of_edges(attr, data[0], sampler)}


def names_of_rows(data: Any, sampler: Any) -> tuple[set[str], set[str]]:
    """Names of the attributes with a row for each node, and for each edge, in a batch without
    types."""
    if not isinstance(data, Data):
        of_edges = {name for _, name in stored_of_edges(data, sampler)}
        names = {attr.attr_name for attr in data[0].get_all_tensor_attrs()}
        return names - of_edges, of_edges
    store = store_of(data, None)
    names = set(store.keys()) - {"edge_index", "num_nodes"}
    return set(filter(store.is_node_attr, names)), set(filter(store.is_edge_attr, names))


def _place(attr: TensorAttr) -> Place:
    return attr.group_name, attr.attr_name


def _is_of_edges(attr: TensorAttr, features: Any, sampler: NeighborSampler) -> bool:
    """By the number of rows; where there are as many nodes as edges, by the name, as in ``Data``.

    The attribute that has the times is what the sampler took it for.
    """
    if attr.attr_name == sampler.time_attr:
        return sampler.edge_time is not None
    known = sampler.stored_of_edges
    key = _place(attr)
    if key not in known:  # asked once: a store may have to look far for it
        rows = (features.get_tensor_size(copy.copy(attr)) or (-1,))[0]
        nodes, edges = sampler.num_nodes, sampler.graph.num_edges
        known[key] = rows == edges and (rows != nodes or "edge" in attr.attr_name)
    return known[key]
