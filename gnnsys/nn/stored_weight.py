"""``StoredWeight``: the weight of an embedding whose rows are in a store, as torch sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from gnnsys.cache.embedding.store import EmbeddingStore
from gnnsys.compat import as_plain_tensors, make_wrapper
from gnnsys.errors import UnsupportedError

__all__ = ["StoredWeight"]

_aten = torch.ops.aten


class StoredWeight(Tensor):
    """A (rows, dim) tensor without memory: ``F.embedding`` gathers its rows from a store, and gives
    it a sparse gradient; it can do nothing else.

    Args:
        store: of the rows.
    """

    store: EmbeddingStore

    @staticmethod
    def __new__(cls, store: EmbeddingStore) -> StoredWeight:
        weight: StoredWeight = make_wrapper(cls, store.shape, dtype=store.dtype)
        weight.store = store
        return weight

    def __init__(self, store: EmbeddingStore) -> None:
        pass

    __torch_function__ = as_plain_tensors  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        handler = _OPERATORS.get(func)
        if handler is None or not isinstance(args[0], StoredWeight):
            _refuse(args, kwargs or {}, func)
        return handler(*args)

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise UnsupportedError(
            f"weight: lies in {self.store.folder} and is not copied; copy the folder after "
            "gnnsys.nn.save_checkpoint"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise UnsupportedError(
            f"weight: lies in {self.store.folder}; save model.state_dict() by "
            "gnnsys.nn.save_checkpoint"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"StoredWeight({self.store!r})"


def _embedding(weight: StoredWeight, ids: Tensor, *others: Any) -> Tensor:
    rows = weight.store.gather(ids.reshape(-1))
    return rows.view(*ids.shape, weight.store.shape[1])


_OPERATORS: dict[Any, Callable[..., Tensor]] = {
    _aten.embedding.default: _embedding,
    _aten.detach.default: lambda weight: StoredWeight(weight.store),
}


def _refuse(args: Any, kwargs: Any, func: Any) -> NoReturn:
    flat = [*args, *kwargs.values()]
    weights = [each for each in flat if isinstance(each, StoredWeight)]
    where = f" in {weights[0].store.folder}" if weights else ""
    raise UnsupportedError(
        f"weight: {func} of the rows{where}, which are not in memory; look rows up by the module, "
        "train them by gnnsys.nn.Adagrad or gnnsys.nn.SparseAdam, and read or write them by "
        "module.store"
    )
