"""PyG's ``GCNConv`` with weights of edges that are computed once for all layers of a batch.

PyG's layer adds self loops, which unsorts edges, and normalises each time it is called. Here both
are remembered with the edges, inside the operator that sums: torch.compile sees that one alone.
"""

from __future__ import annotations

import functools
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch_geometric.nn import GCNConv
from torch_geometric.nn.aggr import SumAggregation

from gnnsys.compat import cached_edges, is_transformed, shows_messages
from gnnsys.errors import RowIndexError
from gnnsys.message_passing.known import KnownOf
from gnnsys.message_passing.linear import gives_summed_rows, is_product
from gnnsys.message_passing.neighbors import Neighbors, neighbors_of
from gnnsys.message_passing.self_loops import with_self_loops
from gnnsys.message_passing.sums import DEVICES, SUMMED_DTYPES, can_sum, sum_neighbors
from gnnsys.system.gpu.placement import device_of_cpu_tensors, kernels_of_cpu_tensors

__all__ = ["GCNForward", "is_gcn"]

# E edges, E' of them with self loops, N nodes, C channels. `end`: the one of an edge whose node
# receives messages, 0 for its source, 1 for its target. `loops`: the weight of added self loops, 0
# where none are added.


def is_gcn(kind: Any) -> bool:
    """Whether a class of layers computes what PyG's ``GCNConv`` does, literally."""
    return (
        issubclass(kind, GCNConv)
        and kind.forward is GCNConv.forward
        and kind.message is GCNConv.message
    )


class GCNForward:
    """Has the ``forward`` of fused classes of ``GCNConv``."""

    @functools.wraps(GCNConv.forward)
    def forward(self: Any, x: Any, edge_index: Any, edge_weight: Any = None) -> Tensor:
        """See ``GCNConv.forward``."""
        result: Tensor
        if _takes(self, x, edge_index, edge_weight):
            result = _convolve(self, x, edge_index, edge_weight)
        else:
            result = self._base.forward(self, x, edge_index, edge_weight)
        return result


def _takes(layer: Any, x: Any, edge_index: Any, edge_weight: Any) -> bool:
    """Whether a call is not one to leave to PyG's ``forward``, which also tells what is wrong."""
    return (
        _normalises(layer)
        and _is_matrix(layer, x)
        and type(edge_index) is Tensor
        and edge_index.dtype == torch.int64
        and edge_index.device == x.device
        and edge_index.dim() == 2
        and edge_index.size(0) == 2
        and (edge_weight is None or _weighs(edge_weight, edge_index))
        and (torch.compiler.is_compiling() or (not is_transformed() and _fits(edge_index, len(x))))
    )


def _normalises(layer: Any) -> bool:
    """Whether it does so in each call, and nobody sees or changes what it sums."""
    return (
        layer.normalize
        and not layer.cached
        and cached_edges(layer) is None
        and type(layer.aggr_module) is SumAggregation
        and not shows_messages(layer)
    )


def _is_matrix(layer: Any, x: Any) -> bool:
    is_summed = can_sum(x) and x.dtype in SUMMED_DTYPES and gives_summed_rows(x)
    return is_summed and x.dim() == 2 and layer.node_dim in (0, -2)


def _weighs(edge_weight: Any, edge_index: Tensor) -> bool:
    if not can_sum(edge_weight) or edge_weight.dtype not in SUMMED_DTYPES:
        return False
    if torch.compiler.is_compiling() and _is_learnt(edge_weight):
        return False
    fits: bool = edge_weight.shape == edge_index.shape[1:]
    return fits and edge_weight.device == edge_index.device


def _is_learnt(edge_weight: Tensor | None) -> bool:
    # Without gradients, too: fused optimisers change weights where no counter tells.
    return edge_weight is not None and edge_weight.requires_grad


def _fits(edge_index: Tensor, num_nodes: int) -> bool:
    try:
        return max(neighbors_of(edge_index).counts) <= num_nodes
    except RowIndexError:
        return False


def _convolve(layer: Any, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
    loops = (2.0 if layer.improved else 1.0) if layer.add_self_loops else 0.0
    end = 1 if layer.flow == "source_to_target" else 0
    dtype = x.dtype if edge_weight is None else edge_weight.dtype

    def sum_rows(rows: Tensor) -> Tensor:
        rows = rows.to(torch.promote_types(rows.dtype, dtype))
        if torch.compiler.is_compiling():
            return _sum(rows, edge_index, edge_weight, loops, end, end)
        if _is_learnt(edge_weight):
            edges, weight = _normalise(edge_index, edge_weight, len(x), loops, end, dtype)
        else:
            edges, weight = _remember(rows, edge_index, edge_weight, loops, end)
        return sum_neighbors(rows, edges, weight.to(rows.dtype), num_nodes=len(x), to=end)

    sums_first = dtype == x.dtype and _sums_first(layer.lin, x)
    out: Tensor = layer.lin(sum_rows(x)) if sums_first else sum_rows(layer.lin(x))
    return out if layer.bias is None else out + layer.bias


def _sums_first(linear: Any, x: Tensor) -> bool:
    """Whether to sum before the matrix product, which changes no more than roundings.

    That is less work where it makes rows wider. So it is for features without a derivative: then
    nothing is summed backward, and only rows with a gradient are multiplied.
    """
    if not is_product(linear):
        return False
    after, before = linear.weight.shape
    if torch.is_grad_enabled() and linear.weight.requires_grad and not x.requires_grad:
        return bool(before <= 2 * after)  # which would be summed backward, too
    return bool(before < after)


@torch.library.custom_op("gnnsys::sum_normalized", mutates_args=(), device_types=DEVICES)
def _sum(
    x: Tensor, edge_index: Tensor, edge_weight: Tensor | None, loops: float, end: int, to: int
) -> Tensor:
    """(N, C): for each node the sum of its neighbours' rows, times the weights of ``gcn_norm``."""
    edges, weight = _remember(x, edge_index, edge_weight, loops, end)
    return sum_neighbors(x, edges, weight, num_nodes=len(x), to=to)


_Key = tuple[int, float, int, torch.dtype]
_known: KnownOf[WeakKeyDictionary[Neighbors, dict[_Key, Tensor]]] = KnownOf()
"""Of the weights given, or else of edges: those of ``gcn_norm``, for each list of edges."""


def _remember(
    x: Tensor, edge_index: Tensor, edge_weight: Tensor | None, loops: float, end: int
) -> tuple[Tensor, Tensor]:
    """What ``_normalise`` gives, computed once."""
    holder, dtype = (
        (edge_index, x.dtype) if edge_weight is None else (edge_weight, edge_weight.dtype)
    )
    of_edges = _known.of(holder)
    if of_edges is None:
        of_edges = WeakKeyDictionary()
        _known.remember(holder, of_edges)
    weights = of_edges.setdefault(neighbors_of(edge_index), {})
    key = (len(x), loops, end, x.dtype)
    weight = weights.get(key)
    if weight is not None:
        return _add_loops(edge_index, len(x), loops), weight
    with (
        torch.inference_mode(False),
        torch.no_grad(),
    ):  # what is made in that mode is not remembered
        edges, exact = _normalise(edge_index, edge_weight, len(x), loops, end, dtype)
        weights[key] = weight = exact.to(x.dtype)
    return edges, weight


def _normalise(
    edge_index: Tensor,
    edge_weight: Tensor | None,
    num_nodes: int,
    loops: float,
    end: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """PyG's ``gcn_norm`` (Kipf and Welling, ICLR 2017, eq. 2): (2, E') edges, (E', 1) weights.

    Without weights all edges count 1, whatever ``loops`` is, as there.
    """
    edges = _add_loops(edge_index, num_nodes, loops)
    wide = torch.promote_types(dtype, torch.float32)
    if edge_weight is None:
        degrees = torch.zeros(num_nodes, dtype=wide, device=edges.device)
        counts = neighbors_of(edges).groups(end).indptr.diff()
        degrees[: len(counts)] = counts
    else:
        edge_weight = edge_weight.to(wide)
        if loops:
            edge_weight = _weigh_loops(edge_index, edge_weight, num_nodes, loops)
        degrees = edge_weight.new_zeros(num_nodes).index_add(0, edges[end], edge_weight)
    scale = degrees.pow(-0.5)
    scale = scale.masked_fill(scale == torch.inf, 0)
    weight = scale[edges[0]] if edge_weight is None else scale[edges[0]] * edge_weight
    return edges, (weight * scale[edges[1]]).to(dtype)[:, None]


def _weigh_loops(edge_index: Tensor, edge_weight: Tensor, num_nodes: int, loops: float) -> Tensor:
    """(E',): those of PyG's ``add_remaining_self_loops``, where given loops keep theirs."""
    given = edge_index[0] == edge_index[1]
    of_loops = edge_weight.new_full((num_nodes,), loops)
    # So that derivatives, too, are those of PyG where a node has several loops.
    of_loops[edge_index[0][given]] = edge_weight[given]
    looped = with_self_loops(edge_index, num_nodes)
    of_loop = len(edge_weight) + looped.edge_index[1]
    place = torch.where(looped.number < 0, of_loop, looped.number)
    return torch.cat([edge_weight, of_loops])[place]


def _add_loops(edge_index: Tensor, num_nodes: int, loops: float) -> Tensor:
    """(2, E')."""
    return with_self_loops(edge_index, num_nodes).edge_index if loops else edge_index


@_sum.register_fake
def _(x: Tensor, edge_index: Tensor, edge_weight: Any, loops: float, end: int, to: int) -> Tensor:
    return x.new_empty(x.shape)


def _set_up(ctx: Any, inputs: Any, output: Tensor) -> None:
    _, edge_index, edge_weight, ctx.loops, ctx.end, ctx.to = inputs
    ctx.save_for_backward(edge_index, edge_weight)
    ctx.device = device_of_cpu_tensors()


def _differentiate(ctx: Any, grad: Tensor) -> Any:
    edge_index, edge_weight = ctx.saved_tensors
    with kernels_of_cpu_tensors(ctx.device):
        grad_x = _sum(grad, edge_index, edge_weight, ctx.loops, ctx.end, 1 - ctx.to)
    return grad_x, None, None, None, None, None


_sum.register_autograd(_differentiate, setup_context=_set_up)
