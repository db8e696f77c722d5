"""The steps of the external sort of edges in C++, each against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnnsys.system.extension import core

Ints = NDArray[Any]
INDEX_TYPES = [np.int32, np.int64]

PROPERTY = settings(deadline=None, print_blob=True)


def random_edges(dtype: Any, edges: int, nodes: int, seed: int) -> tuple[Ints, Ints]:
    source, target = np.random.default_rng(seed).integers(0, nodes, (2, edges)).astype(dtype)
    return source, target


def sort_range(
    source: Ints, target: Ints, first: int, last: int, *, numbers: bool, threads: int
) -> tuple[bool, Ints, Ints | None]:
    """What ``sort_edges`` makes of all edges, given as those of the targets [first, last)."""
    degree = np.bincount(target - first, minlength=last - first)
    indptr = 7 + np.concatenate([[0], np.cumsum(degree)])  # it may begin anywhere
    indices = np.full_like(source, -1)
    number = np.arange(len(source)) if numbers else None
    sorted_number = np.full(len(source), -1) if numbers else None
    fits = core.sort_edges(source, target, number, first, indptr, indices, sorted_number, threads)
    return fits, indices, sorted_number


@PROPERTY
@given(
    st.sampled_from(INDEX_TYPES),
    st.integers(0, 300),
    st.integers(1, 40),
    st.integers(0, 1 << 30),
)
def test_counts_are_bincounts_and_add_up(dtype: Any, edges: int, nodes: int, seed: int) -> None:
    source, target = random_edges(dtype, edges, nodes, seed)
    counts = np.ones(nodes, np.int64)
    assert core.count_targets(source, target, nodes, counts) == -1
    assert np.array_equal(counts, 1 + np.bincount(target, minlength=nodes))


@pytest.mark.parametrize("dtype", INDEX_TYPES)
@pytest.mark.parametrize("wrong", [-1, 5, "least", "greatest"])
@pytest.mark.parametrize("end", ["source", "target"])
def test_the_first_edge_with_a_node_outside_is_named(
    dtype: Any, wrong: int | str, end: str
) -> None:
    limits = {"least": np.iinfo(dtype).min, "greatest": np.iinfo(dtype).max}
    ends = {"source": np.zeros(100, dtype), "target": np.zeros(100, dtype)}
    ends[end][[37, 60]] = limits.get(wrong, wrong) if isinstance(wrong, str) else wrong
    # 3 sources and 4 targets would let a source 3 pass for a target.
    assert core.count_targets(ends["source"], ends["target"], 3, np.zeros(4, np.int64)) == 37


def test_sources_and_targets_have_bounds_of_their_own() -> None:
    source, target = np.array([9], np.int32), np.array([1], np.int32)
    assert core.count_targets(source, target, 10, np.zeros(2, np.int64)) == -1
    assert core.count_targets(target, source, 10, np.zeros(2, np.int64)) == 0


@PROPERTY
@given(
    st.sampled_from(INDEX_TYPES),
    st.integers(0, 300),
    st.lists(st.integers(0, 30), max_size=12),
    st.integers(0, 1 << 30),
    st.booleans(),
)
def test_splitting_is_a_stable_sort_by_bucket(
    dtype: Any, edges: int, cuts: list[int], seed: int, numbered: bool
) -> None:
    source, target = random_edges(dtype, edges, 30, seed)
    bounds = np.array([0, *sorted(cuts), 30])  # buckets without a target, too
    out = np.empty_like(source), np.empty_like(target)
    number = np.empty(edges, np.int64) if numbered else None
    sizes = np.empty(len(bounds) - 1, np.int64)
    core.split_edges(source, target, bounds, 1000, *out, number, sizes)
    # A bucket without a target is before the one that holds the target.
    bucket = np.searchsorted(bounds[1:-1], target, side="right")
    order = np.argsort(bucket, kind="stable")
    assert np.array_equal(sizes, np.bincount(bucket, minlength=len(sizes)))
    assert np.array_equal(out[0], source[order])
    assert np.array_equal(out[1], target[order])
    if number is not None:
        assert np.array_equal(number, 1000 + order)


@PROPERTY
@given(
    st.sampled_from(INDEX_TYPES),
    st.integers(0, 300),
    st.integers(1, 40),
    st.integers(0, 1000),
    st.booleans(),
    st.integers(1, 3),
    st.integers(0, 1 << 30),
)
def test_sorting_equals_lexsort(
    dtype: Any, edges: int, nodes: int, first: int, numbered: bool, threads: int, seed: int
) -> None:
    source, target = random_edges(dtype, edges, nodes, seed)
    fits, indices, number = sort_range(
        source, target + dtype(first), first, first + nodes, numbers=numbered, threads=threads
    )
    order = np.lexsort((source, target))  # stable: equal edges keep their order
    assert fits
    assert np.array_equal(indices, source[order])
    if numbered:
        assert number is not None
        assert np.array_equal(number, order)


def test_many_rows_and_one_hub_are_sorted_by_every_number_of_threads() -> None:
    source, target = random_edges(np.int32, 200_000, 50_000, seed=1)
    target[:60_000] = 17
    order = np.lexsort((source, target))
    for threads in (1, 2, 5):
        for numbers in (False, True):
            fits, indices, number = sort_range(
                source, target, 0, 50_000, numbers=numbers, threads=threads
            )
            assert fits
            assert np.array_equal(indices, source[order])
            assert number is None or np.array_equal(number, order)


def test_sorting_handles_ids_beyond_int32() -> None:
    far = 1 << 40
    source = np.array([far + 5, far, far + 5, 3])
    target = np.array([far + 1, far + 1, far, far + 1])
    fits, indices, _ = sort_range(source, target, far, far + 2, numbers=False, threads=1)
    assert fits
    assert indices.tolist() == [far + 5, 3, far, far + 5]


@pytest.mark.parametrize("dtype", INDEX_TYPES)
@pytest.mark.parametrize(
    ("target", "indptr"),
    [
        ([4, 4, 6], [0, 2, 3]),  # a target beyond the range
        ([4, 3, 5], [0, 2, 3]),  # one before it
        ([4, 5, 5], [0, 2, 3]),  # more edges in a row than indptr says
        ([4, 5, 5], [0, 5, 3]),  # an indptr that descends
        ([4, 5, 5], [0, -1, 3]),
        ([4, -(1 << 31), 5], [0, 2, 3]),
    ],
)
def test_edges_that_are_not_those_of_indptr_are_told_and_write_nowhere_else(
    dtype: Any, target: list[int], indptr: list[int]
) -> None:
    room = np.full(3 + 2 * 64, 99, dtype)  # a fence on either side
    indices = room[64 : 64 + 3]
    source = np.zeros(3, dtype)
    counted = np.array(indptr, np.int64)
    fits = core.sort_edges(source, np.array(target, dtype), None, 4, counted, indices, None, 1)
    assert not fits
    assert (room[:64] == 99).all()
    assert (room[-64:] == 99).all()


def test_arrays_that_do_not_fit_each_other_are_refused() -> None:
    two, three = np.zeros(2, np.int32), np.zeros(3, np.int32)
    counts, bounds = np.zeros(2, np.int64), np.array([0, 2])
    with pytest.raises(ValueError, match="different lengths"):
        core.count_targets(two, three, 2, counts)
    with pytest.raises(ValueError, match="different lengths"):
        core.split_edges(two, two, bounds, 0, three, two, None, counts[:1])
    with pytest.raises(ValueError, match="different lengths"):
        core.split_edges(two, two, bounds[:1], 0, two, two, None, counts[:0])
    with pytest.raises(ValueError, match="different lengths"):
        core.sort_edges(two, two, np.zeros(2, np.int64), 0, bounds, two, None, 1)
    with pytest.raises(ValueError, match="does not hold these edges"):
        core.sort_edges(two, two, None, 0, np.array([0, 3]), two, None, 1)
