"""Linear layers that do not multiply rows which are known to be zero.

In a batch of sampled neighbours the nodes of the last hop, more than half of all, have no edges:
their sums are zero, and a linear layer makes its bias of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import Linear

from gnnsys.message_passing.derived import Derived, derive
from gnnsys.message_passing.known import KnownOf

__all__ = ["skip_zero_rows", "zero_rows"]

_LINEAR: tuple[type[Module], ...] = (torch.nn.Linear, Linear)

zero_rows: KnownOf[int] = KnownOf()
"""Of sums: the number of their row from which on all are zero."""


def skip_zero_rows(layer: Module) -> None:
    """Makes the linear layers that belong to a layer skip rows of ``zero_rows``, in place."""
    for child in layer.children():
        if type(child) in _LINEAR:
            derive(child, _Skipping)


class _Skipping(Derived):
    def forward(self: Any, x: Tensor) -> Tensor:
        """See ``torch.nn.Linear``."""
        multiply = self._base.forward
        first = None if torch.compiler.is_compiling() else zero_rows.of(x)
        result: Tensor
        if first is None:
            result = multiply(self, x)
            return result
        top = multiply(self, x[:first])
        if self.bias is None:
            return F.pad(top, (0, 0, 0, x.size(0) - first))
        return torch.cat([top, self.bias.to(top.dtype).expand(x.size(0) - first, -1)])
