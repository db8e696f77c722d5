"""Learns embeddings without labels: nodes that share an edge become alike, random pairs do not.

The loss is that of GraphSAGE (Hamilton, Ying and Leskovec, NeurIPS 2017, eq. 1) on single edges.
How good the embeddings are tells a linear classifier that is fitted to them.

    python examples/unsupervised_sage.py --epochs 5

PyG's program but for the lines marked 1 and 2: line 1 is new, line 2 was PyG's loader.
"""

import argparse

import torch
import torch.nn.functional as F
from graphs import communities
from torch import Tensor
from torch_geometric.data import Data
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
    train = gnnsys.LinkNeighborLoader(  # line 2: was torch_geometric.loader.LinkNeighborLoader
        data, num_neighbors=[10, 10], neg_sampling="triplet", batch_size=512, shuffle=True
    )
    model = GraphSAGE(data.num_features, 64, num_layers=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(1, options.epochs + 1):
        for batch in train:
            optimizer.zero_grad()
            out = model(batch.x, batch.edge_index)
            source, near, far = (
                out[batch[f"{name}_index"]] for name in ("src", "dst_pos", "dst_neg")
            )
            loss = -F.logsigmoid((source * near).sum(1)).mean()
            loss = loss - F.logsigmoid(-(source * far).sum(1)).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {losses[-1]:.4f}, accuracy {probe(model, data):.4f}")
    return losses


@torch.no_grad()
def probe(model: GraphSAGE, data: Data) -> float:
    """Test accuracy of a linear classifier, fitted by least squares to the training nodes."""
    z = F.normalize(model(data.x[:], data.edge_index))
    wanted: Tensor = F.one_hot(data.y).float()
    weights = torch.linalg.lstsq(z[data.train_mask], wanted[data.train_mask]).solution
    right = (z @ weights).argmax(1) == data.y
    return right[data.test_mask].float().mean().item()


if __name__ == "__main__":
    main()
