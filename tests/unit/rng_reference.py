"""Draws of format ``rng: 1`` in plain Python, one by one: what the compiled samplers and dropout
equal bit for bit. ``gnnsys.rng`` has the format's definition and its generator."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from gnnsys.rng import philox4x32

__all__ = ["bounded", "keeps", "labor_positions", "sample_positions", "weighted_positions"]

_MASK32 = (1 << 32) - 1
_MAX_MISSES = 8  # weighted draws in a row that meet what was drawn before


def _words(key: int, node: int, position: int, block: int) -> NDArray[np.uint32]:
    counter = np.array([[node & _MASK32, node >> 32, position, block]], dtype=np.uint32)
    return philox4x32(counter, key)[0]


def bounded(key: int, node: int, draw: int, bound: int, position: int = 0) -> int:
    """Draw number ``draw`` of ``node`` in ``[0, bound)``, exactly uniform; 0 < bound <= 2**32."""
    for retry in range(1 << 8):
        block = draw // 4 + (retry << 24)
        product = int(_words(key, node, position, block)[draw % 4]) * bound
        if product & _MASK32 >= (1 << 32) % bound:
            return product >> 32
    raise AssertionError("256 rejections in a row: the generator is broken")


def sample_positions(
    key: int, node: int, degree: int, fanout: int, replace: bool = False, position: int = 0
) -> list[int]:
    """The positions in ``[0, degree)`` that a node with ``degree`` neighbours samples, ascending.

    Without replacement by Floyd's method (Bentley and Floyd: "A sample of brilliance", CACM 1987).
    A ``fanout`` of -1, or without replacement one that is not below ``degree``, takes all.
    """
    if degree == 0 or fanout == 0:
        return []
    if fanout < 0 or (not replace and fanout >= degree):
        return list(range(degree))
    if replace:
        return sorted(bounded(key, node, i, degree, position) for i in range(fanout))
    chosen: set[int] = set()
    for i, last in enumerate(range(degree - fanout, degree)):
        pick = bounded(key, node, i, last + 1, position)
        chosen.add(last if pick in chosen else pick)
    return sorted(chosen)


def weighted_positions(
    key: int,
    node: int,
    weights: Sequence[float],
    fanout: int,
    replace: bool = False,
    position: int = 0,
) -> list[int]:
    """The positions that a node samples among neighbours with ``weights``, ascending.

    A draw u chooses the first neighbour whose running sum of weights exceeds u times the total, so
    a weight of 0 is never drawn. Without replacement, draws that meet an earlier one are repeated,
    which makes each proportional to the weights of those left (successive sampling, as
    ``torch.multinomial``); after 8 repetitions in a row the sums are made anew without what was
    drawn. A ``fanout`` of -1, or without replacement one that is not below the degree, takes all,
    whatever their weights; else there are fewer than ``fanout`` where fewer weights are positive.

    Args:
        weights: (degree,) finite, not negative, with a finite sum.

    >>> weighted_positions(stream_key(0, 0, 0, 0), 7, [1.0, 0.0, 2.0, 4.0], fanout=3)
    [0, 2, 3]
    """
    degree = len(weights)
    if degree == 0 or fanout == 0:
        return []
    if fanout < 0 or (not replace and fanout >= degree):
        return list(range(degree))
    sums = list(accumulate(weights))
    picked: list[int] = []
    number = misses = 0
    while len(picked) < fanout and sums[-1] > 0:
        block, pair = divmod(number, 2)
        high, low = _words(key, node, position, block)[2 * pair : 2 * pair + 2].tolist()
        share = ((high >> 5 << 26) + (low >> 6)) * 2.0**-53 * sums[-1]
        found = bisect_right(sums, share)
        if found == degree:  # among denormal numbers the product may round up to the total
            found = bisect_left(sums, sums[-1])
        number += 1
        if replace or found not in picked:
            picked.append(found)
            misses = 0
        elif (misses := misses + 1) == _MAX_MISSES:
            left = [0.0 if i in picked else weight for i, weight in enumerate(weights)]
            sums = list(accumulate(left))
            misses = 0
    return sorted(picked)


def labor_positions(key: int, sources: Sequence[int], fanout: int, position: int = 0) -> list[int]:
    """The positions that a node samples by LABOR-0 among its neighbours ``sources``.

    Each source has one uniform number r in the hop, whoever asks, and is kept where
    ``r < fanout / degree``. From Balin and Catalyurek: "Layer-Neighbor Sampling: Defusing
    Neighborhood Explosion in GNNs", NeurIPS 2023, with uniform probabilities.

    Args:
        key: ``stream_key(seed, epoch, group, hop, number of the source's node type)``.

    >>> key = stream_key(0, 0, 0, 0)
    >>> [labor_positions(key, sources, fanout=1) for sources in ([1, 2], [2, 3], [2, 6])]
    [[1], [0], [0, 1]]
    """
    degree = len(sources)
    if fanout < 0 or fanout >= degree:
        return list(range(degree))
    node = np.asarray(sources, dtype=np.uint64)
    counter = np.zeros((degree, 4), dtype=np.uint32)
    counter[:, 0] = node // np.uint64(4) & np.uint64(_MASK32)
    counter[:, 1] = node // np.uint64(4) >> np.uint64(32)
    counter[:, 2] = position
    words = philox4x32(counter, key)
    draws = words[np.arange(degree), node % np.uint64(4)].astype(np.uint64)
    kept = draws * np.uint64(degree) < np.uint64(fanout << 32)
    return np.flatnonzero(kept).tolist()


def keeps(key: int, vertices: NDArray[np.integer], width: int, p: float) -> NDArray[np.bool_]:
    """Which values dropout keeps, each with probability ``1 - p`` rounded to a multiple of 2**-32.

    Args:
        vertices: (n,) whose rows these are.
        width: columns.

    Returns:
        (n, width): whether the value's random word is at least ``p * 2**32``, rounded.

    >>> keeps(dropout_key(seed=0, epoch=0, layer=0), np.array([8, 8]), 3, p=0.5).tolist()
    [[False, True, False], [False, True, False]]
    """
    blocks = -(-width // 4)
    counter = np.zeros((len(vertices), blocks, 4), dtype=np.uint32)
    node = np.asarray(vertices).astype(np.uint64)[:, None]
    counter[:, :, 0] = node & np.uint64(_MASK32)
    counter[:, :, 1] = node >> np.uint64(32)
    counter[:, :, 3] = np.arange(blocks)
    words = philox4x32(counter.reshape(-1, 4), key).reshape(len(vertices), blocks * 4)
    return words[:, :width] >= min(round(p * 2**32), _MASK32)
