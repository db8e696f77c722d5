"""Sparse optimisers whose state lies beside the rows of an ``Embedding``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad

from gnnsys.compat import sparse_adam
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.nn.embedding import STATE_OF
from gnnsys.nn.stored_weight import StoredWeight

__all__ = ["Adagrad", "SparseAdam"]


class _RowOptimizer(torch.optim.Optimizer):
    """Updates the rows that have a gradient by torch's own functions, on copies of them."""

    name: str

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See ``torch.optim.Optimizer``.

        Raises:
            ArgumentError: a parameter that is not the weight of a ``gnnsys.nn.Embedding``, or of
                one that was made for another optimiser.
        """
        super().add_param_group(param_group)
        try:
            self._check_weights(self.param_groups[-1]["params"])
        except ArgumentError:
            self.param_groups.pop()
            raise

    def _check_weights(self, weights: list[Tensor]) -> None:
        wanted = STATE_OF[self.name]
        for weight in weights:
            if not isinstance(weight, StoredWeight):
                raise ArgumentError(
                    f"params: a tensor of shape {tuple(weight.shape)} in memory; this optimiser is "
                    "for gnnsys.nn.Embedding alone: give the others to one of torch.optim"
                )
            if weight.store.state_names != wanted:
                raise ArgumentError(
                    f"params: {weight.store.folder} keeps the state {weight.store.state_names}, "
                    f"expected {wanted}; make the Embedding with optimizer={self.name!r}"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """See ``torch.optim.Optimizer``.

        Raises:
            UnsupportedError: a gradient that is not sparse.
            StorageError: the disk is full; see ``EmbeddingStore.update``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group)
        return loss

    def _step(self, weight: StoredWeight, group: dict[str, Any]) -> None:
        assert weight.grad is not None
        if not weight.grad.is_sparse:
            raise UnsupportedError(
                "weight: a gradient that is not sparse; leave it as autograd made it"
            )
        state = self.state[weight]
        step = state.get("step", 0) + 1
        grad = weight.grad.coalesce()
        ids, values = grad.indices()[0], grad.values()

        def change(piece: slice, rows: Tensor, kept: dict[str, Tensor]) -> None:
            some = values[piece]
            place = torch.arange(len(some))[None]
            local = torch.sparse_coo_tensor(
                place, some, some.shape, check_invariants=False, is_coalesced=True
            )
            self._change(rows, local, kept, step, group)

        weight.store.update(ids, change)
        state["step"] = step

    def _change(
        self,
        rows: Tensor,
        grad: Tensor,
        kept: dict[str, Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``torch.optim.Optimizer``; the state of rows is in their table.

        Raises:
            ArgumentError: that of an optimiser whose state is in memory.
        """
        for number, state in state_dict.get("state", {}).items():
            if set(state) - {"step"}:
                raise ArgumentError(
                    f"state_dict: parameter {number} has {', '.join(map(str, state))}, expected "
                    "'step' alone: the rest lies beside the rows of the table"
                )
        super().load_state_dict(state_dict)


class Adagrad(_RowOptimizer):
    """``torch.optim.Adagrad`` of embeddings: Duchi et al., JMLR 2011, on the rows of a batch alone.

    G += g², row -= lr / (1 + (t - 1) lr_decay) · g / (√G + eps), for elements g of the summed
    gradient of a row in step t.

    Args:
        params: weights of ``gnnsys.nn.Embedding(…, optimizer="adagrad")``.
        lr, lr_decay, eps, maximize: as of ``torch.optim.Adagrad``.

    Raises:
        ArgumentError: other parameters, or a number out of range.

    >>> import os, tempfile
    >>> folder = os.path.join(tempfile.mkdtemp(), "users")
    >>> from gnnsys.nn import Embedding
    >>> users = Embedding(9, 2, folder=folder, optimizer="adagrad", cache=4)
    >>> optimizer = Adagrad(users.parameters(), lr=0.5)
    >>> before = users.store.gather(torch.tensor([7]))
    >>> users(torch.tensor([7])).sum().backward()
    >>> optimizer.step()
    >>> before - users.store.gather(torch.tensor([7]))
    tensor([[0.5000, 0.5000]])
    """

    name = "adagrad"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        *,
        eps: float = 1e-10,
        maximize: bool = False,
    ) -> None:
        _check_least(lr=lr, lr_decay=lr_decay, eps=eps)
        super().__init__(params, {"lr": lr, "lr_decay": lr_decay, "eps": eps, "maximize": maximize})

    def _change(
        self,
        rows: Tensor,
        grad: Tensor,
        kept: dict[str, Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        adagrad(
            [rows],
            [grad],
            [kept["sum"]],
            [torch.tensor(step - 1.0)],
            has_sparse_grad=True,
            foreach=False,
            lr=float(group["lr"]),
            weight_decay=0.0,
            lr_decay=group["lr_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )


class SparseAdam(_RowOptimizer):
    """``torch.optim.SparseAdam`` of embeddings: Kingma and Ba, ICLR 2015, on the rows of a batch
    alone.

    m += (1 - β₁)(g - m), v += (1 - β₂)(g² - v), row -= lr √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + eps),
    for elements g of the summed gradient of a row in step t.

    Args:
        params: weights of ``gnnsys.nn.Embedding(…, optimizer="sparse_adam")``.
        lr, betas, eps, maximize: as of ``torch.optim.SparseAdam``.

    Raises:
        ArgumentError: other parameters, or a number out of range.

    >>> import os, tempfile
    >>> folder = os.path.join(tempfile.mkdtemp(), "users")
    >>> from gnnsys.nn import Embedding
    >>> users = Embedding(9, 2, folder=folder, optimizer="sparse_adam", cache=4)
    >>> optimizer = SparseAdam(users.parameters(), lr=0.5)
    >>> before = users.store.gather(torch.tensor([7]))
    >>> users(torch.tensor([7])).sum().backward()
    >>> optimizer.step()
    >>> before - users.store.gather(torch.tensor([7]))
    tensor([[0.5000, 0.5000]])
    """

    name = "sparse_adam"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        _check_least(lr=lr, eps=eps)
        if not all(0 <= beta < 1 for beta in betas):
            raise ArgumentError(f"betas: {betas}, expected two numbers from 0 on and below 1")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize})

    def _change(
        self,
        rows: Tensor,
        grad: Tensor,
        kept: dict[str, Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        beta1, beta2 = group["betas"]
        sparse_adam(
            [rows],
            [grad],
            [kept["exp_avg"]],
            [kept["exp_avg_sq"]],
            [step],
            eps=group["eps"],
            beta1=beta1,
            beta2=beta2,
            lr=float(group["lr"]),
            maximize=group["maximize"],
        )


def _check_least(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 <= number < float("inf"):
            raise ArgumentError(f"{name}: {number}, expected a number that is not below 0")
