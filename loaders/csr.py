"""Batches on which unchanged PyG models sum over neighbours instead of scattering messages."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree
from torch_geometric import EdgeIndex, Index
from torch_geometric.data import Data, HeteroData
from torch_geometric.edge_index import SortOrder

from gnnsys.errors import RowIndexError
from gnnsys.loaders.aggregate import Neighbors
from gnnsys.loaders.lazy_messages import LazyMessages, gather_lazily, is_traced

__all__ = ["CSCEdgeIndex", "with_csr"]

_REDUCTIONS = ("sum", "add", "mean")
_aten = torch.ops.aten
_Batch = TypeVar("_Batch", Data, HeteroData)


class CSCEdgeIndex(EdgeIndex):
    """PyG's ``EdgeIndex`` with a fast CPU path under the layers that PyG has as they are.

    Message passing over it sums the rows of sources directly wherever a layer's messages are rows
    of sources, with or without edge weights, and their aggregation is a sum or a mean: SAGEConv,
    GINConv, GraphConv, GCNConv, GATConv, … Everything else does what it does for an ``EdgeIndex``.

    Args:
        data, sparse_size, sort_order, is_undirected: as of ``EdgeIndex``.

    >>> from torch_geometric.nn import SAGEConv
    >>> edge_index = CSCEdgeIndex([[2, 0, 1], [0, 0, 2]], sparse_size=(3, 3), sort_order="col")
    >>> SAGEConv(4, 2)(torch.ones(3, 4), edge_index).shape
    torch.Size([3, 2])
    """

    _neighbors: Neighbors | None = None
    _neighbors_of: tuple[Any, ...] = ()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if type(out) is EdgeIndex:
            return _adopt(out)
        if func is _aten.select.int and type(out) is Index and args[2] in (0, -2):
            return _SourceIndex._of(out, args[0])
        return out

    def neighbors(self) -> Neighbors | None:
        """The edges grouped by target, kept until they change.

        None where they cannot be grouped: not int64 on the CPU, a negative node, or while torch
        traces, compiles or transforms functions.
        """
        if is_traced():
            return None
        data = self._data
        version = 0 if data.is_inference() else data._version
        key = (data.data_ptr(), version, data.shape)
        if self._neighbors_of != key:
            self._neighbors, self._neighbors_of = _make_neighbors(self), key
        return self._neighbors

    def matmul(
        self,
        other: Any,
        input_value: Tensor | None = None,
        other_value: Tensor | None = None,
        reduce: Any = "sum",
        transpose: bool = False,
    ) -> Any:
        """See ``EdgeIndex.matmul``."""
        if transpose and other_value is None and reduce in _REDUCTIONS:
            neighbors = self.neighbors()
            messages: Any = None if neighbors is None else gather_lazily(other, 0, neighbors)
            if messages is not None and input_value is not None:
                shape = (-1,) + (1,) * (other.dim() - 1)
                messages = input_value.view(shape) * messages
            if isinstance(messages, LazyMessages):
                return messages.sum_by_target(
                    self.get_sparse_size(1), mean=reduce == "mean"
                ).value()
        return super().matmul(other, input_value, other_value, reduce, transpose)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles the edges without what was computed from them."""
        return _rebuild, (self._data, self._sparse_size, self.sort_order, self.is_undirected)


def _rebuild(data: Tensor, size: Any, order: str | None, is_undirected: bool) -> CSCEdgeIndex:
    return CSCEdgeIndex(data, sparse_size=size, sort_order=order, is_undirected=is_undirected)


def _adopt(edges: EdgeIndex) -> CSCEdgeIndex:
    """The same edges, with all that is known of them."""
    out = CSCEdgeIndex(edges._data)
    out.__dict__.update(edges.__dict__)
    return out


def _make_neighbors(edges: CSCEdgeIndex) -> Neighbors | None:
    data = edges._data
    if data.device.type != "cpu" or data.dtype != torch.int64 or type(data) is not Tensor:
        return None
    try:
        return Neighbors(data[0], data[1])
    except RowIndexError:
        return None


class _SourceIndex(Index):
    """The row of sources, which rows of features are gathered by."""

    _edges: CSCEdgeIndex

    @classmethod
    def _of(cls, index: Index, edges: CSCEdgeIndex) -> _SourceIndex:
        out = cls(index._data)
        out.__dict__.update(index.__dict__)
        out._edges = edges
        return out

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.index_select, torch.index_select) and not kwargs and len(args) == 3:
            x, dim, index = args
            if type(index) is cls:
                messages = index._gather(x, dim)
                if messages is not None:
                    return messages
        if all(issubclass(t, (Index, EdgeIndex)) for t in types):
            return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})
        args, kwargs = pytree.tree_map_only(cls, Index.as_tensor, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _gather(self, x: Any, dim: int) -> Tensor | None:
        neighbors = self._edges.neighbors()
        if neighbors is None or neighbors.source.data_ptr() != self._data.data_ptr():
            return None
        return gather_lazily(x, dim, neighbors)


def with_csr(batch: _Batch) -> _Batch:
    """Puts a ``CSCEdgeIndex`` in place of each ``edge_index`` of a batch, which it returns.

    Args:
        batch: ``Data`` or ``HeteroData`` with COO edges on the CPU; edges on other devices and in
            other layouts stay as they are.

    >>> data = Data(x=torch.ones(3, 1), edge_index=torch.tensor([[2, 0, 1], [0, 0, 2]]))
    >>> with_csr(data).edge_index.sort_order
    'col'
    """
    for store in batch.edge_stores:
        edges = store.get("edge_index")
        if isinstance(edges, Tensor) and edges.layout == torch.strided and not edges.is_cuda:
            store.edge_index = _index_edges(edges, store.size())
    return batch


def _index_edges(edges: Tensor, size: tuple[int | None, int | None]) -> CSCEdgeIndex:
    data = edges.as_tensor() if isinstance(edges, EdgeIndex) else edges
    out = CSCEdgeIndex(data.contiguous(), sparse_size=size)
    neighbors = out.neighbors()
    if neighbors is not None and neighbors.is_sorted:
        out._sort_order = SortOrder.COL
        missing = max(0, out.get_sparse_size(1) - neighbors.num_targets)
        out._indptr = F.pad(neighbors.indptr, (0, missing), value=data.size(1))
    return out
