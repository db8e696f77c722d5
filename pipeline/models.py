"""Deep models as lists of layers: a linear encoder, graph layers of one width, a linear decoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch_geometric.nn import GCN2Conv, GCNConv, SAGEConv

from gnnsys.errors import ArgumentError
from gnnsys.pipeline.layers import GCNLayer, Share, Shared

__all__ = ["DEEP_MODELS", "ResGCNLayer", "deep_layers"]

DEEP_MODELS = ("gcn", "sage", "gcnii", "resgcn")


class ResGCNLayer(GCNLayer):
    """ResGCN+: LayerNorm, ReLU, dropout, GCN convolution, and the input added.

    Li, Xiong, Thabet, Ghanem: "DeeperGCN: All You Need to Train Deeper GCNs", arXiv 2006.07739,
    with the layer norm in place of the batch norm.

    Args:
        width: of rows in and out.
        dropout: probability.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(GCNConv(width, width))
        self.activate = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Dropout(dropout))

    def before(self, x: Tensor, shared: Shared) -> Tensor:
        return super().before(self.activate(x), shared)

    def after(self, out: Tensor, x: Tensor, shared: Shared) -> Tensor:
        return super().after(out, x, shared) + x


def deep_layers(
    model: str,
    *,
    in_channels: int,
    hidden: int,
    out_channels: int,
    layers: int,
    dropout: float = 0.5,
    alpha: float = 0.1,
    theta: float = 0.5,
) -> list[nn.Module]:
    """The layers of a deep model, for ``GNNPipe`` or ``DeepModel``.

    Args:
        model: gcn (Kipf and Welling, ICLR 2017), sage (Hamilton, Ying, Leskovec, NeurIPS 2017, with
            the mean), gcnii (Chen, Wei, Huang, Ding, Li, ICML 2020) or resgcn (ResGCN+).
        in_channels: columns of the features.
        hidden: columns of all rows between encoder and decoder.
        out_channels: classes or labels.
        layers: graph layers, each with one aggregation.
        dropout: probability.
        alpha: GCNII's share of the first rows.
        theta: GCNII's lambda; layer l has beta = log(theta / l + 1).

    Raises:
        ArgumentError: an unknown model, or no layers.

    >>> len(deep_layers("gcn", in_channels=4, hidden=8, out_channels=2, layers=32))
    100
    """
    if model not in DEEP_MODELS:
        raise ArgumentError(f"model({model!r}): expected one of {', '.join(DEEP_MODELS)}")
    if layers < 1:
        raise ArgumentError(f"layers({layers}): expected at least 1")
    encoder: list[nn.Module] = [nn.Linear(in_channels, hidden)]
    decoder: list[nn.Module] = [nn.Linear(hidden, out_channels)]
    if model == "resgcn":
        inner: list[nn.Module] = [ResGCNLayer(hidden, dropout) for _ in range(layers)]
        return [*encoder, *inner, nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(dropout), *decoder]
    encoder.append(nn.ReLU())
    if model == "gcnii":
        encoder.append(Share("x_0"))
        inner = []
        for number in range(1, layers + 1):
            conv = GCN2Conv(hidden, alpha, theta, layer=number)
            inner += [nn.Dropout(dropout), conv, nn.ReLU()]
        return [*encoder, *inner, nn.Dropout(dropout), *decoder]
    encoder.append(nn.Dropout(dropout))
    inner = []
    for _ in range(layers):
        conv = GCNConv(hidden, hidden) if model == "gcn" else SAGEConv(hidden, hidden)
        inner += [conv, nn.ReLU(), nn.Dropout(dropout)]
    return [*encoder, *inner, *decoder]
