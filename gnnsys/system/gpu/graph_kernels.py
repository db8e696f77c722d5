"""The launches of sums over neighbours and over pairs, and of attention (``csrc/cuda/graph``).

N rows, T targets, E edges, H heads, C channels of a head.
"""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.system.gpu.device import Argument, Device, Launch
from gnnsys.system.gpu.kernels import IDS, THREADS, WARP, Faults

__all__ = [
    "HUB_DEGREE",
    "VALUES",
    "AttentionScores",
    "EdgeLaunches",
    "WeightedRows",
    "check_array",
    "choose_vector",
    "faults_of",
    "structure",
]

HUB_DEGREE = 256
"""Targets of more edges are summed by blocks, of as many edges as one has under way at a time."""
_SLICE = 16  # kSlice: columns of a hub that a block sums
_MOST_BLOCKS = 1 << 16
_MOST_HUB_BLOCKS = 1 << 10  # those that find no hub end at once
VALUES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "BFloat"}
"""Types of values that are summed, as sources name them."""
_REALS: dict[torch.dtype, Any] = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
_POINTER = ctypes.c_void_p


def structure(**fields: Any) -> Any:
    """The type of a structure that a kernel takes by value."""
    return type("_Structure", (ctypes.Structure,), {"_fields_": tuple(fields.items())})


_Edges = structure(indptr=_POINTER, targets=ctypes.c_int64, source=_POINTER, order=_POINTER)
_Rows = structure(
    x=_POINTER, count=ctypes.c_int64, heads=ctypes.c_int64, channels=ctypes.c_int64,
    weight=_POINTER, scale=_POINTER, mean=ctypes.c_bool,
)  # fmt: skip
_WeightDerivative = structure(out=_POINTER)
_SCORES = {
    dtype: structure(
        logits=_POINTER, source=_POINTER, target=_POINTER, sources=ctypes.c_int64,
        heads=ctypes.c_int64, slope=_REALS.get(dtype, ctypes.c_float),
    )
    for dtype in VALUES
}  # fmt: skip
_Softmax = structure(out=_POINTER)
_SoftmaxDerivative = structure(
    softmax=_POINTER, grad=_POINTER, by_logits=_POINTER, by_target=_POINTER
)
_PAIR_TERMS = {
    dtype: structure(weight=_POINTER, tau=real, out=_POINTER) for dtype, real in _REALS.items()
}
_PAIR_FACTORS = {
    dtype: structure(weight=_POINTER, grad=_POINTER, tau=real, out=_POINTER)
    for dtype, real in _REALS.items()
}


@dataclass(frozen=True, slots=True)
class WeightedRows:
    """Rows, and which multiples of them are summed; tensors are contiguous and of one dtype."""

    x: Tensor
    """(N, …), H C columns."""

    heads: int = 1

    weight: Tensor | None = None
    """(E, H) of each edge; None for 1."""

    scale: Tensor | None = None
    """(N,) of each row, whichever edge reads it; None for 1."""

    mean: bool = False
    """Divides by the number of edges of the target."""

    @property
    def channels(self) -> int:
        """C."""
        return math.prod(self.x.shape[1:]) // self.heads


@dataclass(frozen=True, slots=True)
class AttentionScores:
    """What a softmax over edges is taken of: of each edge the sum of those given, of one dtype."""

    logits: Tensor | None = None
    """(E, H), which lie as weights do."""

    source: Tensor | None = None
    """(S, H) of the nodes at the edges' other end."""

    target: Tensor | None = None
    """(T, H)."""

    slope: float = 1.0
    """What sums below 0 are multiplied by, as ``leaky_relu`` does."""


class EdgeLaunches:
    """Sums over the edges of a graph, grouped by target; no function waits for its kernels.

    Targets of many edges are looked for once. An edge whose source is no row is told of by the
    first call after its kernel has met it.

    Args:
        device: that launches.
        indptr: (T + 1,) int64: the edges of target t are indptr[t] … indptr[t + 1] - 1.
        source: (E,) int32 or int64: the row of each edge.
        order: (E,) as ``source``: where each edge's weight lies; None for where the edge does.

    Raises:
        DTypeError, ArgumentError: arrays that the kernels do not take.

    >>> from gnnsys.system.gpu import HostExecutorDevice
    >>> indptr, source = torch.tensor([0, 2, 3]), torch.tensor([1, 0, 1])
    >>> edges, out = EdgeLaunches(HostExecutorDevice(), indptr, source), torch.empty(2, 1)
    >>> edges.sum(WeightedRows(torch.tensor([[1.0], [2.0]])), out)
    >>> out.tolist()
    [[3.0], [2.0]]
    """

    def __init__(
        self, device: Device, indptr: Tensor, source: Tensor, order: Tensor | None = None
    ) -> None:
        if source.dtype not in IDS:
            raise DTypeError(f"source: {source.dtype}, expected torch.int32 or torch.int64")
        check_array("indptr", indptr, (len(indptr),), torch.int64, source.device)
        check_array("source", source, (len(source),), source.dtype, source.device)
        if order is not None:
            check_array("order", order, source.shape, source.dtype, source.device)
        self.device = device
        self._indptr, self._source, self._order = indptr, source, order
        self._id = IDS[source.dtype]
        self._faults = faults_of(source.device) if source.is_cuda else Faults()
        self._hubs: tuple[Tensor, Tensor] | None = None

    def sum(self, rows: WeightedRows, out: Tensor) -> None:
        """Writes for each target the sum of its edges' rows: one launch, or two where there may be
        hubs, which the first call finds by another.

        Kernels: ``cuda/graph/sum_neighbors.cuh``.

        Args:
            rows: float32, float64 or bfloat16.
            out: (T, …) as ``rows.x``, contiguous.

        Raises:
            DTypeError, ArgumentError: arrays that do not fit.
            RowIndexError: an edge whose source was no row, here or in a call before.
        """
        self._sum(self._edges(self._source), rows, out)

    def sum_segments(self, rows: Tensor, out: Tensor) -> None:
        """As ``sum``, of rows of the edges themselves, which lie as weights do.

        Args:
            rows: (E, …).
            out: (T, …).
        """
        shape = len(self._source), *rows.shape[1:]
        check_array("rows", rows, shape, rows.dtype, self._source.device)
        self._sum(self._edges(self._order), WeightedRows(rows), out)

    def dot(self, rows: WeightedRows, y: Tensor, out: Tensor) -> None:
        """Writes the derivative of ``sum(y * sums)`` by the weights, whatever these are: one
        launch.

        Kernel: ``cuda/graph/dot_neighbors.cuh``.

        Args:
            rows: float32, float64 or bfloat16; their weights are not read.
            y: (T, …) as ``rows.x``, contiguous.
            out: (E, H), which lies as weights do.

        Raises:
            DTypeError, ArgumentError: arrays that do not fit.
            RowIndexError: as ``sum``.
        """
        self._check_rows(rows)
        check_array("out", out, (len(self._source), rows.heads), rows.x.dtype, self._source.device)
        if rows.channels == 0:
            out.zero_()
            return
        derivative = _WeightDerivative(out.data_ptr())
        self._dot(rows, y, f"WeightDerivative<{VALUES[rows.x.dtype]}>", derivative)

    def pair_terms(self, weight: Tensor, u: Tensor, tau: float) -> Tensor:
        """(E,): ``weight[e, 0] exp(tau u_i . u_j)`` of the pair of each edge's target and source:
        one launch.

        Kernel: ``cuda/graph/pair_sums.cuh``.

        Args:
            weight: (E, 2) of each pair and of the same two rows the other way round.
            u: (T, d) float32 or float64, contiguous.

        Raises:
            DTypeError, ArgumentError: arrays that do not fit.
        """
        self._check_pairs(weight, u)
        out = u.new_empty(len(self._source))
        terms = _PAIR_TERMS[u.dtype](weight.data_ptr(), tau, out.data_ptr())
        self._dot(WeightedRows(u), u, f"PairTerms<{VALUES[u.dtype]}>", terms)
        return out

    def pair_factors(self, weight: Tensor, u: Tensor, tau: float, grad: Tensor) -> Tensor:
        """(E,): what row j of each pair is multiplied by in the derivative of ``sum(grad * sums)``
        of ``pair_terms`` by row i, where every pair is there both ways: one launch.

        Args:
            grad: (T,) as ``u``, contiguous.
        """
        self._check_pairs(weight, u)
        check_array("grad", grad, u.shape[:1], u.dtype, self._source.device)
        out = u.new_empty(len(self._source))
        factors = _PAIR_FACTORS[u.dtype](weight.data_ptr(), grad.data_ptr(), tau, out.data_ptr())
        self._dot(WeightedRows(u), u, f"PairFactors<{VALUES[u.dtype]}>", factors)
        return out

    def softmax(self, scores: AttentionScores, out: Tensor) -> None:
        """Writes the softmax over the edges of each target: one launch, or as ``sum`` where there
        may be hubs.

        Kernels: ``cuda/graph/edge_softmax.cuh``.

        Args:
            scores: at least one of the three.
            out: (E, H) float32, float64 or bfloat16, contiguous, which lies as weights do.

        Raises:
            DTypeError, ArgumentError: arrays that do not fit.
            RowIndexError: as ``sum``.
        """
        self._check_edge_values(out=out)
        self._launch_softmax(scores, out, "Softmax", _Softmax(out.data_ptr()))

    def differentiate_softmax(
        self, scores: AttentionScores, softmax: Tensor, grad: Tensor, by_logits: Tensor,
        by_target: Tensor | None,
    ) -> None:  # fmt: skip
        """Writes the derivatives of ``sum(grad * softmax)``: as many launches as ``softmax``.

        Args:
            scores: what the softmax was taken of; without a slope they need not be given.
            softmax, grad: (E, H) as ``softmax`` writes them.
            by_logits: (E, H) likewise; sums of it over the edges of a source are the derivatives by
                that.
            by_target: (T, H); None where it is not asked for.

        Raises:
            DTypeError, ArgumentError: arrays that do not fit.
            RowIndexError: as ``sum``.
        """
        self._check_edge_values(softmax=softmax)
        for name, values in (("grad", grad), ("by_logits", by_logits)):
            check_array(name, values, softmax.shape, softmax.dtype, self._source.device)
        if by_target is not None:
            shape = len(self._indptr) - 1, softmax.size(1)
            check_array("by_target", by_target, shape, softmax.dtype, self._source.device)
            if softmax.numel() == 0:
                by_target.zero_()
        work = _SoftmaxDerivative(
            softmax.data_ptr(), grad.data_ptr(), by_logits.data_ptr(), _address(by_target)
        )
        self._launch_softmax(scores, softmax, "SoftmaxDerivative", work)

    def _check_edge_values(self, **named: Tensor) -> None:
        ((name, values),) = named.items()
        if values.dtype not in VALUES:
            raise DTypeError(f"{name}: {values.dtype}, expected float32, float64 or bfloat16")
        shape = len(self._source), *values.shape[1:2]
        check_array(name, values, shape, values.dtype, self._source.device)

    def _launch_softmax(
        self, scores: AttentionScores, like: Tensor, job: str, work: ctypes.Structure
    ) -> None:
        """like: (E, H)."""
        heads, targets = like.size(1), len(self._indptr) - 1
        shapes = {"logits": len(like), "source": None, "target": targets}
        for name, rows in shapes.items():
            given: Tensor | None = getattr(scores, name)
            if given is not None:
                shape = len(given) if rows is None else rows, heads
                check_array(name, given, shape, like.dtype, self._source.device)
        if like.numel() == 0:
            return
        packed = _SCORES[like.dtype](
            _address(scores.logits), _address(scores.source), _address(scores.target),
            0 if scores.source is None else len(scores.source), heads, scores.slope,
        )  # fmt: skip
        at_a_time = min(WARP, _power_of_2(heads))
        lanes = min(WARP, at_a_time * _power_of_2(-(-len(like) // targets)))
        value = VALUES[like.dtype]
        kind, work_type = f"{value}, {self._id}", f"{job}<{value}>"
        edges = self._edges(self._source)
        self._launch(
            "edge_softmax", f"softmax_targets<{kind}, {work_type}>", targets * lanes,
            edges, packed, lanes, at_a_time, HUB_DEGREE, work,
        )  # fmt: skip
        most_hubs = len(self._source) // (HUB_DEGREE + 1)
        if most_hubs == 0:
            return
        hubs, count = (each.data_ptr() for each in self._find_hubs(most_hubs))
        self._launch(
            "edge_softmax", f"softmax_hubs<{kind}, {THREADS}, {work_type}>",
            min(_MOST_HUB_BLOCKS, most_hubs) * THREADS,
            edges, packed, at_a_time, hubs, count, work,
        )  # fmt: skip

    def _check_rows(self, rows: WeightedRows) -> None:
        x, device = rows.x, self._source.device
        if x.dtype not in VALUES:
            raise DTypeError(f"x: {x.dtype}, expected float32, float64 or bfloat16")
        check_array("x", x, x.shape, x.dtype, device)
        if rows.weight is not None:
            check_array("weight", rows.weight, (len(self._source), rows.heads), x.dtype, device)
        if rows.scale is not None:
            check_array("scale", rows.scale, x.shape[:1], x.dtype, device)

    def _check_pairs(self, weight: Tensor, u: Tensor) -> None:
        if u.dtype not in _REALS:
            raise DTypeError(f"u: {u.dtype}, expected float32 or float64")
        check_array("weight", weight, (len(self._source), 2), u.dtype, self._source.device)

    def _edges(self, source: Tensor | None) -> ctypes.Structure:
        edges: ctypes.Structure = _Edges(
            self._indptr.data_ptr(), len(self._indptr) - 1, _address(source), _address(self._order)
        )
        return edges

    def _sum(self, edges: ctypes.Structure, rows: WeightedRows, out: Tensor) -> None:
        self._check_rows(rows)
        targets = len(self._indptr) - 1
        check_array("out", out, (targets, *rows.x.shape[1:]), rows.x.dtype, self._source.device)
        if out.numel() == 0:
            return
        width = rows.heads * rows.channels
        within = width if rows.weight is None else rows.channels
        vector = choose_vector(within, rows.x, out)
        value, header = VALUES[rows.x.dtype], "sum_neighbors"
        kind = f"{value}, {self._id}, {vector}"
        packed = _pack(rows)
        self._launch(
            header, f"sum_neighbors<{kind}>", targets * (width // vector),
            edges, packed, HUB_DEGREE, out.data_ptr(),
        )  # fmt: skip
        most_hubs = len(self._source) // (HUB_DEGREE + 1)
        if most_hubs == 0:
            return
        hubs, count = self._find_hubs(most_hubs)
        blocks = min(_MOST_HUB_BLOCKS, most_hubs * -(-width // _SLICE))
        self._launch(
            header, f"sum_hubs<{kind}, {THREADS}>", blocks * THREADS,
            edges, packed, *(each.data_ptr() for each in (hubs, count, out)),
        )  # fmt: skip

    def _find_hubs(self, most: int) -> tuple[Tensor, Tensor]:
        """(most,) int64, and (1,) how many of them there are."""
        if self._hubs is None:
            hubs = self._indptr.new_empty(most)
            count = torch.zeros(1, dtype=torch.int32, device=hubs.device)
            pointers = (each.data_ptr() for each in (hubs, count))
            kernel = self.device.kernel("cuda/graph/sum_neighbors.cuh", f"find_hubs<{self._id}>")
            arguments: list[Argument] = [
                self._edges(self._source), HUB_DEGREE, *pointers
            ]  # fmt: skip
            self.device.launch(kernel, _grid(len(self._indptr) - 1), arguments)
            self._hubs = hubs, count  # threads that meet here store the same
        return self._hubs

    def _dot(self, rows: WeightedRows, y: Tensor, put: str, packed: ctypes.Structure) -> None:
        x = rows.x
        check_array("y", y, (len(self._indptr) - 1, *x.shape[1:]), x.dtype, self._source.device)
        vector = choose_vector(rows.channels, x, y)
        self._launch(
            "dot_neighbors" if put.startswith("Weight") else "pair_sums",
            f"dot_edges<{VALUES[x.dtype]}, {self._id}, {vector}, {put}>", len(self._source),
            self._edges(self._source), _pack(rows), y.data_ptr(), packed,
        )  # fmt: skip

    def _launch(self, header: str, instance: str, threads: int, *arguments: Argument) -> None:
        """Runs a kernel whose last parameter are faults, if there is anything for it to do."""
        if threads == 0:
            return
        kernel = self.device.kernel(f"cuda/graph/{header}.cuh", instance)
        self.device.launch(kernel, _grid(threads), [*arguments, self._faults.address])
        self._faults.raise_earlier()


@functools.cache
def faults_of(device: torch.device) -> Faults:
    """Of all launches on a GPU: a fault may be seen when nothing else knows of its edges."""
    return Faults(device)


def _pack(rows: WeightedRows) -> ctypes.Structure:
    packed: ctypes.Structure = _Rows(
        rows.x.data_ptr(), len(rows.x), rows.heads, rows.channels, _address(rows.weight),
        _address(rows.scale), rows.mean,
    )  # fmt: skip
    return packed


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _power_of_2(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _grid(threads: int) -> Launch:
    return Launch(min(_MOST_BLOCKS, -(-threads // THREADS)), THREADS)


def choose_vector(columns: int, *tensors: Tensor) -> int:
    """kVector: the values of the widest load that columns and addresses allow, up to 16 bytes."""
    size = tensors[0].itemsize
    return math.gcd(16, columns * size, *(tensor.data_ptr() for tensor in tensors)) // size


def check_array(
    name: str, tensor: Tensor, shape: Any, dtype: torch.dtype, device: torch.device
) -> None:
    """Raises unless a kernel may take the tensor for an array of that shape.

    Raises:
        DTypeError, ArgumentError: it may not.
    """
    if tensor.dtype != dtype:
        raise DTypeError(f"{name}: {tensor.dtype}, expected {dtype}")
    if tensor.device != device:
        raise ArgumentError(f"{name}: is on {tensor.device}, but the edges are on {device}")
    if tuple(tensor.shape) != tuple(shape) or not tensor.is_contiguous():
        raise ArgumentError(
            f"{name}: {tuple(tensor.shape)} with strides {tensor.stride()}, expected "
            f"{tuple(shape)}, contiguous"
        )
