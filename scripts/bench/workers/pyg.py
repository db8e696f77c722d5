"""Samples with PyTorch Geometric's compiled operator: python pyg.py GRAPH_FOLDER

That of pyg-lib where it is installed, which PyG prefers too, else that of torch-sparse. Both sample
a homogeneous batch on one thread.
"""

from __future__ import annotations

import sys
from typing import Any

from protocol import open_channel


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    import torch
    import torch_geometric
    from sampling_job import Sampler, load_graph, serve_sampler
    from torch import Tensor

    graph = load_graph(sys.argv[1], torch.int64)
    operator, draw = _find_operator(graph)

    def count(seeds: Tensor, fanouts: list[int]) -> int:
        return draw(seeds, fanouts)["row"].numel()

    versions = {"torch_geometric": torch_geometric.__version__, "operator": operator}
    serve_sampler(channel, graph, Sampler(count, draw), versions)


def _find_operator(graph: Any) -> tuple[str, Any]:
    """Name and version of the operator, and a function that samples a batch with it."""
    import torch

    try:
        import pyg_lib
        from pyg_lib.sampler import neighbor_sample
    except ImportError:
        pyg_lib = None

    def draw_with_pyg_lib(seeds: Any, fanouts: list[int]) -> dict[str, Any]:
        row, col, node, edge, *_ = neighbor_sample(
            graph.indptr, graph.indices, seeds, fanouts, csc=True, return_edge_id=True
        )
        return {"node": node, "row": row, "col": col, "edge": edge}

    def draw_with_torch_sparse(seeds: Any, fanouts: list[int]) -> dict[str, Any]:
        node, row, col, edge = torch.ops.torch_sparse.neighbor_sample(
            graph.indptr, graph.indices, seeds, fanouts, False, True
        )
        return {"node": node, "row": row, "col": col, "edge": edge}

    if pyg_lib is not None:
        return f"pyg-lib {pyg_lib.__version__}", draw_with_pyg_lib
    import torch_sparse

    return f"torch-sparse {torch_sparse.__version__}", draw_with_torch_sparse


if __name__ == "__main__":
    main()
