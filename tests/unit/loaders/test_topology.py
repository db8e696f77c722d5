"""CSC conversion against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from gnnsys.errors import ArgumentError, DTypeError, FileFormatError, MissingFileError
from gnnsys.loaders import CSC


@pytest.mark.parametrize(
    ("num_nodes", "num_edges"), [(1, 0), (1, 5), (2, 3), (5, 40), (100, 0), (1000, 5000)]
)
def test_csc_equals_scipys(num_nodes, num_edges):
    draw = np.random.default_rng(num_edges)
    source, target = draw.integers(0, num_nodes, (2, num_edges))
    graph = CSC.from_edge_index(torch.from_numpy(np.stack([source, target])), num_nodes)
    # scipy adds duplicates up, which keeps their number: the structure is compared through it.
    matrix = scipy.sparse.coo_matrix(
        (np.ones(num_edges, np.int64), (source, target)), (num_nodes, num_nodes)
    ).tocsc()
    ours = scipy.sparse.csc_matrix(
        (np.ones(num_edges, np.int64), graph.indices.numpy(), graph.indptr.numpy()),
        (num_nodes, num_nodes),
    )
    assert (matrix != ours).nnz == 0
    order = np.argsort(target, kind="stable")
    assert np.array_equal(graph.perm.numpy(), order)
    assert np.array_equal(graph.indices.numpy(), source[order])


def test_edges_of_one_target_keep_their_order():
    source = torch.tensor([5, 3, 4, 3])
    graph = CSC.from_edge_index(torch.stack([source, torch.zeros(4, dtype=torch.int64)]), 6)
    assert graph.indices.tolist() == [5, 3, 4, 3]
    assert graph.perm.tolist() == [0, 1, 2, 3]


def test_sorted_edges_need_no_permutation():
    edge_index = torch.tensor([[2, 0, 1], [0, 1, 1]])
    graph = CSC.from_edge_index(edge_index, 3, is_sorted=True)
    assert graph.perm is None
    assert graph.indices.tolist() == [2, 0, 1]


def test_small_graphs_keep_int32_ids():
    assert CSC.from_edge_index(torch.tensor([[0], [1]]), 2).indices.dtype == torch.int32


@pytest.mark.parametrize(("sources", "targets"), [(5, 30), (30, 5), (1, 1), (7, 0)])
def test_edges_between_two_types_are_sorted_by_target_and_time(sources, targets):
    draw = np.random.default_rng(sources)
    count = 60 if targets else 0
    source, target = draw.integers(0, sources, count), draw.integers(0, max(targets, 1), count)
    time = draw.integers(0, 4, count)
    graph = CSC.from_edges(*map(torch.from_numpy, (source, target)), sources, targets)
    timed = CSC.from_edges(
        *map(torch.from_numpy, (source, target)), sources, targets, time=torch.from_numpy(time)
    )
    for found, order in (
        (graph, np.argsort(target, kind="stable")),
        (timed, np.lexsort([time, target])),
    ):
        assert (found.num_sources, found.num_nodes) == (sources, targets)
        assert np.array_equal(found.perm.numpy(), order)
        assert np.array_equal(found.indices.numpy(), source[order])
        assert np.array_equal(found.targets().numpy(), target[order])


def test_reversed_edges_keep_the_users_numbers():
    edge_index = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (2, 40)))
    graph = CSC.from_edge_index(edge_index, 9).reversed()
    assert torch.equal(graph.targets(), edge_index[0, graph.perm])
    assert torch.equal(graph.indices.long(), edge_index[1, graph.perm])


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (5, 0, r"source 5, outside the nodes \[0, 5\)"),
        (-1, 0, r"source -1, outside the nodes \[0, 5\)"),
        (0, 3, r"target 3, outside the nodes \[0, 3\)"),
    ],
)
def test_edges_outside_either_type_are_an_error(source, target, message):
    edges = torch.tensor([0, source]), torch.tensor([0, target])
    for time in (None, torch.tensor([2, 1])):
        with pytest.raises(ArgumentError, match=f"edge_index: edge 1 has the {message}"):
            CSC.from_edges(*edges, 5, 3, time=time)


def test_times_that_descend_within_a_target_are_an_error():
    source, target = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1])
    CSC.from_edges(source, target, 3, 2, is_sorted=True, time=torch.tensor([9, 3, 3]))
    with pytest.raises(ArgumentError, match="node 1 the time 4 stands before 3"):
        CSC.from_edges(source, target, 3, 2, is_sorted=True, time=torch.tensor([9, 4, 3]))


@pytest.mark.parametrize("shape", [(3, 2), (2,), (2, 2, 2)])
def test_another_shape_is_an_error(shape):
    with pytest.raises(ArgumentError, match="edge_index: shape"):
        CSC.from_edge_index(torch.zeros(shape, dtype=torch.int64), 3)


def test_wrong_dtypes_are_errors():
    with pytest.raises(DTypeError, match=r"indptr: dtype torch.int32"):
        CSC(torch.zeros(1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32))
    with pytest.raises(DTypeError, match=r"indices: dtype torch.float32"):
        CSC(torch.zeros(1, dtype=torch.int64), torch.zeros(0))


def test_empty_indptr_and_wrong_perm_are_errors():
    with pytest.raises(ArgumentError, match="indptr: empty"):
        CSC(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32))
    with pytest.raises(ArgumentError, match="perm: 2 entries != 1 edges"):
        CSC(torch.tensor([0, 1]), torch.zeros(1, dtype=torch.int32), torch.zeros(2))


def test_missing_and_broken_files_are_errors(tmp_path):
    np.save(tmp_path / "indptr.npy", np.zeros(2, np.int64))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "indptr.npy").read_bytes()[:-4])
    with pytest.raises(MissingFileError, match=r"none\.npy"):
        CSC.from_files(tmp_path / "indptr.npy", tmp_path / "none.npy")
    with pytest.raises(FileFormatError, match=r"cut\.npy"):
        CSC.from_files(tmp_path / "indptr.npy", tmp_path / "cut.npy")
