"""Programs as a builder writes them, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gnnsys.errors import ArgumentError
from gnnsys.rel.program import Builder, Domain, Value


def test_what_edges_see_lives_on_edges_until_it_is_summed() -> None:
    layer = Builder()
    x, w = layer.nodes("x", 4), layer.weight("w", 4, 6, by="etype")
    message = layer.reshape(layer.linear(layer.at_source(x), w), 2, 3)
    share = layer.softmax(layer.inner(message, layer.weight("a", 2, 3)))
    summed = layer.sum(message, share)
    assert [message.domain, share.domain, summed.domain] == [Domain.EDGE, Domain.EDGE, Domain.DST]
    assert [message.shape, share.shape, summed.shape] == [(2, 3), (2,), (2, 3)]
    root = layer.linear(x, layer.weight("root", 4, 6, by=None))
    out = layer.add(layer.reshape(summed, 6), root)
    assert (out.domain, out.shape) == (Domain.DST, (6,))


def test_a_program_is_printed_line_by_line() -> None:
    layer = Builder()
    x, y = layer.sources("x", 3), layer.targets("y", 3)
    both = layer.leaky_relu(layer.concat(layer.at_source(x), layer.at_target(y)), 0.2)
    first, _ = layer.split(both, [1, 5])
    share = layer.softmax(layer.reshape(first), within="relation")
    assert str(layer.build(layer.sum(share))).splitlines() == [
        "%0 : src x 3 = sources x",
        "%1 : dst x 3 = targets y",
        "%2 : edge x 3 = at_source %0",
        "%3 : edge x 3 = at_target %1",
        "%4 : edge x 6 = concat %2, %3",
        "%5 : edge x 6 = leaky_relu %4, 0.2",
        "%6 : edge x 1 = slice %5, 0, 1",
        "%7 : edge x 5 = slice %5, 1, 6",
        "%8 : edge = reshape %6",
        "%9 : edge = softmax %8, within (dst, etype)",
        "%10 : dst = sum %9",
        "return %10",
    ]


WRONG: dict[str, Callable[[Builder, Value, Value], Any]] = {
    "x has rows": lambda layer, x, _: layer.linear(x, layer.weight("w", 5, 6, by=None)),
    "expected one of weight": lambda layer, _, seen: layer.linear(
        layer.sum(seen), layer.reshape(seen, 2, 2)
    ),
    "inner: rows of": lambda layer, x, _: layer.inner(x, layer.weight("w", 5, by=None)),
    r"inner: rows of \(1, 2, 2\) and": lambda layer, x, _: layer.inner(
        *[layer.reshape(x, 1, 2, 2)] * 2
    ),
    "cannot be broadcast": lambda layer, _, seen: layer.mul(seen, layer.weight("w", 3)),
    "do not have the elements": lambda layer, x, _: layer.reshape(x, 3),
    "differ before": lambda layer, x, _: layer.concat(x, layer.reshape(x, 2, 2)),
    "at least one dimension": lambda layer, *_: layer.concat(layer.reciprocal_degree()),
    "do not sum to": lambda layer, x, _: layer.split(x, [1, 2]),
    "p is 1": lambda layer, x, _: layer.dropout(x, 1),
    "logits of": lambda layer, _, seen: layer.softmax(layer.reshape(seen, 2, 2)),
    "'target' or 'relation'": lambda layer, _, seen: layer.softmax(seen, within="type"),  # type: ignore[arg-type]
    "which no edge sees": lambda layer, x, _: layer.sum(x),
    "a weight of": lambda layer, _, seen: layer.sum(seen, layer.weight("w", 3)),
    "is taken or empty": lambda layer, *_: layer.weight("x", 1),
    "no size below 0": lambda layer, *_: layer.weight("w", -1),
    "'etype', 'ntype' or None": lambda layer, *_: layer.weight("w", 1, by="edge"),  # type: ignore[arg-type]
    "either nodes, or": lambda layer, *_: layer.sources("y", 1),
    "another builder": lambda _, x, seen: Builder().add(x, x),
    "expected node or src": lambda layer, _, seen: layer.at_source(layer.sum(seen)),
}


@pytest.mark.parametrize("message", list(WRONG))
def test_what_does_not_go_together_is_refused(message: str) -> None:
    layer = Builder()
    x = layer.nodes("x", 4)
    with pytest.raises(ArgumentError, match=message):
        WRONG[message](layer, x, layer.at_source(x))


def test_big_sizes_are_printed_digit_by_digit() -> None:
    layer = Builder()
    part, _ = layer.split(layer.nodes("x", 2_345_678), [1_234_567, 1_111_111])
    assert "= slice %0, 0, 1234567" in str(layer.build(part))


def test_types_of_nodes_are_of_one_set_of_nodes() -> None:
    for first, second in (("weight", "targets"), ("sources", "weight")):
        layer = Builder()
        by: dict[str, Any] = {"weight": {"by": "ntype"}}
        getattr(layer, first)("a", 4, **by.get(first, {}))
        with pytest.raises(ArgumentError, match="by ntype are of one set of nodes"):
            getattr(layer, second)("b", 4, **by.get(second, {}))


def test_a_self_term_is_not_added_edge_by_edge() -> None:
    layer = Builder()
    x = layer.nodes("x", 4)
    message = layer.linear(layer.at_source(x), layer.weight("w", 4, 4))
    with pytest.raises(ArgumentError, match="added after the sum"):
        layer.add(message, x)


def test_types_of_edges_are_no_types_of_nodes() -> None:
    layer = Builder()
    with pytest.raises(ArgumentError, match="etype and node do not go together"):
        layer.linear(layer.nodes("x", 4), layer.weight("w", 4, 4, by="etype"))
