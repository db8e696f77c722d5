"""The sampler against brute force: its semantics are PyG's, its draws those of gnnsys.rng."""

from __future__ import annotations

import itertools
import logging
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader
from torch_geometric.sampler import NodeSamplerInput

from gnnsys import _core, rng
from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.loaders import CSC, NeighborSampler

sys.path.insert(0, str(Path(__file__).parents[1]))
from rng_reference import sample_positions

ISAS = _core.isas()


def random_graph(seed: int, num_nodes: int = 300, wide: bool = False) -> CSC:
    """Degrees on every side of the sampler's cases: none, few, over 64, over 512."""
    draw = np.random.default_rng(seed)
    degree = draw.choice([0, 1, 3, 10, 64, 65, 200, 600, 2000], num_nodes)
    indptr = torch.from_numpy(np.concatenate([[0], np.cumsum(degree)]))
    indices = torch.from_numpy(draw.integers(0, num_nodes, int(indptr[-1])))
    return CSC(indptr, indices if wide else indices.int())


def sample_slowly(graph: CSC, seeds, fanouts, replace, seed, epoch, group):
    """PyG's semantics in plain Python over the reference generator."""
    indptr, indices = graph.indptr.tolist(), graph.indices.tolist()
    node = list(seeds)
    place: dict[int, int] = {}
    for i, v in enumerate(node):
        place.setdefault(v, i)
    row: list[int] = []
    col: list[int] = []
    edge: list[int] = []
    nodes_per_hop, edges_per_hop = [len(node)], []
    first = 0
    for hop, fanout in enumerate(fanouts):
        key = rng.stream_key(seed, epoch, group, hop)
        last, edges_before = len(node), len(row)
        for i in range(first, last):
            begin, degree = indptr[node[i]], indptr[node[i] + 1] - indptr[node[i]]
            for position in sample_positions(key, node[i], degree, fanout, replace):
                neighbor = indices[begin + position]
                if neighbor not in place:
                    place[neighbor] = len(node)
                    node.append(neighbor)
                row.append(place[neighbor])
                col.append(i)
                edge.append(begin + position)
        first = last
        nodes_per_hop.append(len(node) - last)
        edges_per_hop.append(len(row) - edges_before)
    return node, row, col, edge, nodes_per_hop, edges_per_hop


def as_lists(out):
    parts = (out.node, out.row, out.col, out.edge)
    return *(part.tolist() for part in parts), out.num_sampled_nodes, out.num_sampled_edges


FANOUTS = [[3, 2], [15, 0, 2], [-1], [8, 5], [17, 3], [32, 2], [40], [100], [0]]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("fanouts", FANOUTS, ids=str)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("wide", [False, True])
def test_sample_equals_the_reference(isa, fanouts, replace, wide):
    graph = random_graph(1, wide=wide)
    seeds = np.random.default_rng(len(fanouts)).integers(0, graph.num_nodes, 9)
    sampler = NeighborSampler(graph, fanouts, replace=replace, seed=5, threads=1, isa=isa)
    out = sampler.sample(torch.from_numpy(seeds), group=7, epoch=3)
    assert as_lists(out) == sample_slowly(graph, seeds.tolist(), fanouts, replace, 5, 3, 7)


def test_full_fanout_without_bounds_is_the_whole_neighbourhood():
    graph = random_graph(2)
    out = NeighborSampler(graph, [-1]).sample(torch.arange(graph.num_nodes), group=0)
    assert out.edge.tolist() == list(range(graph.num_edges))
    assert torch.equal(out.row, graph.indices.long())


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_change_nothing(threads):
    graph = random_graph(3, num_nodes=5000)
    seeds = torch.arange(0, 5000, 3)
    alone = NeighborSampler(graph, [10, 5, 3], threads=1)
    shared = NeighborSampler(graph, [10, 5, 3], threads=threads)
    for group in range(5):
        expected = as_lists(alone.sample(seeds, group=group, epoch=1))
        assert as_lists(shared.sample(seeds, group=group, epoch=1)) == expected


def test_a_sampler_may_be_called_from_several_threads():
    from concurrent.futures import ThreadPoolExecutor

    graph = random_graph(3, num_nodes=5000)
    sampler = NeighborSampler(graph, [10, 5], threads=2)
    seeds = torch.arange(0, 5000, 7)
    expected = [as_lists(sampler.sample(seeds, group=g)) for g in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda g: as_lists(sampler.sample(seeds, group=g)), range(16)))
    assert found == expected


def test_batches_before_do_not_matter():
    graph = random_graph(4)
    seeds = torch.arange(50)
    fresh = as_lists(NeighborSampler(graph, [5, 5]).sample(seeds, group=9))
    used = NeighborSampler(graph, [5, 5])
    for group in range(20):
        used.sample(torch.arange(group, group + 100), group=group)
    assert as_lists(used.sample(seeds, group=9)) == fresh


def test_outputs_of_earlier_batches_stay_as_they_were():
    graph = random_graph(4)
    sampler = NeighborSampler(graph, [5, 5])
    kept = [sampler.sample(torch.arange(g, g + 50), group=g) for g in range(10)]
    before = [as_lists(out) for out in kept]
    for group in range(10, 30):
        sampler.sample(torch.arange(80), group=group)
    assert [as_lists(out) for out in kept] == before


@pytest.mark.parametrize("words", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_seed_epoch_and_group_each_change_the_draws(words):
    graph = random_graph(5)
    seeds = torch.arange(100)
    seed, epoch, group = words
    base = NeighborSampler(graph, [5]).sample(seeds, group=0)
    other = NeighborSampler(graph, [5], seed=seed).sample(seeds, group=group, epoch=epoch)
    assert base.edge.tolist() != other.edge.tolist()


@pytest.mark.parametrize("degree", [6, 63, 64, 65, 70, 511, 512, 513, 700])
@pytest.mark.parametrize("fanout", [1, 4, 5])
def test_every_neighbour_is_equally_likely(degree, fanout):
    graph = CSC(torch.tensor([0, degree]), torch.zeros(degree, dtype=torch.int32))
    sampler = NeighborSampler(graph, [fanout])
    counts = np.zeros(degree)
    for group in range(400 * degree // 64 + 400):
        counts[sampler.sample(torch.tensor([0]), group=group).edge.numpy()] += 1
    # Draws of one batch exclude each other, which makes the counts more even than independent
    # ones: scaled to their true variance they follow the chi-square law again.
    statistic = stats.chisquare(counts).statistic * (degree - 1) / (degree - fanout)
    assert 1e-3 < stats.chi2.sf(statistic, degree - 1) < 1 - 1e-3


def test_every_pair_is_equally_likely():
    graph = CSC(torch.tensor([0, 7]), torch.zeros(7, dtype=torch.int32))
    sampler = NeighborSampler(graph, [2])
    counts = dict.fromkeys(itertools.combinations(range(7), 2), 0)
    for group in range(6000):
        counts[tuple(sampler.sample(torch.tensor([0]), group=group).edge.tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_with_replacement_counts_are_multinomial():
    graph = CSC(torch.tensor([0, 5]), torch.zeros(5, dtype=torch.int32))
    sampler = NeighborSampler(graph, [4], replace=True)
    counts = np.zeros(5)
    repeated = 0
    for group in range(4000):
        edge = sampler.sample(torch.tensor([0]), group=group).edge.numpy()
        np.add.at(counts, edge, 1)
        repeated += len(np.unique(edge)) < 4
    assert stats.chisquare(counts).pvalue > 1e-3
    # P(4 draws of 5 differ) = 5·4·3·2 / 5^4
    assert stats.binomtest(repeated, 4000, 1 - 120 / 625).pvalue > 1e-3


def test_nodes_draw_independently():
    graph = CSC(torch.tensor([0, 4, 8]), torch.zeros(8, dtype=torch.int32))
    sampler = NeighborSampler(graph, [1])
    table = np.zeros((4, 4))
    for group in range(4000):
        a, b = sampler.sample(torch.tensor([0, 1]), group=group).edge.tolist()
        table[a, b - 4] += 1
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_edges_carry_the_numbers_of_the_users_edge_list():
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(0, 50, (2, 400), generator=generator)
    sampler = NeighborSampler(Data(edge_index=edge_index, num_nodes=50), [4, 4])
    out = sampler.sample(torch.arange(10), group=0)
    number = sampler.edge_permutation[out.edge]
    assert torch.equal(out.node[out.row], edge_index[0, number])
    assert torch.equal(out.node[out.col], edge_index[1, number])


def test_repeated_seeds_keep_their_places():
    graph = CSC(torch.tensor([0, 1, 2]), torch.tensor([1, 0], dtype=torch.int32))
    out = NeighborSampler(graph, [-1]).sample(torch.tensor([1, 1, 0]), group=0)
    assert out.node.tolist() == [1, 1, 0]
    assert out.row.tolist() == [2, 2, 0]
    assert out.col.tolist() == [0, 1, 2]


def test_no_seeds_and_no_edges():
    graph = CSC(torch.tensor([0, 0, 0]), torch.empty(0, dtype=torch.int32))
    sampler = NeighborSampler(graph, [3, 3])
    assert as_lists(sampler.sample(torch.arange(2), group=0)) == (
        ([0, 1], [], [], [], [2, 0, 0], [0, 0])
    )
    assert sampler.sample(torch.empty(0, dtype=torch.int64), group=0).node.numel() == 0


def test_topology_in_a_file_samples_the_same(tmp_path):
    graph = random_graph(6)
    np.save(tmp_path / "indptr.npy", graph.indptr.numpy())
    np.save(tmp_path / "indices.npy", graph.indices.numpy())
    mapped = CSC.from_files(tmp_path / "indptr.npy", tmp_path / "indices.npy")
    seeds = torch.arange(40)
    assert as_lists(NeighborSampler(mapped, [5, 5]).sample(seeds, group=2)) == as_lists(
        NeighborSampler(graph, [5, 5]).sample(seeds, group=2)
    )


def test_pickled_sampler_draws_the_same():
    sampler = NeighborSampler(random_graph(6), [5, 5], seed=3)
    copy = pickle.loads(pickle.dumps(sampler))
    seeds = torch.arange(40)
    assert as_lists(copy.sample(seeds, group=2)) == as_lists(sampler.sample(seeds, group=2))


# Under PyG's own NodeLoader ----------------------------------------------------------------------


def ring(num_nodes: int = 64) -> Data:
    """Every node has 20 in-neighbours."""
    target = torch.arange(num_nodes).repeat_interleave(20)
    source = (target + torch.arange(20).repeat(num_nodes) + 1) % num_nodes
    return Data(
        x=torch.arange(num_nodes, dtype=torch.float32).view(-1, 1),
        edge_index=torch.stack([source, target]),
        y=torch.arange(num_nodes),
    )


def test_node_loader_takes_the_sampler():
    data = ring()
    loader = NodeLoader(data, NeighborSampler(data, [3, 3]), batch_size=16)
    for batch in loader:
        assert torch.equal(batch.x, data.x[batch.n_id])
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
        assert batch.num_sampled_edges == [48, 3 * batch.num_sampled_nodes[1]]


def test_set_epoch_draws_anew_and_repetition_is_told_once(caplog):
    data = ring()
    sampler = NeighborSampler(data, [3])
    loader = NodeLoader(data, sampler, batch_size=16)

    def draws():
        return [batch.e_id.tolist() for batch in loader]

    with caplog.at_level(logging.WARNING, "gnnsys"):
        first = draws()
        assert not caplog.records
        assert draws() == first
        assert draws() == first
    assert len(caplog.records) == 1
    assert "set_epoch" in caplog.text
    sampler.set_epoch(1)
    assert draws() != first
    sampler.set_epoch(0)
    assert draws() == first


def test_group_of_a_batch_is_the_hash_of_its_input_ids():
    data = ring()
    sampler = NeighborSampler(data, [3])
    nodes, ids = torch.tensor([5, 9]), torch.tensor([0, 1])
    out = sampler.sample_from_nodes(NodeSamplerInput(ids, nodes))
    expected = sampler.sample(nodes, group=rng.hash_ids(ids.numpy()), epoch=0)
    assert as_lists(out) == as_lists(expected)
    assert out.metadata == (ids, None)


def test_edge_index_subclass_of_pyg_is_taken():
    data = ring()
    plain = NeighborSampler(data, [3]).sample(torch.arange(5), group=0)
    data.edge_index = EdgeIndex(data.edge_index, sparse_size=(64, 64))
    assert as_lists(NeighborSampler(data, [3]).sample(torch.arange(5), group=0)) == as_lists(plain)


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [-1, 64, 2**40])
def test_a_seed_outside_the_graph_is_an_error(seed):
    with pytest.raises(ArgumentError, match=rf"seed {seed} at position 1 .*\[0, 64\)"):
        NeighborSampler(ring(), [3]).sample(torch.tensor([0, seed]), group=0)


def test_float_seeds_are_an_error():
    with pytest.raises(DTypeError, match=r"torch.float32"):
        NeighborSampler(ring(), [3]).sample(torch.tensor([0.0]), group=0)


@pytest.mark.parametrize("fanouts", [[-2], [3, -5]])
def test_fanouts_below_minus_one_are_an_error(fanouts):
    with pytest.raises(ArgumentError, match="num_neighbors"):
        NeighborSampler(ring(), fanouts)


@pytest.mark.parametrize("fanout", [2**24, 2**40])
def test_absurd_fanouts_are_an_error(fanout):
    with pytest.raises(ArgumentError, match=str(fanout)):
        NeighborSampler(ring(), [fanout]).sample(torch.tensor([0]), group=0)


def test_unknown_isa_names_those_that_run():
    with pytest.raises(ValueError, match="generic"):
        NeighborSampler(ring(), [3], isa="avx1024")


@pytest.mark.parametrize("threads", [1, 2])
def test_indices_outside_the_graph_are_an_error_not_a_wild_read(threads):
    indices = torch.zeros(4000, dtype=torch.int32)
    indices[3500] = 7
    graph = CSC(torch.arange(0, 4001, 4000 // 4), indices)
    sampler = NeighborSampler(graph, [-1], threads=threads)
    with pytest.raises(ArgumentError, match="indices"):
        sampler.sample(torch.arange(4), group=0)
    assert sampler.sample(torch.tensor([0]), group=0).row.tolist() == [0] * 1000


@pytest.mark.parametrize(
    ("indptr", "entry"),
    [
        ([0, 2, 1, 3], 2),
        ([0, 4, 4, 3], 1),
        ([1, 2, 3, 3], 0),
        ([0, 1, 2, 2], 3),
        ([0, -1, 2, 3], 1),
    ],
)
def test_indptr_that_descends_or_ends_elsewhere_is_an_error(indptr, entry):
    with pytest.raises(ArgumentError, match=f"indptr: entry {entry} is {indptr[entry]}"):
        CSC(torch.tensor(indptr), torch.zeros(3, dtype=torch.int32))


def test_indptr_changed_behind_our_back_is_an_error():
    indptr = torch.tensor([0, 2, 4])
    sampler = NeighborSampler(CSC(indptr, torch.zeros(4, dtype=torch.int32)), [-1])
    indptr[1] = 9
    with pytest.raises(ArgumentError, match="indptr"):
        sampler.sample(torch.tensor([1]), group=0)


@pytest.mark.parametrize(
    ("edge_index", "message"),
    [
        ([[0, 1], [1, 3]], "edge 1 has the target 3"),
        ([[0, -1], [1, 1]], "edge 1 has the source -1"),
    ],
)
def test_edges_outside_the_graph_are_an_error(edge_index, message):
    with pytest.raises(ArgumentError, match=message):
        CSC.from_edge_index(torch.tensor(edge_index), num_nodes=3)


def test_claim_to_be_sorted_is_checked():
    with pytest.raises(ArgumentError, match="is_sorted"):
        CSC.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2, is_sorted=True)
