"""The name that a mistyped one was meant to be: of an option, a command, a keyword."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from gnnsys.errors import DTypeError

__all__ = ["naming_keywords", "nearest"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def nearest(name: str, known: Iterable[str]) -> str:
    """How an error goes on after a name that there is not; nothing where none is like it.

    >>> nearest("--epoch", ["--epochs", "--lr"]), nearest("xyz", ["--lr"])
    ('; did you mean --epochs?', '')
    """
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def naming_keywords(*also: Callable[..., Any]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorates a function: a keyword that it lacks is Python's error, with the nearest one.

    Args:
        also: functions whose keywords it takes, too.

    >>> @naming_keywords()
    ... def read(path, rows=0): ...
    >>> read("x", row=2)
    Traceback (most recent call last):
    ...
    gnnsys.errors.DTypeError: read() got an unexpected keyword argument 'row'; did you mean rows?
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = [inspect.signature(each).parameters.values() for each in (function, *also)]
        known = {each.name for some in parameters for each in some if each.kind in named}
        known.discard("self")

        @functools.wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            for name in kwargs:
                if name not in known:
                    raise DTypeError(
                        f"{function.__qualname__}() got an unexpected keyword argument {name!r}"
                        f"{nearest(name, known)}"
                    )
            return function(*args, **kwargs)

        return checked

    return decorate
