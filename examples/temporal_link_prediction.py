"""Predicts what users buy next from what they and others bought before.

Messages of a link come from purchases before it only: each link is predicted at its time.

    python examples/temporal_link_prediction.py --epochs 5

PyG's program but for the lines marked 1 and 2: line 1 is new, line 2 was PyG's loader.
"""

import argparse

import torch
import torch.nn.functional as F
from graphs import purchases
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import SAGEConv, to_hetero
from torchmetrics.classification import BinaryAUROC

import gnnsys

BUYS = ("user", "buys", "item")


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (SAGEConv((-1, -1), width) for _ in range(2))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains; returns the loss of each batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    data = purchases(options.users)
    data.apply(gnnsys.unified, "x")  # line 1: new

    def batches(which: slice, shuffle: bool = False):
        return gnnsys.LinkNeighborLoader(  # line 2: was torch_geometric.loader.LinkNeighborLoader
            data,
            num_neighbors=[10, 5],
            edge_label_index=(BUYS, data[BUYS].edge_index[:, which]),
            edge_label_time=data[BUYS].time[which] - 1,  # a purchase does not predict itself
            time_attr="time",
            temporal_strategy="last",
            neg_sampling="binary",
            batch_size=256,
            shuffle=shuffle,
        )

    past = int(0.8 * data[BUYS].num_edges)  # edges are sorted by time
    train, test = batches(slice(past), shuffle=True), batches(slice(past, None))
    model = to_hetero(Encoder(32), data.metadata())
    with torch.no_grad():  # finds the widths of the features
        scores(model, next(iter(test)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(1, options.epochs + 1):
        for batch in train:
            optimizer.zero_grad()
            wanted = batch[BUYS].edge_label
            loss = F.binary_cross_entropy_with_logits(scores(model, batch), wanted)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {losses[-1]:.4f}, ROC-AUC {auc(model, test):.4f}")
    return losses


def scores(model: nn.Module, batch: HeteroData) -> Tensor:
    z = model(batch.x_dict, batch.edge_index_dict)
    user, item = batch[BUYS].edge_label_index
    return (z["user"][user] * z["item"][item]).sum(1)


@torch.no_grad()
def auc(model: nn.Module, loader) -> float:
    metric = BinaryAUROC()
    for batch in loader:
        metric.update(scores(model, batch), batch[BUYS].edge_label.long())
    return metric.compute().item()


if __name__ == "__main__":
    main()
