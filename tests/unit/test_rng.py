"""Format 1 of the counter-based random numbers, against published vectors and by its statistics."""

from __future__ import annotations

import doctest
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from gnnsys import _core, rng
from gnnsys.pipeline.dropout import _keeps

sys.path.insert(0, str(Path(__file__).parent))
import rng_reference
from rng_reference import bounded, labor_positions, sample_positions, weighted_positions

# Known answers of philox4x32-10 published with Random123 (Salmon et al., SC 2011):
# counter words, key words, output words.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, words):
    out = rng.philox4x32(np.array([counter], dtype=np.uint32), key[0] | key[1] << 32)
    assert out[0].tolist() == words


@pytest.mark.parametrize("isa", [*_core.isas(), "torch"])
def test_dropout_draws_the_published_answers(isa):
    """The words of vertex 0 under key 0, told by the least word that is kept: in every lane of a
    vector and in what vectors leave over. Other words are compared with philox4x32's elsewhere."""
    _, _, words = KNOWN_ANSWERS[0]
    vertices, x = np.zeros(13, np.int64), np.ones((13, 4), np.float32)

    def kept(least):
        if isa == "torch":
            return _keeps(0, torch.from_numpy(vertices), 4, least).numpy()
        out = np.empty_like(x)
        _core.keyed_dropout(0, least, 1.0, vertices, x, out, isa)
        return out == 1

    for column, word in enumerate(words):
        assert kept(word)[:, column].all()
        assert not kept(word + 1)[:, column].any()


def test_mix64_is_splitmix64():
    # The first outputs of SplitMix64 seeded with 0, from the generator's definition:
    # state += golden ratio; output = finalizer(state).
    golden = 0x9E3779B97F4A7C15
    states = np.array([(i * golden) % 2**64 for i in (1, 2, 3)], dtype=np.uint64)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert rng.mix64(states).tolist() == expected


def test_format_1_is_frozen():
    """A change here is a new version of the format: batches of old runs could not be replayed."""
    assert rng.RNG_VERSION == 1
    assert rng.stream_key(1, 2, 3, 4, 5) == 0x141EA6A5B8259323
    assert sample_positions(rng.stream_key(0, 0, 0, 0), 7, 100, 5) == [6, 11, 12, 27, 67]
    weights = [1.0, 0.0, 2.0, 4.0, 8.0, 16.0]
    assert weighted_positions(rng.stream_key(0, 0, 0, 0), 7, weights, 3) == [3, 4, 5]
    kept = labor_positions(rng.stream_key(0, 0, 0, 0), range(100), 5)
    assert kept == [10, 48]
    assert rng.permutation(6, seed=3, epoch=1).tolist() == [1, 4, 0, 2, 5, 3]
    assert rng.hash_ids(np.array([1, 2, 3])) == 0x9677D9A68395BED4


def test_every_word_of_the_key_changes_the_stream():
    base = (1, 2, 3, 4, 5)
    keys = {rng.stream_key(*base)}
    for place in range(len(base)):
        for step in (1, 2**32, 2**63):
            changed = list(base)
            changed[place] += step
            keys.add(rng.stream_key(*changed))
    assert len(keys) == 1 + 3 * len(base)


def test_swapped_words_give_other_streams():
    keys = {rng.stream_key(*words) for words in itertools.permutations((1, 2, 3, 4, 5))}
    assert len(keys) == 120


@pytest.mark.parametrize("bound", [1, 2, 3, 7, 1000])
def test_bounded_draws_are_uniform(bound):
    draws = [bounded(rng.stream_key(9, 0, 0, 0), node, 0, bound) for node in range(4000)]
    counts = np.bincount(draws, minlength=bound)
    assert len(counts) == bound
    assert bound == 1 or stats.chisquare(counts).pvalue > 1e-3


def test_a_rejected_draw_takes_the_next_retry():
    bound = 3 * 2**30  # a quarter of all words is rejected
    key = rng.stream_key(0, 0, 0, 0)
    rejected = 0
    for node in range(200):
        first = int(rng.philox4x32(np.array([[node, 0, 0, 0]], np.uint32), key)[0, 0])
        second = int(rng.philox4x32(np.array([[node, 0, 0, 1 << 24]], np.uint32), key)[0, 0])
        if (first * bound) % 2**32 < 2**32 % bound:
            rejected += 1
            if (second * bound) % 2**32 >= 2**32 % bound:
                assert bounded(key, node, 0, bound) == second * bound >> 32
        else:
            assert bounded(key, node, 0, bound) == first * bound >> 32
    assert rejected > 20


def test_every_subset_is_equally_likely():
    subsets = list(itertools.combinations(range(5), 3))
    counts = dict.fromkeys(subsets, 0)
    for group in range(4000):
        key = rng.stream_key(5, 0, group, 0)
        counts[tuple(sample_positions(key, 11, 5, 3))] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_permutation_is_one_and_changes_with_seed_and_epoch():
    orders = [rng.permutation(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    for a, b in itertools.combinations(orders, 2):
        assert not np.array_equal(a, b)


def test_the_first_of_a_permutation_are_those_of_the_whole_and_of_its_definition():
    n = 3 * (1 << 15) + 5  # several blocks, the last one odd
    counter = np.zeros((n, 4), np.uint32)
    counter[:, 0] = np.arange(n)
    key = rng.stream_key(2, 9, 0, 2**64 - 1)
    whole = np.argsort(rng.philox4x32(counter, key).view(np.uint64).ravel()[:n], kind="stable")
    assert np.array_equal(rng.permutation(n, 2, 9), whole)
    # Many random words agree above 54 bits.
    assert np.array_equal(rng._sorted_positions(n, key, place_bits=54), whole)
    for first in (0, 1, 100, n // 3, n // 2 + 1, n):
        assert np.array_equal(rng.permutation(n, 2, 9, first), whole[:first])


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_permutation_of_few(n):
    assert sorted(rng.permutation(n, 0, 0).tolist()) == list(range(n))


def test_first_place_of_a_permutation_is_uniform():
    firsts = [int(rng.permutation(8, seed, 0)[0]) for seed in range(2000)]
    assert stats.chisquare(np.bincount(firsts, minlength=8)).pvalue > 1e-3


def test_hash_depends_on_ids_order_and_length():
    lists = [[], [0], [0, 0], [1, 2], [2, 1], [1, 2, 0], [-1], [2**40]]
    assert len({rng.hash_ids(np.array(ids, dtype=np.int64)) for ids in lists}) == len(lists)


def test_hash_is_that_of_the_values_whatever_their_type():
    ids = [3, 1, 2]
    assert rng.hash_ids(np.array(ids, np.int32)) == rng.hash_ids(np.array(ids, np.int64))


@pytest.mark.parametrize("bound", [1, 7, 1000, 3 << 30, 2**32])
def test_integers_are_the_bounded_draws_one_after_another(bound):
    expected = [bounded(9, i // 4, i % 4, bound) for i in range(41)]
    assert rng.integers(9, 41, bound).tolist() == expected


def test_uniforms_are_made_of_53_bits_of_two_words():
    counter = np.array([[node, 0, 0, 0] for node in range(6)], dtype=np.uint32)
    words = [int(word) for word in rng.philox4x32(counter, 11).reshape(-1)]
    pairs = zip(words[::2], words[1::2], strict=True)
    expected = [((high >> 5) * 2**26 + (low >> 6)) / 2**53 for high, low in pairs]
    assert rng.uniforms(11, 12).tolist() == expected
    assert stats.kstest(rng.uniforms(3, 20_000), "uniform").pvalue > 1e-3


def test_no_numbers_are_no_draws():
    assert rng.integers(0, 0, 5).tolist() == rng.uniforms(0, 0).tolist() == []


def test_streams_of_negatives_are_apart_from_those_of_hops():
    keys = {rng.negatives_key(1, 2, 3, call) for call in range(4)}
    keys |= {rng.stream_key(1, 2, 3, hop, relation) for hop in range(4) for relation in range(4)}
    assert len(keys) == 20


def test_examples_of_the_reference_hold():
    names = {"stream_key": rng.stream_key, "dropout_key": rng.dropout_key}
    assert doctest.testmod(rng_reference, extraglobs=names).failed == 0
