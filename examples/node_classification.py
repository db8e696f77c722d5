"""Classifies the nodes of a graph with GraphSAGE on mini-batches of sampled neighbours.

    python examples/node_classification.py --epochs 5

PyG's program but for the lines marked 1 and 2: line 1 is new, line 2 was PyG's loader.
"""

import argparse

import torch
import torch.nn.functional as F
from graphs import communities
from torch import Tensor
from torch_geometric.nn import GraphSAGE

import gnnsys


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains; returns the loss of each batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    data = communities(options.nodes)
    data.x = gnnsys.unified(data.x)  # line 1: new

    def batches(of: Tensor, shuffle: bool = False):
        return gnnsys.NeighborLoader(  # line 2: was torch_geometric.loader.NeighborLoader
            data, num_neighbors=[10, 5], input_nodes=of, batch_size=128, shuffle=shuffle
        )

    train, test = batches(data.train_mask, shuffle=True), batches(data.test_mask)
    model = GraphSAGE(data.num_features, 32, num_layers=2, out_channels=5, dropout=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(1, options.epochs + 1):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            out = model(batch.x, batch.edge_index)[: batch.batch_size]
            loss = F.cross_entropy(out, batch.y[: batch.batch_size])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {losses[-1]:.4f}, accuracy {accuracy(model, test):.4f}")
    return losses


@torch.no_grad()
def accuracy(model: torch.nn.Module, loader) -> float:
    model.eval()
    right = seen = 0
    for batch in loader:
        out = model(batch.x, batch.edge_index)[: batch.batch_size]
        right += int((out.argmax(1) == batch.y[: batch.batch_size]).sum())
        seen += batch.batch_size
    return right / seen


if __name__ == "__main__":
    main()
