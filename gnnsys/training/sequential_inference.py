"""A layer's outputs by passes over its input: rows are read in sequence and folded as they come.

Targets are taken in windows whose sums fit in memory; for each window the rows of its sources are
read once, by ascending number, a chunk ahead of the sums. A target takes its neighbours' rows in
that order, and layers compute rows in groups that are the same whatever the memory, so that outputs
depend neither on it nor on the number of threads that sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor

from gnnsys.loaders import CSC
from gnnsys.memory import Store, empty
from gnnsys.memory.alloc import pooled
from gnnsys.system.budget import process_budget
from gnnsys.system.extension import core
from gnnsys.system.threads import num_threads
from gnnsys.training.inference_reads import GROUP, SUMS, Passes
from gnnsys.training.split_layers import SplitLayer
from gnnsys.unified_tensor import UnifiedTensor

__all__ = ["SequentialBlocks", "delivered_bytes", "message_like", "with_ascending_neighbors"]

_LOOKED_AT = 1 << 18  # edges, each of which takes some 20 bytes meanwhile
_FOLDS = {
    "sum": (core.Fold.sum, 0.0), "mean": (core.Fold.sum, 0.0),
    "max": (core.Fold.max, -torch.inf), "min": (core.Fold.min, torch.inf),
}  # fmt: skip


class SequentialBlocks:
    """Computes ranges of a layer's outputs, one after another.

    Args:
        split: the layer.
        rows: (nodes, columns) inputs.
        graph: in-neighbours of each node, ascending.
        device: where the layer computes.
        memory: bytes for sums and rows under way, roughly.
        shares: ranges of targets, of which this process computes one; no window crosses their ends.
        threads: that sum; 0 for all cores.
        heard: is told now and then how many targets are done; may raise.
    """

    def __init__(
        self,
        split: SplitLayer,
        *,
        rows: UnifiedTensor,
        graph: CSC,
        device: torch.device,
        memory: int,
        shares: Sequence[tuple[int, int]],
        threads: int,
        heard: Callable[[int], None],
    ) -> None:
        self._split = split
        self._store, self._graph, self._device = rows.store, graph, device
        self._shares, self._heard = shares, heard
        self._aggregator = core.Aggregator(num_threads(threads))
        message = message_like(split, rows, device)
        self._kind, self._width = message.dtype, message.shape[1]
        targets = max(last - first for first, last in shares)
        self._passes = Passes.of(targets, delivered_bytes(self._store), message.nbytes, memory)
        self._first = self._last = 0  # targets whose sums are there
        shape = (min(targets, self._passes.window), self._width)
        self._sums = empty(shape, self._kind)
        process_budget().hold(SUMS, self._passes.nbytes, self._sums)

    def compute(self, first: int, last: int) -> Tensor:
        """(last - first, channels) outputs of a range of targets within a share."""
        own = self._store.read_range(first, last)
        outputs = None
        for begin in range(first, last, GROUP):
            if not self._first <= begin < self._last:
                self._fold_window(begin)
            end = min(last, begin + GROUP)
            some = self._finish(own[begin - first : end - first], begin, end)
            if outputs is None:
                outputs = pooled((last - first, *some.shape[1:]), some.dtype)
            outputs[begin - first : end - first] = some
        assert outputs is not None
        return outputs

    def _fold_window(self, first: int) -> None:
        """Sums over the in-neighbours of the targets from ``first`` on."""
        share = next(share for share in self._shares if share[0] <= first < share[1])
        last = min(share[1], first + self._passes.window)
        how, start = _FOLDS[self._split.fold]
        if self._graph.file is not None:
            self._graph.file.check_size()
        indptr, source = self._graph.indptr[first : last + 1], self._graph.indices
        following = indptr[:-1].clone()
        sums = self._sums[: last - first].fill_(start)
        own = first if self._split.loops else -1
        self._first = self._last = 0  # until they are whole
        for place, rows in self._read(self._needed(indptr)):
            messages = self._messages(rows, place)
            late = self._aggregator.fold(
                indptr.numpy(), source.numpy(), own, following.numpy(), messages.numpy(), place,
                how, sums.numpy(),
            )  # fmt: skip
            assert late < 0  # neighbours ascend
            self._heard(first)
        self._first, self._last = first, last

    def _needed(self, indptr: Tensor) -> list[tuple[int, int]]:
        """Ranges of rows, of a chunk at most, that hold all sources of some targets."""
        nodes = self._graph.num_nodes
        found = torch.zeros(-(-nodes // GROUP), dtype=torch.bool)
        edges = self._graph.indices[int(indptr[0]) : int(indptr[-1])]
        for some in edges.split(_LOOKED_AT):
            found[some.long() // GROUP] = True
        groups = found.nonzero().view(-1)
        starts = [0, *(1 + torch.nonzero(groups.diff() != 1).view(-1)).tolist(), len(groups)]
        ranges = []
        for begin, end in pairwise(starts):
            if begin < end:
                first = int(groups[begin]) * GROUP
                last = min(nodes, (int(groups[end - 1]) + 1) * GROUP)
                ranges += [
                    (at, min(last, at + self._passes.chunk))
                    for at in range(first, last, self._passes.chunk)
                ]
        return ranges

    def _read(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Tensor]]:
        """Number of the first row, and rows, of each range; the next is read meanwhile."""
        shape = (min(self._passes.chunk, self._graph.num_nodes), self._store.shape[1])
        buffers = [empty(shape, self._store.dtype) for _ in ranges[:2]]

        def read(number: int) -> Tensor:
            first, last = ranges[number]
            return self._store.read_range(first, last, buffers[number % 2][: last - first])

        with ThreadPoolExecutor(1, "gnnsys-pass") as reader:
            ahead = [reader.submit(read, 0)] if ranges else []
            for number, (first, _) in enumerate(ranges):
                rows = ahead.pop().result()
                if number + 1 < len(ranges):
                    ahead.append(reader.submit(read, number + 1))
                yield first, rows

    def _messages(self, rows: Tensor, first: int) -> Tensor:
        """(n, width) of the sums' type, of the rows from number ``first`` on, times their scale."""
        made = None
        for begin in range(0, len(rows), GROUP):
            some = rows[begin : begin + GROUP]
            message = self._split.messages(some.to(self._device)).cpu()
            if message is some and self._split.scale is None and some.dtype == self._kind:
                return rows
            if made is None:
                made = torch.empty((len(rows), self._width), dtype=self._kind)
            made[begin : begin + GROUP] = self._scaled(message, first + begin)
        assert made is not None
        return made

    def _scaled(self, rows: Tensor, first: int) -> Tensor:
        """Rows times the scale of the nodes from number ``first`` on."""
        rows = rows.to(self._kind)
        if self._split.scale is None:
            return rows
        return rows * self._split.scale[first : first + len(rows), None].to(rows)

    def _finish(self, own: Tensor, first: int, last: int) -> Tensor:
        """Outputs of the targets [first, last), of which these are the rows."""
        sums = self._sums[first - self._first : last - self._first]
        degrees = self._graph.indptr[first : last + 1].diff()[:, None]
        if self._split.fold == "mean":
            sums = sums / degrees.clamp(min=1)
        elif self._split.fold != "sum":
            sums = sums.masked_fill(degrees == 0, 0)
        own = own.to(self._device)
        if self._split.loops:
            sums = sums + self._scaled(self._split.messages(own).cpu(), first)
        sums = self._scaled(sums, first).to(own)
        return self._split.finish(own, sums).cpu()


def message_like(split: SplitLayer, rows: UnifiedTensor, device: torch.device) -> Tensor:
    """(1, width) of the type that messages are summed in."""
    columns, dtype = rows.store.shape[1:], rows.store.dtype
    made = split.messages(torch.zeros((1, *columns), dtype=dtype, device=device))
    return made.to("cpu", torch.promote_types(made.dtype, torch.float32))


def delivered_bytes(store: Store) -> int:
    """Of a row of a store in memory."""
    return math.prod(store.shape[1:]) * store.dtype.itemsize


def with_ascending_neighbors(graph: CSC) -> CSC:
    """The same graph with the neighbours of each node in ascending order, as dataset folders have
    them; a copy where they are not.

    Raises:
        FileFormatError: the graph's file became shorter.
    """
    if graph.file is not None:
        graph.file.check_size()
    return graph if _ascends(graph) else graph.reversed().reversed()


def _ascends(graph: CSC) -> bool:
    for first in range(1, graph.num_edges, _LOOKED_AT):
        last = min(graph.num_edges, first + _LOOKED_AT)
        falls = graph.indices[first:last] < graph.indices[first - 1 : last - 1]
        begin, end = torch.searchsorted(graph.indptr, torch.tensor([first, last])).tolist()
        falls[graph.indptr[begin:end] - first] = False  # another node's
        if bool(falls.any()):
            return False
    return True
