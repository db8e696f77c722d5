"""Placeholder layout until the native one is merged."""

from typing import Any

from torch_geometric import EdgeIndex

__all__ = ["with_csr"]


def with_csr(batch: Any) -> Any:
    """Makes each ``edge_index``, sorted by target, an ``EdgeIndex``."""
    for store in batch.stores:
        if "edge_index" in store:
            store.edge_index = EdgeIndex(
                store.edge_index, sparse_size=store.size(), sort_order="col"
            )
    return batch
