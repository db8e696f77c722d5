"""Modules that change their class for one derived from it, and remain all that they were."""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["Derived", "class_before", "derive"]


class Derived:
    """Stands before the class that a module had, under the same name."""

    _base: Any
    """The class that it had."""

    _mixin: Any
    """The class that stands before it."""

    @classmethod
    def _members(cls, kind: Any) -> dict[str, Any]:
        """What a class derived from ``kind`` has besides."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made, not found by its name; before protocol 2 classes are found otherwise.
        reduced: tuple[Any, ...] = super().__reduce_ex__(max(2, int(protocol)))  # type: ignore
        return _make_anew, (self._mixin, self._base), *reduced[2:]


def derive(module: Any, mixin: Any) -> None:
    """Gives a module the class of ``mixin`` before its own."""
    kind: Any = type(module)
    module.__class__ = _class_of(mixin, kind)


def class_before(module: Any) -> Any:
    """The class of a module, or the one that it had before others stood before it."""
    kind: Any = type(module)
    while issubclass(kind, Derived):
        kind = kind._base
    return kind


@functools.cache
def _class_of(mixin: Any, kind: Any) -> Any:
    members = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    members |= {"_base": kind, "_mixin": mixin, **mixin._members(kind)}
    return type(kind.__name__, (mixin, kind), members)


def _make_anew(mixin: Any, kind: Any) -> Any:
    made = _class_of(mixin, kind)
    return made.__new__(made)
