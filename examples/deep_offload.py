"""Trains a deep GCNII on a full graph with a quarter of the memory for its activations.

    python examples/deep_offload.py --root data --layers 64

PyG's layers and program but for the lines marked 1 and 2, which are new.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCN2Conv

import gnnsys
from gnnsys.training.datasets import load_dataset


class GCNII(nn.Module):
    def __init__(self, features: int, width: int, classes: int, layers: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(features, width), nn.Linear(width, classes)
        self.convs = nn.ModuleList(
            GCN2Conv(width, alpha=0.1, theta=0.5, layer=number + 1, cached=True)
            for number in range(layers)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = x_0 = self.first(x).relu()
        for conv in self.convs:
            x = conv(F.dropout(x, 0.5, self.training), x_0, edge_index).relu()
        return self.last(F.dropout(x, 0.5, self.training))


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains; returns the loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", default="data", help="folder of the data sets")
    parser.add_argument("--dataset", default="tolokers")
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--budget", default=None, help="such as 500MB; default a quarter")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(arguments)

    dataset = load_dataset(options.dataset, options.root, device="cpu")
    x, edge_index, task = dataset.features.materialize(), dataset.edge_index(), dataset.node_task
    torch.manual_seed(0)
    model = gnnsys.fuse(GCNII(x.shape[1], options.width, task.num_classes, options.layers))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    # Of a layer autograd keeps about three matrices (vertices, width); here they take a quarter.
    quarter = 3 * options.layers * len(x) * options.width * 4 // 4
    offload = gnnsys.ActivationOffload(options.budget or quarter)  # line 1
    losses = []
    for epoch in range(1, options.epochs + 1):
        optimizer.zero_grad()
        with offload:  # line 2
            loss = F.cross_entropy(model(x, edge_index)[task.train], task.labels[task.train])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        stats = offload.stats
        print(
            f"epoch {epoch}: loss {losses[-1]:.4f}; {stats.peak / 2**20:.0f} MiB of "
            f"{stats.plain / 2**20:.0f} in memory at most, {stats.seconds:.1f} s, of these "
            f"{stats.stall:.1f} waiting"
        )
    offload.close()
    return losses


if __name__ == "__main__":
    main()
