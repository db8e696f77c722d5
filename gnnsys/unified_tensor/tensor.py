"""``UnifiedTensor``: how torch's operators and methods find what is done with a stored tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gnnsys.compat import as_plain_tensors
from gnnsys.unified_tensor.operators import (
    METHODS,
    OPERATORS,
    refuse_write,
    refuse_writes,
    run_on_whole,
)
from gnnsys.unified_tensor.rows import StoredTensor

__all__ = ["UnifiedTensor"]


class UnifiedTensor(StoredTensor):
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

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in METHODS and isinstance(args[0], UnifiedTensor):
            return METHODS[func](*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and isinstance(args[0], UnifiedTensor):
            refuse_write(name)  # some write below the operators that torch dispatches
        return as_plain_tensors(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        handler = OPERATORS.get(func)
        if handler is not None and isinstance(args[0], UnifiedTensor):
            result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        refuse_writes(func, args, kwargs)
        return run_on_whole(func, args, kwargs)
