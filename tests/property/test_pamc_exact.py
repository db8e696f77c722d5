"""The meta-node loss against dense and brute-force forms of what it stands for, in float64."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gnnsys.losses import PositivePairs, dense_contrastive_loss, pamc_loss, tiles
from gnnsys.losses.negatives import NEGATIVES, Clusters, moment_blocks
from gnnsys.losses.pairs import _sums_by_torch, positive_sums, unit_rows
from gnnsys.system.extension import core

MODES = sorted(NEGATIVES)
LINEAR = [mode for mode in MODES if mode != "exact"]
NODES, WIDTH = 23, 5


def rows(seed: int, nodes: int = NODES, width: int = WIDTH) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(nodes, width, generator=draw, dtype=torch.float64)


def pairs_of(seed: int, nodes: int = NODES, count: int = 60) -> tuple[Tensor, Tensor]:
    """One-sided, with duplicates and loops, and a node in none of them."""
    draw = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, nodes - 1, (2, count), generator=draw)
    return edges, torch.rand(count, generator=draw, dtype=torch.float64)


def labels(seed: int, clusters: int, nodes: int = NODES) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    some = torch.randint(0, clusters, (nodes - clusters,), generator=draw)
    return torch.cat([torch.arange(clusters), some])[torch.randperm(nodes, generator=draw)]


def cosines(z: Tensor) -> Tensor:
    norm = z.norm(dim=1, keepdim=True)
    u = torch.where(norm > 0, z / norm.where(norm > 0, torch.ones_like(norm)), 0.0)
    return u @ u.t()


def dense_parts(z: Tensor, edges: Tensor, weight: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """The exact positive and negative parts, by (N, N) matrices."""
    matrix = torch.zeros(len(z), len(z), dtype=z.dtype)
    for (i, j), w in zip(edges.t().tolist(), weight.tolist(), strict=True):
        matrix[i, j] += w
    cosine = cosines(z) * (1 - torch.eye(len(z), dtype=z.dtype))
    similarity = (tau * cosine).exp()
    positive = -((matrix * similarity).sum(1) + 1e-10).log().mean()
    return positive, similarity.sum(1).log().mean()


def published(z: Tensor, of: Tensor, tau: float, mode: str) -> Tensor:
    """The negative part, cluster by cluster as its formula stands; no cluster is empty."""
    count = int(of.max()) + 1
    sizes = torch.bincount(of).double()
    meta = torch.stack([z[of == k].sum(0) for k in range(count)])
    u = z / z.norm(dim=1, keepdim=True)
    mu = torch.stack([u[of == k].mean(0) for k in range(count)])
    between = torch.cosine_similarity(meta[:, None], meta[None], dim=2)
    negative = []
    if mode == "node":
        for i in range(len(z)):
            terms = [
                (sizes[k] - float(of[i] == k)) * (tau * u[i] @ (meta[k] / meta[k].norm())).exp()
                for k in range(count)
            ]
            negative.append((sum(terms) + 1).log())
        return torch.stack(negative).mean()
    for k in range(count):
        n = sizes[k]
        others = [other for other in range(count) if other != k]
        if mode == "paper":
            negative.append(
                (sum(((tau * between[k, other]).exp() for other in others), 1.0) + 1e-10).log()
            )
        elif mode == "weighted":
            own = (n - 1) * math.exp(tau) + 1
            total = sum((sizes[o] * (tau * between[k, o]).exp() for o in others), own)
            negative.append(n * total.log())
        else:
            total = n
            for other in others:
                dot = mu[k] @ mu[other]
                factor = 1.0
                if mode == "moment2":
                    second = [u[of == c].t() @ u[of == c] / sizes[c] for c in (k, other)]
                    factor = 1 + tau**2 / 2 * (torch.trace(second[0] @ second[1]) - dot**2)
                total = total + n * sizes[other] * (tau * dot).exp() * factor
            if n > 1:
                mean = (n * mu[k] @ mu[k] - 1) / (n - 1)
                factor = 1.0
                if mode == "moment2":  # of the cosines of different nodes of the cluster
                    inside = cosines(z[of == k])
                    off = inside[~torch.eye(len(inside), dtype=torch.bool)]
                    factor = 1 + tau**2 / 2 * (off.square().mean() - mean**2)
                total = total + n * (n - 1) * (tau * mean).exp() * factor
            negative.append(n * (total / n).log())
    return torch.stack(negative).sum() / (count if mode == "paper" else len(z))


def gradient(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


def assert_close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("tau", [0.5, 3.0])
@pytest.mark.parametrize("mode", MODES)
def test_every_node_its_own_cluster_is_the_dense_loss(mode: Any, tau: float) -> None:
    z = rows(1).requires_grad_()
    edges, weight = pairs_of(2)
    alone = torch.randperm(NODES, generator=torch.Generator().manual_seed(5))
    found = pamc_loss(z, edges, weight, alone, NODES, tau, mode)
    wanted = sum(dense_parts(z, edges, weight, tau))
    assert_close(found, wanted)
    assert_close(gradient(found, z), gradient(wanted, z))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", LINEAR)
def test_each_mode_is_its_formula(mode: Any, seed: int) -> None:
    z = rows(seed).requires_grad_()
    edges, weight = pairs_of(seed)
    of = labels(seed, 4)
    found = pamc_loss(z, edges, weight, of, 4, 0.7, mode)
    wanted = dense_parts(z, edges, weight, 0.7)[0] + published(z, of, 0.7, mode)
    assert_close(found, wanted)
    assert_close(gradient(found, z), gradient(wanted, z))


@pytest.mark.parametrize("mode", ["weighted", "moment1", "moment2", "node", "exact"])
def test_collapsed_clusters_of_unequal_sizes_are_exact(mode: Any) -> None:
    of = labels(3, 5)
    scale = 0.1 + rows(4, width=1).abs()
    z = rows(7, nodes=5)[of] * scale
    edges, weight = pairs_of(2)
    found = pamc_loss(z, edges, weight, of, 5, 1.3, mode)
    assert_close(found, sum(dense_parts(z, edges, weight, 1.3)))


def exact_blocks(z: Tensor, part: Tensor, tau: float) -> Tensor:
    """(K, K) sums over blocks, by all pairs of nodes."""
    cosine = cosines(z) * (1 - torch.eye(len(z), dtype=z.dtype))
    return part.t() @ (tau * cosine).exp() @ part


def blocks_of(z: Tensor, part: Tensor, tau: float, second: bool) -> Tensor:
    sizes = part.sum(0) if part.dim() == 2 else torch.bincount(part).double()
    return moment_blocks(Clusters(z, unit_rows(z), part, sizes, tau), second)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.floats(0.05, 6.0), st.booleans(), st.booleans())
def test_the_first_moment_bounds_each_block_from_below(seed, clusters, tau, soft, holes) -> None:
    z = rows(seed, nodes=17, width=3)
    if holes:
        z[::4] = 0
    of = labels(seed, clusters, nodes=17)
    part = torch.nn.functional.one_hot(of, clusters).double()
    if soft:
        part = (2 * rows(seed + 1, nodes=17, width=clusters)).softmax(1)
    bound = blocks_of(z, part if soft else of, tau, second=False)
    gap = exact_blocks(z, part, tau).log() - bound.log()
    assert gap.min() >= -1e-12
    assert gap.max() <= tau**2 / 2 + 1e-12


@pytest.mark.parametrize("tau", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_second_moment_is_closer_where_tau_is_small(tau, spread, seed) -> None:
    of = labels(seed, 4, nodes=80)
    z = rows(seed, nodes=4, width=8)[of] + spread * rows(seed + 10, nodes=80, width=8)
    part = torch.nn.functional.one_hot(of, 4).double()
    exact = exact_blocks(z, part, tau).log()
    first, second = (
        (blocks_of(z, of, tau, second=second).log() - exact).abs() for second in (False, True)
    )
    assert (second <= first).all()
    assert second.mean() < 0.5 * first.mean()


@pytest.mark.parametrize("mode", MODES)
def test_one_hot_assignments_are_hard_ones(mode: Any) -> None:
    z = rows(3).requires_grad_()
    edges, weight = pairs_of(4)
    of = labels(5, 4)
    part = torch.nn.functional.one_hot(of, 4).double()
    losses = [pamc_loss(z, edges, weight, each, 4, 0.8, mode) for each in (of, part)]
    assert_close(losses[0], losses[1])
    assert_close(gradient(losses[0], z), gradient(losses[1], z))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_order_of_nodes_and_clusters_and_scale_do_not_count(mode: Any, soft: bool) -> None:
    z, (edges, weight) = rows(6), pairs_of(7)
    of = rows(8, width=4).softmax(1) if soft else labels(8, 4)
    wanted = pamc_loss(z, edges, weight, of, 4, 0.9, mode)
    draw = torch.Generator().manual_seed(1)
    place, names = torch.randperm(NODES, generator=draw), torch.randperm(4, generator=draw)
    assert_close(pamc_loss(z * 37.0, edges, weight, of, 4, 0.9, mode), wanted)
    renamed = of[:, names] if soft else names[of]
    assert_close(pamc_loss(z, edges, weight, renamed, 4, 0.9, mode), wanted)
    moved = pamc_loss(z[place], place.argsort()[edges], weight, of[place], 4, 0.9, mode)
    assert_close(moved, wanted)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_empty_clusters_are_left_out(mode: Any, soft: bool) -> None:
    z, (edges, weight) = rows(2), pairs_of(3)
    of = labels(4, 3)
    apart = torch.tensor([1, 4, 6])[of]
    few, many = of, apart
    if soft:
        few = rows(5, width=3).softmax(1)
        many = torch.zeros(NODES, 8, dtype=torch.float64)
        many[:, [1, 4, 6]] = few
    wanted = pamc_loss(z, edges, weight, few, 3, 0.6, mode)
    assert_close(pamc_loss(z, edges, weight, many, 8, 0.6, mode), wanted)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_zero_rows_have_cosine_zero_and_no_gradient(mode: Any, soft: bool) -> None:
    z = rows(2)
    of = labels(4, 3)
    z[of == 1] = 0  # a meta-node that is zero, too
    z[::5] = 0
    z.requires_grad_()
    edges, weight = pairs_of(3)
    part = rows(5, width=3).softmax(1).requires_grad_() if soft else of
    loss = pamc_loss(z, edges, weight, part, 3, 0.6, mode)
    assert loss.isfinite()
    (found,) = gradient(loss, z)
    assert found.isfinite().all()
    if mode == "exact":
        wanted = sum(dense_parts(z, edges, weight, 0.6))
        assert_close(loss, wanted)
    if mode in ("moment1", "moment2", "exact"):  # elsewhere a zero row may move its meta-node
        assert (found[(z == 0).all(1)] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode: Any) -> None:
    z = rows(2, nodes=9, width=3).requires_grad_()
    edges, weight = pairs_of(3, nodes=9, count=20)
    part = rows(5, nodes=9, width=3).softmax(1).requires_grad_()

    def hard(z: Tensor) -> Tensor:
        return pamc_loss(z, edges, weight, labels(4, 3, nodes=9), 3, 0.6, mode)

    def soft(z: Tensor, part: Tensor) -> Tensor:
        return pamc_loss(z, edges, weight, part / part.sum(1, keepdim=True), 3, 0.6, mode)

    assert torch.autograd.gradcheck(hard, (z,))
    assert torch.autograd.gradcheck(soft, (z, part))


@pytest.mark.parametrize("side", [1, 2, 7, 23])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("mode", ["node", "exact"])
def test_tiles_of_any_size_give_the_same(monkeypatch, mode: Any, soft: bool, side: int) -> None:
    edges, weight = pairs_of(3)
    part = rows(5, width=3).softmax(1).requires_grad_()
    of = part if soft else labels(4, 3)

    def found() -> tuple[Tensor, ...]:
        z = rows(2).requires_grad_()
        loss = pamc_loss(z, edges, weight, of, 3, 0.6, mode)
        by_all = torch.autograd.grad(loss, (z, part), allow_unused=True)
        return loss, *(each for each in by_all if each is not None)

    wanted = found()
    monkeypatch.setattr(tiles, "_SIDE", side)
    assert_close(found(), wanted)


_PEAK = """
import resource, sys, torch
from gnnsys.losses import PositivePairs, pamc_loss
nodes = 8000  # a matrix of all pairs has 244 MiB
z, of = torch.randn(nodes, 8, requires_grad=True), torch.arange(nodes) % 10
pairs = PositivePairs(torch.randint(0, nodes, (2, nodes)), None, nodes)
def step(): pamc_loss(z, pairs, None, of, 10, 0.5, "exact").backward()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak(); step(); print((peak() - before) / 1024)
"""


def test_the_exact_mode_needs_the_memory_of_some_tiles(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PEAK]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60


def kept_bytes(nodes: int, mode: str | None) -> int:
    """Bytes of tensors that autograd keeps for backward, each storage once."""
    z = rows(1, nodes=nodes, width=8).float().requires_grad_()
    draw = torch.Generator().manual_seed(1)
    edges = torch.randint(0, nodes, (2, 4 * nodes), generator=draw)
    of = torch.arange(nodes) % 10
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if mode is None:
            loss = dense_contrastive_loss(z, edges, None, 0.5)
        else:
            loss = pamc_loss(z, edges, None, of, 10, 0.5, mode)
    assert loss.requires_grad
    return sum(kept.values())


def test_what_backward_needs_grows_with_the_nodes() -> None:
    def exponent(mode: str | None, few: int, many: int) -> float:
        return math.log(kept_bytes(many, mode) / kept_bytes(few, mode)) / math.log(many / few)

    for mode in LINEAR:
        assert exponent(mode, 10_000, 100_000) <= 1.02, mode
    assert exponent("exact", 1000, 4000) <= 1.02
    assert exponent(None, 1000, 4000) >= 1.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 7, 64, 300])
def test_compiled_sums_equal_torch_and_do_not_depend_on_threads(dtype: Any, width: int) -> None:
    u = unit_rows(rows(1, nodes=900, width=width).to(dtype)).requires_grad_()
    edges, weight = pairs_of(2, nodes=900, count=9000)
    pairs = PositivePairs(edges, weight, 900)
    grad = rows(3, nodes=900, width=1)[:, 0].to(dtype)
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {}
    wanted = _sums_by_torch(u, pairs, 1.5)
    (by_u,) = torch.autograd.grad(wanted, u, grad)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        sums = positive_sums(u, pairs, 1.5)
        found.append((sums, *torch.autograd.grad(sums, u, grad)))
    torch.set_num_threads(before)
    torch.testing.assert_close(found[0][0], wanted, **tolerance)
    torch.testing.assert_close(found[0][1], by_u, **tolerance)
    for sums, by in found[1:]:
        assert torch.equal(sums, found[0][0])
        assert torch.equal(by, found[0][1])


@pytest.mark.parametrize("isa", core.isas())
def test_compiled_sums_do_not_depend_on_the_instruction_set(isa: str) -> None:
    u = unit_rows(rows(1, nodes=200, width=37).float()).numpy()
    pairs = PositivePairs(*pairs_of(2, nodes=200, count=2000), 200)
    arrays = pairs.indptr.numpy(), pairs.other.numpy(), pairs.weights(torch.float32).numpy(), u
    out = []
    for name in ("generic", isa):
        kernel = core.PairSums(1, name)
        sums, by = np.empty(200, np.float32), np.empty_like(u)
        kernel.sum(*arrays, 1.5, sums)
        kernel.derive(*arrays, 1.5, sums, by)
        out.append((sums, by))
    assert np.array_equal(out[0][0], out[1][0])
    assert np.array_equal(out[0][1], out[1][1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_is_computed_in_float32(mode: Any, dtype: Any) -> None:
    z = rows(6, nodes=300).to(dtype).requires_grad_()
    edges, weight = pairs_of(7, nodes=300, count=900)
    of = labels(8, 6, nodes=300)
    loss = pamc_loss(z, edges, weight, of, 6, 0.9, mode)
    assert loss.dtype == torch.float32
    wide = z.detach().double().requires_grad_()
    wanted = pamc_loss(wide, edges, weight, of, 6, 0.9, mode)
    assert loss.item() == pytest.approx(wanted.item(), rel=2e-6)
    (found,) = gradient(loss, z)
    assert found.dtype == dtype
    wide_gradient = gradient(wanted, wide)[0]
    # Of the largest: 2^-8 for what is kept of a bfloat16.
    tolerance = (2**-8 if dtype == torch.bfloat16 else 1e-5) * wide_gradient.abs().max()
    assert (found.double() - wide_gradient).abs().max() <= tolerance
