"""Runs relational layers of PyG, or gnnsys' own."""

from __future__ import annotations

from typing import Any

from protocol import open_channel


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    import torch_geometric
    from relational_graph import RelationGraph
    from relational_job import serve_model
    from relational_layers import make_layers
    from torch import Tensor
    from torch.nn import Module

    def make(graph: RelationGraph, request: dict[str, Any], weights: dict[str, Tensor]) -> Module:
        sizes = {name: request[name] for name in ("width", "heads", "depth", "renew")}
        model = make_layers(request["kind"], request["side"], graph, **sizes)
        model.load_state_dict(weights)
        return model

    serve_model(channel, make, {"torch_geometric": torch_geometric.__version__})


if __name__ == "__main__":
    main()
