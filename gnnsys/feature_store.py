"""PyG's ``FeatureStore`` interface over the stores of gnnsys."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch_geometric.data
from torch import Tensor
from torch_geometric.data import TensorAttr

from gnnsys.counters import Counters
from gnnsys.errors import UnsupportedError
from gnnsys.system.notebook import facts_as_html
from gnnsys.unified_tensor import UnifiedTensor, unified

__all__ = ["FeatureStore"]


class FeatureStore(torch_geometric.data.FeatureStore):
    """Feature matrices that stay where they are, served to PyG's loaders row by row.

    For code that prefers PyG's ``(FeatureStore, GraphStore)`` interface to a unified tensor in
    ``Data``. A matrix is put whole (``index=None``) and read by any index.

    >>> store = FeatureStore()
    >>> store["paper", "x", None] = torch.arange(6.0).view(3, 2)
    >>> store["paper", "x", torch.tensor([2, 0])]
    tensor([[4., 5.],
            [0., 1.]])
    """

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["_tables"] = {}

    @property
    def counters(self) -> Counters:
        """Rows and bytes served by all matrices together, by tier."""
        return Counters.total(table.counters for table in self._tables.values())

    def table(self, group_name: Any, attr_name: str) -> UnifiedTensor:
        """A matrix that was put, as the unified tensor that serves it; KeyError without one."""
        return self._tables[group_name, attr_name]

    def put_file(
        self, path: str | os.PathLike[str], group_name: Any, attr_name: str, **options: Any
    ) -> bool:
        """Adds the matrix in the file at ``path``; ``options`` are those of ``gnnsys.unified``."""
        self._tables[group_name, attr_name] = unified(path, **options)
        return True

    def _put_tensor(self, tensor: Any, attr: TensorAttr) -> bool:
        if attr.index is not None:
            raise UnsupportedError(
                f"{attr.attr_name}: rows cannot be put one by one into a read-only matrix; put "
                "the whole with index=None"
            )
        table = tensor if isinstance(tensor, UnifiedTensor) else unified(tensor)
        self._tables[attr.group_name, attr.attr_name] = table
        return True

    def _get_tensor(self, attr: TensorAttr) -> Tensor | None:
        table = self._tables.get((attr.group_name, attr.attr_name))
        if table is None:
            return None
        if attr.index is None:
            return table.materialize()
        index = attr.index
        return table[torch.from_numpy(index) if isinstance(index, np.ndarray) else index]

    def _remove_tensor(self, attr: TensorAttr) -> bool:
        return self._tables.pop((attr.group_name, attr.attr_name), None) is not None

    def _get_tensor_size(self, attr: TensorAttr) -> tuple[int, ...] | None:
        table = self._tables.get((attr.group_name, attr.attr_name))
        if table is None:
            return None
        return tuple(table.shape if attr.index is None else table[attr.index].shape)

    def get_all_tensor_attrs(self) -> list[TensorAttr]:
        """Every matrix, without an index."""
        return [self._tensor_attr_cls(*key) for key in self._tables]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self._facts().items())})"

    def _repr_html_(self) -> str:
        return facts_as_html(type(self).__name__, self._facts())

    def _facts(self) -> dict[str, str]:
        return {
            name if group is None else f"{group}.{name}": repr(table)
            for (group, name), table in self._tables.items()
        }

    def __len__(self) -> int:
        return len(self._tables)
