"""Whether a batch holds only what was known at the times of its seeds.

Owns ``check_leakage``, which trusts no sampler: times are looked up in the whole graph by the ids
of the batch's nodes and edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.typing import EdgeType, NodeType

from gnnsys.errors import ArgumentError, DTypeError, LeakageError
from gnnsys.loaders.user_graph import as_times, named

__all__ = ["check_leakage"]


def check_leakage(
    batch: Any,
    data: Any,
    time_attr: str,
    *,
    known_at: Mapping[str, str] | None = None,
    label: str = "y",
    seed_time: Tensor | None = None,
) -> None:
    """Raises LeakageError where a batch holds something that is newer than its seed.

    To be called with the batches of a loader in a test, whatever made them. A node, an edge and a
    value of either must not be later than the seed in whose tree it is, and no edge may join two
    trees. Seeds are nodes like others, but for their labels. Types without times are not compared.

    Args:
        batch: ``Data`` or ``HeteroData`` of a loader that was given ``time_attr``: with ``n_id``,
            ``e_id`` and ``batch``, by which every node belongs to a tree.
        data: the whole graph, or its times alone: a ``HeteroData`` of them by type, or a ``Data``
            with ``num_nodes``, and with ``edge_index`` where edges have times.
        time_attr: attribute of ``data`` with the (nodes,) or (edges,) integer times since when they
            exist.
        known_at: for attributes of the batch the attribute of ``data`` that has the integer times
            since when their values are known: (rows,), or (rows, columns) for each column. Where an
            attribute has fewer rows than there are nodes, they are those of the first nodes.
        label: the attribute that the seeds of a node loader may have from later, since it is what
            is predicted.
        seed_time: (trees,) integer times of the seeds; None for those that the loader put into the
            batch (``seed_time``, ``edge_label_time``), or for ``time_attr`` of the seeds.

    Raises:
        LeakageError: something is newer than its seed, or an edge joins two trees.
        ArgumentError: no type has these times, so that nothing would be compared; or a batch that
            lacks trees, ids or times of its seeds.
        DTypeError: times that are no integers.

    >>> from gnnsys import NeighborLoader
    >>> edge_index, time = torch.tensor([[1, 2], [0, 0]]), torch.tensor([5, 4, 6])
    >>> data = Data(edge_index=edge_index, time=time, num_nodes=3)
    >>> loader = NeighborLoader(data, [-1], input_nodes=torch.tensor([0]), time_attr="time")
    >>> batch = next(iter(loader))
    >>> batch.n_id.tolist()
    [0, 1]
    >>> check_leakage(batch, data, "time")
    >>> check_leakage(batch, data, "time", seed_time=torch.tensor([4]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    gnnsys.errors.LeakageError: batch: 1 of 2 nodes are newer than their seed: node 0 has ...
    """
    if isinstance(batch, HeteroData) != isinstance(data, HeteroData):
        raise ArgumentError(
            f"batch: a {type(batch).__name__} of a {type(data).__name__}, expected both with types "
            "or both without"
        )
    if isinstance(data, Data) and data.num_nodes is None:
        raise ArgumentError(
            "data: a Data without num_nodes, so that what is of nodes cannot be told; set it"
        )
    known_at = known_at or {}
    parts = [*_parts(batch, data)]
    for name in (time_attr, *known_at.values()):
        if not any(part.has(name) for part in parts):
            raise ArgumentError(
                f"time_attr, known_at: no type in data has times called {name!r}, so that nothing "
                "would be compared; name the attribute that has them"
            )
    for name, time_name in known_at.items():
        if not any(part.has(time_name) and name in part.held for part in parts):
            raise ArgumentError(
                f"known_at: no type of the batch that has times called {time_name!r} in data has "
                f"the attribute {name!r}, so that nothing would be compared; name one that it has"
            )
    seeds = _Seeds.of(batch, parts, time_attr, seed_time)
    for part in parts:
        if part.ends is not None:
            _check_ends(part)
        times = part.times(time_attr)
        if times is not None:
            _check(part, seeds, time_attr, times)
        for name, time_name in known_at.items():
            times = part.times(time_name)
            if times is not None and name in part.held:
                is_target = name == label and part.ends is None and part.kind == seeds.kind
                times = times[: len(part.held[name])]
                _check(part, seeds, time_name, times, name, seeds.count if is_target else 0)


@dataclass(frozen=True, slots=True)
class _Part:
    """The nodes or the edges of one type, in the batch and in the whole graph."""

    kind: NodeType | EdgeType | None
    held: Any
    """The batch's store."""
    whole: Any
    """The store of the whole graph."""
    tree: Tensor
    """(rows,) of nodes, or of the edges' targets."""
    ends: tuple[Tensor, Tensor] | None = None
    """(edges,) trees of the sources and of the targets; None for nodes."""

    @property
    def what(self) -> str:
        return "node" if self.ends is None else "edge"

    def times(self, name: str) -> Tensor | None:
        """(rows, ...) times of the rows in the batch; None where the type has none.

        Raises:
            ArgumentError: the batch does not tell which rows it has, or has others than the graph.
            DTypeError: times that are no integers.
        """
        if not self.has(name):
            return None
        times = torch.as_tensor(self.whole[name]).cpu()
        if times.is_floating_point() or times.is_complex() or times.dtype == torch.bool:
            raise DTypeError(
                f"{named(name, self.kind)}: dtype {times.dtype}, expected times (integers)"
            )
        ids = self.ids
        if len(ids) and int(ids.max()) >= len(times):
            raise ArgumentError(
                f"data: {len(times)} times in {named(name, self.kind)}, but the batch has the "
                f"{self.what} {int(ids.max())}; give the graph that it is of"
            )
        return times[ids]

    def has(self, name: str) -> bool:
        """Whether the rows of the whole graph have an attribute of this name."""
        if name not in self.whole:
            return False
        if not isinstance(self.whole, Data):
            return True
        is_of = self.whole.is_node_attr if self.ends is None else self.whole.is_edge_attr
        return bool(is_of(name))

    @property
    def ids(self) -> Tensor:
        """(rows,) ids in the whole graph."""
        name = "n_id" if self.ends is None else "e_id"
        if name not in self.held:
            raise ArgumentError(
                f"batch: {named(name, self.kind)} is missing, which tells the {self.what}s in it; "
                "give a batch of a loader"
            )
        ids: Tensor = self.held[name]
        return ids.cpu()


def _parts(batch: Any, data: Any) -> Iterator[_Part]:
    """All node types, then all edge types of the batch."""
    if not isinstance(batch, HeteroData):
        tree = _trees(batch, None)
        yield _Part(None, batch, data, tree)
        source, target = batch.edge_index.cpu()
        yield _Part(None, batch, data, tree[target], (tree[source], tree[target]))
        return
    trees = {kind: _trees(store, kind) for kind, store in batch.node_items() if "n_id" in store}
    nodes, edges = dict(data.node_items()), dict(data.edge_items())
    for kind, tree in trees.items():
        yield _Part(kind, batch[kind], nodes.get(kind, {}), tree)
    for kind, store in batch.edge_items():
        if "edge_index" not in store:  # of an input type that is no edge type of the graph
            continue
        source, target = store.edge_index.cpu()
        ends = trees[kind[0]][source], trees[kind[-1]][target]
        yield _Part(kind, store, edges.get(kind, {}), ends[1], ends)


def _trees(store: Any, kind: NodeType | None) -> Tensor:
    if store.get("batch") is None:
        raise ArgumentError(
            f"batch: {named('batch', kind)} is missing, which tells each node's seed; give a batch "
            "of a loader with time_attr or disjoint=True"
        )
    tree: Tensor = store["batch"]
    return tree.cpu()


@dataclass(frozen=True, slots=True)
class _Seeds:
    time: Tensor
    """(trees,)"""
    kind: NodeType | EdgeType | None
    """Of the seed nodes or links."""
    count: int
    """Seed nodes, which are the first of their type; 0 for links."""

    @classmethod
    def of(cls, batch: Any, parts: list[_Part], time_attr: str, given: Tensor | None) -> _Seeds:
        """The seeds of a batch.

        Raises:
            ArgumentError: it does not tell their times, or not those of all trees.
        """
        kind, store = _input_store(batch)
        count = int(store.get("batch_size") or 0)
        time = given
        if time is None:
            time = store.get("seed_time" if count else "edge_label_time")
        if time is None and not count:  # triplets
            time = (store if kind is None else batch[kind[0]]).get("seed_time")
        if time is None and count:
            own = next(part for part in parts if part.kind == kind).times(time_attr)
            time = None if own is None else own[:count]
        trees = 1 + max((int(part.tree.max()) for part in parts if len(part.tree)), default=-1)
        if time is None or len(time) < trees:
            found = "no times" if time is None else f"{len(time)} times"
            raise ArgumentError(
                f"seed_time: {found} for the seeds of {trees} trees; give a loader input_time or "
                "edge_label_time, or this function seed_time"
            )
        return cls(as_times("seed_time", time), kind, count)


def _input_store(batch: Any) -> tuple[Any, Any]:
    """The type of the seeds and its store."""
    if not isinstance(batch, HeteroData):
        return None, batch
    found = [
        (kind, store)
        for kind, store in (*batch.node_items(), *batch.edge_items())
        if "input_id" in store
    ]
    if len(found) != 1:
        raise ArgumentError(
            f"batch: {len(found)} types have an input_id, expected the type of the seeds alone; "
            "give a batch of a loader"
        )
    return found[0]


def _check_ends(part: _Part) -> None:
    assert part.ends is not None
    wrong = (part.ends[0] != part.ends[1]).nonzero()
    if len(wrong):
        edge = int(wrong[0])
        raise LeakageError(
            f"batch: edge {edge} of {len(part.tree)}{_of(part)} joins the trees of two seeds, "
            f"{int(part.ends[0][edge])} and {int(part.ends[1][edge])}; give each seed its own "
            "(disjoint=True)"
        )


def _check(
    part: _Part, seeds: _Seeds, name: str, times: Tensor, of: str | None = None, spared: int = 0
) -> None:
    """Raises LeakageError unless all rows from ``spared`` on are as old as their seeds or older.

    ``times`` are those called ``name``: of the rows, or of their values of the attribute ``of``.
    """
    newest = times.flatten(1).amax(1) if times.dim() > 1 else times
    latest = seeds.time[part.tree[: len(newest)]]
    late = newest > latest
    late[:spared] = False
    places = late.nonzero()
    if len(places):
        row = int(places[0])
        which = f"{part.what} {int(part.ids[row])}"
        rows = f"{len(places)} of {len(part.tree)} {part.what}s{_of(part)}"
        told = f"{name!r} {int(newest[row])}, its seed {int(latest[row])}"
        if of is None:
            raise LeakageError(
                f"batch: {rows} are newer than their seed: {which} has {told}; sample with "
                "time_attr, and look for what adds to the batch afterwards (transform)"
            )
        raise LeakageError(
            f"batch: {of!r} of {rows} is known only later than their seed: that of {which} has "
            f"{told}; leave it out of batches (transform), or take an older value"
        )


def _of(part: _Part) -> str:
    return "" if part.kind is None else f" of {part.kind!r}"
