"""The native sampler against plain Python, and the statistics of its draws."""

from __future__ import annotations

import itertools
import mmap
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gnnsys import _core, rng

sys.path.insert(0, str(Path(__file__).parents[1]))
from rng_reference import labor_positions, sample_positions, weighted_positions

ISAS = _core.isas()
INDEX_TYPES = [np.int32, np.int64]


@dataclass
class Graph:
    """Nodes and edges of several types; edges as a CSC of the targets' in-neighbours."""

    num_nodes: list[int]
    relations: list[tuple[int, int, np.ndarray, np.ndarray]]
    node_time: list[Any] = field(default_factory=list)
    edge_time: list[Any] = field(default_factory=list)
    edge_weight: list[Any] = field(default_factory=list)

    def __post_init__(self):
        self.node_time = self.node_time or [None] * len(self.num_nodes)
        self.edge_time = self.edge_time or [None] * len(self.relations)
        self.edge_weight = self.edge_weight or [None] * len(self.relations)

    def sampler(self, threads=1, isa="auto"):
        return _core.Sampler(
            self.num_nodes,
            self.relations,
            self.node_time,
            self.edge_time,
            self.edge_weight,
            threads,
            isa,
        )


def star(degree: int, **options) -> Graph:
    """Node 0 of type 0 has the in-neighbours 0 … degree - 1 of type 1."""
    indptr, indices = np.array([0, degree]), np.arange(degree)
    return Graph([1, degree], [(1, 0, indptr, indices)], **options)


def csc(draw, sources: int, targets: int, degrees, dtype):
    degree = draw.choice(degrees if sources else [0], targets)
    indptr = np.concatenate([[0], np.cumsum(degree)]).astype(np.int64)
    return indptr, draw.integers(0, max(sources, 1), int(indptr[-1])).astype(dtype)


def sort_by(time, indptr, *arrays):
    """Sorts the edges of each target by their times."""
    target = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((time, target))
    return [array[order] for array in arrays]


def random_graph(seed: int, kind: str, degrees=(0, 1, 2, 3, 5, 9, 20)) -> Graph:
    """Three node types, one of them without edges in, two relations of one pair, self-loops,
    duplicate edges and isolated nodes; ``kind``: plain, weight, node_time or edge_time."""
    draw = np.random.default_rng(seed)
    num_nodes = [int(n) for n in draw.integers(1, 40, 3)]
    pairs = [(0, 0), (1, 0), (0, 1), (1, 0), (2, 1), (1, 1)]
    graph = Graph(num_nodes, [])
    if kind == "node_time":  # type 2 has none
        graph.node_time = [draw.integers(-5, 5, n) for n in num_nodes[:2]] + [None]
    for number, (source, target) in enumerate(pairs):
        dtype = INDEX_TYPES[int(draw.integers(2))]
        indptr, indices = csc(draw, num_nodes[source], num_nodes[target], degrees, dtype)
        time = weight = None
        if kind == "node_time" and source != 2:
            (indices,) = sort_by(graph.node_time[source][indices], indptr, indices)
        if kind == "edge_time" and number != 2:
            time = draw.integers(-5, 5, len(indices))
            indices, time = sort_by(time, indptr, indices, time)
        if kind == "weight" and number != 2:
            weight = draw.choice([0.0, 0.1, 1.0, 3.0, 1e6], len(indices))
        graph.relations.append((source, target, indptr, indices))
        graph.edge_time.append(time)
        graph.edge_weight.append(weight)
    return graph


@dataclass
class Request:
    seeds: list[tuple[int, Any, Any]]
    fanouts: list[list[int]]
    replace: bool = False
    disjoint: bool = False
    last: bool = False
    labor: bool = False
    seed: int = 0
    epoch: int = 0
    group: int = 0
    window: list[int] = field(default_factory=list)
    newest: list[int] = field(default_factory=list)

    def of(self, sampler):
        seeds = [
            (t, np.asarray(ids, np.int64), None if times is None else np.asarray(times, np.int64))
            for t, ids, times in self.seeds
        ]
        return sampler.sample(
            seeds,
            self.fanouts,
            self.replace,
            self.disjoint,
            self.last,
            self.labor,
            self.seed,
            self.epoch,
            self.group,
            window=self.window,
            newest=self.newest,
        )


def random_request(seed: int, graph: Graph, kind: str, labor: bool) -> Request:
    draw = np.random.default_rng(seed)
    hops = int(draw.integers(0, 4))
    timed = "time" in kind
    seeds = []
    for t in draw.choice(3, int(draw.integers(1, 4))).tolist():
        ids = draw.integers(0, graph.num_nodes[t], int(draw.integers(0, 6)))
        given = timed and (graph.node_time[t] is None or draw.integers(2))
        seeds.append((t, ids, draw.integers(-5, 6, len(ids)) if given else None))
    timed_relations = [
        time is not None or graph.node_time[source] is not None
        for (source, *_), time in zip(graph.relations, graph.edge_time, strict=True)
    ]
    window, newest = (
        [int(draw.choice(limits)) if is_timed else -1 for is_timed in timed_relations]
        for limits in ([-1, 0, 1, 3, 20], [-1, 0, 1, 2, 4])
    )
    return Request(
        seeds,
        draw.choice([-1, 0, 1, 2, 3, 7], (len(graph.relations), hops)).tolist(),
        replace=not labor and bool(draw.integers(2)),
        disjoint=timed or bool(draw.integers(2)),
        last=bool(draw.integers(2)),
        labor=labor,
        seed=int(draw.integers(2**63)),
        epoch=int(draw.integers(9)),
        group=int(draw.integers(9)),
        window=window if draw.integers(2) else [],
        newest=newest if draw.integers(2) else [],
    )


def positions_of(graph, request, number, hop, node, tree, seed_time):
    """The positions in the CSC that a node samples in one hop of one relation."""
    source, _, indptr, indices = graph.relations[number]
    fanout = request.fanouts[number][hop]
    eligible = np.arange(indptr[node], indptr[node + 1])
    time = graph.edge_time[number]
    if graph.node_time[source] is not None:
        time = graph.node_time[source][indices]
    if time is not None:
        age = seed_time[tree] - time[eligible]
        window = request.window[number] if request.window else -1
        eligible = eligible[(age >= 0) & ((window < 0) | (age <= window))]
        if request.newest and request.newest[number] >= 0:
            eligible = eligible[max(0, len(eligible) - request.newest[number]) :]
        if request.last and fanout >= 0:
            eligible = eligible[max(0, len(eligible) - fanout) :]
    position = 1 + tree if request.disjoint else 0
    words = (request.seed, request.epoch, request.group, hop)
    key = rng.stream_key(*words, source if request.labor else number)
    weight = graph.edge_weight[number]
    if request.labor:
        picked = labor_positions(key, indices[eligible].tolist(), fanout, position)
    elif weight is not None:
        picked = weighted_positions(
            key, node, weight[eligible].tolist(), fanout, request.replace, position
        )
    else:
        picked = sample_positions(key, node, len(eligible), fanout, request.replace, position)
    return eligible[picked].tolist()


def sample_slowly(graph: Graph, request: Request):
    """What the sampler promises, in plain Python."""
    types, relations = range(len(graph.num_nodes)), range(len(graph.relations))
    node, batch = [[] for _ in types], [[] for _ in types]
    place: list[dict] = [{} for _ in types]
    row, col, edge = [[] for _ in relations], [[] for _ in relations], [[] for _ in relations]
    seed_time = []

    def place_of(t, tree, v):
        key = (tree, v) if request.disjoint else v
        if key not in place[t]:
            place[t][key] = len(node[t])
            node[t].append(v)
            batch[t].append(tree)
        return place[t][key]

    for t, ids, times in request.seeds:
        for i, v in enumerate(np.asarray(ids).tolist()):
            place[t].setdefault((len(seed_time), v) if request.disjoint else v, len(node[t]))
            node[t].append(v)
            batch[t].append(len(seed_time))
            known = None if graph.node_time[t] is None else graph.node_time[t][v]
            seed_time.append(known if times is None else times[i])

    hops = len(request.fanouts[0])
    nodes_per_hop = [[len(node[t])] for t in types]
    edges_per_hop = [[] for _ in relations]
    begin = [0 for _ in types]
    for hop in range(hops):
        end = [len(node[t]) for t in types]
        for r, (source, target, _, indices) in enumerate(graph.relations):
            before = len(edge[r])
            for i in range(begin[target], end[target]):
                tree = batch[target][i]
                for e in positions_of(graph, request, r, hop, node[target][i], tree, seed_time):
                    row[r].append(place_of(source, tree, int(indices[e])))
                    col[r].append(i)
                    edge[r].append(e)
            edges_per_hop[r].append(len(edge[r]) - before)
        begin = end
        for t in types:
            nodes_per_hop[t].append(len(node[t]) - end[t])
    edge_index = [[row[r], col[r]] for r in relations]
    return node, batch if request.disjoint else None, edge_index, edge, nodes_per_hop, edges_per_hop


def as_lists(out):
    node, batch, edge_index, edge, nodes_per_hop, edges_per_hop = out
    return (
        [ids.tolist() for ids in node],
        None if batch is None else [ids.tolist() for ids in batch],
        [ids.tolist() for ids in edge_index],
        [ids.tolist() for ids in edge],
        nodes_per_hop,
        edges_per_hop,
    )


KINDS = ["plain", "weight", "node_time", "edge_time"]
LABOR_REFUSES = ("weight", True)


@pytest.mark.parametrize(
    ("kind", "labor"),
    [(kind, labor) for kind in KINDS for labor in (False, True) if (kind, labor) != LABOR_REFUSES],
)
def test_sample_equals_the_reference_on_random_typed_graphs(kind, labor):
    for seed in range(40):
        graph = random_graph(seed, kind)
        sampler = graph.sampler(threads=1 + seed % 2, isa=ISAS[seed % len(ISAS)])
        for again in range(2):  # the second batch finds the first one's leftovers
            request = random_request(100 * seed + again, graph, kind, labor)
            assert as_lists(request.of(sampler)) == sample_slowly(graph, request), seed


@pytest.mark.parametrize("labor", [False, True])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", INDEX_TYPES)
def test_sample_equals_the_reference_for_large_degrees(isa, dtype, labor):
    draw = np.random.default_rng(3)
    indptr, indices = csc(draw, 3000, 30, [10, 64, 65, 512, 513, 2000, 3000], dtype)
    graph = Graph([30, 3000], [(1, 0, indptr, indices)])
    request = Request([(0, np.arange(30), None)], [[17]], labor=labor, seed=8)
    assert as_lists(request.of(graph.sampler(isa=isa))) == sample_slowly(graph, request)


@pytest.mark.parametrize("dtype", INDEX_TYPES)
def test_labor_equals_the_reference_among_very_many_sources(dtype):
    """So many that drawing for all of them would cost more than for the neighbours alone."""
    draw = np.random.default_rng(3)
    sources = 10**6
    indptr, indices = csc(draw, sources, 30, [0, 10, 1000, 1500, 3000], dtype)
    graph = Graph([30, sources], [(1, 0, indptr, indices)])
    request = Request([(0, np.arange(30), None)], [[17]], labor=True, seed=8)
    assert as_lists(request.of(graph.sampler())) == sample_slowly(graph, request)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("dtype", INDEX_TYPES)
def test_uniform_hops_of_many_chunks_equal_the_reference(dtype, replace):
    draw = np.random.default_rng(4)
    indptr, indices = csc(draw, 3000, 3000, [0, 1, 3, 10, 64, 65, 200, 600, 2000], dtype)
    graph = Graph([3000], [(0, 0, indptr, indices)])
    sampler = graph.sampler(threads=2)
    for group, fanouts in enumerate([[15, 10, 5], [3, 0, 2], [40], [-1, 2], [0], []]):
        seeds = draw.integers(0, 3000, 300)
        request = Request([(0, seeds, None)], [fanouts], replace, seed=1, epoch=2, group=group)
        assert as_lists(request.of(sampler)) == sample_slowly(graph, request)


def test_uniform_and_weighted_relations_share_a_batch():
    """The edges of either are put into the batch in a way of its own."""
    draw = np.random.default_rng(9)
    relations = [(0, 0, *csc(draw, 2000, 2000, [0, 3, 70, 300], np.int32)) for _ in range(3)]
    weights = [None, draw.random(len(relations[1][3])), None]
    graph = Graph([2000], relations, edge_weight=weights)
    request = Request([(0, np.arange(0, 2000, 5), None)], [[4, 2], [3, 2], [0, 3]], seed=8)
    assert as_lists(request.of(graph.sampler(threads=2))) == sample_slowly(graph, request)


@pytest.mark.parametrize("options", [{}, {"disjoint": True}, {"labor": True}, {"weight": True}])
def test_threads_change_nothing(options):
    draw = np.random.default_rng(5)
    relations, weights = [], []
    for pair in [(0, 0), (1, 0), (0, 1)]:
        indptr, indices = csc(draw, 4000, 4000, [0, 3, 10, 70, 300], np.int32)
        relations.append((*pair, indptr, indices))
        weights.append(draw.random(len(indices)) if options.get("weight") else None)
    graph = Graph([4000, 4000], relations, edge_weight=weights)
    options = {name: value for name, value in options.items() if name != "weight"}
    samplers = [graph.sampler(threads) for threads in (1, 2, 5)]
    for group in range(3):
        seeds = [(0, np.arange(600), None), (1, np.arange(0, 4000, 9), None)]
        request = Request(seeds, [[4, 3]] * 3, group=group, **options)
        first, *others = (as_lists(request.of(sampler)) for sampler in samplers)
        assert all(other == first for other in others)


def test_a_sampler_may_be_called_from_several_threads():
    graph = random_graph(6, "plain", degrees=(0, 5, 50))
    sampler = graph.sampler(threads=2)
    seeds = [(t, np.arange(graph.num_nodes[t]), None) for t in range(3)]
    requests = [Request(seeds, [[3, 2]] * 6, disjoint=g % 2 == 0, group=g) for g in range(16)]
    expected = [as_lists(request.of(sampler)) for request in requests]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda r: as_lists(r.of(sampler)), requests)) == expected


def test_outputs_of_earlier_batches_stay_as_they_were():
    graph = random_graph(7, "plain")
    sampler = graph.sampler()
    kept = [Request([(0, [0], None)], [[3, 3]] * 6, group=g).of(sampler) for g in range(9)]
    before = [as_lists(out) for out in kept]
    for group in range(9, 40):
        Request([(0, [0], None)], [[5, 5]] * 6, disjoint=True, group=group).of(sampler)
    assert [as_lists(out) for out in kept] == before


def test_the_rows_of_an_edge_index_lie_in_one_buffer():
    out = Request([(0, [0], None)], [[3]]).of(star(5).sampler())
    assert out[2][0].flags.c_contiguous
    assert out[2][0].shape == (2, 3)


def test_the_sampler_keeps_its_arrays_alive():
    def make():
        return star(300, edge_weight=[np.linspace(0.1, 1, 300)]).sampler()

    sampler = make()
    np.full(10**6, -1)
    request = Request([(0, [0], None)], [[20]])
    kept = star(300, edge_weight=[np.linspace(0.1, 1, 300)])
    assert as_lists(request.of(sampler)) == sample_slowly(kept, request)


# Induced edges -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_induced_edges_are_all_edges_between_the_nodes(threads):
    for seed in range(20):
        graph = random_graph(seed, "plain")
        draw = np.random.default_rng(seed)
        node = [draw.integers(0, n, int(draw.integers(0, 60))) for n in graph.num_nodes]
        edge_index, edge = graph.sampler(threads).induce(node)
        for r, (source, target, indptr, indices) in enumerate(graph.relations):
            place: dict[int, int] = {}
            for i, v in enumerate(node[source].tolist()):
                place.setdefault(v, i)
            expected = [
                (place[int(indices[e])], i, e)
                for i, v in enumerate(node[target].tolist())
                for e in range(indptr[v], indptr[v + 1])
                if int(indices[e]) in place
            ]
            found = zip(*edge_index[r].tolist(), edge[r].tolist(), strict=True)
            assert list(found) == expected


def test_sampling_after_inducing_finds_a_clean_map():
    graph = random_graph(1, "plain")
    sampler = graph.sampler()
    request = random_request(5, graph, "plain", labor=False)
    expected = as_lists(request.of(sampler))
    sampler.induce([np.arange(n) for n in graph.num_nodes])
    assert as_lists(request.of(sampler)) == expected


# Statistics, with fixed seeds --------------------------------------------------------------------


def draws_of(graph: Graph, fanout: int, groups: int, **options) -> list[tuple[int, ...]]:
    sampler = graph.sampler()
    requests = (
        Request([(0, [0], None)], [[fanout]], group=g, seed=11, **options) for g in range(groups)
    )
    return [tuple(request.of(sampler)[3][0].tolist()) for request in requests]


def pvalue(draws, law: dict) -> float:
    """Of the chi-square test of draws against the probability of each outcome; rare ones are
    counted together."""
    counts = Counter(draws)
    assert set(counts) <= {outcome for outcome, p in law.items() if p > 0}
    common = [outcome for outcome, p in law.items() if len(draws) * p > 5]
    found = [counts[outcome] for outcome in common]
    expected = [len(draws) * law[outcome] for outcome in common]
    if len(draws) - sum(expected) > 1e-6 * len(draws):
        found.append(len(draws) - sum(found))
        expected.append(len(draws) - sum(expected))
    return stats.chisquare(found, expected).pvalue


def with_replacement(share: list[float], k: int) -> dict:
    """The probability of each sorted list of k independent draws."""
    law: Counter = Counter()
    for picks in itertools.product(range(len(share)), repeat=k):
        law[tuple(sorted(picks))] += float(np.prod([share[i] for i in picks]))
    return law


def successive(weight: list[float], k: int) -> dict:
    """The probability of each set of k draws, each in proportion to the weights of those left."""
    law: Counter = Counter()
    for picks in itertools.permutations(range(len(weight)), k):
        p, left = 1.0, sum(weight)
        for i in picks:
            p *= weight[i] / left
            left -= weight[i]
        law[tuple(sorted(picks))] += p
    return law


@pytest.mark.parametrize("disjoint", [False, True])
def test_every_subset_is_equally_likely(disjoint):
    subsets = list(itertools.combinations(range(6), 3))
    draws = draws_of(star(6), 3, 6000, disjoint=disjoint)
    assert pvalue(draws, dict.fromkeys(subsets, 1 / len(subsets))) > 1e-3


def test_draws_with_replacement_are_independent():
    draws = draws_of(star(4), 3, 6000, replace=True)
    assert pvalue(draws, with_replacement([1 / 4] * 4, 3)) > 1e-3


def test_every_late_enough_subset_is_equally_likely():
    graph = star(9, edge_time=[np.arange(9)])
    sampler = graph.sampler()
    draws = [
        tuple(Request([(0, [0], [5])], [[2]], disjoint=True, group=g).of(sampler)[3][0].tolist())
        for g in range(5000)
    ]
    subsets = list(itertools.combinations(range(6), 2))
    assert pvalue(draws, dict.fromkeys(subsets, 1 / len(subsets))) > 1e-3


@pytest.mark.parametrize("weight", [[1.0, 2.0, 3.0, 4.0, 0.0], [20.0, 1.0, 1.0, 0.5, 0.5]])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_weighted_draws_without_replacement_are_successive(weight, k):
    draws = draws_of(star(5, edge_weight=[np.array(weight)]), k, 8000)
    assert pvalue(draws, successive(weight, k)) > 1e-3


def test_weighted_draws_with_replacement_follow_the_weights():
    weight = [1.0, 0.0, 3.0, 2.0]
    draws = draws_of(star(4, edge_weight=[np.array(weight)]), 2, 8000, replace=True)
    assert pvalue(draws, with_replacement([w / 6 for w in weight], 2)) > 1e-3


def test_draws_from_what_a_heavy_edge_leaves_follow_the_weights():
    """All but the first draw come from sums that were made anew."""
    weight = [1e12, 1.0, 2.0, 3.0, 4.0]
    draws = draws_of(star(5, edge_weight=[np.array(weight)]), 2, 8000)
    assert pvalue(draws, {(0, i): weight[i] / 10 for i in range(1, 5)}) > 1e-3


def test_labor_keeps_a_neighbour_with_probability_fanout_over_degree():
    degree, fanout, groups = 40, 7, 6000
    counts = np.bincount(
        list(itertools.chain(*draws_of(star(degree), fanout, groups, labor=True))),
        minlength=degree,
    )
    p = fanout / degree
    # One source's draws in different groups are independent, and so are different sources'.
    statistic = ((counts - groups * p) ** 2 / (groups * p * (1 - p))).sum()
    assert stats.chi2(degree).sf(statistic) > 1e-3


def test_labor_draws_of_different_sources_are_independent():
    draws = draws_of(star(4), 1, 6000, labor=True)
    law = {
        tuple(np.flatnonzero(kept).tolist()): float(np.prod([1 / 4 if k else 3 / 4 for k in kept]))
        for kept in itertools.product([False, True], repeat=4)
    }
    assert pvalue(draws, law) > 1e-3


def test_labor_shares_a_draw_between_the_targets_of_all_relations():
    """Targets with the same neighbourhood keep the same sources; one of twice the degree keeps a
    subset of those that both have."""
    indices = np.arange(100)
    both = np.array([0, 100, 200])
    graph = Graph(
        [2, 1, 200],
        [
            (2, 0, both, np.tile(indices, 2)),
            (2, 1, np.array([0, 200]), np.arange(200)),
        ],
    )
    sampler = graph.sampler()
    sizes = []
    for group in range(50):
        seeds = [(0, [0, 1], None), (1, [0], None)]
        out = Request(seeds, [[10], [10]], labor=True, group=group).of(sampler)
        source = np.concatenate([graph.relations[r][3][out[3][r]] for r in range(2)])
        first, second = np.split(source[: out[5][0][0]], 2)
        third = source[out[5][0][0] :]
        assert np.array_equal(first, second)
        assert set(third[third < 100]) <= set(first)
        sizes.append(len(first))
    assert min(sizes) < 10 < max(sizes)


def test_labor_reaches_fewer_nodes_than_uniform_sampling():
    draw = np.random.default_rng(0)
    indptr, indices = csc(draw, 20000, 1000, [100], np.int32)
    sampler = Graph([1000, 20000], [(1, 0, indptr, indices)]).sampler()
    seeds = [(0, np.arange(1000), None)]
    reached = {
        labor: len(Request(seeds, [[10]], labor=labor).of(sampler)[0][1]) for labor in (False, True)
    }
    # A source with about 5 targets is reached with probability 0.1, instead of 1 - 0.9^5.
    assert reached[True] < 0.35 * reached[False]


# Defined results of odd input --------------------------------------------------------------------


def sampled(graph: Graph, *seeds, fanout: int, **options) -> list[int]:
    return Request(list(seeds), [[fanout]], **options).of(graph.sampler())[3][0].tolist()


@pytest.mark.parametrize("fanout", [-1, 4, 9])
def test_edges_of_weight_zero_are_taken_where_all_are(fanout):
    graph = star(4, edge_weight=[np.array([0.0, 1, 0, 2])])
    assert sampled(graph, (0, [0], None), fanout=fanout) == [0, 1, 2, 3]


def test_only_edges_with_a_positive_weight_are_drawn():
    graph = star(6, edge_weight=[np.array([0.0, 1, 0, 1e-300, 5, 0])])
    assert sampled(graph, (0, [0], None), fanout=5) == [1, 3, 4]
    assert set(sampled(graph, (0, [0], None), fanout=50, replace=True)) <= {1, 3, 4}
    nothing = star(6, edge_weight=[np.zeros(6)])
    assert sampled(nothing, (0, [0], None), fanout=5) == []
    assert sampled(nothing, (0, [0], None), fanout=5, replace=True) == []


def test_denormal_weights_are_drawn():
    weight = np.array([5e-324, 5e-324, 0.0])
    graph = star(3, edge_weight=[weight])
    drawn = set(draws_of(graph, 1, 200))
    assert drawn <= {(0,), (1,)}
    assert sampled(graph, (0, [0], None), fanout=2) == [0, 1]


@pytest.mark.parametrize("time", ["node_time", "edge_time"])
def test_the_newest_edges_that_are_not_too_late(time):
    times = np.array([1, 1, 2, 4, 4, 9])
    options = {time: [None, times] if time == "node_time" else [times]}
    graph = star(6, **options)

    def newest(at, fanout):
        return sampled(graph, (0, [0], [at]), fanout=fanout, disjoint=True, last=True)

    assert newest(4, 2) == [3, 4]
    assert newest(4, 3) == [2, 3, 4]
    assert newest(4, -1) == [0, 1, 2, 3, 4]
    assert newest(0, 3) == []
    assert newest(100, 1) == [5]


@pytest.mark.parametrize("time", ["node_time", "edge_time"])
def test_edges_within_a_window_and_the_newest_of_them(time):
    times = np.array([1, 1, 2, 4, 4, 9])
    graph = star(6, **{time: [None, times] if time == "node_time" else [times]})

    def within(at, window, newest=-1, fanout=-1, last=False):
        options = {"disjoint": True, "window": [window], "newest": [newest], "last": last}
        return sampled(graph, (0, [0], [at]), fanout=fanout, **options)

    assert within(4, 0) == [3, 4]
    assert within(4, 1) == [3, 4]
    assert within(4, 2) == [2, 3, 4]
    assert within(4, 3) == [0, 1, 2, 3, 4]
    assert within(3, 0) == []
    assert within(8, 3) == []
    assert within(9, 5, newest=2) == [4, 5]
    assert within(9, 5, newest=0) == []
    assert within(9, 0, newest=2) == [5]
    assert within(9, -1, newest=3, fanout=2, last=True) == [4, 5]
    assert within(9, -1, newest=1, fanout=2, last=True) == [5]


def test_every_subset_of_the_newest_within_a_window_is_equally_likely():
    graph = star(9, edge_time=[np.arange(9)])
    sampler = graph.sampler()
    options = {"disjoint": True, "window": [4], "newest": [4]}
    requests = (Request([(0, [0], [7])], [[2]], group=g, **options) for g in range(4000))
    draws = [tuple(request.of(sampler)[3][0].tolist()) for request in requests]
    subsets = list(itertools.combinations(range(4, 8), 2))
    assert pvalue(draws, dict.fromkeys(subsets, 1 / len(subsets))) > 1e-3


def test_the_time_of_a_seed_is_that_of_its_node_unless_given():
    graph = Graph(
        [3], [(0, 0, np.array([0, 0, 2, 2]), np.array([0, 2]))], node_time=[np.array([1, 2, 3])]
    )
    assert sampled(graph, (0, [1], None), fanout=-1, disjoint=True) == [0]
    assert sampled(graph, (0, [1], [3]), fanout=-1, disjoint=True) == [0, 1]


def test_a_type_without_edges_or_nodes_is_no_obstacle():
    graph = Graph([0, 2], [(0, 1, np.zeros(3, np.int64), np.zeros(0, np.int32))])
    out = as_lists(Request([(1, [1, 1], None)], [[3]]).of(graph.sampler()))
    assert out == ([[], [1, 1]], None, [[[], []]], [[]], [[0, 0], [2, 0]], [[0]])


def test_no_seeds_give_an_empty_batch():
    graph = random_graph(2, "plain")
    for seeds in ([], [(0, [], None)]):
        out = as_lists(Request(seeds, [[3]] * 6, disjoint=True).of(graph.sampler()))
        assert out[0] == out[1] == [[], [], []]
        assert out[5] == [[0]] * 6


# Bad input ---------------------------------------------------------------------------------------


def refused(graph: Graph, request: Request, error, match):
    sampler = graph.sampler()
    with pytest.raises(error, match=match):
        request.of(sampler)


@pytest.mark.parametrize("seed", [-1, 5, 2**40])
def test_a_seed_outside_its_type_is_an_error(seed):
    request = Request([(0, [0], None), (1, [0, 4, seed], None)], [[1]])
    message = rf"seed {seed} at position 2 is outside the nodes of type 1, \[0, 5\)"
    refused(star(5), request, IndexError, message)


def test_too_many_seeds_are_an_error():
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    seeds = np.frombuffer(mmap.mmap(-1, 2**31 * 8, flags=flags), np.int64)  # nobody reads them
    graph = Graph([3], [(0, 0, np.zeros(4, np.int64), np.zeros(0, np.int32))])
    message = r"2147483648 seeds, a batch takes less than 2\^31"
    refused(graph, Request([(0, seeds, None)], [[1]]), ValueError, message)


@pytest.mark.parametrize("number", [-1, 2])
def test_an_unknown_type_is_an_error(number):
    refused(star(5), Request([(number, [0], None)], [[1]]), ValueError, f"type {number}, outside")
    with pytest.raises(ValueError, match=rf"relation 0 has the type {number}, outside \[0, 2\)"):
        Graph([1, 1], [(number, 0, np.zeros(2, np.int64), np.zeros(0, np.int32))]).sampler()


@pytest.mark.parametrize("fanout", [-2, 2**24])
def test_absurd_fanouts_are_an_error(fanout):
    match = rf"relation 0: fanout {fanout} is neither"
    refused(star(5), Request([(0, [0], None)], [[1, fanout]]), ValueError, match)


def test_fanouts_must_be_given_for_every_relation_and_the_same_hops():
    graph = random_graph(0, "plain")
    refused(graph, Request([], [[1]]), ValueError, "for 1 relations, the graph has 6")
    request = Request([], [[1, 2]] * 5 + [[1]])
    refused(graph, request, ValueError, "relation 5 has fanouts for 1 hops, relation 0 for 2")


def test_times_need_disjoint_trees():
    graph = star(3, edge_time=[np.arange(3)])
    refused(graph, Request([(0, [0], [1])], [[1]]), ValueError, "disjoint")


def test_seeds_without_times_are_an_error_that_names_their_type():
    graph = star(3, node_time=[None, np.arange(3)])
    request = Request([(0, [0], None)], [[1]], disjoint=True)
    refused(graph, request, ValueError, "seeds of type 0 have no times")


def test_times_of_seeds_need_times_in_the_graph():
    request = Request([(0, [0], [1])], [[1]], disjoint=True)
    refused(star(3), request, ValueError, "seeds of type 0 have times, the graph has none")


def test_neighbours_that_are_not_sorted_by_time_are_an_error():
    graph = star(3, edge_time=[np.array([3, 1, 2])])
    request = Request([(0, [0], [3])], [[1]], disjoint=True)
    refused(graph, request, RuntimeError, "relation 0: the neighbours of node 0 are not sorted")


@pytest.mark.parametrize("name", ["window", "newest"])
def test_limits_of_time_must_fit_the_relations(name):
    def refuse(graph, limits, match):
        request = Request([(0, [0], [1])], [[1]], disjoint=True, **{name: limits})
        refused(graph, request, ValueError, match)

    timed = star(3, edge_time=[np.arange(3)])
    refuse(timed, [1, 1], f"{name} is given for 2 relations, the graph has 1")
    refuse(timed, [-2], f"relation 0: {name} -2 is neither -1")
    untimed_edges = star(3, node_time=[np.arange(1), None])
    refuse(untimed_edges, [1], f"relation 0: {name} is given, and it has no times")


def test_labor_excludes_weights_and_replacement():
    request = Request([(0, [0], None)], [[1]], labor=True)
    refused(star(3, edge_weight=[np.ones(3)]), request, ValueError, "edge_weight")
    request.replace = True
    refused(star(3), request, ValueError, "replace")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"node_time": [None, np.arange(3)], "edge_time": [np.arange(3)]}, "not both"),
        ({"edge_time": [np.arange(3)], "edge_weight": [np.ones(3)]}, "edge_weight"),
        ({"node_time": [None, np.arange(2)]}, "node_time 1 has 2 entries, expected 3"),
        ({"edge_time": [np.arange(2)]}, "edge_time 0 has 2 entries, expected 3"),
        ({"edge_weight": [np.ones(4)]}, "edge_weight 0 has 4 entries, expected 3"),
        ({"node_time": [None]}, "node_time has 1 entries for 2 node types"),
        ({"edge_time": [None, None]}, "edge_time has 2 entries for 1 relations"),
    ],
)
def test_arrays_that_do_not_fit_together_are_an_error(options, match):
    with pytest.raises(ValueError, match=match):
        star(3, **options).sampler()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_weight_is_an_error(weight):
    with pytest.raises(
        ValueError, match=f"relation 0: the weight at position 2 .* is {weight:.0f}"
    ):
        star(3, edge_weight=[np.array([1, 2, weight])]).sampler()


def test_weights_whose_sum_overflows_are_an_error():
    with pytest.raises(ValueError, match=r"position 1 .* overflow"):
        star(2, edge_weight=[np.array([1e308, 1e308])]).sampler()


@pytest.mark.parametrize("options", [{}, {"labor": True}, {"disjoint": True}])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bad", [-1, 5])
def test_indices_outside_the_source_type_are_an_error_not_a_wild_read(bad, threads, options):
    indices = np.zeros(4000, np.int32)
    indices[3500] = bad
    graph = Graph([4000, 5], [(1, 0, np.arange(4001), indices)])
    sampler = graph.sampler(threads)
    match = rf"relation 0: indices hold the node {bad} at position 3500, .*\[0, 5\)"
    with pytest.raises(RuntimeError, match=match):
        Request([(0, np.arange(4000), None)], [[-1]], **options).of(sampler)
    with pytest.raises(RuntimeError, match=match):
        sampler.induce([np.arange(4000), np.arange(5)])
    assert sampled(graph, (0, [7], None), fanout=3, **options) == [7]


def test_a_bad_index_met_by_the_search_for_times_is_an_error():
    graph = star(3, node_time=[None, np.arange(3)])
    graph.relations[0][3][1] = 3
    request = Request([(0, [0], [9])], [[1]], disjoint=True)
    refused(graph, request, RuntimeError, "the node 3 at position 1")


@pytest.mark.parametrize("entries", [[2, 1], [-1, 1], [0, 9]])
def test_an_indptr_that_descends_or_ends_elsewhere_is_an_error(entries):
    graph = Graph([1, 3], [(1, 0, np.array(entries), np.zeros(3, np.int32))])
    refused(graph, Request([(0, [0], None)], [[1]]), RuntimeError, "relation 0: indptr")
    graph.edge_weight = [np.ones(3)]
    with pytest.raises(ValueError, match="relation 0: indptr"):
        graph.sampler()


def test_an_indptr_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="indptr of relation 0 has 2 entries, expected 3"):
        Graph([2], [(0, 0, np.array([0, 1]), np.zeros(1, np.int32))]).sampler()


def test_induced_nodes_outside_their_type_are_an_error():
    with pytest.raises(IndexError, match="node 3 at position 1 is outside the nodes of type 1"):
        star(3).sampler().induce([np.array([0]), np.array([0, 3])])
    with pytest.raises(ValueError, match="for 1 types, the graph has 2"):
        star(3).sampler().induce([np.array([0])])
