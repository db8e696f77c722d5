"""Edges of R-MAT and random ids, against a recomputation in numpy and by their statistics."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from gnnsys import rng
from gnnsys.errors import ArgumentError
from gnnsys.generate.rmat import _alias_table
from gnnsys.system.extension import core

GRAPH500 = (0.57, 0.19, 0.19)
SKEWED = (0.9, 0.05, 0.049)
EDGE_KEY, ID_KEY = 0x0123456789ABCDEF, 0xFEDCBA9876543210


# The reference: what draw_rmat_edges and permute_ids must give, bit by bit. ----------------------


def permute(ids: NDArray[np.int64], key: int, num_ids: int) -> NDArray[np.int64]:
    bits = max(1, (num_ids - 1).bit_length())
    mask, half = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    words = rng.mix64(np.array([(key + i) % 2**64 for i in range(1, 13)], np.uint64)).tolist()
    out = ids.astype(np.uint64)
    todo = np.ones(len(ids), bool)
    while todo.any():
        x = out[todo]
        for factor, term in zip(words[::2], words[1::2], strict=True):
            x = (x * np.uint64(factor | 1) + np.uint64(term)) & mask
            x ^= x >> half
        out[todo] = x
        todo[todo] = x >= num_ids
    return out.astype(np.int64)


def draw(
    scale: int, alias: NDArray[np.uint32], edges: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns before they are renumbered."""
    row = np.zeros(len(edges), np.int64)
    column = np.zeros(len(edges), np.int64)
    groups = -(-scale // 4)
    counter = np.zeros((len(edges), 4), np.uint32)
    counter[:, 0] = edges & np.uint64(0xFFFFFFFF)
    counter[:, 1] = edges >> np.uint64(32)
    for group in range(groups):
        counter[:, 3] = group // 4
        word = rng.philox4x32(counter, EDGE_KEY)[:, group % 4].astype(np.int64)
        entry = alias[word >> 24].astype(np.int64)
        outcome = np.where(word % 2**24 < entry // 256, word >> 24, entry % 256)
        row = row * 16 + outcome // 16
        column = column * 16 + outcome % 16
    return row >> (4 * groups - scale), column >> (4 * groups - scale)


def draw_in_core(
    scale: int,
    count: int,
    *,
    first: int = 0,
    quarters: tuple[float, float, float] = GRAPH500,
    dtype: type = np.int64,
    threads: int = 1,
    seed: int = 0,
) -> NDArray[np.int64]:
    ends = np.empty((2, count), dtype)
    alias = _alias_table(*quarters)
    core.draw_rmat_edges(EDGE_KEY + seed, ID_KEY, scale, alias, first, *ends, threads)
    return ends


def undo_ids(ends: NDArray[np.int64], scale: int) -> NDArray[np.int64]:
    flat = ends.astype(np.int64).reshape(-1)
    core.permute_ids(ID_KEY, 1 << scale, True, flat)
    return flat.reshape(ends.shape)


@pytest.mark.parametrize("scale", [1, 2, 4, 5, 15, 16, 17, 30, 31, 32, 33, 40])
@pytest.mark.parametrize("first", [0, 2**32 - 500, 2**44 + 3])
def test_edges_equal_the_reference(scale, first):
    alias = _alias_table(*GRAPH500)
    row, column = draw(scale, alias, np.arange(first, first + 1000, dtype=np.uint64))
    expected = permute(row, ID_KEY, 1 << scale), permute(column, ID_KEY, 1 << scale)
    for dtype in (np.int32, np.int64) if scale < 32 else (np.int64,):
        source, target = draw_in_core(scale, 1000, first=first, dtype=dtype)
        assert np.array_equal(source, expected[0])
        assert np.array_equal(target, expected[1])


@pytest.mark.parametrize("num_ids", [1, 2, 3, 5, 97, 128, 129, 40_000, 2**40, 2**40 + 1, 2**62])
def test_ids_equal_the_reference(num_ids):
    ids = np.arange(num_ids) if num_ids < 2**17 else np.arange(0, num_ids, num_ids // 999)
    mapped = ids.copy()
    core.permute_ids(ID_KEY, num_ids, False, mapped)
    assert np.array_equal(mapped, permute(ids, ID_KEY, num_ids))


# Ids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_ids", [*(1 << scale for scale in range(1, 17)), 1, 3, 1000, 65_537])
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_ids_are_a_bijection_with_its_inverse(num_ids, key):
    ids = np.arange(num_ids)
    core.permute_ids(key, num_ids, False, ids)
    assert np.array_equal(np.sort(ids), np.arange(num_ids))
    core.permute_ids(key, num_ids, True, ids)
    assert np.array_equal(ids, np.arange(num_ids))


def test_ids_of_huge_graphs_come_back():
    ids = np.random.default_rng(0).integers(0, 2**62, 1000)
    mapped = ids.copy()
    core.permute_ids(ID_KEY, 2**62, False, mapped)
    assert len(np.unique(mapped)) == 1000
    core.permute_ids(ID_KEY, 2**62, True, mapped)
    assert np.array_equal(mapped, ids)


@pytest.mark.parametrize("num_ids", [1 << 16, 50_000])
def test_ids_look_random(num_ids):
    """Neighbours go anywhere, in even numbers, and by nothing that a straight line would fit."""
    ids = np.arange(num_ids)
    core.permute_ids(ID_KEY, num_ids, False, ids)
    assert abs(stats.pearsonr(np.arange(num_ids), ids).statistic) < 4 / num_ids**0.5
    for stride in (1, 2, 256):
        steps = (ids[stride:] - ids[:-stride]) % num_ids
        assert stats.kstest(steps / num_ids, "uniform").pvalue > 1e-3
        assert np.bincount(steps, minlength=num_ids).max() < num_ids / 50


def test_another_key_gives_other_ids():
    first, second = np.arange(1000), np.arange(1000)
    core.permute_ids(1, 1000, False, first)
    core.permute_ids(2, 1000, False, second)
    assert (first == second).mean() < 0.02


# Edges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quarters", [GRAPH500, SKEWED, (0.25, 0.25, 0.25), (1e-6, 1e-6, 0.5)])
def test_the_alias_table_gives_each_outcome_its_probability(quarters):
    found = [0] * 256
    for column, entry in enumerate(_alias_table(*quarters).tolist()):
        found[column] += entry >> 8
        found[entry & 255] += 2**24 - (entry >> 8)
    assert sum(found) == 2**32
    shares = [Fraction(share) for share in quarters]
    shares.append(1 - sum(shares))
    for outcome, weight in enumerate(found):
        wanted = Fraction(2**32)
        for level in range(4):
            wanted *= shares[2 * (outcome >> 4 + level & 1) + (outcome >> level & 1)]
        assert abs(weight - wanted) < 1


@pytest.mark.parametrize("quarters", [GRAPH500, SKEWED])
@pytest.mark.parametrize("scale", [7, 22])
def test_each_level_falls_into_the_quarters_by_their_probabilities(quarters, scale):
    count = 1 << 18
    row, column = undo_ids(draw_in_core(scale, count, quarters=quarters), scale)
    expected = count * np.array([*quarters, 1 - sum(quarters)])
    for level in range(scale):
        quarter = 2 * (row >> level & 1) + (column >> level & 1)
        assert stats.chisquare(np.bincount(quarter, minlength=4), expected).pvalue > 1e-4


@pytest.mark.parametrize("levels", [(0, 1), (0, 3), (3, 4), (0, 21)])
def test_levels_are_independent(levels):
    count = 1 << 18
    row, column = undo_ids(draw_in_core(22, count), 22)
    first, second = (2 * (row >> level & 1) + (column >> level & 1) for level in levels)
    shares = np.array([*GRAPH500, 1 - sum(GRAPH500)])
    pairs = np.bincount(4 * first + second, minlength=16)
    assert stats.chisquare(pairs, count * np.outer(shares, shares).reshape(-1)).pvalue > 1e-4


def test_following_edges_are_independent():
    row, column = undo_ids(draw_in_core(22, 1 << 18), 22)
    top = 2 * (row >> 21) + (column >> 21)
    shares = np.array([*GRAPH500, 1 - sum(GRAPH500)])
    pairs = np.bincount(4 * top[::2] + top[1::2], minlength=16)
    expected = (len(top) // 2) * np.outer(shares, shares).reshape(-1)
    assert stats.chisquare(pairs, expected).pvalue > 1e-4


def test_degrees_have_a_heavy_tail():
    scale = 16
    source, target = draw_in_core(scale, 16 << scale)
    for ends in (source, target):
        degree = np.sort(np.bincount(ends, minlength=1 << scale))[::-1]
        assert degree[0] > 100 * 16  # a Poisson degree of that mean has 16 +- 4
        assert degree[: len(degree) // 100].sum() > 0.25 * degree.sum()
        assert (degree == 0).mean() > 0.2
        assert np.median(degree) < 16 / 2


def test_hubs_have_any_ids():
    scale = 16
    source, target = draw_in_core(scale, 16 << scale)
    degree = np.bincount(source, minlength=1 << scale) + np.bincount(target, minlength=1 << scale)
    hubs = np.argsort(degree)[-1024:]
    for part in (hubs >> 12, hubs & 15):  # sixteenths of the ids, and residues
        assert stats.chisquare(np.bincount(part, minlength=16)).pvalue > 1e-3


def test_any_block_and_any_threads_give_the_same_edges():
    count = 100_003
    whole = draw_in_core(20, count)
    assert np.array_equal(draw_in_core(20, count, threads=3), whole)
    for size in (1, 7, 16_384, 50_000):
        for first in (0, 12_345, count - size):
            part = draw_in_core(20, size, first=first, threads=3)
            assert np.array_equal(part, whole[:, first : first + size])


def test_another_key_gives_other_edges():
    assert (draw_in_core(20, 1000) == draw_in_core(20, 1000, seed=1)).mean() < 0.05


def test_graphs_are_frozen():
    """A change here changes every graph that was generated before."""
    assert draw_in_core(20, 3).tolist() == [[789177, 350611, 390856], [62232, 472629, 30890]]


def test_no_edges_are_no_fault():
    assert draw_in_core(20, 0).shape == (2, 0)


# Faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": 0}, r"scale 0 is outside \[1, 40\]"),
        ({"scale": 41}, r"scale 41 is outside \[1, 40\]"),
        ({"alias": np.zeros(255, np.uint32)}, "alias has 255 entries, not 256"),
        ({"first": -1}, "first edge -1"),
        ({"first": 2**63 - 5}, "too great"),
        ({"target": np.empty(9, np.int64)}, "different lengths"),
    ],
)
def test_the_core_refuses_bad_edges(changed, message):
    arguments = {
        "edge_key": 0,
        "id_key": 0,
        "scale": 10,
        "alias": _alias_table(*GRAPH500),
        "first": 0,
        "source": np.empty(10, np.int64),
        "target": np.empty(10, np.int64),
        "threads": 1,
    }
    with pytest.raises(ValueError, match=message):
        core.draw_rmat_edges(**{**arguments, **changed})


def test_the_core_refuses_int32_beyond_scale_31():
    with pytest.raises(ValueError, match=r"scale 32 is outside \[1, 31\] for ids of 32 bits"):
        draw_in_core(32, 5, dtype=np.int32)


@pytest.mark.parametrize("dtype", [np.uint32, np.float64, np.int16])
def test_the_core_never_writes_to_a_converted_copy(dtype):
    with pytest.raises(TypeError):
        draw_in_core(5, 5, dtype=dtype)
    with pytest.raises(TypeError):
        core.permute_ids(0, 5, False, np.zeros(5, dtype))


@pytest.mark.parametrize("num_ids", [0, -1, 2**62 + 1])
def test_the_core_refuses_bad_numbers_of_ids(num_ids):
    with pytest.raises(ValueError, match=f"num_ids {num_ids} is outside"):
        core.permute_ids(0, num_ids, False, np.zeros(1, np.int64))


@pytest.mark.parametrize("wrong", [-1, 5])
def test_the_core_refuses_ids_outside(wrong):
    with pytest.raises(IndexError, match=rf"id {wrong} at position 1 is outside \[0, 5\)"):
        core.permute_ids(0, 5, False, np.array([4, wrong]))


@pytest.mark.parametrize("quarters", [(0.5, 0.25, 0.25), (0.0, 0.5, 0.4), (0.5, float("nan"), 0.1)])
def test_quarters_that_are_no_probabilities_are_errors(quarters):
    with pytest.raises(ArgumentError, match=r"a \+ b \+ c|a is 0|b is nan"):
        _alias_table(*quarters)
