"""What the generated graphs are described by: the keywords of the functions, the options of the
command, and what ``graph.json`` says of a folder. Imports nothing that is large."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, ClassVar, TypeVar, get_args

from gnnsys.choices import FloatType
from gnnsys.errors import ArgumentError
from gnnsys.system.whole import check_whole

__all__ = ["INT32_NODES", "CommunityGraph", "RmatGraph", "described_by", "is_number"]

INT32_NODES = 1 << 31
"""Nodes from which on ids take 64 bits."""

_MAX_WIDTH = 1 << 20  # features of a node
_NUMBERS: dict[Any, Callable[[Any], Any]] = {"int": int, "float": float, "bool": bool}
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """What both kinds have."""

    kind: ClassVar[str]

    features: int = 128
    """Of each node."""

    train: float = 0.6
    """Share of the nodes to train on."""

    val: float = 0.2
    """Share to validate on."""

    test: float | None = None
    """Share for the test. Default: the rest."""

    dtype: FloatType = "float32"
    """Element type that features are stored in."""

    seed: int = 0
    """Of everything random, 0 to 2^64 - 1."""

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, (1 << 64) - 1)
        _check_share("train", self.train)
        _check_share("val", self.val)
        if self.test is not None:
            _check_share("test", self.test)
        parts = {name: getattr(self, name) for name in ("train", "val", "test")}
        shares = {name: share for name, share in parts.items() if share is not None}
        if math.fsum(shares.values()) > 1 + 1e-9:  # tenths do not sum to 1 exactly
            raise ArgumentError(
                f"{' + '.join(shares)} is {' + '.join(map(str, shares.values()))} = "
                f"{math.fsum(shares.values())}, expected at most 1"
            )
        if self.dtype not in get_args(FloatType):
            raise ArgumentError(
                f"dtype is {self.dtype!r}, expected {' or '.join(get_args(FloatType))}"
            )
        for each in fields(self):  # numpy's numbers are no JSON
            value = getattr(self, each.name)
            if each.type == "bool" or (each.type in _NUMBERS and isinstance(value, Real)):
                object.__setattr__(self, each.name, _NUMBERS[each.type](value))

    def about(self) -> dict[str, Any]:
        """What ``graph.json`` says of it."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {"kind": self.kind, **given}


@dataclass(frozen=True, kw_only=True)
class RmatGraph(_Graph):
    """An R-MAT graph of 2**scale nodes and edge_factor * 2**scale edges.

    >>> RmatGraph(scale=50)
    Traceback (most recent call last):
    ...
    gnnsys.errors.ArgumentError: scale: 50, expected a whole number from 1 to 40
    """

    kind = "rmat"

    scale: int
    """The graph has 2^scale nodes, of at most 2^40."""

    edge_factor: int = 16
    """Edges a node, before --undirected."""

    a: float = 0.57
    """Probability of the quadrant of low sources and low targets; b, c of the next two."""

    b: float = 0.19
    """Likewise, of low sources and high targets."""

    c: float = 0.19
    """Likewise, of high sources and low targets."""

    features: int = 128
    """Random features of each node; 0 for none."""

    classes: int = 0
    """Random labels; 0 for neither labels nor splits."""

    undirected: bool = False
    """Add the reverse of every edge that is not a loop."""

    def __post_init__(self) -> None:
        check_whole("scale", self.scale, 1, 40)
        check_whole("edge_factor", self.edge_factor, 1, 1 << 20)
        check_whole("features", self.features, 0, _MAX_WIDTH)
        check_whole("classes", self.classes, 0, INT32_NODES)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class CommunityGraph(_Graph):
    """A graph of communities, all of one size, give or take a node."""

    kind = "community"

    nodes: int = 100_000
    """Of the graph, up to 2^40."""

    classes: int = 10
    """Communities, at most one for each node."""

    degree: int = 16
    """In-neighbours of each node; they may repeat, and be the node itself."""

    within: float = 0.65
    """Share of neighbours drawn from the node's own community."""

    signal: float = 0.06
    """How far features point to the community: the length of its centre against noise of 1."""

    train: float = 0.5
    """Share of the nodes to train on."""

    val: float = 0.25
    """Share to validate on."""

    def __post_init__(self) -> None:
        check_whole("nodes", self.nodes, 1, 1 << 40)
        check_whole("classes", self.classes, 1, min(self.nodes, INT32_NODES))
        check_whole("degree", self.degree, 1, 1 << 20)
        check_whole("features", self.features, 1, _MAX_WIDTH)
        _check_share("within", self.within)
        if not (is_number(self.signal) and 0 <= self.signal < math.inf):
            raise ArgumentError(f"signal is {self.signal!r}, expected a finite number from 0 up")
        super().__post_init__()


def described_by(graph: type[_Graph]) -> Callable[[_Function], _Function]:
    """Decorates a function whose ``**graph`` are the fields of ``graph``: help() lists them."""

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.name != "graph"]
        described = inspect.signature(graph).parameters.values()
        signature = signature.replace(parameters=[*own, *described])
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


def is_number(value: object) -> bool:
    """Whether a value is a real number and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_share(name: str, value: float) -> None:
    if not (is_number(value) and 0 <= value <= 1):
        raise ArgumentError(f"{name} is {value!r}, expected a share from 0 to 1")
