"""Computes the outputs of a model for all nodes of a folder: python inference_job.py FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from protocol import Clock, open_channel, serve
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

import gnnsys
from gnnsys.system.budget import resident_memory
from gnnsys.training.exact_inference import inference
from gnnsys.training.models import NodeClassifier

_CLASSES = 10


def libraries() -> int:
    """Bytes of anonymous memory of a process that has computed something."""
    data = Data(x=torch.ones(2, 4), edge_index=torch.tensor([[0, 1], [1, 0]]))
    inference(GraphSAGE(4, 4, 1), data)
    return resident_memory().anonymous


def infer(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Writes the outputs of a GraphSAGE with fixed weights to a file."""
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    dataset = gnnsys.open_dataset(folder)
    table: Any = dataset.node_table("features")
    model = NodeClassifier(
        "sage",
        in_channels=table.shape[1],
        hidden=request["hidden"],
        out_channels=_CLASSES,
        layers=request["layers"],
    )
    with Clock() as clock:
        inference(
            model,
            dataset,
            mode=request["mode"],
            block_bytes=request["block_bytes"],
            out=request["out"],
            threads=request["threads"],
        )
    return {
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "nodes": dataset.num_nodes(),
    }


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    folder = Path(sys.argv[1])
    jobs = {
        "infer": lambda ask: infer(folder, ask),
        "libraries": lambda ask: {"bytes": libraries()},
    }
    serve(channel, {"gnnsys": gnnsys.__version__}, jobs)


if __name__ == "__main__":
    main()
