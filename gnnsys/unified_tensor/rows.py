"""A tensor without elements of its own, whose rows a store gathers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from gnnsys.compat import make_wrapper
from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, DTypeError, RowIndexError, TooLargeError
from gnnsys.memory import HostStore
from gnnsys.memory.ids import from_dlpack
from gnnsys.memory.mapped import MappedStore
from gnnsys.memory.store import Store
from gnnsys.system.gpu import kernel_device
from gnnsys.system.notebook import facts_as_html
from gnnsys.system.once import warn_once
from gnnsys.unified_tensor.indexing import RowIndex, split_index

__all__ = ["StoredTensor", "compute_device"]

_log = logging.getLogger(__name__)

WHOLE_LIMIT = 1 << 30
"""Bytes of a file up to which an operator on the whole tensor reads it all."""

_ROWS_PER_ITERATION = 256  # that ``for row in x`` gathers at a time

T = TypeVar("T", bound="StoredTensor")


class StoredTensor(Tensor):
    """What a unified tensor knows of its store: gathers, the whole, where rows are delivered."""

    store: Store
    _compute: torch.device
    _on_gpu: Store | None = None

    @staticmethod
    def __new__(cls: type[T], store: Store, device: torch.device | None = None) -> T:
        compute = device or torch.device("cpu")
        self = make_wrapper(cls, store.shape, dtype=store.dtype, device=compute)
        self.store = store
        self._compute = compute
        return self

    def __init__(self, store: Store, device: torch.device | None = None) -> None:
        super().__init__()

    @property
    def counters(self) -> Counters:
        """Rows and bytes served so far, by tier."""
        return self.store.counters

    def materialize(self) -> Tensor:
        """An ordinary tensor with all rows, on the compute device: the explicit copy."""
        return self.store.read_range(0, len(self)).to(self._compute)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where rows arrive: the compute device, in a DataLoader worker the CPU."""
        if self._compute.type != "cpu" and get_worker_info() is not None:
            told = "rows are gathered by a DataLoader worker's CPU: num_workers=0 is faster"
            warn_once(_log, told)
            return torch.device("cpu")
        return self._compute

    def _deliver(self, rows: Tensor) -> Tensor:
        return rows.to(self.device)

    def _gather(self, ids: Tensor) -> Tensor:
        """Rows (n,) where they are consumed; by a kernel of a GPU where it reads them in memory."""
        return self._deliver(self._gathering_store().gather(ids))

    def _gathering_store(self) -> Store:
        if self.device.type != "cuda" or self.store.resident is None:
            return self.store
        if self._on_gpu is None:
            self._on_gpu = _on_gpu(self.store, self._compute)
        return self._on_gpu

    def _with(self: T, device: torch.device | None, dtype: torch.dtype | None) -> T:
        store = self.store
        if dtype is not None and dtype != store.dtype:
            store = store.with_dtype(dtype)
        return type(self)(store, self._compute if device is None else compute_device(device))

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self), _ROWS_PER_ITERATION):
            yield from take_rows(self, slice(start, start + _ROWS_PER_ITERATION)).unbind(0)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(self), (self.store, self._compute)

    def __deepcopy__(self: T, memo: dict[int, Any]) -> T:
        store = self.store
        if store.resident is not None:
            store = HostStore(store.resident.clone(), dtype=store.dtype)
        copy = type(self)(store, self._compute)
        memo[id(self)] = copy
        return copy

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({self.store!r}, device={str(self._compute)!r})"

    def _repr_html_(self) -> str:
        facts = self.store.facts() | {"delivered to": str(self._compute)}
        return facts_as_html(type(self).__name__, facts)


def compute_device(device: str | torch.device | int | None) -> torch.device:
    """Where rows are to be consumed; None for "cuda" when there is one, else "cpu"."""
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
        if ":" not in str(chosen):
            chosen = torch.device("cuda", torch.cuda.current_device())
    return chosen


def _on_gpu(store: Store, compute: torch.device) -> Store:
    """A store that delivers the rows there; the same one where no kernel can."""
    gpu = kernel_device(compute)
    if gpu is None:
        return store
    try:
        return MappedStore(store, gpu)
    except (ArgumentError, DTypeError) as error:
        warn_once(_log, "rows are gathered by the CPU and then copied to the GPU: %s", str(error))
        return store


def whole_of(tensor: StoredTensor, what: str) -> Tensor:
    """All rows for an operator that needs them: host memory itself, a file's if it is small."""
    rows = tensor.store.resident
    nbytes = tensor.numel() * tensor.element_size()
    if (rows is None or tensor._compute.type != "cpu") and nbytes > WHOLE_LIMIT:
        raise TooLargeError(
            f"{what} needs all {len(tensor)} rows, {nbytes} bytes > {WHOLE_LIMIT}: index rows, "
            "take an explicit copy with .materialize(), or compute layer by layer with "
            "gnnsys.inference(model, data)"
        )
    if rows is None:
        return tensor._deliver(tensor.store.read_range(0, len(tensor)))
    return tensor._deliver(tensor.store.encoding.decode(rows))


def take_rows(tensor: StoredTensor, index: Any) -> Tensor:
    index = from_dlpack(index)
    if type(index) is Tensor and index.dim() == 1 and index.dtype in (torch.int64, torch.int32):
        if index.is_cuda:  # whose kernels do not wait to say that ids count from the end
            index = torch.where(index < 0, index + len(tensor), index)
        try:  # the hot path: the store checks the ids while it gathers
            return tensor._gather(index)
        except RowIndexError:
            if index.is_cuda:  # of a gather before
                raise
            # Else ids that count from the end, or an error that split_index tells.
    rows: RowIndex | None = split_index(index, tensor.shape)
    if rows is None:
        whole = whole_of(tensor, "indexing without a row index")
        found = whole[index]
        aliased = found.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        return found.clone() if aliased else found
    compact = tensor._gather(rows.ids)
    return compact if rows.rest is None else compact[rows.rest]
