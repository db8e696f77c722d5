"""All options of the sampler against a walk in plain Python over lists of edges.

The walk knows PyG's order (hop by hop, edge type by edge type, targets by local id) and is given
which edges the sampler took for each node: it checks that these are a legal choice, and that nodes,
rows, columns and counts follow from them.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.sampler import HeteroSamplerOutput, NodeSamplerInput, NumNeighbors

from gnnsys import _core
from gnnsys.loaders import NeighborSampler

A_TO_B, B_TO_A, A_TO_A = ("a", "to", "b"), ("b", "rev_to", "a"), ("a", "likes", "a")
C_TO_B, B_TO_C, C_TO_A = ("c", "in", "b"), ("b", "has", "c"), ("c", "none", "a")


@dataclass
class Lists:
    """A graph as lists: ``edges[type]`` are (source, target), ``time`` of nodes or of edges."""

    num_nodes: dict[Any, int]
    edges: dict[Any, list[tuple[int, int]]]
    node_time: dict[Any, list[int]] = field(default_factory=dict)
    edge_time: dict[Any, list[int]] = field(default_factory=dict)
    weight: dict[Any, list[float]] = field(default_factory=dict)

    @property
    def is_typed(self) -> bool:
        return None not in self.num_nodes

    def data(self) -> Any:
        data = HeteroData() if self.is_typed else Data()
        for kind, count in self.num_nodes.items():
            store = data[kind] if self.is_typed else data
            store.num_nodes = count
            if kind in self.node_time:
                store.time = torch.tensor(self.node_time[kind])
        for kind, pairs in self.edges.items():
            store = data[kind] if self.is_typed else data
            store.edge_index = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).t()
            if kind in self.edge_time:
                store.time = torch.tensor(self.edge_time[kind], dtype=torch.int64)
            if kind in self.weight:
                store.weight = torch.tensor(self.weight[kind], dtype=torch.float64)
        return data


def random_lists(seed: int, typed: bool, times: str = "", latest: int = 30) -> Lists:
    """Few nodes and many edges: self-loops, duplicates, and nodes without any."""
    draw = np.random.default_rng(seed)
    if typed:
        num_nodes = {"a": 12, "b": 9, "c": 5}
        sizes = {A_TO_B: 40, B_TO_A: 40, A_TO_A: 30, C_TO_B: 12, B_TO_C: 15, C_TO_A: 0}
    else:
        num_nodes, sizes = {None: 15}, {None: 60}
    graph = Lists(num_nodes, {})
    for kind, size in sizes.items():
        ends = (kind[0], kind[-1]) if typed else (None, None)
        source, target = (draw.integers(0, num_nodes[end], size) for end in ends)
        graph.edges[kind] = list(zip(source.tolist(), target.tolist(), strict=True))
    if times == "nodes":  # type c has none
        timed = [kind for kind in num_nodes if kind != "c"]
        graph.node_time = {k: draw.integers(0, latest, num_nodes[k]).tolist() for k in timed}
    if times == "edges":  # b to a has none
        timed = [kind for kind in sizes if kind != B_TO_A]
        graph.edge_time = {kind: draw.integers(0, latest, sizes[kind]).tolist() for kind in timed}
    return graph


def random_seeds(seed: int, graph: Lists, count: int = 4) -> dict[Any, list[int]]:
    draw = np.random.default_rng(seed)
    return {k: draw.integers(0, n, count).tolist() for k, n in graph.num_nodes.items() if k != "c"}


def typed(out: Any, perm: Any) -> tuple[HeteroSamplerOutput, Any]:
    """A homogeneous output as one with the only type None."""
    if isinstance(out, HeteroSamplerOutput):
        return out, perm
    parts = (out.node, out.row, out.col, out.edge, out.batch)
    parts += (out.num_sampled_nodes, out.num_sampled_edges)
    return HeteroSamplerOutput(*(None if p is None else {None: p} for p in parts)), {None: perm}


def user_edges(out: HeteroSamplerOutput, perm: Any) -> dict[Any, list[int]]:
    return {
        kind: (edge if perm[kind] is None else perm[kind][edge]).tolist()
        for kind, edge in out.edge.items()
    }


def check_walk(
    graph: Lists,
    seeds: dict[Any, list[int]],
    fanouts: dict[Any, list[int]],
    found: Any,
    perm: Any,
    *,
    replace: bool = False,
    disjoint: bool = False,
    backward: bool = False,
    seed_time: dict[Any, list[int]] | None = None,
    time_window: dict[Any, int] | None = None,
    last_n: dict[Any, int] | None = None,
    legal: Callable[[list[int], list[int], int, bool], bool] | None = None,
) -> None:
    """Replays the walk with the edges that were taken and compares everything with it.

    ``legal(taken, candidates, fanout, timed)`` says more about a choice than its size does.
    """
    out, perm = typed(found, perm)
    sampled, edges_of = user_edges(out, perm), {}
    for kind, number in sampled.items():
        targets = (out.row if backward else out.col)[kind].tolist()
        for edge, target in zip(number, targets, strict=True):
            edges_of.setdefault((kind, target), []).append(edge)

    batch = 0
    nodes: dict[Any, list[tuple[int, int]]] = {kind: [] for kind in graph.num_nodes}
    time_of_batch = {}
    for kind, ids in seeds.items():
        given = (seed_time or {}).get(kind) or [
            graph.node_time.get(kind, dict.fromkeys(ids, 0))[i] for i in ids
        ]
        for node, time in zip(ids, given, strict=True):
            nodes[kind].append((batch if disjoint else -1, node))
            time_of_batch[batch] = time
            batch += 1
    place: dict[Any, dict[tuple[int, int], int]] = {kind: {} for kind in nodes}
    for kind, keys in nodes.items():
        for i, key in enumerate(keys):
            place[kind].setdefault(key, i)
    triples = {kind: ([], [], []) for kind in graph.edges}
    node_counts = {kind: [len(keys)] for kind, keys in nodes.items()}
    edge_counts = {kind: [] for kind in graph.edges}
    first = dict.fromkeys(nodes, 0)
    for hop in range(max(len(f) for f in fanouts.values())):
        last = {kind: len(keys) for kind, keys in nodes.items()}
        for kind in graph.edges:
            ends = (kind[0], kind[-1]) if kind else (None, None)
            source_type, target_type = ends[::-1] if backward else ends
            rows, cols, numbers = triples[kind]
            before = len(rows)
            for local in range(first[target_type], last[target_type]):
                group, node = nodes[target_type][local]
                sources, timed = in_edges(
                    graph,
                    kind,
                    node,
                    time_of_batch.get(group),
                    backward,
                    (time_window or {}).get(kind),
                    (last_n or {}).get(kind),
                )
                taken = edges_of.pop((kind, local), [])
                check_choice(taken, list(sources), fanouts[kind][hop], replace, legal, timed)
                for edge in taken:
                    key = (group, sources[edge])
                    if key not in place[source_type]:
                        place[source_type][key] = len(nodes[source_type])
                        nodes[source_type].append(key)
                    rows.append(place[source_type][key])
                    cols.append(local)
                    numbers.append(edge)
            edge_counts[kind].append(len(rows) - before)
        first = last
        for kind, keys in nodes.items():
            node_counts[kind].append(len(keys) - last[kind])
    assert not edges_of
    assert {k: v.tolist() for k, v in out.node.items()} == {
        kind: [node for _, node in keys] for kind, keys in nodes.items()
    }
    if disjoint:
        assert {k: v.tolist() for k, v in out.batch.items()} == {
            kind: [group for group, _ in keys] for kind, keys in nodes.items()
        }
    else:
        assert out.batch is None
    for kind, (rows, cols, numbers) in triples.items():
        assert out.row[kind].tolist() == (cols if backward else rows)
        assert out.col[kind].tolist() == (rows if backward else cols)
        assert sampled[kind] == numbers
    assert out.num_sampled_nodes == node_counts
    assert out.num_sampled_edges == edge_counts


def in_edges(
    graph: Lists,
    kind: Any,
    node: int,
    latest: int | None,
    backward: bool,
    window: int | None = None,
    newest: int | None = None,
) -> tuple[dict[int, int], bool]:
    """The source of every edge that may be sampled for a node, by edge number and in the order of
    the CSC; and whether they have times, which rule out what is later than ``latest``, older than
    the window or not among the newest."""
    pairs = [pair[::-1] if backward else pair for pair in graph.edges[kind]]
    sources = {edge: source for edge, (source, target) in enumerate(pairs) if target == node}
    times: Any = graph.edge_time.get(kind)
    if times is None and (kind[0] if kind else None) in graph.node_time:
        time_of = graph.node_time[kind[0] if kind else None]
        times = {edge: time_of[source] for edge, source in sources.items()}
    if times is None:
        return sources, False
    in_time = [edge for edge in sorted(sources, key=lambda e: times[e]) if times[edge] <= latest]
    if window is not None:
        in_time = [edge for edge in in_time if times[edge] >= latest - window]
    if newest is not None:
        in_time = in_time[-newest:]
    return {edge: sources[edge] for edge in in_time}, True


def check_choice(taken, candidates, fanout, replace, legal, timed) -> None:
    positions = [candidates.index(edge) for edge in taken]
    assert positions == sorted(positions), "neighbours stand in the order of the CSC"
    if fanout < 0 or (not replace and fanout >= len(candidates)):
        assert taken == candidates
    else:
        assert legal is not None or len(taken) == (fanout if candidates else 0)
        assert replace or len(set(taken)) == len(taken)
    if legal is not None:
        assert legal(taken, candidates, fanout, timed)


def spread(fanouts: list[int], graph: Lists) -> dict[Any, list[int]]:
    return dict.fromkeys(graph.edges, fanouts)


def draw(sampler: NeighborSampler, seeds: dict[Any, list[int]], group: int = 0) -> Any:
    ids = {kind: torch.tensor(part) for kind, part in seeds.items()}
    return sampler.sample(ids if sampler.is_hetero else ids[None], group=group)


def flat(out: Any) -> Any:
    """An output as nested lists, to compare."""
    if isinstance(out, torch.Tensor):
        return out.tolist()
    if isinstance(out, dict):
        return {key: flat(value) for key, value in out.items()}
    if out is None or isinstance(out, list):
        return out
    names = ("node", "row", "col", "edge", "batch", "num_sampled_nodes", "num_sampled_edges")
    return [flat(getattr(out, name)) for name in names]


GRAPHS = pytest.mark.parametrize("typed_graph", [False, True], ids=["homogeneous", "typed"])
FANOUTS = [[-1, -1, -1], [2, 3], [1, 0, 2], [4, -1]]


@GRAPHS
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("fanouts", FANOUTS, ids=str)
def test_batches_are_legal_walks(typed_graph, disjoint, replace, backward, fanouts):
    for number in range(4):
        graph = random_lists(number, typed_graph)
        seeds = random_seeds(number, graph)
        sampler = NeighborSampler(
            graph.data(),
            fanouts,
            replace=replace,
            disjoint=disjoint,
            sample_direction="backward" if backward else "forward",
            seed=number,
        )
        check_walk(
            graph,
            seeds,
            spread(fanouts, graph),
            draw(sampler, seeds),
            sampler.edge_permutation,
            replace=replace,
            disjoint=disjoint,
            backward=backward,
        )


@pytest.mark.parametrize("default", [False, True])
def test_every_edge_type_has_its_own_fanouts(default):
    graph = random_lists(3, True)
    fanouts = {A_TO_B: [2, 1], B_TO_A: [-1, 0], A_TO_A: [0, 3], C_TO_B: [1, -1], B_TO_C: [1, 1]}
    given = NumNeighbors(fanouts, default=[0, 2]) if default else fanouts | {C_TO_A: [0, 2]}
    seeds = random_seeds(3, graph)
    sampler = NeighborSampler(graph.data(), given)
    out = draw(sampler, seeds)
    check_walk(graph, seeds, fanouts | {C_TO_A: [0, 2]}, out, sampler.edge_permutation)


@GRAPHS
@pytest.mark.parametrize("times", ["nodes", "edges"])
@pytest.mark.parametrize("strategy", ["uniform", "last"])
@pytest.mark.parametrize("replace", [False, True])
def test_no_neighbour_is_newer_than_its_seed(typed_graph, times, strategy, replace):
    def legal(taken, candidates, fanout, timed):
        last = strategy == "last" and timed
        eligible = candidates[-fanout:] if last else candidates
        if replace:  # as in pyg-lib also "last" draws with replacement, among the newest
            return set(taken) <= set(eligible) and len(taken) == (fanout if eligible else 0)
        return taken == eligible or (not last and len(taken) == fanout)

    for number in range(6):
        graph = random_lists(number, typed_graph, times)
        seeds = random_seeds(number, graph)
        late = np.random.default_rng(number).integers(5, 30, 4).tolist()
        own_times = times == "nodes" and number % 2 == 0
        given = None if own_times else dict.fromkeys(seeds, late)
        sampler = NeighborSampler(
            graph.data(), [2, 3], replace=replace, temporal_strategy=strategy, time_attr="time"
        )
        ids = {kind: torch.tensor(part) for kind, part in seeds.items()}
        when = None if own_times else {kind: torch.tensor(late) for kind in seeds}
        out = (
            sampler._sample(ids, when)
            if typed_graph
            else sampler._sample(ids[None], when and when[None])
        )
        check_walk(
            graph,
            seeds,
            spread([2, 3], graph),
            out,
            sampler.edge_permutation,
            replace=replace,
            disjoint=True,
            seed_time=given,
            legal=legal,
        )


@GRAPHS
@pytest.mark.parametrize("times", ["nodes", "edges"])
@pytest.mark.parametrize("by_type", [False, True])
def test_neighbours_are_of_the_window_and_of_the_newest(typed_graph, times, by_type):
    for number in range(12):
        graph = random_lists(number, typed_graph, times)
        timed = [k for k in graph.edges if k in graph.edge_time or (k or [k])[0] in graph.node_time]
        if by_type and typed_graph:
            timed = timed[1:]  # the others have no limits
        chance = np.random.default_rng(number)
        window = int(chance.integers(0, 20)) if number % 3 else None
        last_n = int(chance.integers(1, 5)) if number % 3 != 1 else None
        options = {"temporal_strategy": "last"} if number % 4 == 3 else {}
        limits = {
            name: dict.fromkeys(timed, limit)
            for name, limit in (("time_window", window), ("last_n", last_n))
            if limit is not None
        }
        as_given = {
            name: limit if by_type and typed_graph else limit[timed[0]]
            for name, limit in limits.items()
        }
        fanouts = [[2, 3], [-1, 2]][number % 2]
        sampler = NeighborSampler(
            graph.data(), fanouts, time_attr="time", seed=number, **options, **as_given
        )
        seeds = random_seeds(number, graph)
        late = chance.integers(5, 30, 4).tolist()
        ids = {kind: torch.tensor(part) for kind, part in seeds.items()}
        when = {kind: torch.tensor(late) for kind in seeds}
        parts = (ids, when) if typed_graph else (ids[None], when[None])

        def legal(taken, candidates, fanout, timed, last="temporal_strategy" in options):
            if last and timed and fanout >= 0:
                return taken == candidates[-fanout:]
            return len(taken) == (min(fanout, len(candidates)) if fanout >= 0 else len(candidates))

        check_walk(
            graph,
            seeds,
            spread(fanouts, graph),
            sampler._sample(*parts),
            sampler.edge_permutation,
            disjoint=True,
            seed_time=dict.fromkeys(seeds, late),
            legal=legal,
            **limits,
        )


@GRAPHS
def test_weights_decide_what_can_be_drawn(typed_graph):
    for number in range(6):
        graph = random_lists(number, typed_graph)
        chance = np.random.default_rng(number)
        kinds = [kind for kind in graph.edges if kind != B_TO_A]  # which is sampled uniformly
        graph.weight = {
            k: chance.choice([0.0, 0.5, 2.0], len(graph.edges[k])).tolist() for k in kinds
        }
        weight = {k: graph.weight.get(k, [1.0] * len(pairs)) for k, pairs in graph.edges.items()}
        seeds = random_seeds(number, graph)
        sampler = NeighborSampler(graph.data(), [2, 2], weight_attr="weight")
        out, perm = typed(draw(sampler, seeds), sampler.edge_permutation)
        for kind, edges in user_edges(out, perm).items():
            end = kind[-1] if kind else None
            for target in range(sum(out.num_sampled_nodes[end][:2])):
                node = out.node[end][target]
                degree = sum(t == node for _, t in graph.edges[kind])
                taken = [
                    e for e, c in zip(edges, out.col[kind].tolist(), strict=True) if c == target
                ]
                if degree > 2:
                    heavy = sum(
                        t == node and weight[kind][e] > 0
                        for e, (_, t) in enumerate(graph.edges[kind])
                    )
                    assert all(weight[kind][edge] > 0 for edge in taken)
                    assert len(taken) == min(2, heavy)
                else:
                    assert len(taken) == degree


@GRAPHS
@pytest.mark.parametrize("option", [{}, {"disjoint": True}, {"time_attr": "time"}], ids=str)
def test_labor_batches_are_legal_walks(typed_graph, option):
    for number in range(4):
        graph = random_lists(number, typed_graph, "nodes" if "time_attr" in option else "")
        seeds = random_seeds(number, graph)
        sampler = NeighborSampler(graph.data(), [2, 2], sampling="labor", seed=number, **option)
        check_walk(
            graph,
            seeds,
            spread([2, 2], graph),
            draw(sampler, seeds),
            sampler.edge_permutation,
            disjoint=bool(option),
            legal=lambda taken, candidates, fanout, timed: set(taken) <= set(candidates),
        )


@GRAPHS
def test_labor_keeps_a_node_first_where_it_has_few_rivals(typed_graph):
    """A node with the draw r is kept by all targets whose number of neighbours is below fanout/r,
    and by no other, of whichever edge type."""
    for number in range(8):
        graph = random_lists(number, typed_graph)
        seeds = random_seeds(number, graph)
        sampler = NeighborSampler(graph.data(), [2], sampling="labor", seed=number)
        out, perm = typed(draw(sampler, seeds), sampler.edge_permutation)
        taken = user_edges(out, perm)
        kept: dict[Any, list[int]] = {}
        left: dict[Any, list[int]] = {}
        for kind, pairs in graph.edges.items():
            first, last = (kind[0], kind[-1]) if kind else (None, None)
            for target in set(seeds.get(last, [])):
                edges = [e for e, (_, t) in enumerate(pairs) if t == target]
                for edge in edges:
                    where = kept if edge in taken[kind] else left
                    where.setdefault((first, pairs[edge][0]), []).append(len(edges))
        assert left
        for source, degrees in kept.items():
            assert max(degrees) < min(left.get(source, [1000]))


@GRAPHS
def test_disjoint_trees_are_those_of_the_seeds_alone(typed_graph):
    graph = random_lists(1, typed_graph)
    seeds = random_seeds(1, graph)
    together = NeighborSampler(graph.data(), [-1, -1], disjoint=True)
    alone = NeighborSampler(graph.data(), [-1, -1])
    out, perm = typed(draw(together, seeds), together.edge_permutation)
    batch = 0
    for kind, ids in seeds.items():
        for node in ids:
            one, _ = typed(draw(alone, {kind: [node]}), perm)
            for other, nodes in out.node.items():
                tree = nodes[out.batch[other] == batch]
                assert sorted(tree.tolist()) == sorted(one.node[other].tolist())
            for relation, edges in user_edges(one, perm).items():
                target_type = relation[-1] if relation else None
                mine = out.batch[target_type][out.col[relation]] == batch
                tree_edges = torch.tensor(user_edges(out, perm)[relation])[mine.numpy()]
                assert sorted(tree_edges.tolist()) == sorted(edges)
            batch += 1


@GRAPHS
def test_induced_batches_have_all_edges_among_the_sampled_nodes(typed_graph):
    for number in range(5):
        graph = random_lists(number, typed_graph)
        seeds = random_seeds(number, graph)
        sampler = NeighborSampler(graph.data(), [2, 2], subgraph_type="induced", seed=number)
        out, perm = typed(draw(sampler, seeds), sampler.edge_permutation)
        directional = NeighborSampler(graph.data(), [2, 2], seed=number)
        walked, _ = typed(draw(directional, seeds), directional.edge_permutation)
        assert flat(out.node) == flat(walked.node)
        assert out.num_sampled_nodes is None
        assert out.num_sampled_edges is None
        numbers = user_edges(out, perm)
        for kind, pairs in graph.edges.items():
            sources, targets = (
                out.node[end].tolist() for end in ((kind[0], kind[-1]) if kind else (None, None))
            )
            expected = [
                (sources.index(s), place, e)
                for place, node in enumerate(targets)
                for e, (s, t) in enumerate(pairs)
                if t == node and s in sources
            ]
            rows, cols = out.row[kind].tolist(), out.col[kind].tolist()
            assert list(zip(rows, cols, numbers[kind], strict=True)) == expected


def test_bidirectional_batches_have_every_edge_both_ways():
    graph = random_lists(2, False)
    seeds = random_seeds(2, graph)
    one_way = draw(NeighborSampler(graph.data(), [2, 2]), seeds)
    sampler = NeighborSampler(graph.data(), [2, 2], subgraph_type="bidirectional")
    out = draw(sampler, seeds)
    pairs = set(zip(one_way.row.tolist(), one_way.col.tolist(), strict=True))
    both = pairs | {(col, row) for row, col in pairs}
    found = list(zip(out.row.tolist(), out.col.tolist(), strict=True))
    assert found == sorted(both, key=lambda pair: (pair[1], pair[0]))
    assert out.num_sampled_nodes is None
    numbers = sampler.edge_permutation[out.edge].tolist()
    for (row, col), number in zip(found, numbers, strict=True):
        ends = int(out.node[row]), int(out.node[col])
        assert graph.edges[None][number] in (ends, ends[::-1])


def test_bidirectional_batches_of_types_join_reverse_edge_types():
    graph = random_lists(2, True)
    del graph.edges[C_TO_B], graph.edges[B_TO_C], graph.edges[C_TO_A]
    seeds = random_seeds(2, graph)
    one_way = draw(NeighborSampler(graph.data(), [2, 2]), seeds)
    out = draw(NeighborSampler(graph.data(), [2, 2], subgraph_type="bidirectional"), seeds)

    def pairs(batch, kind):
        return set(zip(batch.row[kind].tolist(), batch.col[kind].tolist(), strict=True))

    reverse = {(col, row) for row, col in pairs(one_way, B_TO_A)}
    assert pairs(out, A_TO_B) == pairs(one_way, A_TO_B) | reverse
    assert pairs(out, B_TO_A) == {(col, row) for row, col in pairs(out, A_TO_B)}
    likes = pairs(one_way, A_TO_A)
    assert pairs(out, A_TO_A) == likes | {(col, row) for row, col in likes}


# The same batch, however it is asked for ---------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"replace": True},
    {"disjoint": True},
    {"sampling": "labor"},
    {"weight_attr": "weight"},
    {"time_attr": "time"},
    {"time_attr": "time", "temporal_strategy": "last"},
    {"time_attr": "time", "time_window": 60, "last_n": 9},
    {"subgraph_type": "induced"},
    {"subgraph_type": "bidirectional"},
]


def large_graph(typed_graph: bool, option: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Data of 2,000 nodes and 40,000 edges, and seeds for it."""
    chance = torch.Generator().manual_seed(0)
    data = HeteroData() if typed_graph else Data()
    kinds = [("a", "x", "b"), ("b", "y", "a"), ("a", "z", "a")] if typed_graph else [None]
    for kind in ("a", "b") if typed_graph else (None,):
        store = data[kind] if kind else data
        store.num_nodes = 1000 if kind else 2000
        if "time_attr" in option:
            store.time = torch.randint(0, 100, (store.num_nodes,), generator=chance)
    for kind in kinds:
        store, nodes = (data[kind], 1000) if kind else (data, 2000)
        store.edge_index = torch.randint(0, nodes, (2, 40_000 // len(kinds)), generator=chance)
        store.weight = torch.rand(store.edge_index.shape[1], generator=chance)
    seeds = torch.arange(0, 1000, 12)
    return data, {"a": seeds, "b": seeds[:20]} if typed_graph else seeds


@GRAPHS
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_threads_callers_and_copies_change_nothing(typed_graph, option):
    data, seeds = large_graph(typed_graph, option)
    alone = NeighborSampler(data, [6, 4], threads=1, isa=_core.isas()[0], **option)
    expected = [flat(alone.sample(seeds, group=group, epoch=2)) for group in range(4)]
    shared = NeighborSampler(data, [6, 4], threads=3, **option)
    copies = [shared, copy.copy(shared), pickle.loads(pickle.dumps(shared))]
    for sampler in copies:
        assert flat(sampler.sample(seeds, group=3, epoch=2)) == expected[3]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(shared.sample, seeds, group % 4, 2) for group in range(12)]
        assert [flat(job.result()) for job in jobs] == expected * 3


DRAWING = [option for option in OPTIONS if option.get("temporal_strategy") != "last"]


@pytest.mark.parametrize("option", DRAWING, ids=str)
def test_seed_epoch_and_group_each_change_the_draws(option):
    data, seeds = large_graph(True, option)
    base = NeighborSampler(data, [3], **option)
    drawn = [flat(base.sample(seeds, group=g, epoch=e)) for g, e in [(0, 0), (1, 0), (0, 1)]]
    drawn.append(flat(NeighborSampler(data, [3], seed=1, **option).sample(seeds, group=0)))
    assert len({str(part) for part in drawn}) == 4


@pytest.mark.parametrize("replace", [False, True])
def test_a_graph_of_one_type_is_sampled_as_one_without_types(replace):
    plain, seeds = large_graph(False, {})
    data = HeteroData()
    data["a"].num_nodes = plain.num_nodes
    data["a", "z", "a"].edge_index = plain.edge_index
    expected, found = (
        NeighborSampler(graph, [6, 4], replace=replace, seed=5).sample(ids, group=1, epoch=2)
        for graph, ids in ((plain, seeds), (data, {"a": seeds}))
    )
    for whole, typed_part in zip(flat(expected), flat(found), strict=True):
        assert typed_part is None or list(typed_part.values()) == [whole]


def test_dependent_batches_share_the_draws_of_a_node():
    data, _ = large_graph(False, {})
    sampler = NeighborSampler(data, [3], dependent_batches=4)
    inputs = NodeSamplerInput(None, torch.arange(500))
    batches = [flat(sampler.sample_from_nodes(inputs, group=g, epoch=0).edge) for g in range(9)]
    assert batches[0] == batches[1] == batches[2] == batches[3]
    assert batches[4] == batches[5] == batches[7] != batches[3]
    assert batches[8] != batches[7]


def test_options_may_change_after_construction():
    graph = random_lists(4, False)
    seeds = random_seeds(4, graph)
    sampler = NeighborSampler(graph.data(), [3, 3])
    draw(sampler, seeds)
    sampler.num_neighbors = [-1, 1]
    sampler.disjoint = True
    out = draw(sampler, seeds)
    perm = sampler.edge_permutation
    check_walk(graph, seeds, {None: [-1, 1]}, out, perm, disjoint=True)
