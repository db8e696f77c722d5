"""Classifies products by what is bought together: a GAT on a graph with hubs and few labels.

    python examples/gat_products.py --epochs 5

PyG's program but for the lines marked 1 and 2: line 1 is new, line 2 was PyG's loader.
"""

import argparse

import torch
import torch.nn.functional as F
from graphs import communities
from torch import Tensor
from torch_geometric.nn import GAT

import gnnsys


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains; returns the loss of each batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    data = communities(options.nodes, classes=10, features=50, skew=3.0, train_share=0.2)
    data.x = gnnsys.unified(data.x)  # line 1: new

    def batches(of: Tensor, shuffle: bool = False):
        return gnnsys.NeighborLoader(  # line 2: was torch_geometric.loader.NeighborLoader
            data, num_neighbors=[10, 10, 5], input_nodes=of, batch_size=64, shuffle=shuffle
        )

    train, test = batches(data.train_mask, shuffle=True), batches(data.test_mask)
    model = GAT(data.num_features, 32, num_layers=3, out_channels=10, heads=4, dropout=0.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(1, options.epochs + 1):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            loss = F.cross_entropy(logits(model, batch), batch.y[: batch.batch_size])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {losses[-1]:.4f}, accuracy {accuracy(model, test):.4f}")
    return losses


def logits(model: GAT, batch) -> Tensor:
    """(seeds, classes); a layer computes only what the layers after it need."""
    out = model(
        batch.x,
        batch.edge_index,
        num_sampled_nodes_per_hop=batch.num_sampled_nodes,
        num_sampled_edges_per_hop=batch.num_sampled_edges,
    )
    return out[: batch.batch_size]


@torch.no_grad()
def accuracy(model: GAT, loader) -> float:
    model.eval()
    found = [logits(model, batch).argmax(1) == batch.y[: batch.batch_size] for batch in loader]
    return torch.cat(found).float().mean().item()


if __name__ == "__main__":
    main()
