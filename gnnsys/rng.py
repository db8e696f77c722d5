"""Counter-based random numbers: the versioned format by which every batch can be replayed.

Owns format ``rng: 1``. Every number is a pure function of (seed, epoch, group, hop, entity, draw),
so that neither the number of threads nor the order of work changes a batch. ``csrc`` draws the
same numbers in C++; the tests compare them with draws in plain Python, one by one.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as
1, 2, 3", SC 2011). Its 64-bit key holds what is constant over a hop, its 128-bit counter the rest:

==============  ================================================================================
key             ``stream_key(seed, epoch, group, hop, edge_type)``
counter 0, 1    node id, low and high word
counter 2       0; for disjoint or temporal batches 1 + the seed's position in the batch
counter 3       ``draw // 4 + retry * 2**24``; word ``draw % 4`` of the block is the draw
==============  ================================================================================

A draw in ``[0, n)`` is Lemire's multiply-shift with rejection ("Fast random integer generation in
an interval", 2019), so it is exactly uniform; a rejected draw takes the next retry's.

Weighted sampling needs draws of 53 bits: number i of a node is made of its draws 2i and 2i + 1, the
upper 27 bits of the one above the upper 26 of the other.

LABOR-0 sampling has one draw for a source node and all its targets: ``edge_type`` is the number of
the source's node type, and source t has draw ``t % 4`` of "node" ``t // 4``, so that the
draws of all sources take a quarter of the blocks.

Dropout of full-graph training has a stream for each layer; the words of a vertex are those of its
columns: column c has word ``c % 4`` of block ``c // 4`` (``dropout_key``). Where ranks share the
mini-batches of an epoch, the key of a batch seeds torch's generator for it.

Numbers that belong to no node, as those that choose negative nodes, take a stream's words one after
another: word i is draw i % 4 of node i // 4 (``integers``, ``uniforms``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "RNG_VERSION",
    "dropout_key",
    "hash_ids",
    "integers",
    "mix64",
    "negatives_key",
    "permutation",
    "philox4x32",
    "stream_key",
    "uniforms",
]

RNG_VERSION = 1

_GOLDEN = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1
_MASK32 = (1 << 32) - 1
_SHUFFLE_BLOCK = 1 << 15  # keys that are drawn at a time, an even number: caches hold them
# Hops that no sampler uses: for an epoch's order of seeds, for negative nodes, and for dropout.
_SHUFFLE_HOP = _MASK64
_NEGATIVES_HOP = _MASK64 - 1
_DROPOUT_HOP = _MASK64 - 2


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer, a bijection of 64-bit words, element by element.

    From Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014.

    >>> [hex(word) for word in mix64(np.array([1], np.uint64))]
    ['0x5692161d100b05e5']
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_word(x: int) -> int:
    return int(mix64(np.array([x & _MASK64], dtype=np.uint64))[0])


def stream_key(seed: int, epoch: int, group: int, hop: int, edge_type: int = 0) -> int:
    """The 64-bit Philox key of one hop of one group of batches.

    Each argument counts modulo 2**64.
    """
    key = 0
    for word in (seed, epoch, group, hop, edge_type):
        key = _mix_word(key + word + _GOLDEN)
    return key


def philox4x32(counter: NDArray[np.uint32], key: int) -> NDArray[np.uint32]:
    """Philox4x32-10 of each row of ``counter``.

    Args:
        counter: (n, 4) uint32, least significant word first.
        key: 64 bits; the low half is the first key word.

    Returns:
        (n, 4) uint32.

    >>> [hex(w) for w in philox4x32(np.zeros((1, 4), np.uint32), 0)[0]]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key & _MASK32, key >> 32 & _MASK32
    low, half = np.uint64(_MASK32), np.uint64(32)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (p1 >> half) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> half) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def hash_ids(ids: NDArray[np.integer]) -> int:
    """A 64-bit hash of an ordered list of ids: the group of a batch that has no number.

    >>> hash_ids(np.array([3, 5])) != hash_ids(np.array([5, 3]))
    True
    """
    words = np.asarray(ids).astype(np.int64).view(np.uint64)
    places = mix64(np.arange(1, len(words) + 1, dtype=np.uint64))
    total = mix64(words ^ places).sum(dtype=np.uint64)
    return _mix_word(int(total) + len(words))


def permutation(n: int, seed: int, epoch: int, first: int | None = None) -> NDArray[np.int64]:
    """A permutation of ``range(n)`` from (seed, epoch): the order of an epoch's training seeds.

    Args:
        n: how many; takes about 8 bytes each, or 20 for each of ``first``.
        seed: of the run.
        epoch: whose order it is.
        first: so many of the permutation's entries are enough; None for all.

    >>> sorted(permutation(5, seed=0, epoch=1).tolist())
    [0, 1, 2, 3, 4]
    >>> permutation(5, 0, 1, first=2).tolist() == permutation(5, 0, 1)[:2].tolist()
    True
    """
    key = stream_key(seed, epoch, 0, _SHUFFLE_HOP)
    if first is None or 2 * first >= n:
        return _sorted_positions(n, key)[:first]
    # Keys are uniform: the `first` smallest of n lie, but for bad luck, below this share of 2**64.
    share = (first + 8 * math.sqrt(first) + 64) / n
    while True:
        bound = np.uint64(min(_MASK64, int(share * 2.0**64)))
        found = [
            (begin + (at := np.flatnonzero(block <= bound)), block[at])
            for begin, block in _shuffle_keys(n, key)
        ]
        positions, keys = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if len(keys) >= first:
            return positions[np.argsort(keys, kind="stable")[:first]]
        share *= 2


def _sorted_positions(n: int, key: int, place_bits: int = 0) -> NDArray[np.int64]:
    """``range(n)`` sorted by the random words, equal ones by position.

    Args:
        place_bits: of a word at least so many lower bits give way to a position at first.
    """
    place = np.uint64((1 << max(place_bits, n.bit_length())) - 1)
    words = np.empty(n, np.uint64)  # the upper bits of each random word above its position
    for begin, block in _shuffle_keys(n, key):
        positions = np.arange(begin, begin + len(block), dtype=np.uint64)
        words[begin : begin + len(block)] = block & ~place | positions
    words.sort()
    # Of words that agree in those upper bits, which are few, the lower ones decide.
    same = [
        begin + np.flatnonzero((block[1:] ^ block[:-1]) <= place)
        for begin in range(0, n, _SHUFFLE_BLOCK)
        for block in [words[begin : begin + _SHUFFLE_BLOCK + 1]]
    ]
    first = np.concatenate([np.empty(0, np.int64), *same])
    alike = np.union1d(first, first + 1)
    positions = words[alike] & place
    counter = np.zeros((len(alike), 4), dtype=np.uint32)
    counter[:, 0], counter[:, 1] = positions // 2 & np.uint64(_MASK32), positions >> np.uint64(33)
    pairs = philox4x32(counter, key).view(np.uint64)  # of a block
    own = pairs[np.arange(len(alike)), (positions % 2).astype(np.int64)]
    words[alike] = positions[np.lexsort((positions, own))]
    words &= place
    return words.view(np.int64)


def _shuffle_keys(n: int, key: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """The random words by which ``range(n)`` is sorted, block by block, and where each begins."""
    for begin in range(0, n, _SHUFFLE_BLOCK):
        block = np.arange(begin // 2, (min(n, begin + _SHUFFLE_BLOCK) + 1) // 2, dtype=np.uint64)
        counter = np.zeros((len(block), 4), dtype=np.uint32)
        counter[:, 0] = block & np.uint64(_MASK32)
        counter[:, 1] = block >> np.uint64(32)
        yield begin, philox4x32(counter, key).view(np.uint64).reshape(-1)[: n - begin]


def negatives_key(seed: int, epoch: int, group: int, call: int) -> int:
    """The key of the negative nodes of a batch; ``call`` counts the requests for such nodes in it.

    The stream is ``stream_key``'s of hop 2**64 - 2, with the request in the edge type's place.
    """
    return stream_key(seed, epoch, group, _NEGATIVES_HOP, call)


def dropout_key(seed: int, epoch: int, layer: int = 0, batch: int = 0) -> int:
    """The key of a dropout layer in an epoch, or of a batch: ``stream_key``'s of hop 2**64 - 3."""
    return stream_key(seed, epoch, batch, _DROPOUT_HOP, layer)


def integers(key: int, count: int, bound: int) -> NDArray[np.int64]:
    """Numbers drawn from ``[0, bound)``, exactly uniform, 0 < bound <= 2**32.

    Number i is draw i % 4 of node i // 4: the words of one block after another.

    >>> bool((integers(0, 5, bound=10) < 10).all())
    True
    """
    number = np.arange(count, dtype=np.uint64)
    drawn = np.zeros(count, dtype=np.int64)
    for retry in range(1 << 8):
        product = _words_of_stream(key, number, retry) * np.uint64(bound)
        taken = (product & np.uint64(_MASK32)) >= np.uint64((1 << 32) % bound)
        drawn[number[taken]] = product[taken] >> np.uint64(32)
        number = number[~taken]
        if len(number) == 0:
            return drawn
    raise AssertionError("256 rejections in a row: the generator is broken")


def uniforms(key: int, count: int) -> NDArray[np.float64]:
    """Numbers drawn from ``[0, 1)``, multiples of 2**-53.

    Number i is made of words a = 2 i and b = 2 i + 1, in the order of ``integers``, as
    ``(floor(a / 2**5) * 2**26 + floor(b / 2**6)) / 2**53``.

    >>> bool((uniforms(0, 5) < 1).all())
    True
    """
    pairs = _words_of_stream(key, np.arange(2 * count, dtype=np.uint64), 0).reshape(count, 2)
    high, low = pairs[:, 0] >> np.uint64(5), pairs[:, 1] >> np.uint64(6)
    return ((high << np.uint64(26)) | low) * 2.0**-53


def _words_of_stream(key: int, number: NDArray[np.uint64], retry: int) -> NDArray[np.uint64]:
    """Words ``number`` of the stream of ``key``, which ascend: word i % 4 of node i // 4."""
    node, place = np.unique(number // np.uint64(4), return_inverse=True)
    counter = np.zeros((len(node), 4), dtype=np.uint32)
    counter[:, 0] = node & np.uint64(_MASK32)
    counter[:, 1] = node >> np.uint64(32)
    counter[:, 3] = retry << 24
    return philox4x32(counter, key)[place, number % np.uint64(4)].astype(np.uint64)
