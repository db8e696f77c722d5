"""Classifies authors by what they publish where: a graph transformer over four types of nodes.

    python examples/hetero_classification.py --epochs 5
    python examples/hetero_classification.py --root FOLDER    # of DBLP, as PyG's DBLP reads it

PyG's program but for the lines marked 1 and 2: line 1 is new, line 2 was PyG's loader.
"""

import argparse

import torch
import torch.nn.functional as F
from graphs import publications
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.datasets import DBLP
from torch_geometric.nn import HGTConv, Linear

import gnnsys


class HGT(nn.Module):
    """Heterogeneous graph transformer (Hu et al., WWW 2020)."""

    def __init__(self, data: HeteroData, width: int, classes: int) -> None:
        super().__init__()
        self.enter = nn.ModuleDict({name: Linear(-1, width) for name in data.node_types})
        self.layers = nn.ModuleList(HGTConv(width, width, data.metadata(), 2) for _ in range(2))
        self.leave = Linear(width, classes)

    def forward(self, x: dict[str, Tensor], edge_index: dict) -> Tensor:
        h = {name: self.enter[name](rows).relu() for name, rows in x.items()}
        for layer in self.layers:
            h = layer(h, edge_index)
        return self.leave(h["author"])


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains; returns the loss of each batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--papers", type=int, default=1500)
    parser.add_argument("--root", help="train on DBLP, in this folder, instead")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    data = DBLP(options.root)[0] if options.root else publications(options.papers)
    data["conference"].x = torch.ones(data["conference"].num_nodes, 1)  # they have no features
    data.apply(gnnsys.unified, "x")  # line 1: new

    def batches(of: Tensor, shuffle: bool = False):
        return gnnsys.NeighborLoader(  # line 2: was torch_geometric.loader.NeighborLoader
            data, num_neighbors=[10, 5], input_nodes=("author", of), batch_size=64, shuffle=shuffle
        )

    train = batches(data["author"].train_mask, shuffle=True)
    test = batches(data["author"].test_mask)
    model = HGT(data, width=32, classes=4)
    with torch.no_grad():  # finds the widths of the features
        logits(model, next(iter(test)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(1, options.epochs + 1):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            authors = batch["author"]
            loss = F.cross_entropy(logits(model, batch), authors.y[: authors.batch_size])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {losses[-1]:.4f}, accuracy {accuracy(model, test):.4f}")
    return losses


def logits(model: HGT, batch: HeteroData) -> Tensor:
    """(seeds, classes)."""
    return model(batch.x_dict, batch.edge_index_dict)[: batch["author"].batch_size]


@torch.no_grad()
def accuracy(model: HGT, loader) -> float:
    model.eval()
    found = [
        logits(model, batch).argmax(1) == batch["author"].y[: batch["author"].batch_size]
        for batch in loader
    ]
    return torch.cat(found).float().mean().item()


if __name__ == "__main__":
    main()
