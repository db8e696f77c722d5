"""Trains a PyG script as it is and changed in two lines, and compares the losses bit for bit.

PyG's own, unmodified NeighborLoader samples, which needs pyg-lib or torch-sparse. The losses are
compared within one number of workers: PyG's sampler draws other neighbours with another.

    scripts/bench/peer_env torch-sparse PYG_FOLDER
    PYG_FOLDER/bin/python scripts/compare_with_pyg.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GraphSAGE

import gnnsys

NODES, EDGES, DIM, CLASSES = 20_000, 300_000, 100, 10
WORKERS = (0, 2)


def make_data() -> Data:
    draw = torch.Generator().manual_seed(0)
    return Data(
        x=torch.randn(NODES, DIM, generator=draw),
        edge_index=torch.randint(NODES, (2, EDGES), generator=draw),
        y=torch.randint(CLASSES, (NODES,), generator=draw),
    )


def train(data: Data, workers: int, epochs: int) -> list[float]:
    torch.manual_seed(1)
    loader = NeighborLoader(data, [10, 5], batch_size=1024, shuffle=True, num_workers=workers)
    model = GraphSAGE(DIM, 64, num_layers=2, out_channels=CLASSES, dropout=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            out = model(batch.x, batch.edge_index)[: batch.batch_size]
            loss = F.cross_entropy(out, batch.y[: batch.batch_size])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=3, help="default 3")
    epochs = parser.parse_args().epochs
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        np.save(path, make_data().x.numpy())
        for workers in WORKERS:
            plain = train(make_data(), workers, epochs)
            if len(set(plain)) < 2:
                raise SystemExit("the losses do not move: the comparison says nothing")
            for name, source in [("host", make_data().x), ("file", path)]:
                data = make_data()
                data.x = gnnsys.unified(source, device="cpu")
                same = train(data, workers, epochs) == plain
                differ += not same
                verdict = "the same bit for bit" if same else "DIFFERENT"
                print(f"num_workers={workers} {name}: {len(plain)} losses {verdict}", flush=True)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
