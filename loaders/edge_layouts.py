"""How a batch holds its edges: plain tensors, or PyG's ``EdgeIndex``."""

from __future__ import annotations

import contextlib
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData

from gnnsys.errors import RowIndexError
from gnnsys.message_passing import neighbors_of

__all__ = ["Layout", "lay_out"]

Layout = Literal["coo", "csr"]

_Batch = TypeVar("_Batch", Data, HeteroData)


def lay_out(batch: _Batch, layout: Layout) -> _Batch:
    """Puts each ``edge_index`` of a batch into a layout; returns the batch.

    Args:
        batch: with COO edges; those on other devices and in other layouts stay as they are.
        layout: "coo" leaves tensors as they are, and counts their edges by target for
            ``gnnsys.fuse``; "csr" makes them ``EdgeIndex``.

    >>> data = Data(x=torch.ones(3, 1), edge_index=torch.tensor([[2, 0, 1], [0, 0, 2]]))
    >>> lay_out(data, "csr").edge_index.sort_by("col").values.sort_order
    'col'
    """
    for store in batch.edge_stores:
        edges = store.get("edge_index")
        if type(edges) is not Tensor or edges.dtype != torch.int64 or edges.device.type != "cpu":
            continue
        if layout == "coo":
            with contextlib.suppress(RowIndexError):  # of a transform; whoever uses it is told
                neighbors_of(edges)
        else:
            # Without size and order: layers of PyG hold bipartite calls, nodes that are added and
            # the like to the former, and torch.compile fails in SAGEConv over the latter.
            store.edge_index = EdgeIndex(edges.contiguous())
    return batch
