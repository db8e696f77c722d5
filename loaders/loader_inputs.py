"""What users give loaders to begin from: seed nodes and links, checked, in the forms PyG takes.

The data is read and never indexed by a type that it may lack: ``HeteroData`` would add the type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.typing import EdgeType, NodeType

from gnnsys.compat import canonical_edge_type, group_of
from gnnsys.errors import ArgumentError, DTypeError, UnsupportedError
from gnnsys.loaders.links import as_negative_sampling
from gnnsys.loaders.user_graph import as_times, check_ids_dtype

__all__ = ["check_joined", "seed_links", "seed_negatives", "seed_nodes"]


def check_joined(data: Any) -> None:
    """Raises UnsupportedError for edges of which a loader cannot make batches.

    PyG cuts out ``edge_index`` and the ``adj_t`` of torch-sparse alone; a sampler reads all forms.
    """
    if not isinstance(data, (Data, HeteroData)):
        return
    for store in data.edge_stores:
        for name in ("adj", "adj_t"):
            if name in store and (name == "adj" or isinstance(store[name], Tensor)):
                kind = store[name].layout if isinstance(store[name], Tensor) else "SparseTensor"
                where = name if isinstance(data, Data) else f"{name} of {group_of(store)}"
                raise UnsupportedError(
                    f"{where}: a {kind} matrix, of which no batches can be made; give the edges as "
                    "edge_index, and apply ToSparseTensor to batches (transform=) where a model "
                    "needs adj_t"
                )


def seed_nodes(
    data: Any, sampler: Any, given: Any, input_time: Any, input_id: Any
) -> dict[str, Any]:
    """What a ``NodeLoader`` is to be made with for its seeds.

    Args:
        data: of the loader.
        sampler: knows the types and numbers of nodes where ``data`` is a pair of stores.
        given: ``input_nodes``.
        input_time: (seeds,) integers, or None.
        input_id: (seeds,) names, or None.

    Raises:
        ArgumentError, DTypeError: seeds, times or names that cannot be meant.
    """
    kind, nodes = _split_nodes(given)
    _check_node_type(data, sampler, kind, given)
    count = _count_nodes(data, sampler, kind)
    seeds = count
    if nodes is not None:
        nodes = _as_nodes(nodes, count)
        seeds = int(nodes.sum()) if nodes.dtype == torch.bool else len(nodes)
    elif count is not None and (input_id is not None or isinstance(data, (tuple, list))):
        nodes = torch.arange(count)  # PyG drops the names of nodes that are not listed
    if kind is not None:
        nodes = kind if nodes is None else (kind, nodes)
    return {
        "input_nodes": nodes,
        "input_time": _as_seed_times("input_time", input_time, seeds, "seeds"),
        "input_id": _as_parallel("input_id", input_id, seeds, "seeds"),
    }


def seed_links(
    data: Any,
    sampler: Any,
    given: Any,
    edge_label: Any,
    edge_label_time: Any,
    input_id: Any,
) -> dict[str, Any]:
    """What a ``LinkLoader`` is to be made with for its links.

    Args:
        data: of the loader.
        sampler: knows the types and numbers of nodes where ``data`` is a pair of stores.
        given: ``edge_label_index``.
        edge_label: (links, ...) labels, or None.
        edge_label_time: (links,) integers, or None.
        input_id: (links,) names, or None.

    Raises:
        ArgumentError, DTypeError: links, labels, times or names that cannot be meant.
    """
    kind, links = _split_links(data, given)
    if isinstance(data, HeteroData) and kind is not None:
        kind = canonical_edge_type(data, kind)
    _check_edge_type(data, sampler, kind, links is None, given)
    if links is None and kind is None and not isinstance(data, Data):
        links = torch.stack(data[1].coo()[:2])  # which PyG asks for by type alone
    if links is None:
        count = _count_edges(data, sampler, kind)
    else:
        links = _as_links(links)
        count = links.shape[1]
    return {
        "edge_label_index": links if isinstance(data, Data) else (kind, links),
        "edge_label": _as_parallel("edge_label", edge_label, count, "links"),
        "edge_label_time": _as_seed_times("edge_label_time", edge_label_time, count, "links"),
        "input_id": _as_parallel("input_id", input_id, count, "links"),
    }


def seed_negatives(neg_sampling: Any, neg_sampling_ratio: float | None, edge_label: Any) -> Any:
    """The ``NegativeSampling`` that a ``LinkLoader`` is asked for, or None.

    Raises:
        ArgumentError: an unknown one, or labels where there can be none.
    """
    if neg_sampling_ratio:
        asked = as_negative_sampling(("binary", neg_sampling_ratio), "neg_sampling_ratio")
    else:
        asked = as_negative_sampling(neg_sampling)
    if asked is not None and asked.is_triplet() and edge_label is not None:
        raise ArgumentError(
            "edge_label: given, but 'edge_label' needs to be undefined for 'triplet'-based "
            "negative sampling: use `src_index`, `dst_pos_index` and `dst_neg_index` of the batch"
        )
    return asked


# Types -------------------------------------------------------------------------------------------


def _split_nodes(given: Any) -> tuple[NodeType | None, Any]:
    """The node type, if one is named, and what is said of its nodes."""
    if isinstance(given, str):
        return given, None
    if _is_sequence(given) and len(given) and isinstance(given[0], str):
        if len(given) == 2 and not isinstance(given[1], str):
            return given[0], given[1]
    elif not isinstance(given, Mapping) and not (
        _is_sequence(given) and any(_is_sequence(part) for part in given)
    ):
        return None, given
    raise ArgumentError(
        f"input_nodes: {_told(given)}, expected ids, a mask, a node type or (node type, ids or "
        "mask); seeds are of one type, so make a loader for each"
    )


def _split_links(data: Any, given: Any) -> tuple[Any, Any]:
    """The edge type, if one is named, and the links, if they are given."""
    if isinstance(given, Mapping | str):
        raise ArgumentError(
            f"edge_label_index: {_told(given)}, expected links, an edge type or (edge type, links);"
            " links are of one type, so make a loader for each"
        )
    if _is_sequence(given) and len(given):
        if isinstance(given[0], str):
            return _as_edge_type(given), None
        if len(given) == 2 and (given[0] is None or _is_edge_type(given[0])):
            kind = None if given[0] is None else _as_edge_type(given[0])
            if _is_edge_type(given[1]):
                raise ArgumentError(
                    f"edge_label_index: {_told(given)}, expected (edge type, links); links are of "
                    "one type, so make a loader for each"
                )
            if kind is not None or not isinstance(data, Data):
                return kind, given[1]
    return None, given


def _is_edge_type(given: Any) -> bool:
    return _is_sequence(given) and len(given) > 0 and all(isinstance(part, str) for part in given)


def _as_edge_type(given: Any) -> EdgeType:
    if len(given) not in (2, 3) or not _is_edge_type(given):
        raise ArgumentError(
            f"edge_label_index: {_told(given)}, expected an edge type: (source, relation, target)"
        )
    return tuple(given)


def _node_types(data: Any, sampler: Any) -> list[Any] | None:
    """[None] where nodes have no types; None where they are not known."""
    if isinstance(data, Data):
        return [None]
    if isinstance(data, HeteroData):
        return data.node_types
    if not isinstance(data, (tuple, list)):
        raise ArgumentError(
            f"data: a {type(data).__name__}; expected Data, HeteroData or "
            "(FeatureStore, GraphStore)"
        )
    return getattr(sampler, "node_types", None)


def _check_node_type(data: Any, sampler: Any, kind: NodeType | None, given: Any) -> None:
    known = _node_types(data, sampler)
    if known is None or kind in known:
        return
    if kind is None:
        raise ArgumentError(
            f"input_nodes: {_told(given)} without a node type; give one of {known}, or (type, ids "
            "or mask)"
        )
    has = "has no types" if known == [None] else f"has {known}"
    raise ArgumentError(f"input_nodes: {kind!r} is no node type of the data, which {has}")


def _check_edge_type(data: Any, sampler: Any, kind: Any, all_edges: bool, given: Any) -> None:
    nodes = _node_types(data, sampler)
    if nodes is None:
        return
    if (kind is None) != (nodes == [None]):
        if kind is None:
            raise ArgumentError(
                f"edge_label_index: {_told(given)} without an edge type; give one, or (type, links)"
            )
        raise ArgumentError(f"edge_label_index: {kind}, but the data has no types; give links")
    if kind is None:
        return
    lacking = [end for end in (kind[0], kind[-1]) if end not in nodes]
    if lacking:
        raise ArgumentError(
            f"edge_label_index: {kind}, but {lacking[0]!r} is no node type of the data, which has "
            f"{nodes}"
        )
    known = data.edge_types if isinstance(data, HeteroData) else getattr(sampler, "edge_types", [])
    if all_edges and kind not in known:
        raise ArgumentError(
            f"edge_label_index: {kind} is no edge type of the data, which has {list(known)}"
        )


# Numbers -----------------------------------------------------------------------------------------


def _count_nodes(data: Any, sampler: Any, kind: NodeType | None) -> int | None:
    if isinstance(data, Data):
        return data.num_nodes
    if isinstance(data, HeteroData):
        return data[kind].num_nodes
    count = getattr(sampler, "num_nodes", None)
    return count.get(kind) if isinstance(count, dict) else count


def _count_edges(data: Any, sampler: Any, kind: EdgeType | None) -> int | None:
    if isinstance(data, (Data, HeteroData)):
        store = data if kind is None else data[kind]
        if store.get("edge_index") is None:
            raise ArgumentError(
                "edge_label_index: None, for all edges, but the data has no edge_index; give links"
            )
        return store["edge_index"].shape[1]
    graphs = getattr(sampler, "graphs", {})
    return graphs[kind].num_edges if kind in graphs else None


def _as_nodes(given: Any, count: int | None) -> Tensor:
    nodes = _as_tensor("input_nodes", given, "node ids or a mask")
    if nodes.dim() != 1:
        raise ArgumentError(f"input_nodes: shape {tuple(nodes.shape)}, expected one dimension")
    if nodes.dtype == torch.bool:
        if count is not None and len(nodes) != count:
            raise ArgumentError(
                f"input_nodes: a mask of {len(nodes)} entries, expected one for each of the "
                f"{count} nodes"
            )
        return nodes
    return check_ids_dtype("input_nodes", nodes, "node ids, or a mask of bools")


def _as_links(given: Any) -> Tensor:
    links = _as_tensor("edge_label_index", given, "links")
    if links.dim() != 2 or links.shape[0] != 2:
        raise ArgumentError(
            f"edge_label_index: shape {tuple(links.shape)}, expected (2, links), sources above "
            "targets"
        )
    return check_ids_dtype("edge_label_index", links, "node ids")


def _as_tensor(name: str, given: Any, expected: str) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DTypeError(f"{name}: {_told(given)}, expected {expected}") from error


def _as_parallel(name: str, given: Any, count: int | None, what: str) -> Tensor | None:
    """Values, one for each seed or link; their numbers are not compared where ``count`` is None."""
    if given is None:
        return None
    value = _as_tensor(name, given, f"one value for each of the {count} {what}")
    if value.dim() == 0 or (count is not None and len(value) != count):
        found = f"{len(value)} entries" if value.dim() else _told(given)
        raise ArgumentError(f"{name}: {found}, expected one for each of the {count} {what}")
    return value


def _as_seed_times(name: str, given: Any, count: int | None, what: str) -> Tensor | None:
    times = _as_parallel(name, given, count, what)
    if times is not None:
        as_times(name, times, count)  # for its errors: batches have the times as they are given
    return times


def _is_sequence(given: Any) -> bool:
    return isinstance(given, (list, tuple))


def _told(given: Any) -> str:
    """A value in an error: short, or by its type."""
    text = repr(given)
    return text if len(text) <= 80 else f"a {type(given).__name__}"
