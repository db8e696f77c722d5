"""Linear layers that do not multiply rows which are zero.

In a batch of sampled neighbours the nodes of the last hop, more than half of all, have no edges:
their sums are zero, and a linear layer makes its bias of them. Backward, nodes that lie further
from the seeds than there are layers left have no gradient; of a graph that is trained in one batch
by few seeds these are most.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn import Module, Parameter
from torch_geometric.nn import Linear

from gnnsys.compat import has_hooks, is_transformed
from gnnsys.message_passing.derived import Derived, derive
from gnnsys.message_passing.known import KnownOf
from gnnsys.message_passing.sums import SUMMED_DTYPES
from gnnsys.system.extension import core

__all__ = [
    "can_fold",
    "gives_summed_rows",
    "is_product",
    "product",
    "skip_zero_rows",
    "zero_rows",
]

_LINEAR: tuple[type[Module], ...] = (torch.nn.Linear, Linear)

zero_rows: KnownOf[int] = KnownOf()
"""Of sums: the number of their row from which on all are zero."""


def skip_zero_rows(layer: Module) -> None:
    """Makes the linear layers that belong to a layer skip rows of ``zero_rows``, in place."""
    for child in layer.children():
        if type(child) in _LINEAR:
            derive(child, _Skipping)


def is_product(layer: Any) -> bool:
    """Whether a layer multiplies by its weight, in the precision of both, and does nothing else."""
    is_ours = issubclass(type(layer), _Skipping)
    plain = is_ours and layer.bias is None and not has_hooks(layer)
    return plain and not torch.is_autocast_enabled(layer.weight.device.type)


def gives_summed_rows(x: Tensor) -> bool:
    """Whether what linear layers make of x can be summed: not under torch.autocast to float16."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype in SUMMED_DTYPES
    return torch.get_autocast_dtype(device) in SUMMED_DTYPES


def can_fold(layer: Any) -> bool:
    """Whether a layer is a product, so that what follows may be multiplied into the weight, and
    makes no more columns of a row by far than it reads."""
    if not is_product(layer):
        return False
    rows, columns = layer.weight.shape
    return bool(columns <= 2 * rows)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.t()``, as by a layer that skips rows without gradients."""
    result: Tensor = (
        _Product.apply(x, weight, None) if _can_skip(x, weight) else F.linear(x, weight)
    )
    return result


class _Skipping(Derived):
    def forward(self: Any, x: Tensor) -> Tensor:
        """See ``torch.nn.Linear``."""
        result: Tensor
        if not _can_skip(x, self.weight):
            result = self._base.forward(self, x)
            return result
        first = zero_rows.of(x)
        if first is None:
            result = _Product.apply(x, self.weight, self.bias)
            return result
        top = _Product.apply(x[:first], self.weight, self.bias)
        if self.bias is None:
            return F.pad(top, (0, 0, 0, x.size(0) - first))
        return torch.cat([top, self.bias.to(top.dtype).expand(x.size(0) - first, -1)])


def _can_skip(x: Any, weight: Any) -> bool:
    """Whether these are tensors whose rows are looked at, in a call that nothing else sees."""
    if torch.compiler.is_compiling() or is_transformed() or torch.is_autocast_enabled("cpu"):
        return False
    plain = type(x) in (Tensor, Parameter) and type(weight) in (Tensor, Parameter)
    return plain and x.dim() == 2 and x.device.type == "cpu" and x.layout == torch.strided


class _Product(Function):
    """``x @ weight.t() + bias``, whose derivatives leave out rows where they are zero.

    The loss depends on the seeds alone, so that fewer and fewer nodes have a gradient the nearer a
    layer is to the output.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = _rows_with_gradients(grad)
        some = grad[rows]
        grad_x = _put(some @ weight, rows, len(grad)) if needs_x else None
        grad_weight = some.t() @ x[rows] if needs_weight else None
        return grad_x, grad_weight, some.sum(0) if needs_bias else None


def _rows_with_gradients(grad: Tensor) -> slice | Tensor:
    """The first rows, or, where few of these have a gradient, the numbers of those that have."""
    if torch.is_grad_enabled():  # of a zero, too, there may be derivatives
        return slice(len(grad))
    if not grad.is_contiguous() or type(grad) is not Tensor or grad.is_neg():
        return slice(len(grad))
    rows = torch.empty(len(grad), dtype=torch.int64)
    row_bytes = grad.size(1) * grad.element_size()
    count = core.find_nonzero_rows(grad.data_ptr(), row_bytes, rows.numpy())
    end = int(rows[count - 1]) + 1 if count > 0 else 0
    return rows[:count] if 2 * count < end else slice(end)


def _put(some: Tensor, rows: slice | Tensor, num_rows: int) -> Tensor:
    """(num_rows, C) with these rows, and zeros elsewhere."""
    if isinstance(rows, slice):
        return F.pad(some, (0, 0, 0, num_rows - len(some))) if len(some) < num_rows else some
    return some.new_zeros(num_rows, some.size(1)).index_copy_(0, rows, some)
