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
