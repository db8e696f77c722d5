"""The unified tensor: a ``torch.Tensor`` whose rows stay in a store.

Owns ``UnifiedTensor`` and ``unified``. Imports ``memory`` and ``cache``, never a loader. It is
thin: everything it does is a call into its store. Invariants: a gather equals torch's indexing of
the same rows bit for bit and is an ordinary tensor, a copy; nothing here copies the whole unless
it is asked to, or the whole is small.

Source of the idea: PyTorch-Direct (Min et al., "Large graph convolutional network training with
GPU-oriented data communication architecture", VLDB 2021).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NoReturn, TypeGuard

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import get_worker_info

from gnnsys.cache.arena import ArenaShare, CacheArena
from gnnsys.cache.plan import Policy
from gnnsys.cache.store import CachedStore
from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, ReadOnlyError, RowIndexError, TooLargeError
from gnnsys.indexing import RowIndex, split_index
from gnnsys.memory import FileStore, HostStore
from gnnsys.memory.reads import Storage
from gnnsys.memory.store import check_dtype

__all__ = ["UnifiedTensor", "unified"]

_log = logging.getLogger(__name__)

WHOLE_LIMIT = 1 << 30
"""Bytes of a file up to which an operator on the whole tensor reads it all."""

_ROWS_PER_ITERATION = 256  # that ``for row in x`` gathers at a time

TableStore = HostStore | FileStore | CachedStore


def unified(
    source: Tensor | NDArray[Any] | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    threads: int = 0,
    encoding: torch.dtype | None = None,
    shape: Sequence[int] | None = None,
    offset: int = 0,
    storage: Storage = "auto",
    cache: int | float | str | CacheArena | ArenaShare | None = None,
    policy: Policy = "hybrid",
    window: int | Literal["auto"] = "auto",
    victim_buffer: int | str = 0,
    scores: Tensor | NDArray[Any] | None = None,
    prefill: bool = True,
    trace: str | os.PathLike[str] | None = None,
) -> UnifiedTensor:
    """A tensor whose rows stay where they are and are gathered one by one when indexed.

    Args:
        source: (rows, …) CPU tensor or numpy array, read in place; or the path of a ``.npy`` file
            in C order, or of a raw file (then ``shape`` and ``encoding`` say what it holds); or a
            list of paths, of ``.npy`` files that hold one range of rows each.
        device: where rows are consumed; None for "cuda" when there is one, else "cpu".
        dtype: of gathered rows; None for the stored one.
        threads: that gather; 0 for all cores this process may use.
        encoding: element type of a file that its header cannot name (``torch.bfloat16`` stored as
            uint16), and of a raw file.
        shape: (rows, …) of a raw file.
        offset: bytes before the first row of a raw file.
        storage: how a file is read; see ``gnnsys.memory.FileStore``.
        cache: memory for the rows of a file that are needed most: bytes ("8GB"), rows, a share of
            the rows (0.25), or a ``gnnsys.CacheArena``; None for no cache. This and what follows
            is explained in ``gnnsys.cache.CachedStore``.
        policy: which rows leave the cache first.
        window: batches that plans look ahead; "auto" for up to 64.
        victim_buffer: rows or bytes for rows that left the cache and will be needed soon.
        scores: (rows,) how often each row will be needed, such as the out-degree of its node.
        prefill: whether the cache starts with the rows of the highest scores.
        trace: a file that the ids of each gathered batch are recorded in.

    Returns:
        UnifiedTensor: takes the place of the tensor, also as ``data.x`` of PyG.

    Raises:
        MissingFileError, FileFormatError: the file is not there, or not what it should be.
        DTypeError, ArgumentError: a source that cannot be gathered from, or options for a file
            with a source in memory.
        TooLargeError: the cache is larger than the memory available.

    >>> x = unified(torch.arange(6.0).view(3, 2))
    >>> x[torch.tensor([2, 0])]
    tensor([[4., 5.],
            [0., 1.]])
    """
    store: TableStore
    if isinstance(source, UnifiedTensor):
        raise ArgumentError("source: a UnifiedTensor already; use .to() to change its device")
    if _names_files(source):
        store = FileStore(
            source,
            dtype=None if cache is not None else dtype,
            encoding=encoding,
            shape=shape,
            offset=offset,
            threads=threads,
            storage=storage,
        )
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
            )
            store = store if dtype is None else store.with_dtype(dtype)
        elif trace is not None or scores is not None or victim_buffer:
            raise ArgumentError("trace, scores, victim_buffer: are of a cache; give cache=, too")
    elif encoding is not None or shape is not None or offset or cache is not None:
        raise ArgumentError(
            "encoding, shape, offset, cache: are for a file, but source is in memory"
        )
    else:
        # Which refuses whatever else it is.
        store = HostStore(source, dtype=dtype, threads=threads)  # type: ignore[arg-type]
    return UnifiedTensor(store, _compute_device(device))


def _names_files(source: Any) -> TypeGuard[str | os.PathLike[str] | Sequence[Any]]:
    paths = source if isinstance(source, (list, tuple)) else [source]
    return bool(paths) and all(isinstance(path, (str, os.PathLike)) for path in paths)


class UnifiedTensor(Tensor):
    """A read-only tensor over a store; make one with ``gnnsys.unified``.

    Supported element types: float64/32/16, bfloat16, complex128/64, int64/32/16/8, uint8, bool.

    - Indexing, ``torch.index_select`` along dimension 0 and ``F.embedding`` gather rows into an
      ordinary tensor on the compute device.
    - ``.to(device)``, ``.cuda()``, ``.cpu()``, ``.pin_memory()``, ``.share_memory_()`` never copy
      the rows; ``.half()``, ``.to(dtype)`` set the type that rows are delivered in.
    - Other operators run on the whole tensor: in place for host memory, where a view of it is again
      a unified tensor; after reading it for a file of up to 1 GiB; past that they raise
      ``TooLargeError``.
    - Writing raises ``ReadOnlyError``; ``.materialize()`` gives an ordinary copy.
    """

    store: TableStore
    _compute: torch.device

    @staticmethod
    def __new__(cls, store: TableStore, device: torch.device | None = None) -> UnifiedTensor:
        compute = device or torch.device("cpu")
        self = Tensor._make_wrapper_subclass(cls, store.shape, dtype=store.dtype, device=compute)
        self.store = store
        self._compute = compute
        return self

    def __init__(self, store: TableStore, device: torch.device | None = None) -> None:
        super().__init__()

    @property
    def counters(self) -> Counters:
        """Rows and bytes served so far, by tier."""
        return self.store.counters

    def materialize(self) -> Tensor:
        """An ordinary tensor with all rows, on the compute device: the explicit copy."""
        whole = self.store.whole()
        if isinstance(self.store, HostStore):
            self.store.counters.add(self.store.tier, len(self), len(self) * self.store.row_bytes)
            if whole.untyped_storage().data_ptr() == self.store.source.untyped_storage().data_ptr():
                whole = whole.clone()
        return whole.to(self._compute)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where rows arrive: the compute device, in a DataLoader worker the CPU."""
        if self._compute.type != "cpu" and get_worker_info() is not None:
            _log_worker()
            return torch.device("cpu")
        return self._compute

    def _deliver(self, rows: Tensor) -> Tensor:
        return rows.to(self.device)

    def _whole(self, what: str) -> Tensor:
        """All rows for an operator that needs them: host memory itself, a file's if it is small."""
        nbytes = self.numel() * self.element_size()
        in_place = isinstance(self.store, HostStore) and self._compute.type == "cpu"
        if not in_place and nbytes > WHOLE_LIMIT:
            raise TooLargeError(
                f"{what} needs all {len(self)} rows, {nbytes} bytes > {WHOLE_LIMIT}: index rows, "
                "take an explicit copy with .materialize(), or compute layer by layer with "
                "gnnsys.inference(model, data)"
            )
        return self._deliver(self.store.whole())

    def _with(self, device: torch.device | None, dtype: torch.dtype | None) -> UnifiedTensor:
        store = self.store
        if dtype is not None and dtype != store.dtype:
            check_dtype(dtype, "dtype")
            store = store.with_dtype(dtype)
        return UnifiedTensor(store, self._compute if device is None else _compute_device(device))

    def _take(self, index: Any) -> Tensor:
        if type(index) is Tensor and index.dim() == 1 and index.dtype in (torch.int64, torch.int32):
            try:  # the hot path: the store checks the ids while it gathers
                return self._deliver(self.store.gather(index))
            except RowIndexError:
                pass  # ids that count from the end, or an error that split_index tells
        rows: RowIndex | None = split_index(index, self.shape)
        if rows is None:
            whole = self._whole("indexing without a row index")
            found = whole[index]
            aliased = found.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
            return found.clone() if aliased else found
        compact = self.store.gather(rows.ids)
        if rows.rest is not None:
            compact = compact[rows.rest]
        return self._deliver(compact)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _METHODS and isinstance(args[0], UnifiedTensor):
            return _METHODS[func](*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and isinstance(args[0], UnifiedTensor):
            _refuse_write(name)  # some write below the operators that torch dispatches
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        handler = _OPERATORS.get(func)
        if handler is not None and isinstance(args[0], UnifiedTensor):
            result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        _refuse_writes(func, args, kwargs)
        return _run_on_whole(func, args, kwargs)

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self), _ROWS_PER_ITERATION):
            yield from self._take(slice(start, start + _ROWS_PER_ITERATION)).unbind(0)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return UnifiedTensor, (self.store, self._compute)

    def __deepcopy__(self, memo: dict[int, Any]) -> UnifiedTensor:
        store = self.store
        if isinstance(store, HostStore):
            store = HostStore(store.source.clone()).with_dtype(store.dtype)
        copy = UnifiedTensor(store, self._compute)
        memo[id(self)] = copy
        return copy

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"UnifiedTensor({self.store!r}, device={str(self._compute)!r})"


def _compute_device(device: str | torch.device | int | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ArgumentError(f"device: {device!r}, expected cpu or cuda") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device: {chosen}, expected cpu or cuda")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ArgumentError(f"device: {chosen}, but torch finds no CUDA device; use 'cpu'")
        _log_copied_rows()
        if ":" not in str(chosen):
            chosen = torch.device("cuda", torch.cuda.current_device())
    return chosen


@lru_cache
def _log_copied_rows() -> None:
    _log.warning("rows are gathered by the CPU and then copied to the GPU in this version")


@lru_cache
def _log_worker() -> None:
    _log.warning("rows are gathered by a DataLoader worker's CPU: num_workers=0 is faster")


def _refuse_writes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = kwargs.get(argument.name)
        if position < len(args) and not argument.kwarg_only:
            value = args[position]
        if any(isinstance(leaf, UnifiedTensor) for leaf in tree_flatten(value)[0]):
            _refuse_write(str(func))


def _refuse_write(what: str) -> NoReturn:
    raise ReadOnlyError(
        f"{what} writes to a unified tensor, whose rows are only read: change a copy made by "
        ".materialize()"
    )


def _run_on_whole(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaves, spec = tree_flatten((args, kwargs))
    if func.overloadpacket in _FACTORIES:
        args, kwargs = tree_unflatten([_without_rows(leaf) for leaf in leaves], spec)
        return func(*args, **kwargs)
    sources = []

    def whole(value: Any) -> Any:
        if not isinstance(value, UnifiedTensor):
            return value
        tensor = value._whole(str(func))
        if isinstance(value.store, HostStore):
            sources.append(tensor.untyped_storage().data_ptr())
        return tensor

    args, kwargs = tree_unflatten([whole(leaf) for leaf in leaves], spec)
    results, spec = tree_flatten(func(*args, **kwargs))
    return tree_unflatten([_protected(result, sources) for result in results], spec)


def _protected(result: Any, sources: list[int]) -> Any:
    """A view of a source stays read-only: it is a unified tensor again, a scalar a copy."""
    if not isinstance(result, Tensor) or result.untyped_storage().data_ptr() not in sources:
        return result
    if result.dim() == 0:
        return result.clone()
    return UnifiedTensor(HostStore(result), result.device)


def _without_rows(value: Any) -> Any:
    """Shape, dtype and device of a unified tensor, for operators that read nothing else."""
    if not isinstance(value, UnifiedTensor):
        return value
    return torch.empty((), dtype=value.dtype, device=value.device).expand(value.shape)


# Operators that torch reaches below Python -------------------------------------------------------


def _index_select(self: UnifiedTensor, dim: int, index: Tensor) -> Any:
    if dim not in (0, -self.dim()):
        return NotImplemented
    if index.dim() > 1 or index.dtype not in (torch.int32, torch.int64):
        return NotImplemented  # torch's own error for it
    return self._deliver(self.store.gather(index.reshape(-1)))


def _index_select_out(self: UnifiedTensor, dim: int, index: Tensor, *, out: Tensor) -> Any:
    if isinstance(out, UnifiedTensor):
        _refuse_write("index_select")
    dense = out.is_contiguous() and out.dtype == self.dtype and out.device.type == "cpu"
    if dim in (0, -self.dim()) and dense and out.shape == (index.numel(), *self.shape[1:]):
        return self.store.gather(index.reshape(-1), out=out)
    rows = _index_select(self, dim, index)
    if rows is NotImplemented:
        return NotImplemented
    return torch.index_select(rows, 0, torch.arange(len(rows), device=rows.device), out=out)


def _embedding(
    self: UnifiedTensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if self.dim() != 2 or indices.dtype not in (torch.int32, torch.int64):
        return NotImplemented
    rows = self._deliver(self.store.gather(indices.reshape(-1)))
    return rows.view(*indices.shape, self.shape[1])


def _to_copy(self: UnifiedTensor, **kwargs: Any) -> Any:
    layout = kwargs.get("layout")
    if layout not in (None, torch.strided) or kwargs.get("memory_format") not in (
        None,
        torch.preserve_format,
        torch.contiguous_format,
    ):
        return NotImplemented
    return self._with(kwargs.get("device"), kwargs.get("dtype"))


def _same(self: UnifiedTensor) -> UnifiedTensor:
    return UnifiedTensor(self.store, self._compute)


_aten = torch.ops.aten

_OPERATORS: dict[Any, Callable[..., Any]] = {
    _aten.index_select.default: _index_select,
    _aten.index_select.out: _index_select_out,
    _aten.embedding.default: _embedding,
    _aten._to_copy.default: _to_copy,
    _aten.detach.default: _same,
    _aten.alias.default: _same,
}


_FACTORIES = {
    _aten.zeros_like,
    _aten.ones_like,
    _aten.full_like,
    _aten.empty_like,
    _aten.rand_like,
    _aten.randn_like,
    _aten.randint_like,
    _aten.new_zeros,
    _aten.new_ones,
    _aten.new_full,
    _aten.new_empty,
    _aten.new_empty_strided,
}


# Methods that are decided in Python, before torch takes an index apart ---------------------------


def _getitem(self: UnifiedTensor, index: Any) -> Tensor:
    return self._take(index)


def _setitem(self: UnifiedTensor, index: Any, value: Any) -> NoReturn:
    _refuse_write("item assignment")


def _requires_grad_(self: UnifiedTensor, requires_grad: bool = True) -> UnifiedTensor:
    if requires_grad:
        _refuse_write("requires_grad_(True)")
    return self


def _set_requires_grad(self: UnifiedTensor, value: bool) -> None:
    _requires_grad_(self, value)


def _unchanged(self: UnifiedTensor, *args: Any, **kwargs: Any) -> UnifiedTensor:
    return self


def _new(self: UnifiedTensor, *args: Any, **kwargs: Any) -> Tensor:
    # PyG's index_select makes its output in a worker by value.new(shared storage).
    return torch.empty(0, dtype=self.dtype).new(*args, **kwargs)


def _untyped_storage(self: UnifiedTensor) -> torch.UntypedStorage:
    return torch.UntypedStorage(0)


def _numpy(self: UnifiedTensor, *, force: bool = False) -> NDArray[Any]:
    array = self._whole("numpy()").numpy(force=force)
    array.flags.writeable = False
    return array


def _array(self: UnifiedTensor, dtype: Any = None) -> NDArray[Any]:
    return _numpy(self).__array__(dtype)


def _tolist(self: UnifiedTensor) -> Any:
    return self._whole("tolist()").tolist()


def _set_data(self: UnifiedTensor, value: Any) -> NoReturn:
    _refuse_write("setting .data")


def _data_ptr(self: UnifiedTensor, *args: Any, **kwargs: Any) -> NoReturn:
    raise ArgumentError("a unified tensor has no address of its own: use .materialize()")


_METHODS: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _getitem,
    Tensor.__setitem__: _setitem,
    Tensor.requires_grad_: _requires_grad_,
    Tensor.requires_grad.__set__: _set_requires_grad,  # type: ignore[attr-defined]
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    Tensor.__dlpack__: _data_ptr,
    Tensor.pin_memory: _unchanged,
    Tensor.share_memory_: _unchanged,
    Tensor.contiguous: _unchanged,
    Tensor.new: _new,
    Tensor.untyped_storage: _untyped_storage,
    Tensor.numpy: _numpy,
    Tensor.__array__: _array,
    Tensor.tolist: _tolist,
    Tensor.data_ptr: _data_ptr,
}
