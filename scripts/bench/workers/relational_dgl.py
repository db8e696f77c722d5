"""Runs relational layers of DGL, with PyG's weights.

RelGraphConv and HGTConv of dgl.nn. DGL has no relational GAT whose softmax is over all edges of a
target, as PyG's: here it is made of its TypedLinear and edge_softmax. Edges are sorted by relation
before the clock runs, which DGL is faster on, and all formats of the graph are made.
"""

from __future__ import annotations

import os
from typing import Any

from protocol import open_channel


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl
    import dgl.function as fn
    import torch
    import torch.nn.functional as F
    from dgl.nn import HGTConv, RelGraphConv
    from dgl.nn.functional import edge_softmax
    from dgl.nn.pytorch import TypedLinear
    from relational_graph import RelationGraph
    from relational_job import serve_model
    from torch import Tensor
    from torch.nn import Module, Parameter

    Weights = dict[str, Tensor]

    class Rgat(Module):
        """PyG's RGATConv, step by step."""

        def __init__(self, weights: Weights, heads: int) -> None:
            super().__init__()
            relations, width, out = weights["weight"].shape
            self.linear = TypedLinear(width, out, relations)
            self.linear.W = Parameter(weights["weight"])
            self.q, self.k, self.bias = (Parameter(weights[name]) for name in ("q", "k", "bias"))
            self._heads = heads

        def forward(self, graph: Any, x: Tensor, kinds: Tensor) -> Tensor:
            with graph.local_scope():
                graph.ndata["x"] = x
                graph.apply_edges(
                    lambda edges: {
                        "i": self.linear(edges.dst["x"], kinds, True),
                        "j": self.linear(edges.src["x"], kinds, True),
                    }
                )
                j = graph.edata["j"]
                logits = F.leaky_relu(graph.edata["i"] @ self.q + j @ self.k, 0.2)
                alpha = edge_softmax(graph, logits).unsqueeze(-1)
                graph.edata["m"] = alpha * j.view(len(j), self._heads, -1)
                graph.update_all(fn.copy_e("m", "m"), fn.sum("m", "h"))
                return graph.ndata["h"].flatten(1) + self.bias

    class Stack(Module):
        """Layers with relu between them."""

        def __init__(self, graph: RelationGraph, kind: str, convs: list[Module]) -> None:
            super().__init__()
            self.convs, self._kind = torch.nn.ModuleList(convs), kind
            order = graph.edge_type.argsort(stable=True)
            source, target = graph.edge_index[:, order]
            self._kinds = graph.edge_type[order]
            self._graph = dgl.graph((source, target), num_nodes=graph.num_nodes)
            self._graph.create_formats_()
            pairs = target * graph.num_relations + self._kinds
            _, of_edge, counts = pairs.unique(return_inverse=True, return_counts=True)
            self._norm = (1 / counts[of_edge]).unsqueeze(1)
            sizes = graph.node_ptr.diff()
            self._types = torch.arange(len(sizes)).repeat_interleave(sizes)

        def forward(self, x: Tensor) -> Tensor:
            for number, conv in enumerate(self.convs):
                if number:
                    x = x.relu()
                if self._kind == "rgcn":
                    x = conv(self._graph, x, self._kinds, self._norm, presorted=True)
                elif self._kind == "rgat":
                    x = conv(self._graph, x, self._kinds)
                else:
                    x = conv(self._graph, x, self._types, self._kinds, presorted=True)
            return x

    def make_rgcn(weights: Weights) -> Module:
        relations, width, out = weights["weight"].shape
        conv = RelGraphConv(width, out, relations)
        state = {
            "linear_r.W": weights["weight"],
            "h_bias": weights["bias"],
            "loop_weight": weights["root"],
        }
        conv.load_state_dict(state)
        return conv

    def make_hgt(graph: RelationGraph, weights: Weights, heads: int) -> Module:
        """Without the biases and the gelu that PyG's has."""
        types, relations = graph.metadata()
        kqv = torch.stack([weights[f"kqv_lin.lins.{name}.weight"].t() for name in types])
        out = torch.stack([weights[f"out_lin.lins.{name}.weight"].t() for name in types])
        scale = [weights[f"p_rel.{'__'.join(kind)}"].flatten() for kind in relations]
        width = out.shape[1]
        conv = HGTConv(width, width // heads, heads, len(types), len(relations), dropout=0)
        state = dict(zip(("linear_k.W", "linear_q.W", "linear_v.W"), kqv.chunk(3, 2), strict=True))
        state |= {
            "linear_a.W": out,
            "skip": torch.cat([weights[f"skip.{name}"] for name in types]),
        }
        parts = zip(
            weights["k_rel.weight"].chunk(heads),
            weights["v_rel.weight"].chunk(heads),
            torch.stack(scale).unbind(1),
            strict=True,
        )
        for head, (att, msg, pri) in enumerate(parts):
            state[f"relation_att.{head}.W"], state[f"relation_msg.{head}.W"] = att, msg
            state[f"relation_pri.{head}"] = pri
        conv.load_state_dict(state)
        return conv

    def make(graph: RelationGraph, request: dict[str, Any], weights: Weights) -> Module:
        dgl.utils.set_num_threads(request["threads"])  # of DGL's kernels: torch has its own OpenMP
        kind, heads, convs = request["kind"], request["heads"], []
        for number in range(request["depth"]):
            start = f"convs.{number}."
            mine = {
                name[len(start) :]: value
                for name, value in weights.items()
                if name.startswith(start)
            }
            if kind == "rgcn":
                convs.append(make_rgcn(mine))
            elif kind == "rgat":
                convs.append(Rgat(mine, heads))
            else:
                convs.append(make_hgt(graph, mine, heads))
        return Stack(graph, kind, convs)

    serve_model(channel, make, {"dgl": dgl.__version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
