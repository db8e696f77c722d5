"""Predicts how users rate items. Users have no features: each gets an embedding that is learnt.

    python examples/rating_regression.py --epochs 5

PyG's program but for the lines marked 1 and 2: line 1 is new, line 2 was PyG's loader.
"""

import argparse

import torch
import torch.nn.functional as F
from graphs import purchases
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import SAGEConv, to_hetero
from torch_geometric.transforms import RandomLinkSplit

import gnnsys

BUYS, BOUGHT_BY = ("user", "buys", "item"), ("item", "bought_by", "user")


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (SAGEConv((-1, -1), width) for _ in range(2))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


class Ratings(nn.Module):
    def __init__(self, data: HeteroData, width: int) -> None:
        super().__init__()
        self.mean = data[BUYS].edge_label.mean()
        self.users = nn.Embedding(data["user"].num_nodes, width)
        self.encoder = to_hetero(Encoder(width), data.metadata())
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, batch: HeteroData) -> Tensor:
        x = {"user": self.users(batch["user"].n_id), "item": batch["item"].x}
        z = self.encoder(x, batch.edge_index_dict)
        user, item = batch[BUYS].edge_label_index
        ends = torch.cat([z["user"][user], z["item"][item]], dim=1)
        return self.mean + self.head(ends).squeeze(1)


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains; returns the loss of each batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    data = purchases(options.users)
    data["user"].num_nodes = data["user"].pop("x").shape[0]
    data[BUYS].edge_label = data[BUYS].pop("rating")
    data["item"].x = gnnsys.unified(data["item"].x)  # line 1: new
    ends = {"edge_types": [BUYS], "rev_edge_types": [BOUGHT_BY]}
    split = RandomLinkSplit(0.0, 0.1, neg_sampling_ratio=0.0, **ends)
    train_data, _, test_data = split(data)

    def batches(of: HeteroData, shuffle: bool = False):
        return gnnsys.LinkNeighborLoader(  # line 2: was torch_geometric.loader.LinkNeighborLoader
            of,
            num_neighbors=[10, 5],
            edge_label_index=(BUYS, of[BUYS].edge_label_index),
            edge_label=of[BUYS].edge_label,
            batch_size=256,
            shuffle=shuffle,
        )

    train, test = batches(train_data, shuffle=True), batches(test_data)
    model = Ratings(train_data, width=32)
    with torch.no_grad():  # finds the widths of the features
        model(next(iter(test)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(1, options.epochs + 1):
        for batch in train:
            optimizer.zero_grad()
            loss = F.mse_loss(model(batch), batch[BUYS].edge_label)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {losses[-1]:.4f}, RMSE {rmse(model, test):.4f}")
    return losses


@torch.no_grad()
def rmse(model: Ratings, loader) -> float:
    errors = [model(batch) - batch[BUYS].edge_label for batch in loader]
    return torch.cat(errors).square().mean().sqrt().item()


if __name__ == "__main__":
    main()
