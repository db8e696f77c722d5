"""The factory of a model of the user's own: ``--model PACKAGE.MODULE:FACTORY``.

Owns how it is found and called. Whatever goes wrong in the user's code is one error that says
where.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path
from reprlib import Repr
from typing import Any

import torch
import torch_geometric

from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError
from gnnsys.system.names import nearest
from gnnsys.system.once import warn_once

__all__ = ["broken", "call_factory", "load_factory"]

_log = logging.getLogger(__name__)
_LIBRARIES = (
    *(Path(str(each.__file__)).parent for each in (torch, torch_geometric)),
    Path(__file__).parents[1],
)
"""Whose code calls the user's, and is called by it."""
_REPR = Repr()
_REPR.maxlevel = 1


def load_factory(place: str) -> Callable[..., Any]:
    """What a place names: ``package.module:factory``, found from the working folder, too.

    >>> load_factory("torch_geometric.nn:GraphSAGE").__name__
    'GraphSAGE'

    Raises:
        ArgumentError: a module that cannot be imported, or that has no such function.
    """
    name, _, path = place.partition(":")
    if os.getcwd() not in sys.path:  # where the gnnsys command, unlike python -m, does not look
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise broken(place, f"import {name}", error) from error
        raise ArgumentError(
            f"--model {place}: no module {error.name}, looked for in {os.getcwd()} and where "
            "Python looks; start from its folder, or name that in PYTHONPATH"
        ) from error
    except Exception as error:
        raise broken(place, f"import {name}", error) from error
    try:
        factory = reduce(getattr, path.split("."), module)
    except AttributeError as error:
        raise ArgumentError(
            f"--model {place}: {name} has no {path}{nearest(path, vars(module))}"
        ) from error
    if not callable(factory):
        raise ArgumentError(
            f"--model {place}: is a {type(factory).__name__}, expected a function or a class that "
            "makes the model"
        )
    made: Callable[..., Any] = factory
    return made


def call_factory(
    config: TrainConfig, known: Mapping[str, Any], used: Iterable[str] = ()
) -> torch.nn.Module:
    """The model that the factory of ``--model`` makes.

    Args:
        config: filled in; ``hidden_channels`` is its ``--hidden``, ``num_layers`` its ``--layers``
            and ``dropout`` its ``--dropout``.
        known: what else there is to tell. The factory is called, by name, with what it has a
            parameter for, with all if it has ``**kwargs``.
        used: options among ``hidden`` and ``dropout`` that have a part without the factory, too.

    Raises:
        ArgumentError: no such factory, an error in it, or one that makes no ``torch.nn.Module``.
    """
    place = config.model
    factory = load_factory(place)
    named = {
        "hidden_channels": config.hidden, "num_layers": config.layers, "dropout": config.dropout
    }  # fmt: skip
    offered = {**known, **named}
    given = {name: offered[name] for name in _accepted(factory, offered)}
    defaults = TrainConfig(dataset=config.dataset, model=place).filled_in()
    for name, option in (("hidden_channels", "hidden"), ("dropout", "dropout")):
        value = getattr(config, option)
        if name not in given and option not in used and value != getattr(defaults, option):
            warn_once(
                _log, "--%s %s: has no part in --model %s, which has no parameter %s", option,
                value, place, name
            )  # fmt: skip
    told = ", ".join(f"{name}={_REPR.repr(value)}" for name, value in given.items())
    call = f"{place.partition(':')[2]}({told})"
    try:
        net = factory(**given)
    except Exception as error:
        raise broken(place, call, error) from error
    if not isinstance(net, torch.nn.Module):
        raise ArgumentError(
            f"--model {place}: {call} gave a {type(net).__name__}, expected a torch.nn.Module"
        )
    return net


def _accepted(factory: Callable[..., Any], names: Iterable[str]) -> list[str]:
    """Those among the names that it can be given."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of a builtin
        return []
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return [name for name in names if takes_all or name in parameters]


def broken(place: str, what: str, error: Exception) -> ArgumentError:
    """That the user's code failed, and where: the last line of it that was run.

    Args:
        place: of the factory.
        what: was done.
        error: that came of it.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_own(frame.filename)] or frames
    where = f"{own[-1].filename}, line {own[-1].lineno}" if own else ""
    told = f"{type(error).__name__}: {error}"
    return ArgumentError(f"--model {place}: {what} raised {told} ({where}); mend it")


def _is_own(filename: str) -> bool:
    """Whether a file may be the user's."""
    made_up = filename.startswith("<")  # by to_hetero, or by Python
    return not made_up and not any(map(Path(filename).is_relative_to, _LIBRARIES))
