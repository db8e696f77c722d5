"""Importance agrees with dense linear algebra and brute force; batches are those of training."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch_geometric.data import Data

import gnnsys.cache.importance as ranking
from gnnsys.cache.importance import HIGHEST, out_degree, rank_normalised, reverse_pagerank
from gnnsys.errors import ArgumentError, RowIndexError
from gnnsys.features.importance import importance
from gnnsys.features.replay import sampled_ids
from gnnsys.loaders import CSC, NeighborLoader

PROPERTY = settings(deadline=None, max_examples=60)


@pytest.fixture(params=[3, ranking._BLOCK], ids=["small blocks", "one block"])
def _block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_BLOCK", request.param)


def random_csc(seed: int, nodes: int, edges: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """A graph with repeated edges, self loops and nodes without in-neighbours."""
    rng = np.random.default_rng(seed)
    targets = np.sort(rng.integers(0, max(1, nodes // 2), edges))
    indptr = np.searchsorted(targets, np.arange(nodes + 1))
    return indptr, rng.integers(0, nodes, edges).astype(np.int32)


def dense_walk(indptr: NDArray[np.int64], indices: NDArray[np.int32]) -> NDArray[np.float64]:
    """(n, n): the probability that a walk at the column's node steps to the row's."""
    nodes = len(indptr) - 1
    walk = np.full((nodes, nodes), 0.0)
    for target in range(nodes):
        neighbours = indices[indptr[target] : indptr[target + 1]]
        if len(neighbours) == 0:
            walk[:, target] = 1 / nodes
        for source in neighbours:
            walk[source, target] += 1 / len(neighbours)
    return walk


@pytest.mark.usefixtures("_block")
@pytest.mark.parametrize("seed", range(5))
def test_reverse_pagerank_is_the_dense_power_iteration(seed: int) -> None:
    nodes = 4 + 7 * seed
    indptr, indices = random_csc(seed, nodes, 3 * nodes)
    walk = dense_walk(indptr, indices)
    for damping, iterations in ((0.85, 20), (0.5, 3), (1.0, 2), (0.0, 1)):
        expected = np.full(nodes, 1 / nodes)
        for _ in range(iterations):
            expected = damping * walk @ expected + (1 - damping) / nodes
        found = reverse_pagerank(indptr, indices, damping=damping, iterations=iterations)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_reverse_pagerank_comes_to_rest_at_the_eigenvector() -> None:
    indptr, indices = random_csc(7, 30, 90)
    google = 0.85 * dense_walk(indptr, indices) + 0.15 / 30
    eigenvalues, vectors = np.linalg.eig(google)
    expected = vectors[:, np.argmax(eigenvalues.real)].real
    found = reverse_pagerank(indptr, indices, iterations=200)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-10)


@pytest.mark.usefixtures("_block")
@pytest.mark.parametrize("seed", range(3))
def test_out_degree_counts_the_edges_that_leave_a_node(seed: int) -> None:
    indptr, indices = random_csc(seed, 40, 200)
    ones = np.ones(len(indices), np.int64)
    matrix = scipy.sparse.csc_matrix((ones, indices, indptr), shape=(40, 40))
    assert out_degree(indices, 40).tolist() == matrix.sum(axis=1).A1.tolist()


def test_progress_ends_at_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_BLOCK", 4)
    indptr, indices = random_csc(0, 10, 30)
    told: list[tuple[int, int]] = []
    out_degree(indices, 10, lambda *each: told.append(each))
    assert told[-1] == (30, 30)
    reverse_pagerank(indptr, indices, iterations=3, progress=lambda *each: told.append(each))
    assert told[-1] == (90, 90)
    assert [done for done, total in told if total == 90] == sorted(
        {done for done, total in told if total == 90}
    )


def test_graphs_without_edges_or_nodes_have_scores() -> None:
    none = np.empty(0, np.int32)
    assert reverse_pagerank(np.zeros(5, np.int64), none).tolist() == [0.25] * 4
    assert reverse_pagerank(np.zeros(1, np.int64), none).tolist() == []
    assert out_degree(none, 3).tolist() == [0, 0, 0]
    assert rank_normalised(none).tolist() == []


@PROPERTY
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=50))
def test_scores_are_the_dense_ranks_spread_over_all_scores(values: list[int]) -> None:
    found = rank_normalised(np.array(values))
    assert found.dtype == np.uint16
    different = sorted(set(values))
    last = max(1, len(different) - 1)
    assert found.tolist() == [different.index(value) * HIGHEST // last for value in values]


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_equal_values_are_ordered_by_what_breaks_ties(pairs: list[tuple[int, int]]) -> None:
    values, ties = np.array(pairs).T
    different = sorted(set(pairs))
    last = max(1, len(different) - 1)
    expected = [different.index(pair) * HIGHEST // last for pair in pairs]
    assert rank_normalised(values, ties).tolist() == expected


def test_scores_of_many_values_stay_in_order_and_use_every_score() -> None:
    values = np.random.default_rng(0).permutation(200_000).astype(np.float64)
    found = rank_normalised(values)
    ascending = found[np.argsort(values)].astype(np.int64)
    assert (np.diff(ascending) >= 0).all()
    counts = np.bincount(found)
    assert len(counts) == HIGHEST + 1
    assert counts[:-1].min() >= 3  # 200,000 values on 65,535 steps; the greatest has the last
    assert counts[:-1].max() <= 4


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ArgumentError, match="NaN at 1"):
        rank_normalised(np.array([1.0, np.nan]))
    for wrong in (3, -1):
        with pytest.raises(RowIndexError, match=rf"{wrong} is outside .*\[0, 3\)"):
            out_degree(np.array([0, wrong]), 3)
        with pytest.raises(RowIndexError, match=rf"{wrong} is outside"):
            reverse_pagerank(np.array([0, 2, 2, 2]), np.array([0, wrong]))
    with pytest.raises(ArgumentError, match=r"damping: 1\.5"):
        reverse_pagerank(np.array([0, 0]), np.array([], int), damping=1.5)
    with pytest.raises(ArgumentError, match="iterations: -1"):
        reverse_pagerank(np.array([0, 0]), np.array([], int), iterations=-1)


def test_sampled_ids_are_those_of_the_loader_in_every_epoch() -> None:
    indptr, indices = random_csc(3, 300, 3000)
    graph = CSC(torch.from_numpy(indptr), torch.from_numpy(indices))
    targets = torch.repeat_interleave(graph.indptr.diff())
    data = Data(
        x=torch.arange(300.0).view(-1, 1), edge_index=torch.stack([graph.indices.long(), targets])
    )
    seeds = torch.arange(0, 300, 3)
    loader = NeighborLoader(
        data, [4, 2], input_nodes=seeds, batch_size=32, shuffle=True, seed=5, num_workers=0
    )
    expected = [batch.n_id.tolist() for _ in range(2) for batch in loader]
    run = sampled_ids(graph, seeds, [4, 2], batch_size=32, batches=len(expected), seed=5, threads=1)
    assert [ids.tolist() for ids in run] == expected


def test_presampling_counts_the_batches_that_hold_a_node() -> None:
    indptr, indices = random_csc(1, 100, 400)
    graph = CSC(torch.from_numpy(indptr), torch.from_numpy(indices))
    options = {"batch_size": 7, "batches": 9, "seed": 2, "threads": 1}
    seeds = torch.arange(0, 100, 5)
    expected = [0] * 100
    for ids in sampled_ids(graph, seeds, [3, 3], **options):
        assert len(set(ids.tolist())) == len(ids)
        for node in ids:
            expected[node] += 1
    found = importance("presample", graph, seeds=seeds, fanouts=[3, 3], **options)
    assert found.tolist() == expected


def test_presampling_needs_seeds_and_fanouts() -> None:
    graph = CSC(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64))
    for options in ({}, {"seeds": torch.tensor([0])}, {"fanouts": [2]}):
        with pytest.raises(ArgumentError, match="needs seeds and fanouts"):
            importance("presample", graph, **options)
    with pytest.raises(ArgumentError, match="seeds: none"):
        next(sampled_ids(graph, torch.tensor([], dtype=torch.int64), [1]))
    with pytest.raises(ArgumentError, match="batch_size 0"):
        next(sampled_ids(graph, torch.tensor([0]), [1], batch_size=0))
