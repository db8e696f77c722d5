"""Passes over programs: what they move, what they refuse to move, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gnnsys.errors import ArgumentError
from gnnsys.rel.execute import run
from gnnsys.rel.explain import cost_of, explain
from gnnsys.rel.fusing import fuse_groups
from gnnsys.rel.graph import RelationalGraph
from gnnsys.rel.passes import (
    PASSES,
    check_compaction,
    compact,
    infer_dependences,
    merge_equal,
    optimise,
)
from gnnsys.rel.program import Builder, Counts, Domain, Instruction, Program, Value

COUNTS = Counts(
    sources=900, targets=900, edges=5000, source_pairs=2000, target_pairs=3000, edge_types=10
)


def lines(program: Program) -> list[str]:
    return str(program).splitlines()


def made_by(program: Program, op: str) -> list[Instruction]:
    return [each for each in program.instructions if each.op == op]


def attention_layer() -> tuple[Builder, Value, Value, Value]:
    """Its messages, logits and shares."""
    layer = Builder()
    x, w = layer.nodes("x", 64), layer.weight("w", 64, 32)
    source, target = (layer.linear(at(x), w) for at in (layer.at_source, layer.at_target))
    a, b = (
        layer.inner(*each)
        for each in ((source, layer.weight("a", 32)), (target, layer.weight("b", 32)))
    )
    logits = layer.leaky_relu(layer.add(a, b), 0.2)
    return layer, source, logits, layer.softmax(logits)


def test_dependences_name_what_fixes_a_value() -> None:
    layer, source, logits, share = attention_layer()
    program = infer_dependences(layer.build(layer.sum(source, share)))
    assert program.dependences is not None
    assert program.dependences[source.number] == {"source", "etype"}
    assert program.dependences[logits.number] == {"source", "target", "etype"}
    assert program.dependences[share.number] == {"source", "target", "etype", "edge"}
    assert program.dependences[program.result] == set()


def test_values_of_one_end_are_computed_for_pairs_and_others_for_edges() -> None:
    layer, source, _, share = attention_layer()
    program = compact(infer_dependences(layer.build(layer.sum(source, share))))
    domains = {each.op: each.domain for each in program.instructions}
    assert [each.domain for each in made_by(program, "linear")] == [
        Domain.SRC_ETYPE,
        Domain.DST_ETYPE,
    ]
    assert domains["at_source"] is Domain.SRC
    assert domains["leaky_relu"] is domains["softmax"] is Domain.EDGE


def test_values_of_a_node_alone_are_computed_for_nodes() -> None:
    layer = Builder()
    x, w = layer.nodes("x", 64), layer.weight("w", 64, 32, by=None)
    ends = [layer.linear(at(x), w) for at in (layer.at_source, layer.at_target)]
    program = layer.build(layer.sum(layer.relu(ends[0]), layer.inner(*ends)))
    assert lines(merge_equal(compact(infer_dependences(program)))) == [
        "%0 : node x 64 = nodes x",
        "%1 : one x 64 x 32 = weight w",
        "%2 : node x 32 = linear %0, %1",
        "%3 : src x 32 = at_source %2",
        "%4 : dst x 32 = at_target %2",
        "%5 : node x 32 = relu %2",
        "%6 : src x 32 = at_source %5",
        "%7 : edge = inner %3, %4",
        "%8 : dst x 32 = sum %6, %7",
        "return %8",
    ]


def test_illegal_compaction_is_refused() -> None:
    layer, source, logits, share = attention_layer()
    own = layer.add(
        source, layer.linear(layer.at_target(layer.nodes("y", 8)), layer.weight("v", 8, 32))
    )
    program = infer_dependences(layer.build(layer.sum(own, share)))
    check_compaction(program, source.number, Domain.SRC_ETYPE)
    for value, domain, more in (
        (logits, Domain.SRC_ETYPE, "depends on target, too"),
        (share, Domain.SRC_ETYPE, "depends on edge and target, too"),
        (share, Domain.DST_ETYPE, "depends on edge and source, too"),
        (own, Domain.SRC_ETYPE, "depends on target, too"),
        (source, Domain.SRC, "depends on etype, too"),
    ):
        with pytest.raises(ArgumentError, match=f"illegal compaction: `%{value.number} .*{more}"):
            check_compaction(program, value.number, domain)
    with pytest.raises(ArgumentError, match="expected the number of a value"):
        check_compaction(program, 99, Domain.SRC)
    # What depends on both ends stays on the edges, whatever the passes.
    made = optimise(layer.build(layer.sum(own, share)), COUNTS)
    assert {each.domain for each in made_by(made, "add") + made_by(made, "edge_softmax")} == {
        Domain.EDGE
    }


@pytest.mark.parametrize(("rows", "moves"), [(20, False), (21, True)])
def test_linears_are_reordered_iff_that_is_less(rows: int, moves: bool) -> None:
    # R d_in d_out + M d_in < M d_in d_out, 10 * 8 * 2 + 8 M < 16 M, holds from M = 21 on.
    layer = Builder()
    message = layer.linear(layer.at_source(layer.nodes("x", 8)), layer.weight("w", 8, 2))
    product = layer.inner(message, layer.weight("a", 2))
    program = layer.build(layer.sum(product))
    made = optimise(program, replace(COUNTS, source_pairs=rows), ["infer", "compact", "reorder"])
    assert ("etype x 8 x 1 = fold_inner" in str(made)) == moves
    assert len(made_by(made, "inner")) == (not moves)


def test_a_linear_that_messages_need_is_not_computed_a_second_time() -> None:
    layer, source, _, share = attention_layer()
    program = layer.build(layer.sum(source, share))
    few_sources = optimise(program, COUNTS)
    assert len(made_by(few_sources, "fold_inner")) == 1  # of the targets, which send no messages
    few_targets = optimise(program, replace(COUNTS, target_pairs=1000))
    assert len(made_by(few_targets, "fold_inner")) == 2  # messages are summed before their linear
    assert [each.shape for each in made_by(few_targets, "linear")] == [(1,), (1,), (32,)]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (COUNTS, ["%3 : (src, etype) x 8 = linear %1, %2", "%5 : dst x 8 = sum %3, %4"]),
        (
            replace(COUNTS, target_pairs=900),
            [
                "%4 : (dst, etype) x 8 = sum %1, %3",
                "%5 : (dst, etype) x 8 = linear %4, %2",
                "%6 : dst x 8 = sum_pairs %5",
            ],
        ),
    ],
    ids=["sources", "targets"],
)
def test_linears_move_to_the_side_of_fewest_rows(counts: Counts, expected: list[str]) -> None:
    layer = Builder()
    message = layer.linear(layer.at_source(layer.nodes("x", 8)), layer.weight("w", 8, 8))
    program = layer.build(layer.sum(message, layer.reciprocal_degree()))
    made = merge_equal(optimise(program, counts, ["infer", "compact", "side"]))
    assert [line for line in lines(made) if "linear" in line or "sum" in line] == expected


@pytest.mark.parametrize(("target_pairs", "moves"), [(2499, True), (2500, False)])
def test_linears_of_edges_move_to_targets_if_that_is_less(target_pairs: int, moves: bool) -> None:
    # 5000 - M rows of 8 * 8 products are saved; M pairs add 8 columns, each like 8 products.
    layer = Builder()
    message = layer.linear(layer.edges("x", 8), layer.weight("w", 8, 8))
    program = layer.build(layer.sum(message, layer.edges("c")))
    made = optimise(program, replace(COUNTS, target_pairs=target_pairs))
    assert [each.domain for each in made_by(made, "linear")] == [
        Domain.DST_ETYPE if moves else Domain.EDGE
    ]


@pytest.mark.parametrize(("target_pairs", "moves"), [(1737, True), (1738, False)])
def test_a_linear_that_narrows_stays_before_the_sum(target_pairs: int, moves: bool) -> None:
    # 2000 - M rows of 72 * 64 products are saved; 5000 edges add 72 - 64 columns more, M pairs 64.
    layer = Builder()
    message = layer.linear(layer.at_source(layer.nodes("x", 72)), layer.weight("w", 72, 64))
    counts = replace(COUNTS, target_pairs=target_pairs)
    made = optimise(layer.build(layer.sum(message)), counts)
    assert [each.domain for each in made_by(made, "linear")] == [
        Domain.DST_ETYPE if moves else Domain.SRC_ETYPE
    ]


def test_a_linear_moves_only_if_nothing_else_needs_its_result() -> None:
    layer = Builder()
    message = layer.linear(layer.at_source(layer.nodes("x", 8)), layer.weight("w", 8, 8))
    both = layer.add(layer.sum(message), layer.sum(layer.relu(message)))
    made = optimise(layer.build(both), replace(COUNTS, target_pairs=10))
    assert [each.domain for each in made_by(made, "linear")] == [Domain.SRC_ETYPE]


def test_weights_of_heads_keep_a_linear_that_mixes_them_before_the_sum() -> None:
    layer = Builder()
    w = layer.weight("w", 8, 8)
    message = layer.reshape(layer.linear(layer.at_source(layer.nodes("x", 8)), w), 2, 4)
    program = layer.build(layer.sum(message, layer.edges("c", 2)))
    made = optimise(program, replace(COUNTS, target_pairs=10))
    assert [each.domain for each in made_by(made, "linear")] == [Domain.SRC_ETYPE]


def test_queries_are_transformed_where_they_are_fewer_than_keys() -> None:
    layer = Builder()
    x = layer.nodes("x", 2, 4)
    key = layer.linear(layer.at_source(x), layer.weight("w", 2, 4, 8))
    logits = layer.inner(key, layer.at_target(layer.nodes("q", 2, 8)))
    program = layer.build(layer.sum(layer.softmax(logits)))
    made = optimise(program, replace(COUNTS, target_pairs=10))
    assert [str(each.shape) for each in made_by(made, "transpose")] == ["(2, 8, 4)"]
    assert [each.domain for each in made_by(made, "linear")] == [Domain.DST_ETYPE]


@pytest.mark.parametrize(("rows", "moves"), [(640, False), (641, True)])
def test_a_product_that_costs_more_than_its_fold_is_reordered_even_so(
    rows: int, moves: bool
) -> None:
    # R d_in d_out + M d_in < 2 M d_out, 10 * 64 * 64 + 64 M < 128 M, holds from M = 641 on.
    layer = Builder()
    message = layer.linear(layer.at_source(layer.nodes("x", 64)), layer.weight("w", 64, 64))
    share = layer.softmax(layer.inner(message, layer.weight("a", 64)))
    program = layer.build(layer.sum(message, share))
    made = optimise(program, replace(COUNTS, source_pairs=rows))
    assert len(made_by(made, "fold_inner")) == moves
    assert len(made_by(made, "linear")) == 1 + moves


def test_equal_values_are_computed_once_and_dropouts_are_not_equal() -> None:
    layer = Builder()
    x = layer.at_source(layer.nodes("x", 8))
    first, second = (layer.relu(layer.reshape(x, 8)) for _ in range(2))
    dropped = [layer.dropout(each, 0.5) for each in (first, second)]
    total = layer.mul(layer.add(first, dropped[0]), layer.add(dropped[0], second))
    made = merge_equal(layer.build(layer.sum(layer.add(total, dropped[1]))))
    ops = [each.op for each in made.instructions]
    assert [ops.count(each) for each in ("relu", "reshape", "dropout", "add")] == [1, 0, 2, 2]


def test_logits_that_something_else_reads_are_not_fused_away() -> None:
    layer, source, logits, share = attention_layer()
    made = fuse_groups(layer.build(layer.sum(source, share)))
    assert "edge_softmax %8, %9, 0.2, within dst (fused)" in str(made)
    both = layer.add(layer.sum(source, share), layer.sum(source, logits))
    made = fuse_groups(layer.build(both))
    (softmax,) = made_by(made, "edge_softmax")
    assert [made.instructions[each].op for each in softmax.inputs] == ["leaky_relu"]
    assert softmax.numbers == ()


def test_values_are_freed_after_their_last_use() -> None:
    layer, source, _, share = attention_layer()
    made = optimise(layer.build(layer.sum(source, share)), COUNTS)
    assert made.frees is not None
    freed = [each for ends in made.frees for each in ends]
    assert sorted(freed) == [n for n in range(len(made.instructions)) if n != made.result]
    for number, ends in enumerate(made.frees):
        assert all(number in made.uses()[each] for each in ends)
        assert all(max(made.uses()[each]) == number for each in ends)
    assert cost_of(made, COUNTS).peak_bytes < cost_of(replace(made, frees=None), COUNTS).peak_bytes


def test_every_pass_can_be_left_out_and_others_do_not_exist() -> None:
    layer, source, _, share = attention_layer()
    program = layer.build(layer.sum(source, share))
    assert lines(optimise(program, COUNTS, ())) == lines(program)
    assert lines(optimise(program, COUNTS, ["compact"])) == lines(program)  # nothing is inferred
    with pytest.raises(ArgumentError, match="there is no 'fusion'"):
        optimise(program, COUNTS, ["fusion"])
    with pytest.raises(ArgumentError, match="there is no 'fusion'"):
        explain(program, COUNTS, ["fusion"])


def test_the_cost_of_a_layer_is_that_of_its_formulas() -> None:
    layer = Builder()
    message = layer.linear(layer.at_source(layer.nodes("x", 8)), layer.weight("w", 8, 2))
    program = layer.build(layer.sum(message, layer.reciprocal_degree()))
    found = explain(program, COUNTS, ["infer", "compact", "fuse", "liveness"])
    none, fused = found.costs["none"], found.costs["liveness"]
    assert none.rows == 2 * 5000 + 900
    assert none.flops == 5000 * (2 * 8 * 2 + 2 * 2)
    # Rows of x, messages, products with weights; sums.
    assert none.bytes == none.peak_bytes == 4 * (5000 * (8 + 2 + 2) + 900 * 2)
    assert fused.rows == 2000 + 900
    assert fused.flops == 2000 * 2 * 8 * 2 + 5000 * 2 * 2
    assert fused.bytes == 4 * (2000 * 2 + 900 * 2)
    assert [*found.costs] == ["none", "infer", "compact", "fuse", "liveness"]
    told = json.loads(json.dumps(found.to_dict()))
    assert told["costs"]["none"]["flops"] == none.flops
    assert told["program"] == lines(found.program)
    assert str(found).splitlines()[0].split() == ["pass", "rows", "FLOPs", "bytes", "peak", "bytes"]
    assert set(explain(program, COUNTS).costs) == {"none", *PASSES}


@pytest.mark.parametrize("passes", [["fuse"], PASSES])
def test_the_bytes_told_are_those_that_torch_allocates(passes: Iterable[str]) -> None:
    """Of a softmax with terms of types and of edges, and of an inner with a value of edges."""
    layer = Builder()
    x, e = layer.at_source(layer.sources("x", 8, 4)), layer.edges("e", 8, 4)
    logits = layer.add(layer.add(layer.weight("t", 8), layer.inner(e, x)), layer.edges("c", 8))
    program = layer.build(layer.sum(x, layer.softmax(logits)))
    generator = torch.Generator().manual_seed(1)
    graph = RelationalGraph(
        torch.randint(300, (2, 5000), generator=generator),
        torch.arange(5000) // 500,  # in the order in which they are computed
        num_relations=10,
        num_sources=300,
    )
    given = {"x": (300, 8, 4), "e": (5000, 8, 4), "t": (10, 8), "c": (5000, 8)}
    values = {name: torch.ones(shape) for name, shape in given.items()}
    made = optimise(program, graph.counts(), passes)
    run(made, graph, values)  # the graph keeps its indices
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        run(made, graph, values)
    allocated = sum(max(each.self_cpu_memory_usage, 0) for each in events.key_averages())
    assert cost_of(made, graph.counts()).bytes == allocated
