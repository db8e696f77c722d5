"""Makes a graph with the types of DBLP, of any size, and with R-MAT's skewed degrees.

DBLP (Fu et al.: "MAGNN: Metapath Aggregated Graph Neural Network for Heterogeneous Graph
Embedding", WWW 2020) has authors, papers, terms and conferences, and edges between papers and each
of the others, here in both directions. Shares of nodes and edges are its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import BenchError
from numpy.typing import NDArray
from rmat import check_folder, draw_edges, make_csc, make_folder, write_features

__all__ = ["SEED_TYPE", "EdgeType", "TypedGraph", "TypedSpec", "make_typed", "open_typed"]

EdgeType = tuple[str, str, str]

SEED_TYPE = "author"
"""The type of the seeds: what is classified in DBLP."""

_NODES = {"author": 4057, "paper": 14328, "term": 7723, "conference": 20}
_EDGES = {"author": 19645, "term": 85810, "conference": 14328}  # between them and papers
_LEAST_SCALE, _MAX_SCALE = 6, 30


@dataclass(frozen=True, kw_only=True, slots=True)
class TypedSpec:
    """What a graph is made from."""

    scale: int
    """log2 of the number of nodes of all types."""
    seed: int = 1
    """Of edges, ids, seeds and features."""
    dim: int = 0
    """float32 features of each node; 0 writes none."""
    shape: str = "dblp"
    """What types there are."""

    def __post_init__(self) -> None:
        if not _LEAST_SCALE <= self.scale <= _MAX_SCALE:
            raise BenchError(f"scale {self.scale}: expected {_LEAST_SCALE} to {_MAX_SCALE}")
        if self.seed < 0 or self.dim < 0:
            raise BenchError(f"seed {self.seed} and dim {self.dim}: neither may be negative")

    @property
    def num_nodes(self) -> dict[str, int]:
        """By type; they add up to 2 to the power of ``scale``."""
        counts = {name: max(1, round(count * self._growth)) for name, count in _NODES.items()}
        counts["paper"] += (1 << self.scale) - sum(counts.values())
        return counts

    @property
    def num_edges(self) -> dict[EdgeType, int]:
        """By type, counted with repetitions."""
        found = {}
        for other, count in _EDGES.items():
            for kind in _both_ways(other):
                found[kind] = round(count * self._growth)
        return found

    @property
    def _growth(self) -> float:
        return (1 << self.scale) / sum(_NODES.values())


@dataclass(frozen=True, slots=True)
class TypedGraph:
    """A graph in memory."""

    spec: TypedSpec
    relations: dict[EdgeType, tuple[NDArray[np.int64], NDArray[np.int32]]]
    """(targets + 1,) where the in-neighbours of each target begin, and (edges,) these, ascending
    for each."""
    seeds: NDArray[np.int64]  # of SEED_TYPE, those that have in-neighbours, shuffled


def generate(spec: TypedSpec) -> TypedGraph:
    """The graph of ``spec``, always the same one.

    A square of R-MAT is drawn for each pair of types and pressed into their rectangle; a node has
    the same place in all of them, so that it has many edges of each type or few.
    """
    rng = np.random.default_rng(spec.seed)
    sizes = spec.num_nodes
    ids = {name: rng.permutation(size).astype(np.int32) for name, size in sizes.items()}
    levels = (max(sizes.values()) - 1).bit_length()

    def press(places: NDArray[np.int32], name: str) -> NDArray[np.int32]:
        return ids[name][(places.astype(np.int64) * sizes[name]) >> levels]

    relations = {}
    for number, other in enumerate(_EDGES):
        there, back = _both_ways(other)
        drawn = [np.empty(spec.num_edges[there], np.int32) for _ in range(2)]
        draw_edges(levels, spec.seed * len(_EDGES) + number, *drawn)
        paper, end = press(drawn[0], "paper"), press(drawn[1], other)
        relations[there] = make_csc(paper, end, sizes[other])
        relations[back] = make_csc(end, paper, sizes["paper"])
    indptr, _ = relations["paper", "to", SEED_TYPE]
    return TypedGraph(spec, relations, rng.permutation(np.flatnonzero(np.diff(indptr))))


def make_typed(folder: Path, spec: TypedSpec) -> TypedGraph:
    """Generates a graph into a folder that does not exist yet.

    types.json there has the types; "A_to_B.indptr.npy" and "A_to_B.indices.npy" the relations;
    seeds.npy the seeds; and, where ``spec`` has a ``dim``, "A.npy" the features.

    Raises:
        BenchError: the folder exists, or its parent does not.
    """

    def write(partial: Path) -> TypedGraph:
        graph = generate(spec)
        for kind, (indptr, indices) in graph.relations.items():
            np.save(partial / f"{'_'.join(kind)}.indptr.npy", indptr)
            np.save(partial / f"{'_'.join(kind)}.indices.npy", indices)
        np.save(partial / "seeds.npy", graph.seeds)
        for number, (name, size) in enumerate(spec.num_nodes.items()):
            if spec.dim:
                write_features(partial / f"{name}.npy", (size, spec.dim), (spec.seed, number))
        types = {
            "num_nodes": spec.num_nodes,
            "relations": list(graph.relations),
            "seeds": SEED_TYPE,
        }
        (partial / "types.json").write_text(json.dumps(types) + "\n")
        return graph

    return make_folder(folder, spec, write)


def open_typed(folder: Path, spec: TypedSpec) -> TypedGraph:
    """Loads the graph in ``folder``, not its features; a ``spec`` without features takes any.

    Raises:
        BenchError: there is none, or it was made from something else than ``spec``.
    """
    check_folder(folder, spec)
    relations = {}
    for kind in spec.num_edges:
        name = "_".join(kind)
        relations[kind] = (
            np.load(folder / f"{name}.indptr.npy"),
            np.load(folder / f"{name}.indices.npy"),
        )
    return TypedGraph(spec, relations, np.load(folder / "seeds.npy"))


def _both_ways(other: str) -> tuple[EdgeType, EdgeType]:
    return ("paper", "to", other), (other, "to", "paper")
