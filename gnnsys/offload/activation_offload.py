"""``ActivationOffload``: what autograd saves inside it leaves memory until backward needs it."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Parameter

from gnnsys.choices import OffloadPolicy
from gnnsys.compat import without_torch_functions
from gnnsys.errors import ArgumentError, TooLargeError
from gnnsys.offload.keeper import Keeper
from gnnsys.offload.planner import StepPlan, StepProfile, plan_step
from gnnsys.offload.recipes import Recipe, Source, ValueKey
from gnnsys.offload.recorder import Recorder
from gnnsys.offload.records import Handle, Kept, Made, Masked, OneSource, Recomputed, Sources, Whole
from gnnsys.offload.stats import StepStats
from gnnsys.offload.tiers import make_tier
from gnnsys.system.background import run_outside
from gnnsys.system.budget import ACTIVATIONS, process_budget
from gnnsys.system.sizes import parse_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ActivationOffload"]

_POLICIES: tuple[OffloadPolicy, ...] = get_args(OffloadPolicy)
_LOSSLESS: tuple[OffloadPolicy, ...] = ("mask", "recompute", "host", "disk")
_DEEPEST = 8
"""Operators in a row that are computed again for one tensor that is not saved itself."""

_MOST_STEPS = 16
"""Operators that are computed again for one tensor, at most."""

_CHANGED = 0.05
"""Share of its bytes by which a step may differ from the one that was planned for."""

OneHandle = Masked | Recomputed | Whole
"""Of which another value may be made."""


class ActivationOffload:
    """Moves what autograd saves for backward out of memory while forward goes on.

    Each tensor is treated by the first of the policies that is allowed and serves: ``mask``, bits
    for what ReLU, leaky ReLU and dropout save, and for all bool tensors; ``recompute``, where an
    elementwise operator can make it again of others that are saved; else it is kept, or moved to
    the ``host`` (of a GPU) or ``disk``, where the budget is exceeded: those first that backward
    needs last. ``bf16`` rounds float32. All others give bitwise the gradients of plain training,
    and raise where that cannot be had: RuntimeError for a tensor changed in place, as autograd's.

    Wu et al.: "SSDTrain: An Activation Offloading Framework to SSDs for Faster Large Language Model
    Training", arXiv 2408.10013.

    Args:
        budget: bytes of activations that may be kept in the memory of the device, such as "2GB",
            beside those that an operator works on; None for half of what is left at the first step.
        folder: of the file, which has no name and is gone with the process; None for that of
            temporary files.
        policies: that are allowed.
        host_budget: bytes of the host's memory, for activations of a GPU; None for half of what is
            left.
        disk_budget: bytes of the file; None for half of what is free.
        least_bytes: tensors below are left alone.

    Raises:
        ArgumentError: an unknown policy, or a size that is none.
        TooLargeError: forward or backward needs more at once than the budget.
        StorageError: the file cannot be written or read. No gradient is wrong; after one in
            backward, some parameters have theirs and others do not, so that the step is to be done
            again from ``zero_grad``.

    >>> nn = torch.nn
    >>> net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 1))
    >>> x = torch.randn(1000, 64)
    >>> with ActivationOffload("4MB") as offload:
    ...     loss = net(x).square().mean()
    >>> loss.backward()
    >>> offload.stats.masked, offload.stats.peak <= 4_000_000
    (2048000, True)
    >>> offload.close()
    """

    def __init__(
        self,
        budget: int | str | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        policies: Iterable[OffloadPolicy] = _LOSSLESS,
        host_budget: int | str | None = None,
        disk_budget: int | str | None = None,
        least_bytes: int = 64 << 10,
    ) -> None:
        self._policies = frozenset(policies)
        if unknown := self._policies - {*_POLICIES}:
            raise ArgumentError(
                f"policies: {', '.join(sorted(unknown))}, expected of {', '.join(_POLICIES)}"
            )
        self._budget = _bytes("budget", budget)
        self._folder = folder
        self._host_budget = _bytes("host_budget", host_budget)
        self._disk_budget = _bytes("disk_budget", disk_budget)
        self._least_bytes = least_bytes
        self._recorder = Recorder(
            masks="mask" in self._policies, recompute="recompute" in self._policies
        )
        self._keeper: Keeper | None = None
        self._active: ExitStack | None = None
        self._values: weakref.WeakValueDictionary[ValueKey, OneHandle] = (
            weakref.WeakValueDictionary()
        )
        self._counts = _Counts()
        self._seen: set[int] = set()  # numbers of the step's storages
        self._is_open = False  # whether there is a step that has not been looked at
        self._stats, self._profile, self._num_steps = StepStats(), StepProfile(), 0
        self._planned_bytes = 0
        self.plan: StepPlan | None = None
        """What is moved out at once, by the profile of an earlier step; None before there is one,
        or where none fits the budget."""

    # Steps ----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._active is not None:
            raise ArgumentError(
                "ActivationOffload: it is active already; leave its block first, or make another"
            )
        self._end_step()
        self._begin_step()
        with ExitStack() as stack:
            stack.enter_context(saved_tensors_hooks(self._pack, self._unpack))
            stack.enter_context(self._recorder)
            self._active = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        active, self._active = self._active, None
        assert active is not None
        active.close()
        if error is not None:
            self._is_open = False
        elif self._keeper is not None:
            self._keeper.end_forward()

    def close(self) -> None:
        """Ends the threads and removes the file; what was moved out cannot be had any more."""
        if self._keeper is not None:
            self._end_step()
            self._keeper.close()

    @property
    def stats(self) -> StepStats:
        """Of the last step that ended: whose tensors backward has let go of, or after which there
        was another."""
        if self._active is None and self._keeper is not None and self._keeper.is_idle():
            self._end_step()
        return self._stats

    def profile(self) -> StepProfile:
        """Bytes, times and bandwidths of the step that ``stats`` is of."""
        _ = self.stats
        return self._profile

    def _begin_step(self) -> None:
        self._recorder.begin_step()
        self._counts, self._seen, self._is_open = _Counts(), set(), True
        if self._keeper is not None:
            self._keeper.begin_step(self.plan)

    def _end_step(self) -> None:
        keeper = self._keeper
        if not self._is_open or keeper is None:
            return
        self._is_open = False
        self._num_steps += 1
        self._profile = keeper.profile()
        kept = sum(each.nbytes for each in self._profile.saved)
        is_other = abs(kept - self._planned_bytes) > _CHANGED * kept  # mini-batches differ
        stats = StepStats(**asdict(self._counts), **keeper.counts())
        self._stats = stats if is_other else stats.predicted_by(keeper.plan)
        # The first step is slower than those that follow.
        if self._num_steps <= 2 or (is_other and kept):
            self._planned_bytes = kept
            try:
                self.plan = plan_step(self._profile, keeper.budget)
            except TooLargeError:  # of this step, which did fit
                self.plan = None

    def _keeper_for(self, device: torch.device) -> Keeper:
        """That of the first tensor's device."""
        if self._keeper is None:
            tier = make_tier(
                device, self._policies, self._folder, self._host_budget, self._disk_budget
            )
            budget = _left_on(device) if self._budget is None else self._budget
            self._keeper = Keeper(device, budget, tier, rounds="bf16" in self._policies)
            weakref.finalize(self, run_outside, self._keeper.close)
        return self._keeper

    # Saving and needing ---------------------------------------------------------------------------

    def _pack(self, t: Tensor) -> Handle:
        if type(t) not in (Tensor, Parameter) or t.layout != torch.strided or t.is_meta:
            return self._kept(t)
        with without_torch_functions(), torch.no_grad():
            return self._save(t)

    def _save(self, t: Tensor) -> Handle:
        is_left_alone = t.nbytes < self._least_bytes or t.is_conj() or t.is_neg()
        recorder = self._recorder
        if is_left_alone or recorder.is_outside(t) or recorder.is_unfilled(t):
            return self._kept(t)
        keeper = self._keeper_for(t.device)
        if t.device != keeper.device:
            return self._kept(t)
        number, released = keeper.next_number(), keeper.released
        key, counts = recorder.key_of(t), self._counts
        storage = key[0], key[-1]
        if key[0] not in self._seen:
            self._seen.add(key[0])
            counts.plain += t.untyped_storage().nbytes()
        if (mask := recorder.mask_of(t)) is not None:
            keeper.add_small(mask.nbytes, t.shape)
            counts.masked += t.nbytes
            return self._remember(key, Masked(t, number, released, mask), exact=mask.exact)
        if (record := keeper.find(storage, number)) is None:
            if (made := self._made_of(t, number)) is not None:
                counts.recomputed += t.nbytes
                return self._remember(key, Recomputed(t, number, released, made))
            record = keeper.keep(t, storage, number)
            counts.kept += record.nbytes
        return self._remember(key, Whole(t, number, released, record))

    def _kept(self, t: Tensor) -> Kept:
        keeper = self._keeper
        if keeper is None:
            return Kept(t, 0, deque())
        return Kept(t, keeper.next_number(), keeper.released)

    def _remember(self, key: ValueKey, handle: OneHandle, *, exact: bool = True) -> OneHandle:
        if exact:
            self._values[key] = handle
        return handle

    def _made_of(self, t: Tensor, number: int) -> Made | None:
        recipe = self._recorder.recipe_of(t)
        made = None if recipe is None else self._find(recipe, number, _DEEPEST)
        return None if made is None or made.steps > _MOST_STEPS else made

    def _find(self, recipe: Recipe, number: int, deep: int) -> Made | None:
        """How an operator is computed again; None where what it is given cannot be had."""
        found: Sources = []
        for source in recipe.sources:
            one = self._find_source(source, number, deep)
            if one is None:
                return None
            found.append(one)
        return Made(recipe, found)

    def _find_source(self, source: Source, number: int, deep: int) -> OneSource | None:
        if source.is_changed() or (
            source.key is not None and self._recorder.has_escaped(source.key)
        ):
            return None
        if source.outside is not None:
            return source.outside
        handle = None if source.key is None else self._values.get(source.key)
        if handle is not None and handle.is_changed():  # which may matter to nobody else
            handle = None
        if isinstance(handle, Whole):
            assert self._keeper is not None
            self._keeper.use(handle.record, number)
            return handle.again(number)
        if handle is not None:
            return handle
        if source.recipe is None or deep == 0:
            return None
        return self._find(source.recipe, number, deep - 1)

    def _unpack(self, saved: Handle) -> Tensor:
        with without_torch_functions(), torch.no_grad():
            return self._value_of(saved)

    def _value_of(self, source: Tensor | Handle | Made, *, as_source: bool = False) -> Tensor:
        if isinstance(source, Tensor):
            return source
        if isinstance(source, Handle):
            source.check(as_source=as_source)
        if isinstance(source, Kept):
            return source.tensor
        if isinstance(source, Masked):
            return source.mask.unpack()
        if isinstance(source, Whole):
            assert self._keeper is not None
            return self._keeper.take(source.record, source.geometry)
        made = source.made if isinstance(source, Recomputed) else source
        assert isinstance(made, Made)
        return made.recipe.run([self._value_of(each, as_source=True) for each in made.sources])


@dataclass(slots=True)
class _Counts:
    """Of a step, as far as ``StepStats`` has them under these names."""

    plain: int = 0
    kept: int = 0
    masked: int = 0
    recomputed: int = 0


def _bytes(name: str, size: int | str | None) -> int | None:
    nbytes = parse_bytes(size, name) if isinstance(size, str) else size
    if nbytes is not None and nbytes <= 0:
        raise ArgumentError(f"{name}: {size}, expected bytes above 0")
    return nbytes


def _left_on(device: torch.device) -> int:
    """Half of the memory that nobody has: gradients and what operators work on take some, too."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return process_budget().left(of=ACTIVATIONS) // 2
