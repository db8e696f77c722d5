"""Every name of torch and PyG that we use and that they do not promise to keep.

Tried with the versions in ``TRIED``; ``tests/unit/test_compat.py`` has a test for each name, and
refuses private names of the two anywhere else.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _NormBase
from torch.optim._functional import sparse_adam
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data._utils.pin_memory import pin_memory
from torch.utils.weak import WeakIdKeyDictionary
from torch_geometric.nn.conv import MessagePassing

__all__ = [
    "NORM_WITH_STATISTICS",
    "STEPS",
    "TEMPLATE_PROPAGATE",
    "TO_COPY",
    "TRIED",
    "WeakIdKeyDictionary",
    "as_plain_tensors",
    "cached_edges",
    "canonical_edge_type",
    "coo_indices",
    "default_store",
    "forget_attributes",
    "group_of",
    "has_hooks",
    "has_own_propagate",
    "is_explained",
    "is_of_library",
    "is_transformed",
    "is_written_by_pyg",
    "make_wrapper",
    "pin_memory",
    "propagate_by_messages",
    "schema_of",
    "set_by_hand",
    "set_group_timeout",
    "set_size",
    "shows_edge_updates",
    "shows_messages",
    "sizes_of",
    "sparse_adam",
    "store_of",
    "tree_flatten",
    "tree_unflatten",
    "uncompiled",
    "version_of",
    "without_torch_functions",
    "write_own_propagate",
]

TRIED = {"torch": "2.13.0", "torch_geometric": "2.8.1"}
"""The newest versions that all of this was tried with."""

# torch -------------------------------------------------------------------------------------------

make_wrapper = Tensor._make_wrapper_subclass
"""``make_wrapper(cls, shape, dtype=…, device=…)``: a tensor of a subclass, without memory."""

as_plain_tensors = torch._C._disabled_torch_function_impl
"""Calls a function as for plain tensors; arguments of ``__torch_function__`` without ``cls``."""

NORM_WITH_STATISTICS: type[torch.nn.Module] = _NormBase
"""The base of all batch and instance norms."""

TO_COPY = torch.ops.aten._to_copy.default
"""The operator behind ``Tensor.to``."""


without_torch_functions: Callable[[], AbstractContextManager[None]] = torch._C.DisableTorchFunction
"""A context in which no mode and no subclass sees functions of torch."""


def schema_of(operator: Any) -> Any:
    """Arguments of an operator, and which of them it writes to."""
    return operator._schema


def version_of(tensor: Tensor) -> int:
    """Counts changes of a tensor in place. Tensors of inference mode have no such count."""
    return tensor._version


def coo_indices(matrix: Tensor) -> Tensor:
    """(dims, n) positions of a COO matrix in its own order; the public name sorts them first."""
    return matrix._indices()


def is_transformed() -> bool:
    """Whether torch transforms functions, in ways for which operators of ours have no rule."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def uncompiled(model: torch.nn.Module) -> torch.nn.Module | None:
    """The model that ``torch.compile`` was given; None for one that is not its result."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, torch.nn.Module) else None


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether anything but the forward of a module's class is called when it is called."""
    return bool(
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch.nn.modules.module._has_any_global_hook()
    )


def default_store() -> Any:
    """The store by which the ranks of the default process group have met."""
    return dist.distributed_c10d._get_default_store()


def set_group_timeout(timeout: datetime.timedelta, group: Any = None) -> None:
    """How long operations of a process group, or the default one, may take from now on."""
    dist.distributed_c10d._set_pg_timeout(timeout, group)


# PyG: data ---------------------------------------------------------------------------------------


def group_of(store: Any) -> Any:
    """The node or edge type that a storage of ``HeteroData`` is of; None in ``Data``."""
    return store._key


def store_of(data: Any, group: Any) -> Any:
    """The storage of a group; see ``group_of``."""
    return data._store if group is None else data[group]


def forget_attributes(store: Any) -> None:
    """Drops what a storage remembers of its attributes, which a copy of the data shares with it."""
    store.__dict__.pop("_cached_attr", None)


def canonical_edge_type(data: Any, kind: tuple[str, ...]) -> Any:
    """(source, relation, target) for an edge type that may be given without its relation."""
    return data._to_canonical(*kind)


# PyG: message passing ----------------------------------------------------------------------------

STEPS = ("propagate", "message", "aggregate", "update", "edge_updater", "edge_update")
"""The functions of which message passing consists."""

TEMPLATE_PROPAGATE = "_jinja_propagate"
"""The attribute of a class under which PyG finds ``propagate`` again when explaining ends."""


def is_explained(layer: Any) -> bool:
    """Whether an explanation of the layer's messages is under way."""
    return bool(layer._explain)


def shows_messages(layer: Any) -> bool:
    """Whether someone sees or changes single messages.

    A hook, an explanation, a decomposition, a function that is set on the layer itself.
    """
    return bool(
        layer._explain
        or set_by_hand(layer)
        or layer._decomposed_layers != 1
        or layer._propagate_forward_pre_hooks
        or layer._propagate_forward_hooks
        or layer._message_forward_pre_hooks
        or layer._message_forward_hooks
        or layer._aggregate_forward_pre_hooks
        or layer._aggregate_forward_hooks
        or layer.aggr_module._forward_pre_hooks
        or layer.aggr_module._forward_hooks
    )


def set_by_hand(layer: Any) -> str:
    """The name of a step of message passing that a user set on a layer, not its class; "" if none.

    When an explanation ends, PyG itself sets ``propagate``.
    """
    for name in STEPS:
        found = layer.__dict__.get(name)
        if found is not None and not (name == "propagate" and is_of_library(found)):
            return name
    return ""


def shows_edge_updates(layer: Any) -> bool:
    """Whether a hook sees or changes what ``edge_update`` gives."""
    return bool(layer._edge_update_forward_pre_hooks or layer._edge_update_forward_hooks)


def propagate_by_messages(kind: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
    """``propagate`` of the class ``kind``, in the form that the layer's state asks for."""
    propagate = kind.propagate
    if layer._explain or layer._decomposed_layers != 1:
        propagate = getattr(kind, "_orig_propagate", propagate)
    return propagate(layer, *args, **kwargs)


def sizes_of(layer: Any, edge_index: Tensor, size: Any) -> list[Any]:
    """Numbers of sources and targets, None where not given; raises for edges PyG refuses."""
    sizes: list[Any] = layer._check_input(edge_index, size)
    return sizes


def set_size(layer: Any, sizes: list[Any], end: int, rows: Tensor) -> None:
    """Notes the number of nodes at an end of the edges; raises where another is known."""
    layer._set_size(sizes, end, rows)


def cached_edges(layer: Any) -> tuple[Tensor, Tensor] | None:
    """Edges and weights that a ``GCNConv(cached=True)`` has kept."""
    edges: tuple[Tensor, Tensor] | None = layer._cached_edge_index
    return edges


def is_of_library(thing: Any) -> bool:
    """Whether a function, method or class is torch's, PyG's or ours, not a user's."""
    home = str(getattr(thing, "__module__", "")).partition(".")[0]
    return home in ("torch", "torch_geometric", "gnnsys")


def _choose_vector_functions() -> None:
    """Has MKL choose the kernels of its vector functions, in one thread.

    It does so in the first call of each. Torch divides that call among its threads, of which one
    may meanwhile get the kernel of least accuracy (pytorch issue 188792): a first step of Adam with
    other square roots than every other run. So did 9 of 100 processes with two threads, and none of
    100 after this.
    """
    names = (
        "acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "expm1", "log", "log10",
        "log1p", "log2", "sin", "sqrt", "tan", "tanh", "trunc",
    )  # fmt: skip
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype, device="cpu")
        for name in names:
            getattr(torch, name)(one)


_choose_vector_functions()


def has_own_propagate(layer: Any) -> bool:
    """Whether a user wrote the layer's ``propagate``, not PyG or ``gnnsys.fuse``."""
    set_on_it = layer.__dict__.get("propagate")
    if set_on_it is not None and not is_of_library(set_on_it):
        return True
    return not is_written_by_pyg(type(layer), "propagate")


def write_own_propagate(kind: Any) -> None:
    """Has PyG write ``propagate`` for a class as for those that derive from none of its layers.

    It would keep what it wrote for the class above, which shows no single messages, as what shows
    them.
    """
    if "propagate" not in kind.__dict__ and is_written_by_pyg(kind, "propagate"):
        kind.propagate = MessagePassing.propagate


def is_written_by_pyg(kind: Any, name: str) -> bool:
    """Whether ``propagate`` or ``edge_updater`` of a class is PyG's, or of ``gnnsys.fuse``."""
    return all(
        name not in base.__dict__
        or base.__dict__[name].__module__ == "torch_geometric.nn.conv.message_passing"
        or base.__dict__[name].__module__.startswith("gnnsys.")
        # PyG writes one for a class from a template, into a module of its own.
        or base.__dict__[name].__module__.startswith(f"{base.__module__}_{base.__name__}_{name}")
        for base in kind.__mro__
    )
