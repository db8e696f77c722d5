"""What torch's operators and methods do with a stored tensor.

Three kinds: those that gather, or change what is delivered (``OPERATORS``, which torch reaches
below Python); methods that are decided before torch takes an index apart (``METHODS``); all others
run on the whole tensor. What writes is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.compat import TO_COPY, schema_of, tree_flatten, tree_unflatten
from gnnsys.errors import ArgumentError, ReadOnlyError
from gnnsys.memory import HostStore
from gnnsys.unified_tensor.rows import StoredTensor, take_rows, whole_of

__all__ = ["METHODS", "OPERATORS", "refuse_write", "refuse_writes", "run_on_whole"]

_aten = torch.ops.aten


def refuse_writes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises ReadOnlyError where an operator would write to a stored tensor."""
    for position, argument in enumerate(schema_of(func).arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = kwargs.get(argument.name)
        if position < len(args) and not argument.kwarg_only:
            value = args[position]
        if any(isinstance(leaf, StoredTensor) for leaf in tree_flatten(value)[0]):
            refuse_write(str(func))


def refuse_write(what: str) -> NoReturn:
    """Raises ReadOnlyError, which names ``what`` would write."""
    raise ReadOnlyError(
        f"{what} writes to a unified tensor, whose rows are only read: change a copy made by "
        ".materialize()"
    )


def run_on_whole(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an operator on all rows of the stored tensors among its arguments."""
    leaves, spec = tree_flatten((args, kwargs))
    if func.overloadpacket in _FACTORIES:
        args, kwargs = tree_unflatten([_without_rows(leaf) for leaf in leaves], spec)
        return func(*args, **kwargs)
    sources: dict[int, type[StoredTensor]] = {}  # address of its memory: whose rows lie there

    def whole(value: Any) -> Any:
        if not isinstance(value, StoredTensor):
            return value
        tensor = whole_of(value, str(func))
        if value.store.resident is not None:
            sources[tensor.untyped_storage().data_ptr()] = type(value)
        return tensor

    args, kwargs = tree_unflatten([whole(leaf) for leaf in leaves], spec)
    results, spec = tree_flatten(func(*args, **kwargs))
    return tree_unflatten([_protected(result, sources) for result in results], spec)


def _protected(result: Any, sources: dict[int, type[StoredTensor]]) -> Any:
    """A view of a source stays read-only: it is a unified tensor again, a scalar a copy."""
    if not isinstance(result, Tensor):
        return result
    kind = sources.get(result.untyped_storage().data_ptr())
    if kind is None:
        return result
    return result.clone() if result.dim() == 0 else kind(HostStore(result), result.device)


def _without_rows(value: Any) -> Any:
    """Shape, dtype and device of a unified tensor, for operators that read nothing else."""
    if not isinstance(value, StoredTensor):
        return value
    return torch.empty((), dtype=value.dtype, device=value.device).expand(value.shape)


def _index_select(self: StoredTensor, dim: int, index: Tensor) -> Any:
    if dim not in (0, -self.dim()):
        return NotImplemented
    if index.dim() > 1 or index.dtype not in (torch.int32, torch.int64):
        return NotImplemented  # torch's own error for it
    return self._gather(index.reshape(-1))


def _index_select_out(self: StoredTensor, dim: int, index: Tensor, *, out: Tensor) -> Any:
    if isinstance(out, StoredTensor):
        refuse_write("index_select")
    dense = out.is_contiguous() and out.dtype == self.dtype and out.device == self.store.device
    if dim in (0, -self.dim()) and dense and out.shape == (index.numel(), *self.shape[1:]):
        return self.store.gather(index.reshape(-1), out=out)
    rows = _index_select(self, dim, index)
    if rows is NotImplemented:
        return NotImplemented
    return torch.index_select(rows, 0, torch.arange(len(rows), device=rows.device), out=out)


def _embedding(
    self: StoredTensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if self.dim() != 2 or indices.dtype not in (torch.int32, torch.int64):
        return NotImplemented
    rows = self._gather(indices.reshape(-1))
    return rows.view(*indices.shape, self.shape[1])


def _to_copy(self: StoredTensor, **kwargs: Any) -> Any:
    layout = kwargs.get("layout")
    if layout not in (None, torch.strided) or kwargs.get("memory_format") not in (
        None,
        torch.preserve_format,
        torch.contiguous_format,
    ):
        return NotImplemented
    return self._with(kwargs.get("device"), kwargs.get("dtype"))


def _same(self: StoredTensor) -> StoredTensor:
    return type(self)(self.store, self._compute)


def _setitem(self: StoredTensor, index: Any, value: Any) -> NoReturn:
    refuse_write("item assignment")


def _requires_grad_(self: StoredTensor, requires_grad: bool = True) -> StoredTensor:
    if requires_grad:
        refuse_write("requires_grad_(True)")
    return self


def _unchanged(self: StoredTensor, *args: Any, **kwargs: Any) -> StoredTensor:
    return self


def _new(self: StoredTensor, *args: Any, **kwargs: Any) -> Tensor:
    # PyG's index_select makes its output in a worker by value.new(shared storage).
    return torch.empty(0, dtype=self.dtype).new(*args, **kwargs)


def _untyped_storage(self: StoredTensor) -> torch.UntypedStorage:
    return torch.UntypedStorage(0)


def _numpy(self: StoredTensor, *, force: bool = False) -> NDArray[Any]:
    array = whole_of(self, "numpy()").numpy(force=force)
    array.flags.writeable = False
    return array


def _array(self: StoredTensor, dtype: Any = None) -> NDArray[Any]:
    return _numpy(self).__array__(dtype)


def _tolist(self: StoredTensor) -> Any:
    return whole_of(self, "tolist()").tolist()


def _set_data(self: StoredTensor, value: Any) -> NoReturn:
    refuse_write("setting .data")


def _data_ptr(self: StoredTensor, *args: Any, **kwargs: Any) -> NoReturn:
    raise ArgumentError("a unified tensor has no address of its own: use .materialize()")


METHODS: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: take_rows,
    Tensor.__setitem__: _setitem,
    Tensor.requires_grad_: _requires_grad_,
    Tensor.requires_grad.__set__: _requires_grad_,  # type: ignore[attr-defined]
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


OPERATORS: dict[Any, Callable[..., Any]] = {
    _aten.index_select.default: _index_select,
    _aten.index_select.out: _index_select_out,
    _aten.embedding.default: _embedding,
    TO_COPY: _to_copy,
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
