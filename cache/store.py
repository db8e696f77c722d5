"""``CachedStore``: the rows of a file behind memory that knows the coming batches."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from gnnsys.cache.arena import ArenaShare, CacheArena, Table, rows_of
from gnnsys.cache.engine import Engine
from gnnsys.cache.importance import rank_normalised
from gnnsys.cache.making import Once, check_memory, make_engine, make_planner_of
from gnnsys.cache.packed.plans import RecordedPlans
from gnnsys.cache.plan import POLICIES, Policy
from gnnsys.cache.planner import Planner
from gnnsys.cache.shared.engine import SharedEngine
from gnnsys.cache.stats import CacheStats
from gnnsys.cache.trace import TraceWriter
from gnnsys.choices import Sharing
from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, ReadOnlyError, UnsupportedError
from gnnsys.memory.describe import facts_of
from gnnsys.memory.gate import Gate
from gnnsys.memory.ids import CPU, check_ids
from gnnsys.memory.reads import PendingRows, Reads
from gnnsys.memory.store import AnnouncedStore, Store, check_out
from gnnsys.ranks.environment import world_around
from gnnsys.system.gpu import kernel_device
from gnnsys.system.sizes import size_text
from gnnsys.system.threads import num_threads

__all__ = ["CachedStore"]

_AUTO_WINDOW = 64
"""At this window hybrid is within a point or two of Belady's rule; a loader's bound on the bytes of
sampled batches may keep it shorter."""


class CachedStore(AnnouncedStore):
    """Rows of a slower store, the hottest of them in memory; rows are bit for bit the source's.

    A batch that was announced is gathered as it was planned, its rows having been read while the
    batches before it were worked on. ``gnnsys.NeighborLoader`` announces; without a ticket a gather
    is served, too: it is planned for itself where no ticket waits, and otherwise changes nothing. A
    cache that ranks share never changes by it: what the owners of the rows have comes from there,
    the rest from the source.

    Args:
        source: the slower store, such as a ``FileStore``; rows are cached as it stores them.
        cache: rows to hold, as a number of rows, a share of all (a float up to 1.0), bytes as a
            text ("8GB"), or a ``CacheArena`` or a share of one. The planner takes some bytes for
            every row of the table besides.
        policy: who leaves the cache; see ``gnnsys.cache.plan.Policy``.
        window: batches that a plan looks ahead; "auto" for 64.
        victim_buffer: rows, or bytes as a text, for rows that left the cache and will be needed
            within the window.
        scores: (rows,) how often each row will be needed, in any unit: the out-degree, or what
            ``gnnsys score`` computed. uint16 values are taken as they are.
        prefill: whether the cache starts with the most important rows, or with all where all fit
            in; they are read at the first gather.
        prefetch: batches whose reads are started ahead.
        trace: a file for the ids of each batch that is gathered (``gnnsys.cache.trace``).
        threads: that move rows; 0 for all cores this process may use.
        shared: one cache over the memory of all ranks of the default process group, all of which
            make it, in the same order where there are several: ``cache`` and ``victim_buffer`` are
            then those of all together. True for the fastest way by which they can read each other's
            rows; or a ``gnnsys.choices.Sharing``. On a GPU the victim buffer is in its memory, too,
            and up to 256 MiB for rows on their way; where ranks cannot read each other's GPUs, the
            cache is in host memory. By itself in a process without other ranks.
        device: "cpu"; "cuda" for a cache in the memory of a GPU, whose kernels move rows and where
            they are delivered; or "simt" for the same kernels, executed on the CPU.

    Raises:
        ArgumentError, DTypeError: options that cannot be used, or a writable source.
        TooLargeError: the cache is larger than the memory available.

    >>> import tempfile
    >>> from gnnsys.memory import FileStore
    >>> path = os.path.join(tempfile.mkdtemp(), "features.npy")
    >>> np.save(path, np.arange(12, dtype=np.float32).reshape(6, 2))
    >>> store = CachedStore(FileStore(path), cache=3)
    >>> tickets = [store.announce(torch.tensor(ids)) for ids in ([0, 5], [5, 1])]
    >>> store.gather(torch.tensor([0, 5]), ticket=tickets[0])
    tensor([[ 0.,  1.],
            [10., 11.]])
    >>> store.gather(torch.tensor([5, 1]), ticket=tickets[1])
    tensor([[10., 11.],
            [ 2.,  3.]])
    >>> store.counters.as_dict()["rows"]
    {'file': 3, 'cache': 1}
    """

    tier = "cache"

    def __init__(
        self,
        source: Store,
        *,
        cache: int | float | str | CacheArena | ArenaShare,
        policy: Policy = "hybrid",
        window: int | Literal["auto"] = "auto",
        victim_buffer: int | str = 0,
        scores: Tensor | NDArray[Any] | None = None,
        prefill: bool = True,
        prefetch: int = 2,
        trace: str | os.PathLike[str] | None = None,
        threads: int = 0,
        device: str | torch.device = "cpu",
        shared: bool | Sharing = False,
    ) -> None:
        _check(source, policy, window, prefetch, threads)
        sharing = _sharing(shared, cache, trace, device)
        self.source = source
        self.shape, self.encoding = source.shape, source.encoding
        self.path, self.depth = source.path, source.depth
        self.policy: Policy = policy
        self.window = _AUTO_WINDOW if window == "auto" else window
        self.counters = Counters()
        self._name = source.path or "the source"
        self._gate = Gate(self._name)
        rows = self.shape[0]
        self.victim_cells = rows_of(victim_buffer, rows, self.row_bytes, "victim_buffer")
        importance = _as_importance(scores, rows)
        self._options: dict[str, Any] = {
            "policy": policy,
            "window": self.window,
            "victim_buffer": self.victim_cells,
            "scores": importance,
            "prefill": prefill,
            "prefetch": prefetch,
            "threads": threads,
            "device": _with_index(device),
            "sharing": sharing,
        }
        self.world_size = 1 if sharing is None else dist.get_world_size()
        self._of_arena = isinstance(cache, (CacheArena, ArenaShare))
        self._capacity = self._reserve(cache)
        self._trace = TraceWriter(trace, rows) if trace is not None else None
        make = partial(
            make_engine, source.as_stored(), self._name, self._capacity, self.counters, self._trace,
            **self._options,
        )  # fmt: skip
        # Nothing below knows this object: what it holds is let go with the last reference to it.
        self._engine = Once(make)
        if self._trace is not None:
            weakref.finalize(self._engine, _close_trace, self._trace, os.getpid())
        if sharing is not None:  # all ranks are here, and its threads keep it
            engine = self._engine()
            assert isinstance(engine, SharedEngine)
            self._options["device"] = str(engine.device)  # as they have agreed
            weakref.finalize(self._engine, engine.close)

    def _reserve(self, cache: Any) -> Callable[[], int]:
        """How many rows are cached, which an arena knows at the first use only."""
        share = ArenaShare(cache, 0.0) if isinstance(cache, CacheArena) else cache
        if isinstance(share, ArenaShare):
            table = Table(self._name, self.shape[0], self.row_bytes, self._options["scores"])
            share.arena.add(table, share.fraction or None)
            return lambda: share.arena.rows(table)
        capacity = rows_of(cache, self.shape[0], self.row_bytes, "cache")
        is_seen_later = self._is_of_gpu or self._options["sharing"] is not None
        if not is_seen_later:
            check_memory(capacity, self.victim_cells, self.row_bytes)
        return lambda: capacity

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """See ``Store.device``; the CPU in a process that the cache was not made for."""
        if not self._is_of_gpu or self._reads_through():
            return CPU
        gpu = kernel_device(self._options["device"])
        return CPU if gpu is None else gpu.torch_device

    @property
    def _is_of_gpu(self) -> bool:
        return bool(self._options["device"].startswith("cuda"))

    @property
    def capacity(self) -> int:
        """Rows that the cache holds at most."""
        return self._capacity()

    @property
    def lookahead(self) -> int:
        """Batches that a loader should have announced ahead of the one it gathers."""
        with self._gate:
            return 0 if self._reads_through() else self._engine().lookahead

    @property
    def stats(self) -> CacheStats:
        """Counts so far; a copy, which does not change."""
        with self._gate:
            return self._engine().stats

    def announce(self, ids: Tensor, owner: Any = None) -> Any:
        """Takes note of a batch to come. Never waits for the disk.

        Args:
            ids: (n,) int32 or int64 on the CPU, not changed before the batch is gathered.
            owner: who announces. The batches of one owner are planned ahead at a time: while its
                tickets wait, those of another are served as if they had not been announced, which
                is logged once. The tickets of an owner that no longer exists are retracted.

        Returns:
            The ticket for ``gather``.

        Raises:
            RowIndexError: an id is outside the rows.
        """
        if self._reads_through():
            return None
        with self._gate:
            return self._engine().announce(check_ids(ids), owner)

    def gather(
        self, ids: Tensor, out: Tensor | None = None, stream: Any = None, *, ticket: Any = None
    ) -> Tensor:
        """See ``Store.gather``.

        Args:
            ticket: of the batch, where it was announced.

        Raises:
            ArgumentError: it is not this ticket's turn, or the ids are not those announced.
            StorageError, FileFormatError: the rows cannot be read; the ticket stays good, and all
                may be retracted.
        """
        del stream
        wanted = check_ids(ids)
        if out is not None:
            check_out(out, len(wanted), self.shape, self.dtype, self.device)
        with self._gate:
            if self._reads_through():
                rows = self.source.with_dtype(self.dtype).gather(wanted, out)
                self.counters.add("file", len(wanted), len(wanted) * self.row_bytes)
                return rows
            return self._engine().gather(wanted, out, ticket, self.encoding)

    def retract(self, ticket: Any) -> None:
        """Takes back this ticket and all its owner was given after it; ignores one that is gone."""
        if not self._reads_through():
            with self._gate:
                self._engine().retract(ticket)

    def finish(self, owner: Any = None) -> None:
        """See ``AnnouncedStore.finish``; nothing is left to tell to a store that was closed."""
        if self._reads_through() or self._gate.is_closed:
            return
        with self._gate:
            self._engine().finish(owner)

    def end(self, owner: Any = None) -> None:
        """See ``AnnouncedStore.end``; nothing is left to end of a store that was closed."""
        if self._reads_through() or self._gate.is_closed:
            return
        with self._gate:
            self._engine().end(owner)

    def make_planner(self, window: int) -> Planner:
        """A planner like the cache's own, with another window and without a victim buffer."""
        options = {name: self._options[name] for name in ("policy", "scores", "prefill")}
        rows = self.shape[0]
        return make_planner_of(self._name, rows, self.capacity, 0, window=window, **options)

    def follow(self, plans: RecordedPlans, packed: Store | None, batches: int, first: int) -> bool:
        """From now on the batches announced are those that were planned; what waits is retracted.

        Rows are exact whatever is announced: a batch that is not the next one planned is served
        from the cache as it is, or from the source.

        Args:
            plans: of an epoch, made by a planner of ``make_planner``.
            packed: the rows that plans read, in their order; None where none are packed.
            batches: whose reads are packed, from the epoch's first on.
            first: the batch of the epoch that comes next.

        Returns:
            False for a cache that follows no plans: one that holds all rows, or that ranks share.
        """
        with self._gate:
            engine = self._engine()
            if not isinstance(engine, Engine):
                return False
            engine.follow(plans, packed, batches, first)
            return True

    def unfollow(self) -> None:
        """Plans by itself again, what waits included; begins with an empty cache if it followed."""
        with self._gate:
            if self._engine.is_made and isinstance(engine := self._engine(), Engine):
                engine.unfollow()

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """Raises ReadOnlyError."""
        raise ReadOnlyError(
            f"{self._name}: is behind a cache, which would not see the change; write with "
            "gnnsys.memory.FileStore(path, writable=True) and open it anew"
        )

    def start_reads(self, batch: Reads) -> PendingRows:
        """See ``Store.start_reads``; rows are read from the source."""
        with self._gate:
            return self.source.start_reads(batch)

    def read_range(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """See ``Store.read_range``; rows are read from the source."""
        with self._gate:
            rows = self.source.with_dtype(self.dtype).read_range(first, last, out)
        self.counters.add("file", last - first, (last - first) * self.row_bytes)
        return rows

    def close(self) -> None:
        """See ``Store.close``; the source and the trace are closed, too."""
        if self._gate.close():
            self._engine.close()
            if self._trace is not None:
                self._trace.close()
            self.source.close()

    def _reads_through(self) -> bool:
        """Whether this is a process that the cache was not made for: it has no share in it."""
        return get_worker_info() is not None or self._engine.is_foreign()

    def __reduce__(self) -> tuple[Any, ...]:
        own = {name: value for name, value in self._options.items() if name != "sharing"}
        part = self.capacity // self.world_size
        return _rebuild, (self.source, self.dtype, {"cache": part, **own})

    def __repr__(self) -> str:
        return (
            f"CachedStore({self.source!r}, cache={self._cache_in_words()!r}, "
            f"policy={self.policy!r}, window={self.window}, dtype={self.dtype})"
        )

    def facts(self) -> dict[str, str]:
        """See ``Store.facts``."""
        facts = facts_of(self) | {"tier": f"{self.source.tier} behind a cache"}
        facts |= {"cache": self._cache_in_words(), "policy": self.policy}
        if self.world_size > 1:
            facts["shared by"] = f"{self.world_size} ranks"
        buffer = f"{self.victim_cells:,} rows"
        return facts | ({"victim buffer": buffer} if self.victim_cells else {})

    def _cache_in_words(self) -> str:
        if self._of_arena and not self._engine.is_made:
            return "a share of an arena"  # which divides itself at the first use
        rows = self.capacity
        return f"{rows:,} rows, {size_text(rows * self.row_bytes)}"


def _with_index(device: str | torch.device) -> str:
    """A GPU's name with its number: threads may each have a current one."""
    name = str(device)
    is_any = name == "cuda" and torch.cuda.is_available()
    return f"cuda:{torch.cuda.current_device()}" if is_any else name


def _close_trace(trace: TraceWriter, process: int) -> None:
    if process == os.getpid():  # not in a forked child, whose copy writes to the same file
        trace.close()


def _rebuild(source: Store, dtype: torch.dtype, options: dict[str, Any]) -> CachedStore:
    return CachedStore(source, **options).with_dtype(dtype)


def _sharing(shared: bool | Sharing, cache: Any, trace: Any, device: Any) -> Sharing | None:
    """How ranks share a cache; None where none is shared, or there is one rank."""
    if shared is False:
        return None
    sharing: Sharing = "auto" if shared is True else shared
    if sharing not in get_args(Sharing):
        expected = ", ".join(map(repr, get_args(Sharing)))
        raise ArgumentError(f"shared: {shared!r}, expected True, False or one of {expected}")
    if isinstance(cache, (CacheArena, ArenaShare)):
        raise UnsupportedError("shared: a CacheArena is of one process; give each cache its size")
    if trace is not None:
        raise UnsupportedError("shared: batches of several ranks are not recorded; leave out trace")
    in_host = str(device).startswith("cpu")
    if in_host and sharing == "peer":
        raise UnsupportedError(
            "shared='peer': is of a cache in the memory of GPUs, and this one is in the host's; "
            "give device='cuda' and a size (--device cuda --cache SIZE), or shared='auto'"
        )
    if not in_host and sharing in ("shm", "exchange"):
        raise UnsupportedError(
            f"shared='{sharing}': is in host memory, not that of {device}; give cache_on='host', "
            "or shared='auto'"
        )
    if not dist.is_initialized():
        if (world_around() or 1) > 1:
            raise ArgumentError(
                "shared: the ranks have not met; call torch.distributed.init_process_group() first"
            )
        return None
    return sharing if dist.get_world_size() > 1 else None


def _check(source: Store, policy: str, window: int | str, prefetch: int, threads: int) -> None:
    if getattr(source, "writable", False):
        raise ArgumentError("source: is writable, and a cache would not see changes; open it anew")
    if policy not in POLICIES:
        raise ArgumentError(f"policy: {policy!r}, expected one of {', '.join(POLICIES)}")
    if window != "auto" and (not isinstance(window, int) or window < 0):
        raise ArgumentError(f"window: {window!r}, expected 'auto' or a number of batches from 0")
    if prefetch < 0:
        raise ArgumentError(f"prefetch: {prefetch} < 0; give a number of batches, or 0")
    num_threads(threads)  # refuses a negative one before anything is allocated


def _as_importance(scores: Any, rows: int) -> NDArray[np.uint16] | None:
    if scores is None:
        return None
    values = scores.numpy() if isinstance(scores, Tensor) else np.asarray(scores)
    if values.shape != (rows,):
        raise ArgumentError(f"scores: shape {values.shape}, expected {(rows,)}, one for each row")
    if values.dtype != np.uint16:
        return rank_normalised(values)
    # A copy of a tensor's, which share_memory_() may move while the planner reads them.
    return values.copy() if isinstance(scores, Tensor) else values
