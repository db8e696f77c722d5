"""Predicts the missing edges of a graph: a GCN, dot products, and as many negative links as edges.

    python examples/link_prediction.py --epochs 5
    python examples/link_prediction.py --root FOLDER    # of Cora, as PyG's Planetoid reads it

PyG's program but for the lines marked 1 and 2: line 1 is new, line 2 was PyG's loader.
"""

import argparse

import torch
import torch.nn.functional as F
from graphs import communities
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GCN
from torch_geometric.transforms import RandomLinkSplit
from torchmetrics.classification import BinaryAUROC

import gnnsys


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains; returns the loss of each batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=2000)
    parser.add_argument("--root", help="train on Cora, in this folder, instead")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(arguments)

    seed_everything(0)  # numpy, too, which the split draws from
    data = Planetoid(options.root, "Cora")[0] if options.root else communities(options.nodes)
    data.x = gnnsys.unified(data.x)  # line 1: new
    split = RandomLinkSplit(0.0, 0.1, is_undirected=True, add_negative_train_samples=False)
    train_data, _, test_data = split(data)  # edges to predict are no edges to pass messages along

    def batches(of, **more):
        return gnnsys.LinkNeighborLoader(  # line 2: was torch_geometric.loader.LinkNeighborLoader
            of,
            num_neighbors=[10, 5],
            edge_label_index=of.edge_label_index,
            edge_label=of.edge_label,
            batch_size=256,
            **more,
        )

    train = batches(train_data, neg_sampling="binary", shuffle=True)
    test = batches(test_data)  # whose labels tell edges from links that are none
    model = GCN(data.num_features, 64, num_layers=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(1, options.epochs + 1):
        for batch in train:
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(scores(model, batch), batch.edge_label)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {losses[-1]:.4f}, ROC-AUC {auc(model, test):.4f}")
    return losses


def scores(model: GCN, batch) -> Tensor:
    source, target = model(batch.x, batch.edge_index)[batch.edge_label_index]
    return (source * target).sum(1)


@torch.no_grad()
def auc(model: GCN, loader) -> float:
    metric = BinaryAUROC()
    for batch in loader:
        metric.update(scores(model, batch), batch.edge_label.long())
    return metric.compute().item()


if __name__ == "__main__":
    main()
