"""What runs between a module's calls of torch: seen, so that less need be kept for backward."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gnnsys.compat import is_transformed
from gnnsys.offload.bit_masks import BitMask, mask_of_input, mask_of_result, mask_of_two_values
from gnnsys.offload.recipes import HOLE, Recipe, Source, ValueKey, key_of, new_number, number_of
from gnnsys.system.recomputed import is_recomputed

__all__ = ["Recorder"]


def _named(*names: str) -> frozenset[Any]:
    """The functions of these names, and their forms in place, wherever torch has them."""
    homes = (torch, Tensor, F)
    forms = [form for name in names for form in (name, f"{name}_")]
    found = (getattr(home, form, None) for home in homes for form in forms)
    return frozenset(function for function in found if function is not None)


_SAVES_RESULT_SIGN = _named("relu")
_SAVES_INPUT_SIGN = _named("leaky_relu")
_SAVES_NOISE = _named("dropout")
_SAVES_UNFILLED = _named("rrelu")
"""Which save memory of their own, and fill it afterwards."""

_SAVES_RESULT = _named("relu", "sigmoid", "tanh", "exp")
_RECOMPUTED = (
    _SAVES_RESULT
    | _SAVES_NOISE
    | _named(
        *("leaky_relu", "elu", "gelu", "silu", "neg", "negative", "layer_norm"),
        *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide"),
        *("__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__", "__mul__"),
        *("__rmul__", "__imul__", "__truediv__", "__rtruediv__", "__itruediv__", "__rdiv__"),
        *("__neg__", "to", "float", "double", "half", "bfloat16"),
    )
)
_TENSOR: Any = Tensor
_ESCAPES = frozenset({_TENSOR.numpy, _TENSOR.__array__, _TENSOR.__dlpack__})
"""Who writes to a tensor's memory after these is not counted in its version. Nor is who writes to a
storage itself, or through ``set_``: that is not seen."""

_LEAST = 4 << 10
"""Bytes. Smaller tensors are copied into recipes; none is made for their values."""

_MOST_STEPS = 16
"""Functions that are called at most to compute one tensor again."""

_CONSTANTS = (int, float, str, torch.dtype, torch.device)
_PLAIN = (Tensor, Parameter)
_DEVICES = ("cpu", "cuda")


@dataclass(slots=True)
class _Seen:
    """What is known of a storage."""

    storage: weakref.ref[torch.UntypedStorage]
    outside: bool

    escaped: bool = False
    """Whether it may change without being counted."""

    made: tuple[ValueKey, Recipe] | None = None
    """The value that filled it when it was computed, and how."""


@dataclass(slots=True)
class _Call:
    """A function of torch that runs now."""

    function: Any

    recipe: Recipe | None = None
    """Of its result."""

    noise: tuple[tuple[ValueKey, BitMask | None], ...] = ()
    """What dropout has multiplied by."""

    def version(self, number: int) -> int | None:
        """That of a storage among the arguments, when the call began."""
        sources = () if self.recipe is None else self.recipe.sources
        keys = (source.key for source in sources if source.key is not None)
        return next((key[-1] for key in keys if key[0] == number), None)


class Recorder(TorchFunctionMode):
    """Sees calls of torch, and says of what they save what suffices for backward.

    Inside ``with recorder:`` all functions of torch that this thread calls pass it. It keeps no
    tensor alive but, for as long as a value that is computed from it is alive, one that came from
    outside. Every method but these is called while a tensor is packed, see
    ``torch.autograd.graph.saved_tensors_hooks``.

    Args:
        masks: whether tensors of which backward needs one bit an element may be bit masks.
        recompute: whether results of elementwise functions, of layer norms and of dropout (on the
            CPU) may be computed again; the same bits come out.

    >>> x = torch.arange(-2048.0, 2048.0).requires_grad_()
    >>> with Recorder() as recorder:
    ...     y = torch.exp(x + 1)
    >>> recipe = recorder.recipe_of(y)
    >>> inner = recipe.sources[0].recipe
    >>> torch.equal(recipe.run([inner.run([inner.sources[0].outside])]), y)
    True
    """

    def __init__(self, *, masks: bool = True, recompute: bool = True) -> None:
        super().__init__()
        self._masks, self._recompute = masks, recompute
        self._seen: dict[int, _Seen] = {}
        self._local = threading.local()

    def begin_step(self) -> None:
        """What is alive now was there before: from outside."""
        for seen in [*self._seen.values()]:
            seen.outside, seen.made = True, None

    def key_of(self, t: Tensor) -> ValueKey:
        """What the value of a strided tensor is known by, see ``ValueKey``.

        A tensor whose memory was given out, to NumPy or by ``data``, has another one at each call.
        """
        key = key_of(t)
        seen = self._seen.get(key[0])
        if seen is not None and seen.escaped:
            return (new_number(), *key[1:])
        return key

    def is_outside(self, t: Tensor) -> bool:
        """Whether a tensor is alive anyway: a parameter, or what was not computed in this step."""
        if isinstance(t, Parameter):
            return True
        seen = self._seen.get(number_of(t.untyped_storage()))
        return seen is not None and seen.outside

    def is_unfilled(self, t: Tensor) -> bool:
        """Whether the function that saves ``t`` now has yet to fill it."""
        call = self._call()
        is_new = number_of(t.untyped_storage()) not in self._seen
        return is_new and call is not None and call.function in _SAVES_UNFILLED

    def has_escaped(self, key: ValueKey) -> bool:
        """Whether the memory of a value may change without being counted."""
        seen = self._seen.get(key[0])
        return seen is not None and seen.escaped

    def mask_of(self, t: Tensor) -> BitMask | None:
        """One bit an element, where that suffices for the function that saves ``t`` now."""
        call = self._call()
        mask = _mask_of(t, None if call is None else call.function) if self._masks else None
        if call is not None and call.function in _SAVES_NOISE:
            call.noise += ((self.key_of(t), mask),)
        return mask

    def recipe_of(self, t: Tensor) -> Recipe | None:
        """How ``t`` was computed; None where that is not known or may not be repeated."""
        if not self._recompute:
            return None
        key, call = key_of(t), self._call()
        recipe = self._recipe_of(key)
        if recipe is None and call is not None and call.function in _SAVES_RESULT:
            return call.recipe if call.version(key[0]) is None else None
        return recipe

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in ("__get__", "__set__"):
            return self._attribute(function, args)
        call = self._begin(function, args, kwargs)
        calls = self._local.__dict__.setdefault("calls", [])
        calls.append(call)
        try:
            result = function(*args, **kwargs)
        finally:
            calls.pop()
        self._end(call, result)
        return result

    def _call(self) -> _Call | None:
        calls = self._local.__dict__.get("calls")
        return calls[-1] if calls else None

    def _attribute(self, function: Any, args: Any) -> Any:
        found = function(*args)
        if isinstance(found, Tensor):
            self._see(args[0], escapes=function == _TENSOR.data.__get__)
        elif function == _TENSOR.data.__set__:
            self._see(args[1], escapes=True)
        return found

    def _begin(self, function: Any, args: Any, kwargs: Mapping[str, Any]) -> _Call:
        tensors = _tensors((*args, *kwargs.values()))
        large, escapes = False, function in _ESCAPES
        for t in tensors:
            seen = self._see(t, escapes=escapes)
            large = large or (seen is not None and t.nbytes > _LEAST)
        if large and self._recompute and _may_be_recomputed(function, tensors[0], kwargs):
            return _Call(function, self._recipe(function, args, kwargs))
        return _Call(function)

    def _end(self, call: _Call, result: Any) -> None:
        for t in _tensors(result if isinstance(result, tuple | list) else (result,)):
            seen = self._see(t, result=True)
            if seen is not None and call.recipe is not None:
                self._keep(seen, call, t)

    def _keep(self, seen: _Seen, call: _Call, t: Tensor) -> None:
        """Keeps the recipe of a call's result, unless that is an argument as it was."""
        key, recipe = key_of(t), call.recipe
        before = call.version(key[0])
        if before == key[-1]:
            return
        if recipe is not None and call.function in _SAVES_NOISE:
            recipe = _with_noise(recipe, call.noise, t)
        elif recipe is not None and before is not None:
            recipe = replace(recipe, overwrites=True)
        if recipe is not None and before is not None:
            recipe = _without(recipe, key[0])
        fills = t.nbytes == t.untyped_storage().nbytes()
        seen.made = (key, recipe) if recipe is not None and fills else None

    def _recipe_of(self, key: ValueKey) -> Recipe | None:
        seen = self._seen.get(key[0])
        if seen is None or seen.escaped or seen.made is None:
            return None
        whole, recipe = seen.made
        if whole == key:
            return recipe
        if whole[1] != key[1] or whole[-1] != key[-1]:
            return None
        source = Source(whole, None, recipe)
        return Recipe((source,), torch.as_strided, (HOLE, *key[2:5]))

    def _recipe(self, function: Any, args: Any, kwargs: Mapping[str, Any]) -> Recipe | None:
        """How the result of a call comes about, if all of its arguments will be known."""
        given = (*args, *kwargs.values())
        if not all(isinstance(each, Tensor) or _is_constant(each) for each in given):
            return None
        sources = [self._source(each) for each in given if isinstance(each, Tensor)]
        found = tuple(source for source in sources if source is not None)
        if len(found) < len(sources):
            return None
        recipe = Recipe(
            found,
            function,
            tuple(_hole(each) for each in args),
            {name: _hole(each) for name, each in kwargs.items()},
        )
        if recipe.size <= _MOST_STEPS:
            return recipe
        return replace(recipe, sources=tuple(Source(each.key, each.outside) for each in found))

    def _source(self, t: Tensor) -> Source | None:
        seen = self._see(t)
        if seen is None or t.is_complex() or t.is_neg() or t.is_inference():
            return None
        if t.nbytes <= _LEAST:
            return Source(None, t.detach().clone())
        if seen.escaped:
            return None
        key = key_of(t)
        return Source(key, t.detach()) if seen.outside else Source(key, None, self._recipe_of(key))

    def _see(self, t: Tensor, *, result: bool = False, escapes: bool = False) -> _Seen | None:
        if type(t) not in _PLAIN or t.is_nested:
            return None
        try:
            storage = t.untyped_storage()
        except (RuntimeError, NotImplementedError):  # sparse, or inside a transform of functorch
            return None
        number = number_of(storage)
        seen = self._seen.get(number)
        if seen is None:
            gone = weakref.ref(storage, partial(_forget, self._seen, number))
            seen = self._seen[number] = _Seen(gone, not result and t.grad_fn is None)
        seen.escaped = seen.escaped or escapes
        return seen


def _forget(seen: dict[int, _Seen], number: int, _: Any) -> None:
    seen.pop(number, None)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Those among values and in lists of them."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [each for each in value if isinstance(each, Tensor)]
    return found


def _mask_of(t: Tensor, function: Any) -> BitMask | None:
    if t.dtype == torch.bool or function in _SAVES_NOISE:
        return mask_of_two_values(t)
    if function in _SAVES_RESULT_SIGN:
        return mask_of_result(t)
    return mask_of_input(t) if function in _SAVES_INPUT_SIGN else None


def _may_be_recomputed(function: Any, first: Tensor, kwargs: Mapping[str, Any]) -> bool:
    return (
        (function in _RECOMPUTED or is_recomputed(function))
        and first.device.type in _DEVICES
        and torch.is_grad_enabled()
        and "out" not in kwargs
        and not torch.is_autocast_enabled(first.device.type)
        and not is_transformed()
    )


def _is_constant(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(each, int) for each in value)
    return value is None or isinstance(value, _CONSTANTS)


def _hole(value: Any) -> Any:
    if isinstance(value, Tensor):
        return HOLE
    return tuple(value) if isinstance(value, list) else value


def _with_noise(
    recipe: Recipe, noise: tuple[tuple[ValueKey, BitMask | None], ...], result: Tensor
) -> Recipe | None:
    """Of dropout's result: its argument times what it was multiplied by."""
    if len(noise) != 1 or noise[0][0][1] != result.dtype:  # on a GPU a mask of bools
        return None
    key, mask = noise[0]
    if mask is not None:
        return Recipe(recipe.sources, torch.mul, (HOLE, mask))
    return Recipe((*recipe.sources, Source(key)), torch.mul, (HOLE, HOLE))


def _without(recipe: Recipe, number: int) -> Recipe | None:
    """Where values of a storage are overwritten: they have to be computed, too."""
    sources = []
    for source in recipe.sources:
        if source.key is not None and source.key[0] == number:
            if source.recipe is None:
                return None
            source = Source(None, None, source.recipe)
        sources.append(source)
    return replace(recipe, sources=tuple(sources))
