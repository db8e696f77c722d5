"""What layers read and make, found by running them over a toy graph; this also finds those that
cannot be run chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.pipeline.dropout import DropoutContext, KeyedDropout, set_dropout_context
from gnnsys.pipeline.edges import Edges, sort_edges
from gnnsys.pipeline.layers import GraphLayer, Share, Shared

__all__ = ["Kept", "LayerInfo", "describe_layers"]

_VERTICES, _TARGETS = 3, 2
_TOLERANCE = 1e-4  # of the same sums over the same edges, however many vertices there are


@dataclass(frozen=True, slots=True)
class Kept:
    """What autograd keeps of a layer, for each vertex."""

    inside: float
    """Bytes of what is neither input nor output."""

    input: bool
    output: bool


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A layer by its widths, in columns."""

    name: str
    """Of its class, or of the convolution inside."""

    is_graph: bool

    kind: str | None
    """Of the edges; None if it reads none."""

    in_width: int

    aggregated: int
    """Columns of the rows that neighbours read; 0 if it reads no edges."""

    out_width: int

    shared_in: tuple[str, ...]
    """Shared tensors that it reads."""

    shared_out: tuple[str, ...]
    """Those that it makes."""

    parameters: int
    """Numbers that it learns."""

    has_gradient: bool
    """Whether the rows that neighbours read depend on parameters; False if there are none."""

    kept: Kept
    """What its backward needs."""


def describe_layers(
    layers: Iterable[nn.Module], in_channels: int, dtype: torch.dtype = torch.float32
) -> list[LayerInfo]:
    """Runs layers over a graph of three vertices.

    Args:
        layers: of ``as_layers``.
        in_channels: columns of the features.
        dtype: of the parameters and the features.

    Raises:
        ArgumentError: a layer that does not take what the one before it gives.
        UnsupportedError: a layer whose rows for some vertices depend on which others are there.

    >>> from gnnsys.pipeline.layers import as_layers
    >>> from torch_geometric.nn import GCNConv
    >>> infos = describe_layers(as_layers([GCNConv(4, 8), nn.ReLU()]), in_channels=4)
    >>> [(info.name, info.aggregated, info.out_width, info.parameters) for info in infos]
    [('GCNConv', 8, 8, 40), ('ReLU', 0, 8, 0)]
    """
    layers = list(layers)
    device = next((p.device for layer in layers for p in layer.parameters()), torch.device("cpu"))
    like = torch.empty(0, dtype=dtype, device=device)
    shared: Shared = {}
    infos = []
    x = _draw(in_channels, like, 0)
    for number, layer in enumerate(layers):
        with _probing(layer):
            info = _describe(number, layer, x, shared)
        infos.append(info)
        learned = any(each.parameters for each in infos)
        x = _draw(info.out_width, like, number + 1).requires_grad_(learned)
        shared |= dict.fromkeys(info.shared_out, x)
    return infos


def _describe(number: int, layer: nn.Module, x: Tensor, shared: Shared) -> LayerInfo:
    where = f"layer {number} ({_name(layer)})"
    read = _Recording(shared, where)
    keeping = _Keeping(layer, x)
    rows = None
    try:
        if isinstance(layer, GraphLayer):
            with keeping:
                rows = layer.before(x, read)
                whole = layer.aggregate(rows, rows, _toy_edges(_VERTICES, x), read)
                whole = layer.after(whole, x, read)
            part = _run_for_targets(layer, x, rows, read)
        else:
            with keeping:
                whole = layer(x)
            part = layer(x[:_TARGETS])
    except ArgumentError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        detail = f"{type(error).__name__}: {text[0] if text else 'no text'}"
        if isinstance(layer, GraphLayer):
            raise UnsupportedError(
                f"{where}: does not take {x.shape[1]} columns of {_VERTICES} sources for "
                f"{_TARGETS} targets ({detail}); a layer must be able to run from a pair of "
                "sources and targets, as bipartite PyG convolutions do"
            ) from error
        raise ArgumentError(f"{where}: does not take {x.shape[1]} columns ({detail})") from error
    if whole.dim() != 2 or len(whole) != _VERTICES:
        raise ArgumentError(
            f"{where}: gives {tuple(whole.shape)} for {_VERTICES} vertices, expected a row for each"
        )
    if part.shape != (_TARGETS, whole.shape[1]) or not torch.allclose(
        part, whole[:_TARGETS], rtol=_TOLERANCE, atol=_TOLERANCE
    ):
        raise UnsupportedError(
            f"{where}: what it gives for a vertex depends on which others are there, or differs "
            "from call to call, so that it cannot be run chunk by chunk"
        )
    return LayerInfo(
        name=_name(layer),
        is_graph=isinstance(layer, GraphLayer),
        kind=layer.kind if isinstance(layer, GraphLayer) else None,
        in_width=x.shape[1],
        aggregated=0 if rows is None else rows.shape[1],
        out_width=whole.shape[1],
        shared_in=tuple(sorted(read.names)),
        shared_out=(layer.name,) if isinstance(layer, Share) else (),
        parameters=sum(p.numel() for p in layer.parameters()),
        has_gradient=rows is not None and rows.requires_grad,
        kept=keeping.told(whole),
    )


def _run_for_targets(layer: GraphLayer, x: Tensor, rows: Tensor, shared: _Recording) -> Tensor:
    """What the layer gives for the targets alone, from the rows of all sources."""
    targets = shared.copy()
    for name in targets:
        targets[name] = targets[name][:_TARGETS]
    out = layer.aggregate(rows, rows[:_TARGETS], _toy_edges(_TARGETS, x), targets)
    return layer.after(out, x[:_TARGETS], targets)


class _Keeping(torch.autograd.graph.saved_tensors_hooks):
    """Notes what autograd keeps of a layer that runs over the toy graph."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        super().__init__(self._note, lambda tensor: tensor)
        self._weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
        self._input = x.untyped_storage().data_ptr()
        self._kept: dict[int, Tensor] = {}

    def _note(self, tensor: Tensor) -> Tensor:
        if tensor.layout is torch.strided:
            self._kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def told(self, output: Tensor) -> Kept:
        """What was kept, besides parameters."""
        kept = self._kept.keys() - self._weights
        ends = {self._input, output.untyped_storage().data_ptr()}
        inside = sum(
            self._kept[place].untyped_storage().nbytes() / _VERTICES for place in kept - ends
        )
        return Kept(inside, self._input in kept, output.untyped_storage().data_ptr() in kept)


def _toy_edges(targets: int, x: Tensor) -> Edges:
    """Edges of three vertices into the first of them."""
    source, target = torch.tensor([[1, 2, 0, 2, 0], [0, 0, 1, 1, 2]])
    weight = torch.tensor([0.5, 0.25, 0.5, 0.75, 1.0], dtype=x.dtype)
    here = target < targets
    edges = sort_edges(source[here], target[here], weight[here], (_VERTICES, targets))
    return edges.to(x.device)


class _Recording(dict[str, Tensor]):
    """Shared tensors that remember which of them were read."""

    def __init__(self, shared: Shared, where: str, names: set[str] | None = None) -> None:
        super().__init__(shared)
        self.where, self.names = where, set() if names is None else names

    def __missing__(self, name: str) -> Tensor:
        raise ArgumentError(
            f"{self.where}: reads the shared tensor {name!r}, which no layer before it makes; put "
            f"Share({name!r}) where it is to be taken"
        )

    def __getitem__(self, name: str) -> Tensor:
        self.names.add(name)
        return super().__getitem__(name)

    def copy(self) -> _Recording:
        return _Recording(dict(self.items()), self.where, self.names)


@contextmanager
def _probing(layer: nn.Module) -> Iterator[None]:
    """Training mode, so that whatever mixes vertices or draws numbers then shows."""
    modes = {part: part.training for part in layer.modules()}
    contexts = {d: d.context for d in layer.modules() if isinstance(d, KeyedDropout)}
    set_dropout_context(layer, DropoutContext())
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            layer.train()
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for dropout, context in contexts.items():
            dropout.context = context


def _draw(width: int, like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(_VERTICES, width, generator=generator).to(like)


def _name(layer: nn.Module) -> str:
    return type(getattr(layer, "conv", layer)).__name__
