"""Layers of exact inference that ranks compute together, each a run of a layer's blocks.

The outputs of a layer lie once on each machine, in memory or in a file that its ranks share; rows
that ranks of other machines computed are sent to it once. Invariant: the blocks are those of one
process, so that results are the same bits for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from gnnsys.memory import FileStore, HostStore, Store, empty
from gnnsys.ranks.group import gather_results, group_transport, on_all_ranks
from gnnsys.ranks.machine import Machines, SharedPlace, SharedTensor, find_machines
from gnnsys.ranks.transport import Transport, Work
from gnnsys.unified_tensor import unified

__all__ = ["DividedLayers", "as_rows", "create_store", "send_rows"]

_SENT = 8 << 20
"""Bytes of rows that a rank sends to another machine at a time."""


class DividedLayers:
    """Computes layers on all ranks of the process group together."""

    def __init__(self) -> None:
        transport = group_transport()
        assert transport is not None
        self._transport = transport
        self._machines = find_machines()

    @property
    def leads(self) -> bool:
        """Whether this rank is the first of its machine, and says where layers lie there."""
        return self._machines.leads

    def run(
        self,
        compute: Callable[[int, int], Tensor],
        blocks: Sequence[tuple[int, int]],
        place: Path | None,
        threads: int,
        progress: Callable[[int, int], None],
    ) -> Tensor:
        """All outputs of a layer; called by all ranks together.

        Args:
            compute: the outputs of a block's targets.
            blocks: ranges of targets, one after the other, the same on all ranks.
            place: of a file for the outputs, as the first rank of a machine says; None for memory.
            threads: that gather.
            progress: is told how many targets are done and how many there are, as far as this
                rank's part says it.

        Raises:
            GnnsysError: what ``compute`` raised on the first rank where it did, on all ranks.
            RankFailedError: another rank is gone.
        """
        shares = self.shares(blocks)
        own, count = shares[self._transport.rank], blocks[-1][1]
        begun: list[Tensor] = []

        def begin() -> tuple[tuple[int, ...], torch.dtype] | None:
            if not own:
                return None
            begun.append(compute(*own[0]))
            return tuple(begun[0].shape[1:]), begun[0].dtype

        kind = gather_results(begin, "evaluation")[0]
        assert kind is not None  # rank 0 has a block where there is any
        shape, dtype = (count, *kind[0]), kind[1]
        with ExitStack() as held:  # until all have opened it
            made = gather_results(
                lambda: self._make(place, shape, dtype, threads, held), "evaluation"
            )[self._machines.own[0]]

            def finish() -> Store:
                if made is None:
                    store = create_store(place, shape, dtype, threads)
                else:
                    store = _open(made, dtype, threads)
                done = 0
                for first, last in own:
                    rows = begun.pop() if begun else compute(first, last)
                    store.write(torch.arange(first, last), rows)
                    done += last - first
                    progress(count * done // (own[-1][1] - own[0][0]), count)
                return store

            store = on_all_ranks(finish)
        if len(self._machines.groups) > 1:
            ranges = [(each[0][0], each[-1][1]) if each else (0, 0) for each in shares]
            self._transport.drive(send_rows(self._transport, self._machines, store, ranges))
            on_all_ranks(lambda: None)  # rows from elsewhere come to one rank of a machine
        return as_rows(store, made if isinstance(made, Path) else place, threads)

    def shares(self, blocks: Sequence[tuple[int, int]]) -> list[Sequence[tuple[int, int]]]:
        """About as many blocks for each rank, the first ranks' first."""
        world = self._transport.world
        bounds = [-(-len(blocks) * rank // world) for rank in range(world + 1)]
        return [blocks[first:last] for first, last in pairwise(bounds)]

    def _make(
        self,
        place: Path | None,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        threads: int,
        held: ExitStack,
    ) -> SharedPlace | Path | None:
        """What the ranks of this machine share, by its first; None from the others, and where there
        is one rank alone."""
        if len(self._machines.own) == 1 or not self.leads:
            return None
        if place is None:
            return held.enter_context(closing(SharedTensor(shape, dtype))).place
        create_store(place, shape, dtype, threads).close()
        return place


def create_store(
    path: Path | None, shape: tuple[int, ...], dtype: torch.dtype, threads: int
) -> Store:
    """A store to write into, in memory or in a file."""
    if path is None:
        return HostStore(empty(shape, dtype), writable=True)
    return FileStore.create(path, shape, dtype, threads=threads)


def as_rows(store: Store, path: Path | None, threads: int) -> Tensor:
    """What was written into a store of ``create_store``; ``path`` is where its file is now."""
    if path is None:
        assert store.resident is not None
        return store.resident
    encoding = torch.bfloat16 if store.dtype == torch.bfloat16 else None
    return unified(path, threads=threads, encoding=encoding, device="cpu")


def _open(made: SharedPlace | Path, dtype: torch.dtype, threads: int) -> Store:
    """What the first rank of this machine has made, to write into."""
    if isinstance(made, SharedPlace):
        return HostStore(made.open(), writable=True)
    encoding = torch.bfloat16 if dtype == torch.bfloat16 else None
    return FileStore(made, encoding=encoding, threads=threads, writable=True)


def send_rows(
    transport: Transport, machines: Machines, store: Store, ranges: Sequence[tuple[int, int]]
) -> Work[None]:
    """Brings the rows of each rank to the machines that do not have them yet, once to each.

    Args:
        store: (rows, …) of this machine, where the rows of its own ranks are.
        ranges: first row and end, of each rank.
    """
    at_a_time = max(1, _SENT // store.row_bytes)
    first, last = ranges[transport.rank]
    sources = {source: ranges[source] for source in machines.sources()}
    most = max(end - begin for begin, end in ranges)
    for skipped in range(0, most, at_a_time):
        parts = {
            source: torch.empty(
                store.row_bytes * max(0, min(at_a_time, end - begin - skipped)), dtype=torch.uint8
            )
            for source, (begin, end) in sources.items()
        }
        receipts = [transport.receive(part, source, "evaluation") for source, part in parts.items()]
        begin, end = first + skipped, min(first + skipped + at_a_time, last)
        if begin < end and machines.partners():
            rows = store.read_range(begin, end).contiguous()
            for partner in machines.partners():
                transport.send(rows.view(-1).view(torch.uint8), partner, "evaluation")
        yield from receipts
        transport.flush()
        for source, part in parts.items():
            if len(part):
                rows = part.view(store.dtype).view(-1, *store.shape[1:])
                begin = sources[source][0] + skipped
                store.write(torch.arange(begin, begin + len(rows)), rows)
