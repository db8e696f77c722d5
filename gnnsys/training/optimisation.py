"""The steps of training: optimizers, clipped gradients, and the learning rate of each step.

Invariant: a step's learning rate depends on the options, the number of the step, and the scores
that a plateau was told, which checkpoints keep; so a run that goes on has that of one that was
never broken off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gnnsys.choices import LOWER_IS_BETTER
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError
from gnnsys.nn import Adagrad, SparseAdam
from gnnsys.nn.stored_weight import StoredWeight

__all__ = ["LearningRate", "Stepping", "check_optimizer", "make_optimizer", "sparse_weights"]

_MOMENTUM = 0.9
_FACTOR, _EVERY, _PATIENCE = 0.1, 30, 10
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
_KEPT: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.Adam: _MOMENTS,
    torch.optim.AdamW: _MOMENTS,
    torch.optim.SparseAdam: _MOMENTS,
    torch.optim.Adagrad: {"step", "sum"},
    SparseAdam: {"step"},
    Adagrad: {"step"},
}
"""What an optimizer carries from step to step for a weight that had a gradient."""


def sparse_weights(model: nn.Module) -> list[Tensor]:
    """Weights of embeddings that get sparse gradients, in memory or in files; each once."""
    kinds = nn.Embedding, nn.EmbeddingBag
    parts = (each for each in model.modules() if isinstance(each, kinds) and each.sparse)
    return [*{id(each.weight): each.weight for each in parts}.values()]


def make_optimizer(
    config: TrainConfig, parameters: Iterable[Tensor], rows: Iterable[Tensor] = ()
) -> torch.optim.Optimizer:
    """An optimizer of ``torch.optim`` as the options say, which clips gradients before its step.

    Args:
        config: the options.
        parameters: all that is trained.
        rows: those among them that get sparse gradients, which ``--embedding-optimizer`` is for.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> config = TrainConfig(optimizer="sgd", lr=0.5, weight_decay=0.0, clip_norm=2.5)
    >>> make_optimizer(config, [weight]).step()
    >>> torch.allclose(weight, torch.tensor([0.25, 0.0]), atol=1e-5)
    True
    """
    found, sparse = [*parameters], [*rows]
    dense = [each for each in found if not any(each is other for other in sparse)]
    lr, decay = config.lr, config.weight_decay
    parts: list[torch.optim.Optimizer] = []
    if config.optimizer == "sgd" and dense:
        momentum = _MOMENTUM if config.momentum is None else config.momentum
        parts.append(torch.optim.SGD(dense, lr=lr, momentum=momentum, weight_decay=decay))
    elif dense:
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        parts.append(kind(dense, lr=lr, weight_decay=decay))
    optimizer = _Together([*parts, *_row_optimizers(config, sparse)]) if sparse else parts[0]
    if (longest := config.clip_norm) is not None:

        def clip(*_: Any) -> None:
            torch.nn.utils.clip_grad_norm_([_with_dense_gradient(each) for each in found], longest)

        optimizer.register_step_pre_hook(clip)
    return optimizer


def _row_optimizers(config: TrainConfig, rows: list[Tensor]) -> list[torch.optim.Optimizer]:
    """Of rows in memory, and of those in files."""
    kinds: tuple[Callable[..., torch.optim.Optimizer], ...] = (torch.optim.SparseAdam, SparseAdam)
    if config.embedding_optimizer == "adagrad":
        kinds = torch.optim.Adagrad, Adagrad
    places: tuple[list[Tensor], list[Tensor]] = [], []
    for each in rows:
        places[isinstance(each, StoredWeight)].append(each)
    return [kind(own, lr=config.lr) for kind, own in zip(kinds, places, strict=True) if own]


def _with_dense_gradient(weight: Tensor) -> Tensor:
    """One whose gradient has the memory of the weight's, each row summed up where it is sparse."""
    if weight.grad is None or not weight.grad.is_sparse:
        return weight
    weight.grad = weight.grad.coalesce()
    values = weight.grad.values()
    other = nn.Parameter(values)
    other.grad = values
    return other


def check_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[tuple[str, Tensor]],
    state: Mapping[str, Any],
    path: Path,
) -> None:
    """Raises ArgumentError for a state that torch takes, and fails by in the next step: of another
    optimizer, or of other weights.

    Args:
        optimizer: that is to go on from it.
        parameters: of the whole model, with their names.
        state: a ``state_dict``; or by the names of parameters, as pipelines have it.
        path: that it was read from.
    """
    named = dict(parameters)
    if state.keys() <= named.keys():
        for name, kept in state.items():
            _check_kept(optimizer, name, named[name], kept, path)
        return
    names = {id(weight): name for name, weight in named.items()}
    parts = optimizer.parts if isinstance(optimizer, _Together) else [optimizer]
    states = state.get("parts", [state])
    if len(states) != len(parts):
        raise ArgumentError(
            f"{path}: of another model: the states of {len(states)} optimizers, expected "
            f"{len(parts)}"
        )
    for part, each in zip(parts, states, strict=True):
        weights = [weight for group in part.param_groups for weight in group["params"]]
        _check_part(
            part, [(names.get(id(weight), "a weight"), weight) for weight in weights], each, path
        )


def _check_part(
    part: torch.optim.Optimizer,
    named: Sequence[tuple[str, Tensor]],
    state: Mapping[str, Any],
    path: Path,
) -> None:
    numbers = [number for group in state.get("param_groups", []) for number in group["params"]]
    if len(numbers) != len(named):
        raise ArgumentError(
            f"{path}: of another model: its optimizer has {len(numbers)} parameters, expected "
            f"{len(named)}"
        )
    for number, (name, weight) in zip(numbers, named, strict=True):
        _check_kept(part, name, weight, state["state"].get(number, {}), path)


def _check_kept(
    part: torch.optim.Optimizer, name: str, weight: Tensor, kept: Mapping[str, Any], path: Path
) -> None:
    wanted = _KEPT[type(part)]
    if kept and kept.keys() != wanted:  # a weight that had no gradient has none
        raise ArgumentError(
            f"{path}: of another optimizer: it has {', '.join(sorted(kept))} of {name}, expected "
            f"{', '.join(sorted(wanted))}"
        )
    for what, value in kept.items():
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if what != "step" and found != tuple(weight.shape):
            raise ArgumentError(
                f"{path}: of another model: the optimizer's {what} of {name} is {found}, expected "
                f"{tuple(weight.shape)}"
            )


class _Together(torch.optim.Optimizer):
    """Several optimizers that step as one, each on parameters of its own."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """Whoever sets a learning rate here sets it there."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One of each."""
        with torch.sparse.check_sparse_tensor_invariants(enable=False):  # else torch warns of it
            for part in self.parts:
                part.step()

    def state_dict(self) -> dict[str, Any]:
        """Those of all."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hands each its own."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


class Stepping(Protocol):
    """What is known of the steps of a run; ``gnnsys.training.steps.Steps`` is one."""

    optimizer: torch.optim.Optimizer

    batches_a_step: int
    """1, or more of several ranks."""

    def num_batches(self) -> int:
        """Of an epoch."""


class LearningRate:
    """The learning rate of each step of a run.

    A share of a run is counted in epochs, its batches being parts of one; of ranks that take a
    batch each, a step is several. Cosine: Loshchilov and Hutter, ICLR 2017, eq. 5, without
    restarts. Linear warm-up: Goyal et al., 2017, section 2.2.

    Args:
        config: filled in.
        steps: whose optimizer gets the rate.
        metric: of the scores that a plateau is told.
    """

    def __init__(self, config: TrainConfig, steps: Stepping, metric: str) -> None:
        self._config, self._optimizer = config, steps.optimizer
        self._batches, self._batches_a_step = steps.num_batches(), steps.batches_a_step
        self._plateau: ReduceLROnPlateau | None = None
        if config.lr_schedule == "plateau":
            self._plateau = ReduceLROnPlateau(
                self._optimizer,
                mode="min" if metric in LOWER_IS_BETTER else "max",
                factor=config.lr_factor or _FACTOR,
                patience=(config.lr_patience or _PATIENCE) - 1,  # torch's is of those borne
                threshold=0.0,
                min_lr=config.lr_min or 0.0,
                eps=0.0,
            )
        self._plateau_rate = config.lr
        self._last_epoch = config.lr_epochs or config.epochs or 0  # of cosine
        self._warmup = config.warmup_epochs * self._batches  # in batches
        self.last = config.lr
        """Of the last step."""

    def begin_step(self, step: int) -> float:
        """Gives a step its learning rate, and returns it.

        Args:
            step: batches of all epochs before it.
        """
        behind = step + self._batches_a_step  # at the end of the step
        warmth = behind / self._warmup if behind < self._warmup else 1.0
        self.last = self._scheduled(step / self._batches) * warmth
        self._give(self.last)
        return self.last

    def _give(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _scheduled(self, epochs: float) -> float:
        """The rate after so many epochs, without what warm-up makes of it."""
        config = self._config
        if config.lr_schedule == "plateau":
            return self._plateau_rate
        if config.lr_schedule == "step":
            cuts = int(epochs) // (config.lr_every or _EVERY)
            return config.lr * (config.lr_factor or _FACTOR) ** cuts
        if config.lr_schedule == "cosine":
            first, last = config.warmup_epochs, self._last_epoch
            done = (epochs - first) / (last - first) if last > first else 1.0
            least = config.lr_min or 0.0
            height = (1 + math.cos(math.pi * min(1.0, max(0.0, done)))) / 2
            return least + (config.lr - least) * height
        return config.lr

    def judge(self, score: float, step: int) -> None:
        """Tells a plateau a validation score; one before the end of the warm-up is not counted.

        Args:
            step: batches of all epochs so far.
        """
        if self._plateau is not None and step >= self._warmup:
            self._give(self._plateau_rate)
            self._plateau.step(score)
            self._plateau_rate = self._optimizer.param_groups[0]["lr"]

    def state(self) -> dict[str, Any]:
        """What the next steps depend on, in numbers and texts: of plateau and cosine."""
        if self._config.lr_schedule == "cosine":
            return {"last_epoch": self._last_epoch}
        if self._plateau is None:
            return {}
        return {"rate": self._plateau_rate, "plateau": self._plateau.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what ``state`` gave."""
        self._last_epoch = state.get("last_epoch", self._last_epoch)
        if self._plateau is not None and state:
            self._plateau_rate = state["rate"]
            self._plateau.load_state_dict(state["plateau"])
