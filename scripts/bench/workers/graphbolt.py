"""Samples with DGL's GraphBolt: python graphbolt.py GRAPH_FOLDER int32|int64

For each hop one call that samples and one that compacts, as its data pipe makes them, without the
pipe. Every hop expands all nodes so far, so equal fanouts give more edges than in PyG.
"""

from __future__ import annotations

import os
import sys

from protocol import open_channel


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl
    import dgl.graphbolt as gb
    import torch
    from sampling_job import Sampler, load_graph, serve_sampler
    from torch import Tensor

    folder, ids_name = sys.argv[1:]
    loaded = load_graph(folder, getattr(torch, ids_name))
    graph = gb.fused_csc_sampling_graph(loaded.indptr, loaded.indices)

    def count(seeds: Tensor, fanouts: list[int]) -> int:
        edges, nodes = 0, seeds
        for fanout in fanouts:
            sampled = graph.sample_neighbors(nodes, torch.tensor([fanout])).sampled_csc
            nodes, _ = gb.unique_and_compact_csc_formats(sampled, nodes)
            edges += sampled.indices.numel()
        return edges

    def export(seeds: Tensor, fanouts: list[int]) -> dict[str, Tensor]:
        arrays, nodes = {}, seeds
        for hop, fanout in enumerate(fanouts):
            sampled = graph.sample_neighbors(nodes, torch.tensor([fanout])).sampled_csc
            arrays[f"targets{hop}"] = nodes
            arrays[f"counts{hop}"] = sampled.indptr.diff()
            arrays[f"sources{hop}"] = sampled.indices
            nodes, compacted = gb.unique_and_compact_csc_formats(sampled, nodes)
            arrays[f"compacted{hop}"] = nodes[compacted.indices.long()]
        return arrays

    versions = {"dgl": dgl.__version__, "ids": ids_name}
    serve_sampler(channel, loaded, Sampler(count, export), versions)


if __name__ == "__main__":
    main()
