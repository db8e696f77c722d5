"""Delivers PyG's batches and trains GraphSAGE on them: python pyg_batches.py GRAPH_FOLDER [LABELS]

Its ``NeighborLoader``, which samples with pyg-lib where it is installed, else with torch-sparse.
LABELS is a .npy of a class for each node.
"""

from __future__ import annotations

import sys

from protocol import open_channel


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    import torch
    import torch_geometric
    from batches_job import BatchPeer, Request, read_features, read_labels, serve_batches
    from sage import FORWARDS, make_sage, make_step
    from sampling_job import load_graph
    from torch import Tensor
    from torch_geometric.data import Data
    from torch_geometric.loader import NeighborLoader
    from torch_geometric.sampler import NeighborSampler
    from torch_geometric.typing import WITH_PYG_LIB

    folder, *more = sys.argv[1:]
    graph = load_graph(folder, torch.int64)
    nodes = len(graph.indptr) - 1
    target = torch.repeat_interleave(torch.arange(nodes), graph.indptr.diff())
    data = Data(
        x=read_features(folder),
        y=read_labels(more),
        edge_index=torch.stack([graph.indices, target]),
        num_nodes=nodes,
    )
    samplers: dict[tuple[int, ...], NeighborSampler] = {}

    def open_loader(request: Request) -> NeighborLoader:
        fanouts = tuple(request["fanouts"])
        if fanouts not in samplers:  # making one reads all edges
            samplers[fanouts] = NeighborSampler(data, list(fanouts), is_sorted=True)
        size = request["batch_size"]
        return NeighborLoader(
            data,
            list(fanouts),
            input_nodes=graph.batch(request["first"], size, request["count"]),
            batch_size=size,
            num_workers=request["workers"],
            neighbor_sampler=samplers[fanouts],
        )

    def measure(batch: Data) -> dict[str, float]:
        return {"nodes": len(batch.x), "edges": batch.num_edges, "bytes": batch.x.nbytes}

    def export(batch: Data) -> dict[str, Tensor]:
        row, col = batch.edge_index
        return {"node": batch.n_id, "row": row, "col": col, "edge": batch.e_id, "x": batch.x}

    def make_trainer(request: Request):  # type: ignore[no-untyped-def]
        widths = data.x.shape[1], request["hidden"], request["classes"]
        model = make_sage(*widths, layers=len(request["fanouts"]))
        return make_step(model, FORWARDS[request["model"]], request["lr"])

    versions = {
        "torch_geometric": torch_geometric.__version__,
        "sampler": "pyg-lib" if WITH_PYG_LIB else "torch-sparse",
    }
    serve_batches(channel, BatchPeer(open_loader, measure, export, make_trainer), versions)


if __name__ == "__main__":
    main()
