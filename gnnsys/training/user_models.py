"""Models of the user's own: ``--model PACKAGE.MODULE:FACTORY``.

Owns how the factory is found and called, and what its model is checked for before training begins.
Whatever goes wrong in the user's code is one error that says where.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from gnnsys.config.resolve import Run
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.system.names import nearest
from gnnsys.system.once import warn_once
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.step_parts import make_sampler, spread_seeds

__all__ = ["load_factory", "make_user_model"]

_log = logging.getLogger(__name__)
_SEEDS = 32
"""Of the batch that a model is tried on."""


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
            raise _broken(place, f"import {name}", error) from error
        raise ArgumentError(
            f"--model {place}: no module {error.name}, looked for in {os.getcwd()} and where "
            "Python looks; start from its folder, or name that in PYTHONPATH"
        ) from error
    except Exception as error:
        raise _broken(place, f"import {name}", error) from error
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


def make_user_model(run: Run, dataset: NodeDataset) -> torch.nn.Module:
    """Calls the factory of ``--model`` and tries its model on one batch.

    The factory is called with ``in_channels`` and ``out_channels``, and with those of
    ``hidden_channels`` (``--hidden``), ``num_layers`` (``--layers``) and ``dropout`` that it has a
    parameter for, all of them if it has ``**kwargs``, all by name; the models of
    ``torch_geometric.nn`` are such factories. The model is called with x (nodes, in_channels)
    float32 and edge_index (2, edges) int64, and gives (nodes, out_channels) floats.

    Raises:
        ArgumentError: no such factory, an error in it or in the model, outputs of another shape,
            or a model that exact evaluation cannot take apart.
        UnsupportedError: several ranks, and parameters without a gradient, or buffers.
    """
    config, place = run.config, run.config.model
    factory = load_factory(place)
    given: dict[str, Any] = {
        "in_channels": dataset.features.shape[1],
        "out_channels": dataset.task.outputs,
    }
    more = {
        "hidden_channels": config.hidden, "num_layers": config.layers, "dropout": config.dropout
    }  # fmt: skip
    accepted = _accepted(factory, more)
    given |= {name: more[name] for name in more if name in accepted}
    defaults = TrainConfig(dataset=config.dataset, model=place).filled_in()
    for name, option in (("hidden_channels", "hidden"), ("dropout", "dropout")):
        value = getattr(config, option)
        if name not in accepted and value != getattr(defaults, option):
            warn_once(
                _log, "--%s %s: has no part in --model %s, which has no parameter %s", option,
                value, place, name
            )  # fmt: skip
    told = ", ".join(f"{name}={value}" for name, value in given.items())
    call = f"{place.partition(':')[2]}({told})"
    try:
        net = factory(**given)
    except Exception as error:
        raise _broken(place, call, error) from error
    if not isinstance(net, torch.nn.Module):
        raise ArgumentError(
            f"--model {place}: {call} gave a {type(net).__name__}, expected a torch.nn.Module"
        )
    _try_on_batch(run, dataset, net)
    _check_layers(run, dataset, net)
    return net


def _accepted(factory: Callable[..., Any], names: Iterable[str]) -> set[str]:
    """Those among the names that it can be given."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of a builtin
        return set()
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return {name for name in names if takes_all or name in parameters}


def _check_layers(run: Run, dataset: NodeDataset, net: torch.nn.Module) -> None:
    """Whether an exact evaluation that is asked for can take the model apart."""
    from gnnsys.training.layer_checks import find_gnn, flow_of  # which import this module
    from gnnsys.training.model_layers import model_layers

    config = run.config
    if config.eval not in ("layerwise", "neighborhoods"):
        return
    try:
        model_layers(net, dataset.graph)
        flow = flow_of(find_gnn(net))
        problem = f"has messages of flow {flow}" if flow != "source_to_target" else None
    except UnsupportedError as error:
        problem = str(error).removeprefix("model: ").partition(";")[0]
    if problem is not None:
        raise ArgumentError(
            f"--model {config.model}: {problem}, but layers are computed exactly one after the "
            "other; give gnnsys train --eval sampled, or gnnsys predict --sampled"
        )
    if net.num_layers != config.layers:
        raise ArgumentError(
            f"--model {config.model}: has {net.num_layers} graph convolutions, but --layers is "
            f"{config.layers}; make them the same"
        )


def _try_on_batch(run: Run, dataset: NodeDataset, net: torch.nn.Module) -> None:
    """A forward pass on a sampled batch with features drawn at random, which are not read."""
    config, place = run.config, run.config.model
    sampler = make_sampler(config, dataset.graph, device="cpu")
    task = dataset.node_task
    batch = sampler.sample(task.node_ids(spread_seeds(task.train, _SEEDS)), 0)
    columns, generator = dataset.features.shape[1], torch.Generator().manual_seed(0)
    x = torch.randn(len(batch.node), columns, generator=generator).to(dataset.features.dtype)
    edge_index = torch.stack([batch.row, batch.col])
    call = f"x {tuple(x.shape)}, edge_index {tuple(edge_index.shape)}"
    net.eval()  # no statistics of batches are changed
    try:
        out = net(x, edge_index)
    except Exception as error:
        raise _broken(place, f"the model, called with {call},", error) from error
    finally:
        net.train()
    wanted = (len(x), dataset.task.outputs)
    if not isinstance(out, Tensor) or out.shape != wanted or not out.is_floating_point():
        found = type(out).__name__
        if isinstance(out, Tensor):
            found = f"{str(out.dtype).removeprefix('torch.')} {tuple(out.shape)}"
        raise ArgumentError(
            f"--model {place}: the model, called with {call}, gave {found}, expected floats "
            f"{wanted}: a row for each node, a column for each of out_channels"
        )
    parameters = dict(net.named_parameters())
    if not parameters or not out.requires_grad:
        lacks = "has no parameters" if not parameters else "gives outputs without a gradient"
        raise ArgumentError(f"--model {place}: the model {lacks}; there is nothing to train")
    if run.ranks > 1:
        _check_alike(place, net, out)


def _check_alike(place: str, net: torch.nn.Module, out: Tensor) -> None:
    """What several ranks need to have the same model after each step."""
    parameters = {name: each for name, each in net.named_parameters() if each.requires_grad}
    gradients = torch.autograd.grad(out.sum(), [*parameters.values()], allow_unused=True)
    unused = [name for name, each in zip(parameters, gradients, strict=True) if each is None]
    buffers = [name for name, _ in net.named_buffers()]
    for names, what in ((unused, "has no part in the outputs"), (buffers, "is a buffer")):
        if names:
            raise UnsupportedError(
                f"--model {place}: {names[0]} {what}, which several ranks do not keep equal; leave "
                "it out, or train in one process"
            )


def _broken(place: str, what: str, error: Exception) -> ArgumentError:
    """That the user's code failed, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    told = f"{type(error).__name__}: {error}"
    return ArgumentError(f"--model {place}: {what} raised {told} ({where}); mend it")
