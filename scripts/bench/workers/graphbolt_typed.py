"""Delivers GraphBolt's batches of a graph with types: python graphbolt_typed.py GRAPH_FOLDER

Its data pipe from the seeds to the features of all types, over the graph that typed_rmat.py made.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from protocol import open_channel


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl
    import dgl.graphbolt as gb
    import numpy as np
    import torch
    from batches_job import BatchPeer, Request, serve_batches
    from torch import Tensor

    folder = Path(sys.argv[1])
    types = json.loads((folder / "types.json").read_text())
    nodes: dict[str, int] = types["num_nodes"]
    relations = {":".join(kind): kind for kind in types["relations"]}
    seeds = torch.from_numpy(np.load(folder / "seeds.npy"))
    features = {
        ("node", name, "x"): gb.TorchBasedFeature(torch.from_numpy(np.load(folder / f"{name}.npy")))
        for name in nodes
    }
    store = gb.BasicFeatureStore(features)
    graphs: dict[str, Any] = {}

    def load_graph(ids: str) -> Any:
        """All relations in one CSC: the neighbours of a node are ordered by the edge's type."""
        offsets = np.cumsum([0, *nodes.values()])
        first = dict(zip(nodes, offsets.tolist(), strict=False))
        targets, sources, kinds = [], [], []
        for number, (source, relation, target) in enumerate(relations.values()):
            name = folder / f"{source}_{relation}_{target}"
            indptr, indices = (np.load(f"{name}.{part}.npy") for part in ("indptr", "indices"))
            degrees = np.diff(indptr)
            targets.append(np.repeat(np.arange(len(degrees)) + first[target], degrees))
            sources.append(indices.astype(ids) + first[source])
            kinds.append(np.full(len(indices), number, np.uint8))
        target = np.concatenate(targets)
        order = np.argsort(target, kind="stable")
        indptr = np.concatenate(([0], np.cumsum(np.bincount(target, minlength=offsets[-1]))))
        return gb.fused_csc_sampling_graph(
            torch.from_numpy(indptr),
            torch.from_numpy(np.concatenate(sources)[order].astype(ids)),
            node_type_offset=torch.from_numpy(offsets),
            type_per_edge=torch.from_numpy(np.concatenate(kinds)[order]),
            node_type_to_id={name: number for number, name in enumerate(nodes)},
            edge_type_to_id={name: number for number, name in enumerate(relations)},
        )

    def open_pipe(request: Request) -> Any:
        ids = request["ids"]
        if ids not in graphs:
            graphs[ids] = load_graph(ids)
        dgl.utils.set_num_threads(request["threads"])  # of DGL's kernels: torch has its own OpenMP
        size = request["batch_size"]
        begin, end = (
            size * number for number in (request["first"], request["first"] + request["count"])
        )
        taken = seeds[torch.arange(begin, end) % len(seeds)].to(getattr(torch, ids))
        items = gb.ItemSetDict({types["seeds"]: gb.ItemSet(taken, names="seed_nodes")})
        pipe = gb.ItemSampler(items, batch_size=size)
        # GraphBolt names the fanout furthest from the seeds first.
        fanouts = [torch.full((len(relations),), each) for each in request["fanouts"][::-1]]
        pipe = pipe.sample_neighbor(graphs[ids], fanouts)
        pipe = pipe.fetch_feature(store, node_feature_keys={name: ["x"] for name in nodes})
        return gb.DataLoader(pipe, num_workers=request["workers"])

    def measure(batch: gb.MiniBatch) -> dict[str, float]:
        rows = list(batch.node_features.values())
        edges = sum(
            part.indices.numel()
            for hop in batch.sampled_subgraphs
            for part in hop.sampled_csc.values()
        )
        return {
            "nodes": sum(map(len, rows)),
            "edges": edges,
            "bytes": sum(x.numel() * x.element_size() for x in rows),
        }

    def export(batch: gb.MiniBatch) -> dict[str, Tensor]:
        arrays = {}
        for name in nodes:
            arrays[f"node {name}"] = batch.input_nodes[name]
            arrays[f"x {name}"] = batch.node_features[name, "x"]
        first = batch.sampled_subgraphs[-1].sampled_csc
        for name, kind in relations.items():
            edges = first[name].indices.numel() if name in first else 0
            arrays[f"first {'_'.join(kind)}"] = torch.tensor(edges)
        return arrays

    serve_batches(channel, BatchPeer(open_pipe, measure, export), {"dgl": dgl.__version__})


if __name__ == "__main__":
    main()
