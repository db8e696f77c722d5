"""Assignments, influence and the losses to compare with, against other computations of them; and
bad input."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError, GnnsysError, RowIndexError, TooLargeError
from gnnsys.losses import (
    PositivePairs,
    cca_ssg_loss,
    dec_kl,
    dense_contrastive_loss,
    influence,
    influence_adjacency,
    info_nce_loss,
    pamc_loss,
    student_t_assign,
    target_distribution,
)


def rows(seed: int, nodes: int = 30, width: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(nodes, width, generator=draw, dtype=torch.float64)


def edges_of(seed: int, nodes: int = 30, count: int = 70) -> Tensor:
    return torch.randint(0, nodes - 2, (2, count), generator=torch.Generator().manual_seed(seed))


def test_assignments_are_the_densities_of_students_t() -> None:
    z, centers = rows(1), rows(2, nodes=5)
    distances = (z[:, None] - centers).norm(dim=2)
    density = scipy.stats.t(df=1).pdf(distances.numpy())
    wanted = torch.from_numpy(density / density.sum(1, keepdims=True))
    torch.testing.assert_close(student_t_assign(z, centers), wanted)
    inputs = z.requires_grad_(), centers.requires_grad_()
    assert torch.autograd.gradcheck(student_t_assign, inputs)


def test_a_node_on_a_center_far_from_the_origin_belongs_to_it() -> None:
    centers = torch.tensor([[3e3, 0.0], [0.0, 3e3]])  # where float32 rounds squares by 0.5
    q = student_t_assign(centers, centers)
    assert (q.diagonal() > 0.99).all()


def test_the_target_is_its_formula_and_a_constant() -> None:
    q = student_t_assign(rows(1), rows(2, nodes=5)).requires_grad_()
    p = target_distribution(q)
    assert not p.requires_grad
    for i in range(len(q)):
        terms = [q[i, k].item() ** 2 / q[:, k].sum().item() for k in range(5)]
        assert p[i].tolist() == pytest.approx([term / sum(terms) for term in terms], rel=1e-12)


def test_a_cluster_without_members_has_a_finite_target() -> None:
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert target_distribution(q).tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert dec_kl(q, q).item() == 0


def test_the_clustering_loss_is_the_divergence_of_torch() -> None:
    q = student_t_assign(rows(1), rows(2, nodes=5)).requires_grad_()
    p = target_distribution(q)
    wanted = F.kl_div(q.log(), p, reduction="batchmean")
    torch.testing.assert_close(dec_kl(p, q), wanted)
    found, expected = (torch.autograd.grad(loss, q)[0] for loss in (dec_kl(p, q), wanted))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("block", [1, 1 << 22])
@pytest.mark.parametrize("cumulative", [True, False])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_influence_is_the_sum_of_powers(monkeypatch, order: int, cumulative: bool, block) -> None:
    monkeypatch.setattr(influence, "_BLOCK", block)
    edges = edges_of(3)
    adjacency = np.zeros((30, 30))
    adjacency[edges[0], edges[1]] = adjacency[edges[1], edges[0]] = 1
    np.fill_diagonal(adjacency, 1)
    step = adjacency / adjacency.sum(1, keepdims=True)
    powers = [np.linalg.matrix_power(step, r) for r in range(1, order + 1)]
    wanted = sum(powers) if cumulative else powers[-1]
    pairs, weight = influence_adjacency(
        edges, 30, order, cumulative=cumulative, dtype=torch.float64
    )
    found = np.zeros((30, 30))
    found[pairs[0], pairs[1]] = weight
    np.testing.assert_allclose(found, wanted, rtol=1e-13)
    assert len(weight) == np.count_nonzero(wanted)
    assert (pairs[0].diff() >= 0).all()
    count = np.count_nonzero(wanted)
    with pytest.raises(TooLargeError, match=rf"order\({order}\): .* has {count} entries.*max_nnz"):
        influence_adjacency(edges, 30, order, cumulative=cumulative, max_nnz=count - 1)


def test_influence_that_fills_up_is_told_of(caplog) -> None:
    star = torch.stack([torch.zeros(200, dtype=torch.int64), torch.arange(1, 201)])
    with caplog.at_level(logging.WARNING):
        influence_adjacency(star, 201, 1)
        assert not caplog.records
        influence_adjacency(star, 201, 2)
    assert "40401 entries of 400 edges" in caplog.text


def test_info_nce_is_its_sums() -> None:
    views = rows(1, nodes=7), rows(2, nodes=7)
    losses = []
    for anchor, other in (views, views[::-1]):
        for i in range(7):

            def term(to: Tensor, i: int = i, anchor: Tensor = anchor) -> float:
                return math.exp(F.cosine_similarity(anchor[i], to, dim=0).item() / 0.4)

            across = [term(other[j]) for j in range(7)]
            within = [term(anchor[j]) for j in range(7) if j != i]
            losses.append(-math.log(across[i] / (sum(across) + sum(within))))
    assert info_nce_loss(*views, 0.4).item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_cca_ssg_is_its_formula() -> None:
    views = rows(1), rows(2)
    a, b = (((v - v.mean(0)) / v.std(0, correction=0) / math.sqrt(len(v))).numpy() for v in views)
    apart = sum(np.linalg.norm(c.T @ c - np.eye(4)) ** 2 for c in (a, b))
    wanted = np.linalg.norm(a - b) ** 2 + 0.3 * apart
    assert cca_ssg_loss(*views, 0.3).item() == pytest.approx(wanted, rel=1e-12)


def test_the_dense_loss_is_the_exact_mode() -> None:
    z, edges = rows(3).requires_grad_(), edges_of(4)
    weight = torch.rand(70, dtype=torch.float64)
    one = torch.zeros(30, dtype=torch.int64)
    losses = (
        dense_contrastive_loss(z, edges, weight, 0.8),
        pamc_loss(z, edges, weight, one, 1, 0.8, "exact"),
    )
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in losses))


GOOD: dict[str, Any] = {
    "z": rows(1, nodes=4, width=2),
    "edge_index": torch.tensor([[0, 1], [1, 2]]),
    "edge_weight": None,
    "assign": torch.tensor([0, 1, 1, 0]),
    "num_clusters": 2,
    "tau": 0.5,
}
HALF = torch.full((4, 2), 0.5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mode": "best"}, ArgumentError, r"mode\('best'\): expected one of paper"),
        ({"tau": 0.0}, ArgumentError, r"tau\(0.0\)"),
        ({"tau": math.nan}, ArgumentError, r"tau\(nan\)"),
        ({"num_clusters": 5}, ArgumentError, r"num_clusters\(5\): expected 1 to 4"),
        ({"num_clusters": 0}, ArgumentError, r"num_clusters\(0\)"),
        ({"z": torch.ones(4)}, ArgumentError, r"z \(4,\): expected \(N, d\)"),
        ({"z": torch.ones(4, 2).long()}, DTypeError, r"z: torch.int64"),
        (
            {"z": torch.tensor([[1.0], [2.0], [math.nan], [0.0]])},
            ArgumentError,
            r"z: row 2 is not finite",
        ),
        ({"edge_index": torch.tensor([[0], [4]])}, RowIndexError, r"nodes 0 to 4, expected 0 to 3"),
        ({"edge_index": torch.tensor([[-1], [2]])}, RowIndexError, r"nodes -1 to 2"),
        ({"edge_index": torch.tensor([0, 4])}, ArgumentError, r"edge_index \(2,\)"),
        ({"edge_index": torch.ones(2, 2)}, DTypeError, r"edge_index: torch.float32"),
        ({"edge_weight": torch.tensor([1.0, -2.0])}, ArgumentError, r"edge_weight: -2.0"),
        ({"edge_weight": torch.tensor([1.0, math.inf])}, ArgumentError, r"edge_weight: inf"),
        ({"edge_weight": torch.ones(3)}, ArgumentError, r"edge_weight \(3,\): expected \(2,\)"),
        ({"edge_weight": torch.ones(2).long()}, DTypeError, r"edge_weight: torch.int64"),
        ({"edge_weight": torch.ones(2, requires_grad=True)}, ArgumentError, r"is a constant"),
        ({"assign": torch.tensor([0, 1, 2, 0])}, RowIndexError, r"clusters 0 to 2, expected 0 to"),
        ({"assign": torch.tensor([0, 1])}, ArgumentError, r"assign \(2,\): expected \(4,\)"),
        ({"assign": torch.zeros(4)}, DTypeError, r"assign: torch.float32"),
        ({"assign": HALF.long()}, DTypeError, r"assign: torch.int64"),
        ({"assign": 0.9 * HALF}, ArgumentError, r"assign: row 0 sums to 0.9"),
        ({"assign": HALF + torch.tensor([-1.0, 1.0])}, ArgumentError, r"with least -0.5"),
        ({"edge_index": PositivePairs(torch.tensor([[0], [1]]))}, ArgumentError, r"pairs of 2"),
        (
            {
                "edge_index": PositivePairs(torch.tensor([[0], [1]]), None, 4),
                "edge_weight": torch.ones(1),
            },
            ArgumentError,
            r"edge_weight: expected None",
        ),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], error: type[GnnsysError], message) -> None:
    assert pamc_loss(**GOOD).isfinite()
    with pytest.raises(error, match=message):
        pamc_loss(**(GOOD | change))


def test_no_pairs_and_one_node_are_fine() -> None:
    none = torch.empty(2, 0, dtype=torch.int64)
    for mode in ("paper", "weighted", "moment1", "moment2", "node", "exact"):
        z = torch.ones(1, 2, requires_grad=True)
        loss = pamc_loss(z, none, None, torch.zeros(1, dtype=torch.int64), 1, 0.5, mode)
        loss.backward()
        assert loss.item() == pytest.approx(-math.log(1e-10), rel=1e-6)
        assert (z.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_hold_the_weights_of_both_directions(dtype: torch.dtype) -> None:
    edges, weight = edges_of(4), torch.rand(70, dtype=dtype)
    wanted = torch.zeros(30, 30, dtype=dtype)
    wanted.index_put_((edges[0], edges[1]), weight, accumulate=True)
    pairs = PositivePairs(edges, weight, 30)
    row = torch.arange(30).repeat_interleave(pairs.indptr.diff())
    found = torch.zeros(2, 30, 30, dtype=dtype)
    found[:, row, pairs.other.long()] = pairs.weights(dtype).t()
    torch.testing.assert_close(found[0] + pairs.own.diag(), wanted)
    torch.testing.assert_close(found[1] + pairs.own.diag(), wanted.t())


def test_pairs_may_be_sorted_once() -> None:
    z, edges = rows(3), edges_of(4)
    weight, of = torch.rand(70), torch.arange(30) % 3
    pairs = PositivePairs(edges, weight, 30)
    assert torch.equal(
        pamc_loss(z, pairs, None, of, 3, 0.5), pamc_loss(z, edges, weight, of, 3, 0.5)
    )
    assert repr(pairs) == "PositivePairs(30 nodes, 70 pairs)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: student_t_assign(torch.ones(3, 2), torch.ones(2, 3)), r"expected \(N, d\)"),
        (lambda: target_distribution(torch.ones(3)), r"q \(3,\)"),
        (lambda: dec_kl(torch.ones(3, 2), torch.ones(2, 3)), r"p \(3, 2\): expected \(2, 3\)"),
        (lambda: influence_adjacency(edges_of(1), 30, 0), r"order\(0\): expected at least 1"),
        (lambda: influence_adjacency(edges_of(1), 9), r"expected 0 to 8"),
        (lambda: info_nce_loss(torch.ones(3, 2), torch.ones(2, 2)), r"views \(3, 2\) and \(2, 2\)"),
    ],
)
def test_other_arguments_that_do_not_fit_are_refused(call: Any, message: str) -> None:
    with pytest.raises(GnnsysError, match=message):
        call()
