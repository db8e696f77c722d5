"""Which store a source gets: ``unified``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeGuard

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.arena import ArenaShare, CacheArena
from gnnsys.cache.plan import Policy
from gnnsys.cache.store import CachedStore
from gnnsys.choices import Sharing
from gnnsys.errors import ArgumentError
from gnnsys.memory import FileStore, HostStore, Quantised
from gnnsys.memory.mapped import MappedStore
from gnnsys.memory.reads import Storage
from gnnsys.memory.store import Store
from gnnsys.ranks.meeting import Meeting
from gnnsys.system.device import SIMT
from gnnsys.system.gpu import HostExecutorDevice
from gnnsys.system.names import naming_keywords
from gnnsys.unified_tensor.rows import compute_device
from gnnsys.unified_tensor.tensor import UnifiedTensor

__all__ = ["unified"]


@naming_keywords()
def unified(
    source: Tensor | NDArray[Any] | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    threads: int = 0,
    encoding: torch.dtype | Quantised | None = None,
    shape: Sequence[int] | None = None,
    offset: int = 0,
    storage: Storage = "auto",
    cache: int | float | str | CacheArena | ArenaShare | None = None,
    cache_on: Literal["auto", "host", "device"] = "auto",
    policy: Policy = "hybrid",
    window: int | Literal["auto"] = "auto",
    victim_buffer: int | str = 0,
    scores: Tensor | NDArray[Any] | None = None,
    prefill: bool = True,
    trace: str | os.PathLike[str] | None = None,
    shared: bool | Sharing = False,
) -> UnifiedTensor:
    """A tensor whose rows stay where they are and are gathered one by one when indexed.

    Args:
        source: (rows, …) CPU tensor or numpy array, read in place; or the path of a ``.npy`` file
            in C order, or of a raw file (then ``shape`` and ``encoding`` say what it holds); or a
            list of paths, of ``.npy`` files that hold one range of rows each.
        device: where rows are consumed; None for "cuda" when there is one, else "cpu". On a GPU
            kernels read rows in memory where they are. "simt" is the CPU, by the same kernels,
            executed thread by thread: slow, and for tests.
        dtype: of gathered rows; None for the stored one, or float32 of quantised rows.
        threads: that gather; 0 for all cores this process may use.
        encoding: element type of a file that its header cannot name (``torch.bfloat16`` stored as
            uint16), and of a raw file; or how its rows are quantised.
        shape: (rows, …) of a raw file.
        offset: bytes before the first row of a raw file.
        storage: how a file is read; see ``gnnsys.memory.FileStore``.
        cache: memory for the rows that are needed most, of a file or, on a GPU, of host memory:
            bytes ("8GB"), rows, a share of the rows (0.25), or a ``gnnsys.CacheArena``; None for no
            cache. This and what follows is explained in ``gnnsys.cache.CachedStore``.
        cache_on: whose memory that is; "auto" for that of the device.
        policy: which rows leave the cache first.
        window: batches that plans look ahead; "auto" for up to 64.
        victim_buffer: rows or bytes for rows that left the cache and will be needed soon.
        scores: (rows,) how often each row will be needed, such as the out-degree of its node.
        prefill: whether the cache starts with the rows of the highest scores.
        trace: a file that the ids of each gathered batch are recorded in.
        shared: whether the ranks of the process group have one cache together, of this size; all of
            them then call this. True, or how they read each other's rows: see ``CachedStore``.

    Returns:
        UnifiedTensor: takes the place of the tensor, also as ``data.x`` of PyG.

    Raises:
        MissingFileError, FileFormatError: the file is not there, or not what it should be.
        DTypeError, ArgumentError: a source that cannot be gathered from, or options for a file
            with a source in memory.
        TooLargeError: the cache is larger than the memory available.
        RankFailedError: of ranks that share a cache, one is gone, or raised one of these.

    >>> x = unified(torch.arange(6.0).view(3, 2))
    >>> x[torch.tensor([2, 0])]
    tensor([[4., 5.],
            [0., 1.]])
    """
    store: Store
    if isinstance(source, UnifiedTensor):
        raise ArgumentError("source: a UnifiedTensor already; use .to() to change its device")
    compute = compute_device("cpu" if device == SIMT else device)
    near = "cpu" if cache_on == "host" else device if device == SIMT else compute
    with _meeting_of(shared) as meeting:
        if _names_files(source):
            store = FileStore(
                source,
                dtype=dtype,
                encoding=encoding,
                shape=shape,
                offset=offset,
                threads=threads,
                storage=storage,
            )
        elif encoding is not None or shape is not None or offset:
            raise ArgumentError("encoding, shape, offset: are for a file, but source is in memory")
        elif cache is not None and near in ("cpu", torch.device("cpu")):
            raise ArgumentError("cache: is for a file or for a GPU, but source is in memory")
        else:
            # Which refuses whatever else it is.
            store = HostStore(source, dtype=dtype, threads=threads)  # type: ignore[arg-type]
        if meeting is not None:
            meeting.tell(None)
    if cache is not None:
        store = CachedStore(
            store,
            cache=cache,
            policy=policy,
            window=window,
            victim_buffer=victim_buffer,
            scores=scores,
            prefill=prefill,
            trace=trace,
            threads=threads,
            device=near,
            shared=shared,
        )
    elif trace is not None or scores is not None or victim_buffer or shared:
        raise ArgumentError(
            "trace, scores, victim_buffer, shared: are of a cache; give cache=, too"
        )
    elif device == SIMT and store.resident is not None:
        store = MappedStore(store, HostExecutorDevice())
    return UnifiedTensor(store, compute)


def _meeting_of(shared: bool | Sharing) -> AbstractContextManager[Meeting | None]:
    """Of the ranks that share a cache, where one may be unable to open what the others can."""
    if shared and dist.is_initialized() and dist.get_world_size() > 1:
        return Meeting("gnnsys.unified(…, shared=…)")
    return nullcontext()


def _names_files(source: Any) -> TypeGuard[str | os.PathLike[str] | Sequence[Any]]:
    paths = source if isinstance(source, (list, tuple)) else [source]
    return bool(paths) and all(isinstance(path, (str, os.PathLike)) for path in paths)
