"""``Embedding``: ``torch.nn.Embedding(sparse=True)`` over a table in a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gnnsys.cache.embedding.store import EmbeddingStore
from gnnsys.cache.embedding.table import TABLE
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.nn.stored_weight import StoredWeight
from gnnsys.unified_tensor import UnifiedTensor

__all__ = ["STATE_OF", "Embedding", "OptimizerName"]

OptimizerName = Literal["adagrad", "sparse_adam"]
STATE_OF: dict[str, tuple[str, ...]] = {
    "adagrad": ("sum",),
    "sparse_adam": ("exp_avg", "exp_avg_sq"),
}
"""What an optimiser keeps for each element, by the names of ``torch.optim``; it begins with 0."""


class Embedding(torch.nn.Embedding):
    """``torch.nn.Embedding(num_embeddings, embedding_dim, padding_idx, sparse=True)`` whose rows
    are in a folder, the hot ones and what changed in a cache: the table may be larger than memory.

    Rows looked up, gradients and, with an optimiser of ``gnnsys.nn``, losses are those of torch's,
    bit for bit. ``weight`` has no memory: ``store`` reads and writes rows. Ids and rows may be on
    any device; the table is on the CPU, wherever the model is moved to. ``state_dict`` leaves the
    rows out, which ``gnnsys.nn.save_checkpoint`` saves.

    Args:
        num_embeddings, embedding_dim, padding_idx: as of ``torch.nn.Embedding``.
        folder: of the table, which is made where it is not there, with rows drawn as torch draws
            them. Otherwise it goes on as it was saved last, and no random number is drawn.
        optimizer: that trains it: "adagrad" or "sparse_adam". Its state lies beside each row.
        cache: rows with their state that are in memory; see ``EmbeddingStore``.
        dtype: torch.float32 or torch.float64.
        threads: that move rows; 0 for all cores this process may use.

    Raises:
        ArgumentError: the folder has a table of another shape, type or optimiser.
        MissingFileError, FileFormatError, StorageError: of the folder.

    >>> import tempfile
    >>> folder = os.path.join(tempfile.mkdtemp(), "users")
    >>> users = Embedding(1000, 8, folder=folder, optimizer="adagrad", cache=100)
    >>> from gnnsys.nn import Adagrad
    >>> optimizer = Adagrad(users.parameters(), lr=0.1)
    >>> users(torch.tensor([[3, 999]])).sum().backward()
    >>> optimizer.step()
    >>> users.store.save()
    1
    """

    store: EmbeddingStore

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        folder: str | os.PathLike[str],
        optimizer: OptimizerName,
        cache: int | float | str,
        dtype: torch.dtype = torch.float32,
        threads: int = 0,
    ) -> None:
        if optimizer not in get_args(OptimizerName):
            expected = ", ".join(map(repr, get_args(OptimizerName)))
            raise ArgumentError(f"optimizer: {optimizer!r}, expected one of {expected}")
        if padding_idx is not None and not (
            type(padding_idx) is int and -num_embeddings <= padding_idx < num_embeddings
        ):
            raise ArgumentError(
                f"padding_idx: {padding_idx}, expected a row of {num_embeddings}, or one from the "
                "end as a number below 0"
            )
        super().__init__(num_embeddings, embedding_dim, padding_idx, sparse=True, device="meta")
        self._dtype = dtype
        state = dict.fromkeys(STATE_OF[optimizer], 0.0)
        shape = (num_embeddings, embedding_dim)
        if (Path(folder) / TABLE).exists():
            self.store = EmbeddingStore(folder, cache=cache, threads=threads)
            self._check_table(shape, dtype, tuple(state))
        else:
            self.store = EmbeddingStore.create(
                folder, shape, state=state, dtype=dtype, initial=self._draw, cache=cache,
                threads=threads,
            )  # fmt: skip
        self.weight = torch.nn.Parameter(StoredWeight(self.store))

    def _draw(self, first: int, last: int) -> Tensor:
        rows = torch.empty(last - first, self.embedding_dim, dtype=self._dtype)
        torch.nn.init.normal_(rows)
        if self.padding_idx is not None and first <= self.padding_idx < last:
            rows[self.padding_idx - first] = 0
        return rows

    def _check_table(
        self, shape: tuple[int, int], dtype: torch.dtype, state: tuple[str, ...]
    ) -> None:
        store = self.store
        found = (tuple(store.shape), store.dtype, store.state_names)
        if found != (shape, dtype, state):
            store.close()
            raise ArgumentError(
                f"folder: {store.folder} has rows of shape {found[0]}, {found[1]} with the state "
                f"{found[2]}, expected {shape}, {dtype} and {state}; give what it was made with, "
                "or another folder"
            )

    def forward(self, input: Tensor) -> Tensor:
        """(…, embedding_dim) rows of (…) ids, on their device.

        Raises:
            RowIndexError: an id is outside the table.
        """
        return super().forward(input.to("cpu")).to(input.device)

    @property
    def rows(self) -> UnifiedTensor:
        """(num_embeddings, embedding_dim) the table, to be read as it is at any time."""
        return UnifiedTensor(self.store, torch.device("cpu"))

    def prefetch(self, input: Tensor) -> None:
        """Begins to read the rows of a coming call with these ids; see ``EmbeddingStore``."""
        self.store.prefetch(input.to("cpu").reshape(-1))

    def reset_parameters(self) -> None:
        """Does nothing: rows are drawn when the folder is made."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Embedding:
        """Not offered.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "from_pretrained: make a table with these rows by EmbeddingStore.create(…, initial=…), "
            "and open it by Embedding(…, folder=…)"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Embedding:
        return self  # the table stays on the CPU, as it is

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        pass  # rows are in the folder

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        if f"{prefix}weight" in state_dict:
            raise UnsupportedError(
                f"{prefix}weight: the rows of an embedding in memory; make a table with them by "
                "EmbeddingStore.create(…, initial=…)"
            )

    def extra_repr(self) -> str:
        """See ``torch.nn.Module``."""
        return f"{super().extra_repr()}, folder={str(self.store.folder)!r}"
