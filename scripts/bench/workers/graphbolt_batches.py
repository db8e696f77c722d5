"""Delivers GraphBolt's batches and trains DGL's GraphSAGE on them:
python graphbolt_batches.py GRAPH_FOLDER [LABELS]

Its data pipe from the seeds to the features. LABELS is a .npy of a class for each node.
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise

from protocol import open_channel


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl
    import dgl.graphbolt as gb
    import torch
    import torch.nn.functional as F
    from batches_job import BatchPeer, Request, read_features, read_labels, serve_batches
    from dgl.nn import SAGEConv
    from sampling_job import Graph, load_graph
    from torch import Tensor

    folder, *more = sys.argv[1:]
    features, labels = read_features(folder), read_labels(more)
    store = gb.BasicFeatureStore({("node", None, "x"): gb.TorchBasedFeature(features)})
    graphs: dict[str, tuple[Graph, gb.FusedCSCSamplingGraph]] = {}

    def open_pipe(request: Request) -> gb.DataLoader:
        ids = request["ids"]
        if ids not in graphs:
            graph = load_graph(folder, getattr(torch, ids))
            graphs[ids] = graph, gb.fused_csc_sampling_graph(graph.indptr, graph.indices)
        graph, sampled = graphs[ids]
        dgl.utils.set_num_threads(request["threads"])  # of DGL's kernels: torch has its own OpenMP
        size = request["batch_size"]
        seeds = graph.batch(request["first"], size, request["count"])
        if labels is None:
            items = gb.ItemSet(seeds, names="seed_nodes")
        else:
            items = gb.ItemSet((seeds, labels[seeds.long()]), names=("seed_nodes", "labels"))
        pipe = gb.ItemSampler(items, batch_size=size)
        # GraphBolt names the fanout furthest from the seeds first.
        pipe = pipe.sample_neighbor(sampled, request["fanouts"][::-1])
        pipe = pipe.fetch_feature(store, node_feature_keys=["x"])
        return gb.DataLoader(pipe, num_workers=request["workers"])

    def measure(batch: gb.MiniBatch) -> dict[str, float]:
        x = batch.node_features["x"]
        edges = sum(hop.sampled_csc.indices.numel() for hop in batch.sampled_subgraphs)
        return {"nodes": len(x), "edges": edges, "bytes": x.numel() * x.element_size()}

    def export(batch: gb.MiniBatch) -> dict[str, Tensor]:
        return {"node": batch.input_nodes, "x": batch.node_features["x"]}

    class Sage(torch.nn.Module):
        def __init__(self, widths: list[int]) -> None:
            super().__init__()
            convs = (SAGEConv(*pair, "mean") for pair in pairwise(widths))
            self.convs = torch.nn.ModuleList(convs)

        def forward(self, batch: gb.MiniBatch) -> Tensor:
            x = batch.node_features["x"]
            *hidden, last = zip(self.convs, batch.blocks, strict=True)
            for conv, block in hidden:
                x = F.relu(conv(block, x))
            conv, block = last
            return conv(block, x)

    def make_trainer(request: Request):  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        hidden = [request["hidden"]] * (len(request["fanouts"]) - 1)
        model = Sage([features.shape[1], *hidden, request["classes"]])
        optimizer = torch.optim.Adam(model.parameters(), lr=request["lr"])

        def step(batch: gb.MiniBatch) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch), batch.labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    versions = {"dgl": dgl.__version__}
    serve_batches(channel, BatchPeer(open_pipe, measure, export, make_trainer), versions)


if __name__ == "__main__":
    main()
