"""Graphs with many relations, or with types of nodes: real ones, and generated ones of any size."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from harness import BenchError
from knowledge_graph import find_facts, read_facts
from rmat import draw_edges
from workers.relational_graph import RelationGraph

__all__ = ["NAMES", "check_graph", "make_graph"]

_ENTITIES = {"aifb": "Entities/aifb", "mutag": "Entities/mutag"}
_FACTS = {"fb15k-237": "KG/FB15k_237", "wn18rr": "KG/WN18RR"}
_DBLP = ("adjM.npz", "node_types.npy")
_BGS = (916_199, 103, 333_845)  # triples, relations, nodes

NAMES = (*_ENTITIES, "bgs-like", *_FACTS, "dblp")
"""Of graphs, beside "zipf:EDGES:RELATIONS:NODES"."""


def check_graph(name: str, root: Path) -> None:
    """Raises BenchError for a graph that ``make_graph`` does not know or has no files for."""
    if name in _ENTITIES:
        _check(_entities_file(name, root))
    elif name in _FACTS:
        find_facts(root / _FACTS[name] / "raw")
    elif name == "dblp":
        for file in _DBLP:
            _check(root / "DBLP_hetero" / "raw" / file)
    elif name not in NAMES:
        _read_sizes(name)


def make_graph(name: str, root: Path, seed: int) -> RelationGraph:
    """A graph by its name.

    Args:
        name: of ``NAMES``, or zipf:EDGES:RELATIONS:NODES for a generated one.
        root: folder of the data sets.
        seed: of a generated graph.

    Raises:
        BenchError: there is no such graph, or its file is missing.
    """
    check_graph(name, root)
    if name in _ENTITIES:
        return _read_entities(_entities_file(name, root))
    if name in _FACTS:
        facts = read_facts(root / _FACTS[name] / "raw")
        head, relation, tail = facts.parts["train"]
        return _one_type(torch.stack([head, tail]), relation, facts.num_relations, facts.num_nodes)
    if name == "dblp":
        return _read_dblp(root / "DBLP_hetero" / "raw")
    if name == "bgs-like":
        return _with_inverses(_generate(*_BGS, seed))
    return _generate(*_read_sizes(name), seed)


def _entities_file(name: str, root: Path) -> Path:
    return root / _ENTITIES[name] / "raw" / f"{name}_stripped.nt.gz"


def _read_sizes(name: str) -> tuple[int, int, int]:
    """Edges, relations and nodes of a generated graph."""
    kind, *numbers = name.split(":")
    if kind != "zipf" or len(numbers) != 3 or not all(n.isdecimal() and int(n) for n in numbers):
        raise BenchError(
            f"--graphs {name}: expected {', '.join(NAMES)} or zipf:EDGES:RELATIONS:NODES"
        )
    edges, relations, nodes = map(int, numbers)
    return edges, relations, nodes


def _generate(edges: int, relations: int, nodes: int, seed: int) -> RelationGraph:
    """Skewed degrees of R-MAT, pressed into the number of nodes, and sizes of relations by Zipf's
    law: the k-th has a share of 1 / k."""
    levels = max(1, (nodes - 1).bit_length())
    drawn = [np.empty(edges, np.int32) for _ in range(2)]
    draw_edges(levels, seed, *drawn)
    rng = np.random.default_rng(seed)
    ids = rng.permutation(nodes)
    edge_index = np.stack([ids[(each.astype(np.int64) * nodes) >> levels] for each in drawn])
    share = 1 / np.arange(1, relations + 1)
    edge_type = rng.choice(relations, edges, p=share / share.sum())
    return _one_type(torch.from_numpy(edge_index), torch.from_numpy(edge_type), relations, nodes)


def _read_entities(path: Path) -> RelationGraph:
    """RDF triples, in both directions and sorted by source and target, as PyG's Entities has them;
    the inverses of a relation are one too."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        triples = sorted(
            {tuple(line.rstrip(" .\n").split(" ", 2)) for line in lines if line.strip()}
        )
    words = np.array(triples, dtype=object)
    nodes, ends = np.unique(words[:, ::2].astype(str), return_inverse=True)
    by_size = [name for name, _ in Counter(words[:, 1]).most_common()]
    number = {name: place for place, name in enumerate(by_size)}
    kinds = torch.tensor([number[name] for name in words[:, 1]])
    edge_index = torch.from_numpy(ends.reshape(-1, 2)).t()
    both = _with_inverses(_one_type(edge_index, kinds, len(by_size), len(nodes)))
    source, target = both.edge_index
    order = (source * len(nodes) + target).argsort(stable=True)
    return RelationGraph(both.edge_index[:, order], both.edge_type[order], both.ends, both.node_ptr)


def _read_dblp(folder: Path) -> RelationGraph:
    """Four types of nodes, and a relation for each two that have edges between them."""
    matrix = scipy.sparse.load_npz(folder / _DBLP[0]).tocoo()
    types = torch.from_numpy(np.load(folder / _DBLP[1])).long()
    edge_index = torch.from_numpy(np.stack([matrix.row, matrix.col])).long()
    ends, edge_type = types[edge_index].unique(dim=1, return_inverse=True)
    node_ptr = torch.searchsorted(types, torch.arange(int(types[-1]) + 2))
    return RelationGraph(edge_index, edge_type, ends.t().contiguous(), node_ptr)


def _one_type(
    edge_index: torch.Tensor, edge_type: torch.Tensor, relations: int, nodes: int
) -> RelationGraph:
    ends = torch.zeros(relations, 2, dtype=torch.int64)
    return RelationGraph(edge_index.contiguous(), edge_type, ends, torch.tensor([0, nodes]))


def _with_inverses(graph: RelationGraph) -> RelationGraph:
    """With each edge there is one back, of a relation of its own."""
    return RelationGraph(
        torch.cat([graph.edge_index, graph.edge_index.flip(0)], 1),
        torch.cat([2 * graph.edge_type, 2 * graph.edge_type + 1]),
        graph.ends.repeat_interleave(2, 0),
        graph.node_ptr,
    )


def _check(path: Path) -> None:
    if not path.is_file():
        raise BenchError(f"{path}: no such file; --root names the folder of the data sets")
