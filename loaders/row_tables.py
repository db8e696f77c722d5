"""What a loader reads rows from: its data, with plain tensors behind stores.

Owns ``RowTables``. Invariants: the user's data is not changed; a batch's rows equal torch's
indexing bit for bit, and are ordinary tensors in memory that is used again once they are let go.

An ``AnnouncedStore`` is told the ids of a batch's nodes, or of its edges if its rows are theirs, as
soon as they are sampled, and answers with a ticket that goes with the gather.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData, TensorAttr
from torch_geometric.data.storage import BaseStorage, EdgeStorage, NodeStorage

from gnnsys.compat import forget_attributes, group_of, store_of
from gnnsys.feature_store import FeatureStore
from gnnsys.memory.encoding import SUPPORTED_DTYPES
from gnnsys.memory.store import BatchRows, is_announced
from gnnsys.system.once import warn_once
from gnnsys.unified_tensor import UnifiedTensor, unified

__all__ = ["Place", "RowTables", "TableView", "TicketFeatures", "Tickets", "unified_tensors"]

_log = logging.getLogger(__name__)
_LEAST_BYTES = 1 << 20
"""Smaller tables stay in the caches, where torch's ``index_select`` has less to do than a store."""


Place = tuple[Any, str]
"""Node type, edge type or None, and the name of an attribute."""

Tickets = Mapping[Place, BatchRows]
"""One for each table that is announced."""


class RowTables:
    """Stores over the tensors of a loader's data, kept from one epoch to the next.

    Args:
        threads: that gather; 0 for all cores this process may use.
        world_size: ranks that the loader's batches are divided among.
    """

    def __init__(self, threads: int, world_size: int = 1) -> None:
        self._threads, self._world_size = threads, world_size
        self._tables: dict[Place, tuple[Tensor, UnifiedTensor]] = {}

    def view(self, data: Any, of_edges: Collection[Place] = ()) -> TableView:
        """The data as it is now, to read batches from.

        Args:
            data: of the loader.
            of_edges: which features have a row for each edge, where ``data`` is a pair of stores.
        """
        if not isinstance(data, (Data, HeteroData)):
            asked_for = (
                (place, table)
                for place, table in _features_of(data)
                if place in of_edges or not isinstance(place[0], tuple)
            )
            return TableView(data, self._announced(asked_for), of_edges)
        view = copy.copy(data)
        tables: dict[Place, tuple[Tensor, UnifiedTensor]] = {}
        late: dict[Place, LateRows] = {}
        for store, own in zip(data.stores, view.stores, strict=True):
            for key, value in list(store.items()):
                if not _is_filtered(store, key):
                    continue
                place = (group_of(store), key)
                if isinstance(value, Tensor) and value.requires_grad:
                    told = "%s: requires grad, so its rows are gathered when a batch is handed over"
                    warn_once(_log, told + ", not ahead: they are those of the last update", key)
                    late[place] = LateRows(value, data.__cat_dim__(key, value, store))
                    own[key] = torch.arange(value.size(late[place].dim))
                elif _is_table(data, store, key, value):
                    known = self._tables.get(place)
                    if known is None or not _is_over(known, value):
                        known = value, unified(value, device="cpu", threads=self._threads)
                    tables[place] = known
                    own[key] = known[1]
            forget_attributes(own)
        self._tables = tables
        of_nodes, of_edges = (dict(_attributes_of(view, kind)) for kind in ("node", "edge"))
        announced = self._announced(iter((of_nodes | of_edges).items()))
        return TableView(view, announced, of_edges, late)

    def _announced(
        self, tables: Iterator[tuple[Place, UnifiedTensor]]
    ) -> dict[Place, UnifiedTensor]:
        """Those that are told ahead; one that ranks share, if each has a part of the batches."""
        announced = {}
        for place, table in tables:
            store = table.store
            if not is_announced(store):
                continue
            if store.world_size in (1, self._world_size):
                announced[place] = table
            else:
                told = (
                    "%s: %d ranks share the cache of this tensor, and this loader does not divide "
                )
                told += (
                    "its batches among them: its rows come from the cache as it is, which without "
                    "scores= begins with none, or the file; "
                )
                told += "give it rank= and world_size="
                warn_once(_log, told, place[1], store.world_size)
        return announced


@dataclass(frozen=True, slots=True)
class LateRows:
    """An attribute that may be learnt: its rows are gathered when a batch is handed over."""

    value: Tensor
    dim: int


class TableView:
    """Data whose batches can be announced; what ``RowTables.view`` returns.

    ``data`` is what PyG's filter functions read where nothing is announced. In it, the positions of
    rows stand for those of an attribute that requires grad: ``bring_late_rows`` puts these there.
    """

    def __init__(
        self,
        data: Any,
        announced: dict[Place, UnifiedTensor],
        of_edges: Collection[Place] = (),
        late: dict[Place, LateRows] | None = None,
    ) -> None:
        self.data = data
        self._announced = announced
        self._of_edges = {place for place in announced if place in of_edges}
        self._late = late or {}

    @property
    def has_late_rows(self) -> bool:
        """Whether a batch is not whole before ``bring_late_rows``."""
        return bool(self._late)

    def bring_late_rows(self, batch: Any) -> None:
        """Gathers what must not be older than the training step before: called by the consumer."""
        for (group, key), rows in self._late.items():
            store = store_of(batch, group)
            if key in store:
                places = store[key].to(rows.value.device)
                store[key] = rows.value.index_select(rows.dim, places)

    @property
    def lookahead(self) -> int:
        """Batches that the stores want announced ahead of the one they serve."""
        stores = (table.store for table in self._announced.values())
        return max((store.lookahead for store in stores if is_announced(store)), default=0)

    def announce(self, out: Any, edge_permutation: Any = None) -> Tickets:
        """Announces a batch, of which this view is the owner.

        Args:
            out: of the sampler: (n,) node ids and, unless it has none, (m,) positions of edges; or
                dicts of them by type.
            edge_permutation: the user's number of the edge at each position, or a dict of that by
                type; None where the positions are the numbers.
        """
        tickets: dict[Place, BatchRows] = {}
        try:
            for place, table in self._announced.items():
                of_edges = place in self._of_edges
                ids = _of_type(out.edge if of_edges else out.node, place[0])
                if ids is None:  # of edges, whose rows nobody takes
                    continue
                numbers = _of_type(edge_permutation, place[0]) if of_edges else None
                ids = ids if numbers is None else numbers[ids.long()]
                store: Any = table.store
                tickets[place] = BatchRows(store, store.announce(ids, self))
        except BaseException:
            for told in tickets.values():
                told.store.retract(told.ticket)
            raise
        return tickets

    def finish(self) -> None:
        """Tells that none will be announced any more."""
        for table in self._announced.values():
            store: Any = table.store
            store.finish(self)

    def end(self) -> None:
        """Takes back all batches that were not gathered; none will be announced any more."""
        for table in self._announced.values():
            store: Any = table.store
            store.end(self)

    def redeem(self, tickets: Tickets) -> Any:
        """What PyG's filter functions read for the batch that was announced with the tickets."""
        if not self._announced:
            return self.data
        tables = {
            place: UnifiedTensor(ticket, self._announced[place].device)
            for place, ticket in tickets.items()
        }
        if not isinstance(self.data, (Data, HeteroData)):
            return TicketFeatures(self.data[0], tables), self.data[1]
        view = copy.copy(self.data)
        for store in view.stores:
            for key in list(store.keys()):
                if (group_of(store), key) in tables:
                    store[key] = tables[group_of(store), key]
        return view


def _is_filtered(store: BaseStorage, key: str) -> bool:
    """Whether PyG takes rows of this attribute; others are handed on as they are."""
    if key in ("edge_index", "adj", "adj_t"):
        return False
    of_node = isinstance(store, NodeStorage) and store.is_node_attr(key)
    return of_node or (isinstance(store, EdgeStorage) and store.is_edge_attr(key))


def _is_table(data: Any, store: BaseStorage, key: str, value: Any) -> bool:
    """Whether a store reads the rows of this attribute, and faster than torch."""
    return (
        type(value) is Tensor
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in SUPPORTED_DTYPES
        and value.numel() * value.element_size() >= _LEAST_BYTES
        and value[0].is_contiguous()
        and not (value.is_conj() or value.is_neg())
        and data.__cat_dim__(key, value, store) == 0
    )


def _is_over(known: tuple[Tensor, UnifiedTensor], value: Tensor) -> bool:
    """Whether a table reads this tensor as it is, which set_() may have given other memory."""
    rows = known[1].store.resident
    return (
        known[0] is value
        and rows is not None
        and rows.data_ptr() == value.data_ptr()
        and rows.shape == value.shape
        and rows.stride() == value.stride()
        and rows.dtype == value.dtype
    )


def _of_type(given: Any, kind: Any) -> Any:
    """What is given for a type of nodes or edges, or for all where they have none; an empty tensor
    for a type that a batch lacks."""
    return given.get(kind, torch.empty(0, dtype=torch.int64)) if isinstance(given, dict) else given


def _attributes_of(view: Any, of: Literal["node", "edge"]) -> Iterator[tuple[Place, UnifiedTensor]]:
    for store in view.stores:
        if isinstance(store, NodeStorage if of == "node" else EdgeStorage):
            is_of = store.is_node_attr if of == "node" else store.is_edge_attr
            for key, value in store.items():
                if isinstance(value, UnifiedTensor) and is_of(key):
                    yield (group_of(store), key), value


def _features_of(data: Any) -> Iterator[tuple[Place, UnifiedTensor]]:
    features = data[0] if isinstance(data, (tuple, list)) else None
    return _tables_of(features) if isinstance(features, FeatureStore) else iter(())


def _tables_of(features: FeatureStore) -> Iterator[tuple[Place, UnifiedTensor]]:
    for attr in features.get_all_tensor_attrs():
        yield (
            (attr.group_name, attr.attr_name),
            features.table(attr.group_name, attr.attr_name),
        )


def unified_tensors(data: Any) -> dict[str, UnifiedTensor]:
    """All in what a loader is given, by the names that they have there."""
    if isinstance(data, (tuple, list)):
        places = _tables_of(data[0]) if isinstance(data[0], FeatureStore) else iter(())
        return {_spoken(*place): table for place, table in places}
    return {
        _spoken(group_of(store), key): value
        for store in data.stores
        for key, value in store.items()
        if isinstance(value, UnifiedTensor)
    }


def _spoken(group: Any, name: str) -> str:
    return name if group is None else f"{group}.{name}"


class TicketFeatures:
    """What PyG's filter functions ask of a feature store, some of whose matrices are announced."""

    def __init__(self, features: FeatureStore, announced: dict[Place, UnifiedTensor]) -> None:
        self._features, self._announced = features, announced
        self.get_all_tensor_attrs = features.get_all_tensor_attrs
        self.get_tensor_size = features.get_tensor_size

    def multi_get_tensor(self, attrs: list[TensorAttr]) -> list[Any]:
        return [self._get(attr) for attr in attrs]

    def _get(self, attr: TensorAttr) -> Any:
        table = self._announced.get((attr.group_name, attr.attr_name))
        return self._features.get_tensor(attr) if table is None else table[attr.index]
