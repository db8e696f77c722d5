"""Trains a 16-layer GCNII on the full graph, its layers spread over the ranks of torchrun.

    torchrun --nproc-per-node 4 scripts/gnnpipe_example.py
    torchrun --nproc-per-node 4 scripts/gnnpipe_example.py --ways 2

Without torchrun, all ranks of --stages and --ways take turns in one process, with the same results.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GCN2Conv

from gnnsys.pipeline import GNNPipe, Share


def make_graph(nodes: int = 2000, classes: int = 5) -> Data:
    """Communities: most edges join nodes of one class, whose features are noisy."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(nodes) % classes
    source = torch.randint(nodes, (8 * nodes,), generator=draw)
    same = (torch.randint(nodes // classes, (8 * nodes,), generator=draw) * classes) + y[source]
    anyone = torch.randint(nodes, (8 * nodes,), generator=draw)
    target = torch.where(torch.rand(8 * nodes, generator=draw) < 0.8, same, anyone)
    x = torch.eye(classes)[y] + 2 * torch.randn(nodes, classes, generator=draw)
    edges = torch.stack([torch.cat([source, target]), torch.cat([target, source])])
    return Data(x=x, edge_index=edges, y=y, train_mask=torch.rand(nodes, generator=draw) < 0.3)


def make_layers(features: int, hidden: int, classes: int, depth: int) -> list[nn.Module]:
    """A plain list of layers; Share lets GCN2Conv read x_0."""
    layers: list[nn.Module] = [nn.Linear(features, hidden), nn.ReLU(), Share("x_0")]
    for number in range(1, depth + 1):
        conv = GCN2Conv(hidden, alpha=0.1, theta=0.5, layer=number)
        layers += [nn.Dropout(0.2), conv, nn.ReLU()]
    return [*layers, nn.Linear(hidden, classes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, help="default: the ranks / the ways")
    parser.add_argument("--ways", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group()  # gloo for CPU tensors, NCCL for CUDA tensors
    world = dist.get_world_size() if dist.is_initialized() else 4
    torch.manual_seed(0)
    data = make_graph()
    layers = make_layers(data.x.shape[1], 32, 5, depth=16)
    stages = options.stages or world // options.ways
    pipe = GNNPipe(layers, data, stages=stages, ways=options.ways, snapshot_period=5)
    optimizer = torch.optim.Adam(pipe.parameters(), lr=0.01)
    for epoch in range(1, options.epochs + 1):
        loss = pipe.train_epoch(optimizer)
        if epoch % 10 == 0:
            right = pipe.evaluate().argmax(1) == data.y
            if pipe.rank == 0:
                accuracy = right[~data.train_mask].float().mean().item()
                print(f"epoch {epoch}: loss {loss:.4f}, accuracy {accuracy:.4f}", flush=True)
    sent = pipe.ledger()
    if pipe.rank == 0:
        print("bytes sent:", sent)


if __name__ == "__main__":
    main()
