"""Programs run over graphs: layers like RGCN, RGAT and HGT against loops over edges in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.rel.execute import run
from gnnsys.rel.graph import RelationalGraph
from gnnsys.rel.passes import PASSES, infer_dependences, optimise
from gnnsys.rel.program import Builder, Counts, Domain, Program
from gnnsys.rel.reference import run_reference

NODES, EDGES, RELATIONS, KINDS, HEADS, WIDTH = 9, 40, 4, 2, 2, 3
NODE_PTR = torch.tensor([0, 4, NODES])
# What passes decide by; the last two make them move linears to targets, and to sources.
FEW_TARGETS = Counts(10**6, 10, 10**6, 10**6, 20, RELATIONS, KINDS)
FEW_SOURCES = Counts(10, 10**6, 10**6, 20, 10**6, RELATIONS, KINDS)

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    program: Program
    values: Values
    by_loop: Callable[[Tensor, Tensor, Values], Tensor]


def random_edges(edges: int = EDGES) -> tuple[Tensor, Tensor]:
    """With repeated edges, nodes without edges and a relation without edges."""
    generator = torch.Generator().manual_seed(5)
    edge_index = torch.randint(NODES - 2, (2, edges), generator=generator)
    kind = torch.randint(RELATIONS - 1, (edges,), generator=generator)
    return edge_index, kind + (kind == 1).long() * (RELATIONS - 2)


def graph_of(edge_index: Tensor, edge_type: Tensor) -> RelationalGraph:
    return RelationalGraph(
        edge_index, edge_type, num_relations=RELATIONS, num_sources=NODES, node_ptr=NODE_PTR
    )


def draw(**shapes: tuple[int, ...]) -> Values:
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def rgcn_like() -> Layer:
    """A mean for each relation with weights of edges, a root and what relations add."""
    layer = Builder()
    x = layer.nodes("x", WIDTH)
    message = layer.linear(layer.at_source(x), layer.weight("w", WIDTH, WIDTH))
    weight = layer.mul(layer.edges("c"), layer.reciprocal_degree())
    root = layer.linear(x, layer.weight("root", WIDTH, WIDTH, by=None))
    plain = layer.linear(layer.at_source(x), layer.weight("v", WIDTH, WIDTH))
    means = layer.add(layer.sum(message, weight), layer.sum(plain, layer.reciprocal_degree()))
    values = draw(
        x=(NODES, WIDTH),
        w=(RELATIONS, WIDTH, WIDTH),
        v=(RELATIONS, WIDTH, WIDTH),
        c=(EDGES,),
        root=(WIDTH, WIDTH),
    )
    return Layer(layer.build(layer.relu(layer.add(means, root))), values, rgcn_by_loop)


def rgcn_by_loop(edge_index: Tensor, edge_type: Tensor, v: Values) -> Tensor:
    rows = list(v["x"] @ v["root"])
    for s, t, r, c in zip(*edge_index.tolist(), edge_type.tolist(), v["c"], strict=True):
        degree = int(((edge_index[1] == t) & (edge_type == r)).sum())
        rows[t] = rows[t] + v["x"][s] @ (c * v["w"][r] + v["v"][r]) / degree
    return torch.stack(rows).clamp(min=0)


def rgat_like(within: str, heads: int, q_of_types: bool) -> Layer:
    """Additive attention; also of edges, and with what a node adds to each of its edges."""
    layer = Builder()
    x = layer.nodes("x", WIDTH)
    w = layer.weight("w", WIDTH, heads * WIDTH)
    by = "etype" if q_of_types else None
    ends = [
        layer.reshape(layer.linear(at(x), w), heads, WIDTH)
        for at in (layer.at_source, layer.at_target)
    ]
    a, b = (
        layer.inner(end, layer.weight(name, heads, WIDTH, by=by))
        for end, name in zip(ends, "ab", strict=True)
    )
    logits = layer.leaky_relu(layer.add(layer.add(a, b), layer.edges("e", heads)), 0.2)
    share = layer.dropout(layer.softmax(logits, within=within), 0.5)
    own = layer.at_target(layer.reshape(layer.nodes("own", heads * WIDTH), heads, WIDTH))
    out = layer.add(layer.sum(ends[0], share), layer.sum(own))
    types = (RELATIONS,) if q_of_types else ()
    values = draw(
        x=(NODES, WIDTH),
        w=(RELATIONS, WIDTH, heads * WIDTH),
        a=(*types, heads, WIDTH),
        b=(*types, heads, WIDTH),
        e=(EDGES, heads),
        own=(NODES, heads * WIDTH),
    )

    def by_loop(edge_index: Tensor, edge_type: Tensor, v: Values) -> Tensor:
        edges = list(zip(*edge_index.tolist(), edge_type.tolist(), strict=True))
        logits = []
        for (s, t, r), e in zip(edges, v["e"], strict=True):
            source, target = ((v["x"][n] @ v["w"][r]).view(heads, WIDTH) for n in (s, t))
            a, b = ((v[name][r] if q_of_types else v[name]) for name in "ab")
            z = (source * a).sum(-1) + (target * b).sum(-1) + e
            logits.append(torch.where(z > 0, z, 0.2 * z))
        rows = [torch.zeros(heads, WIDTH, dtype=torch.float64)] * NODES
        for (s, t, r), z in zip(edges, logits, strict=True):
            same = (edge_index[1] == t) & ((edge_type == r) | (within == "target"))
            total = sum(logits[each].exp() for each in same.nonzero().flatten().tolist())
            message = (v["x"][s] @ v["w"][r]).view(heads, WIDTH)
            rows[t] = rows[t] + (z.exp() / total).unsqueeze(1) * message
            rows[t] = rows[t] + v["own"][t].view(heads, WIDTH)
        return torch.stack(rows)

    return Layer(layer.build(out), values, by_loop)


def hgt_like() -> Layer:
    """Keys, queries and values of node types, in blocks that relations transform."""
    layer = Builder()
    x, wide = layer.nodes("x", 5), HEADS * WIDTH
    k, q, v = (
        layer.reshape(layer.linear(x, layer.weight(name, 5, wide, by="ntype")), HEADS, WIDTH)
        for name in ("wk", "wq", "wv")
    )
    key = layer.linear(layer.at_source(k), layer.weight("rk", HEADS, WIDTH, WIDTH))
    logits = layer.scale(layer.inner(layer.at_target(q), key), 0.5)
    share = layer.softmax(layer.mul(logits, layer.weight("p", HEADS)))
    value = layer.linear(layer.at_source(v), layer.weight("rv", HEADS, WIDTH, WIDTH))
    values = draw(
        x=(NODES, 5),
        **dict.fromkeys(("wk", "wq", "wv"), (KINDS, 5, wide)),
        **dict.fromkeys(("rk", "rv"), (RELATIONS, HEADS, WIDTH, WIDTH)),
        p=(RELATIONS, HEADS),
    )
    return Layer(layer.build(layer.sum(value, share)), values, hgt_by_loop)


def hgt_by_loop(edge_index: Tensor, edge_type: Tensor, v: Values) -> Tensor:
    def of_node(name: str, node: int) -> Tensor:
        return (v["x"][node] @ v[name][int(node >= NODE_PTR[1])]).view(HEADS, 1, WIDTH)

    edges = list(zip(*edge_index.tolist(), edge_type.tolist(), strict=True))
    shares = [
        ((of_node("wk", s) @ v["rk"][r] * of_node("wq", t)).sum((1, 2)) / 2 * v["p"][r]).exp()
        for s, t, r in edges
    ]
    rows = [torch.zeros(HEADS, WIDTH, dtype=torch.float64)] * NODES
    for (s, t, r), share in zip(edges, shares, strict=True):
        total = sum(shares[each] for each in (edge_index[1] == t).nonzero().flatten().tolist())
        message = (of_node("wv", s) @ v["rv"][r]).squeeze(1)
        rows[t] = rows[t] + (share / total).unsqueeze(1) * message
    return torch.stack(rows)


LAYERS: dict[str, Callable[[], Layer]] = {
    "rgcn": cache(rgcn_like),
    "rgat": cache(lambda: rgat_like("target", HEADS, q_of_types=True)),
    "rgat of relations": cache(lambda: rgat_like("relation", 1, q_of_types=False)),
    "hgt": cache(hgt_like),
}


def with_gradients(compute: Callable[[Values], Tensor], values: Values) -> list[Tensor]:
    """The result, and the derivatives of a weighted sum of it by all values."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    result = compute(leaves)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), [*leaves.values()])]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_every_combination_of_passes_equals_the_loop(name: str) -> None:
    layer = LAYERS[name]()
    edges = random_edges()
    graph = graph_of(*edges)
    expected = with_gradients(lambda values: layer.by_loop(*edges, values), layer.values)
    programs = {}
    for number in range(len(PASSES) + 1):
        for passes in itertools.combinations(PASSES, number):
            for counts in (FEW_TARGETS, FEW_SOURCES):
                made = optimise(layer.program, counts, passes)
                programs[str(made), made.frees] = made  # those that are equal are run once
    assert len(programs) >= 16
    for made in programs.values():
        found = with_gradients(lambda values, made=made: run(made, graph, values), layer.values)
        assert_close(found, expected)


# Graphs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("counts", [FEW_TARGETS, FEW_SOURCES], ids=["targets", "sources"])
def test_neither_the_order_of_edges_nor_the_names_of_relations_matter(
    name: str, counts: Counts
) -> None:
    layer = LAYERS[name]()
    program = optimise(layer.program, counts)
    edge_index, edge_type = random_edges()
    before = run(program, graph_of(edge_index, edge_type), layer.values)
    order = torch.randperm(EDGES, generator=torch.Generator().manual_seed(1))
    renamed = torch.tensor([2, 0, 3, 1])
    given = layer.program.given()
    values = dict(layer.values)
    for key, value in layer.values.items():
        if given[key].op == "edges":
            values[key] = value[order]
        elif given[key].domain is Domain.ETYPE:
            values[key] = torch.empty_like(value).index_copy(0, renamed, value)
    graph = graph_of(edge_index[:, order], renamed[edge_type[order]])
    torch.testing.assert_close(run(program, graph, values), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("counts", [FEW_TARGETS, FEW_SOURCES], ids=["targets", "sources"])
def test_graphs_without_edges_and_with_one_relation(name: str, counts: Counts) -> None:
    layer = LAYERS[name]()
    program = optimise(layer.program, counts)
    of_edges = {key for key, each in layer.program.given().items() if each.op == "edges"}
    for edges in (0, 1, 12):
        edge_index, _ = random_edges(edges)
        edge_type = torch.full((edges,), 2)
        values = {k: v[:edges] if k in of_edges else v for k, v in layer.values.items()}
        graph = graph_of(edge_index, edge_type)
        found = with_gradients(lambda values, graph=graph: run(program, graph, values), values)
        if edges:
            by_loop = lambda values, edges=(edge_index, edge_type): layer.by_loop(*edges, values)  # noqa: E731
            assert_close(found, with_gradients(by_loop, values))
        elif name != "rgcn":  # which has a root
            assert not any(each.any() for each in found)


def attention(result_of_sum: bool) -> Program:
    layer = Builder()
    w = layer.weight("w", 5, 1)
    a = layer.linear(layer.at_source(layer.sources("x", 5)), w)
    b = layer.linear(layer.at_target(layer.targets("y", 5)), w)
    share = layer.softmax(layer.leaky_relu(layer.add(a, b), 0.2))
    return layer.build(layer.sum(share) if result_of_sum else share)


def between_two_sets(edges: int = 30) -> tuple[Tensor, RelationalGraph]:
    generator = torch.Generator().manual_seed(3)
    edge_index = torch.stack(
        [torch.randint(high, (edges,), generator=generator) for high in (8, 3)]
    )
    kind = torch.randint(3, (edges,), generator=generator)
    graph = RelationalGraph(edge_index, kind, num_relations=3, num_sources=8, num_targets=5)
    return edge_index, graph


@pytest.mark.parametrize("passes", [(), PASSES])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_attention_sums_to_one_and_stays_finite(passes: tuple[str, ...], scale: float) -> None:
    edge_index, graph = between_two_sets()
    values = draw(x=(8, 5), y=(5, 5), w=(3, 5, 1))
    values["w"] *= scale
    program = optimise(attention(result_of_sum=True), FEW_TARGETS, passes)
    total, *gradients = with_gradients(lambda values: run(program, graph, values), values)
    torch.testing.assert_close(total.flatten(), torch.tensor([1, 1, 1, 0, 0], dtype=torch.float64))
    assert all(each.isfinite().all() for each in gradients)
    # Values of edges come in the order of the edges given.
    share = run(optimise(attention(result_of_sum=False), FEW_TARGETS, passes), graph, values)
    summed = torch.zeros(5, 1, dtype=torch.float64).index_add(0, edge_index[1], share)
    torch.testing.assert_close(summed, total)


def test_a_result_of_each_edge_stays_on_the_edges() -> None:
    layer = Builder()
    message = layer.linear(layer.at_source(layer.sources("x", 5)), layer.weight("w", 5, 2))
    program = optimise(layer.build(message), FEW_TARGETS)
    edge_index, graph = between_two_sets()
    values = draw(x=(8, 5), w=(3, 5, 2))
    kind = graph.to_given(graph.edge_type)
    expected = (values["x"][edge_index[0]].unsqueeze(1) @ values["w"][kind]).squeeze(1)
    torch.testing.assert_close(run(program, graph, values), expected)


def test_a_result_that_is_reshaped_to_its_shape_stays_on_the_edges() -> None:
    layer = Builder()
    w = layer.weight("w", 5, 2)
    message = layer.reshape(layer.linear(layer.at_source(layer.sources("x", 5)), w), 2)
    _, graph = between_two_sets()
    values = draw(x=(8, 5), w=(3, 5, 2))
    program = layer.build(message)
    expected = run_reference(program, graph, values)
    found = run(optimise(program, graph.counts()), graph, values)
    torch.testing.assert_close(found, expected)


def test_a_product_that_is_no_result_of_use_and_one_of_no_columns() -> None:
    layer = Builder()
    x, graph = layer.at_source(layer.nodes("x", 5)), graph_of(*random_edges())
    message = layer.linear(x, layer.weight("w", 5, 6))
    layer.inner(message, layer.weight("unread", 6))
    assert len(optimise(layer.build(message), FEW_TARGETS).instructions) == 4
    none = layer.build(layer.sum(layer.linear(x, layer.weight("none", 5, 0))))
    values = draw(x=(NODES, 5), none=(RELATIONS, 5, 0))
    assert run(optimise(none, FEW_SOURCES), graph, values).shape == (NODES, 0)


def test_linears_run_on_one_row_for_each_distinct_pair() -> None:
    edge_index, edge_type = random_edges()
    graph = graph_of(edge_index, edge_type)
    layer = LAYERS["rgcn"]()
    for counts, end in ((FEW_SOURCES, 0), (FEW_TARGETS, 1)):
        program = optimise(layer.program, counts, [each for each in PASSES if each != "liveness"])
        weight = program.instructions.index(program.given()["w"])
        number = next(n for n in program.uses()[weight] if program.instructions[n].op == "linear")
        rows = run(replace(program, result=number), graph, layer.values)
        pairs = set(zip(edge_index[end].tolist(), edge_type.tolist(), strict=True))
        assert len(rows) == len(pairs) < EDGES


# Everything else that programs can say ------------------------------------------------------------


def test_operations_of_each_row_equal_those_of_torch() -> None:
    layer = Builder()
    x = layer.at_source(layer.nodes("x", 4))
    c = layer.weight("c", 4, by=None)
    first, second = layer.split(layer.concat(layer.exp(x), layer.mul(x, c), c), [3, 9])
    both = layer.add(layer.reshape(second, 3, 3), layer.scale(layer.relu(first), 3))
    both = layer.mul(both, layer.reshape(layer.weight("t"), 1))
    out = layer.sum(
        layer.linear(
            layer.linear(both, layer.weight("b", 3, 3, 2, by=None)), layer.weight("d", 3, 2, 5)
        )
    )
    program = layer.build(out)
    values = draw(x=(NODES, 4), c=(4,), t=(RELATIONS,), b=(3, 3, 2), d=(RELATIONS, 3, 2, 5))
    edge_index, edge_type = random_edges()
    graph = graph_of(edge_index, edge_type)

    def by_torch(v: Values) -> Tensor:
        x = v["x"][edge_index[0]]
        wide = torch.cat([x.exp(), x * v["c"], v["c"].expand(EDGES, 4)], 1)
        both = wide[:, 3:].view(-1, 3, 3) + 3 * wide[:, None, :3].relu()
        both = both * v["t"][edge_type, None, None]
        out = torch.einsum("ebk,bkn,ebnm->ebm", both, v["b"], v["d"][edge_type])
        return torch.zeros(NODES, 3, 5, dtype=torch.float64).index_add(0, edge_index[1], out)

    expected = with_gradients(by_torch, values)
    for passes in ((), PASSES):
        for counts in (FEW_TARGETS, FEW_SOURCES):
            made = optimise(program, counts, passes)
            assert_close(with_gradients(lambda v, made=made: run(made, graph, v), values), expected)


def test_dropout_draws_for_each_edge_and_only_while_training() -> None:
    layer = Builder()
    x = layer.dropout(layer.at_source(layer.sources("x")), 0.5)
    built = layer.build(layer.sum(x))
    known = infer_dependences(built).dependences
    assert known is not None
    assert known[x.number] == {"source", "edge"}
    program = optimise(built, FEW_SOURCES)
    edge_index = torch.stack([torch.zeros(2000, dtype=torch.int64), torch.arange(2000)])
    graph = RelationalGraph(
        edge_index, edge_index[0], num_relations=1, num_sources=1, num_targets=2000
    )
    values = {"x": torch.ones(1)}
    assert run(program, graph, values).eq(1).all()
    drawn = run(program, graph, values, training=True)
    assert drawn.unique().tolist() == [0, 2]
    assert 800 < drawn.count_nonzero() < 1200


@pytest.mark.parametrize("name", ["rgcn", "rgat", "hgt"])
def test_bfloat16_is_summed_in_float32(name: str) -> None:
    layer, edges = LAYERS[name](), 1000  # as many equal values in bfloat16 stop growing at 256
    edge_index = torch.tensor([[0], [1]]).expand(2, edges).contiguous()
    graph = graph_of(edge_index, torch.zeros(edges, dtype=torch.int64))
    values = {key: value.bfloat16() for key, value in layer.values.items()}
    for key in values.keys() & {"c", "e"}:  # of edges
        values[key] = values[key][:1].repeat(edges, *[1] * (values[key].dim() - 1))
    found = run(optimise(layer.program, FEW_TARGETS), graph, values)
    assert found.dtype == torch.bfloat16
    exact = run(layer.program, graph, {key: value.double() for key, value in values.items()})
    bound = torch.finfo(torch.bfloat16).eps * float(exact.abs().max())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=bound)


def test_programs_are_compiled_without_breaks_once_their_graph_is_grouped() -> None:
    layer = LAYERS["rgat of relations"]()
    graph = graph_of(*random_edges())
    program = optimise(layer.program, FEW_SOURCES)
    expected = run(program, graph, layer.values)
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    assert_close([compiled(program, graph, layer.values)], [expected])


def test_values_that_do_not_fit_are_refused() -> None:
    layer = LAYERS["rgcn"]()
    graph = graph_of(*random_edges())
    with pytest.raises(ArgumentError, match="'c' is missing"):
        run(layer.program, graph, {k: v for k, v in layer.values.items() if k != "c"})
    with pytest.raises(ArgumentError, match=r"'w' has shape \(3, 3, 3\), expected \(4, 3, 3\)"):
        run(layer.program, graph, {**layer.values, "w": layer.values["w"][:3]})
    with pytest.raises(ArgumentError, match="from 8 sources to 5 targets"):
        run(layer.program, between_two_sets()[1], layer.values)
    with pytest.raises(ArgumentError, match="backend: 'quick', expected one of auto"):
        run(layer.program, graph, layer.values, backend="quick")
    with pytest.raises(DTypeError, match=r"'c' of torch\.float32, .*; expected one element type"):
        run(layer.program, graph, {**layer.values, "c": layer.values["c"].float()})
    with pytest.raises(DTypeError, match=r"'x' of torch\.float16, expected float32"):
        run(layer.program, graph, {name: each.half() for name, each in layer.values.items()})


@pytest.mark.parametrize("passes", [(), PASSES])
def test_programs_compute_in_the_element_type_of_autocast(passes: tuple[str, ...]) -> None:
    layer, graph = LAYERS["rgcn"](), graph_of(*random_edges())
    program = optimise(layer.program, FEW_TARGETS, passes)
    single = {name: each.float() for name, each in layer.values.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = run(program, graph, single)
    cast = {name: each.bfloat16() for name, each in single.items()}
    assert torch.equal(found, run(program, graph, cast))


def test_reciprocal_degrees_are_of_the_element_type_that_is_read() -> None:
    layer, graph = Builder(), graph_of(*random_edges())
    mean = layer.build(layer.sum(layer.at_source(layer.nodes("x")), layer.reciprocal_degree()))
    values = {"x": torch.ones(NODES)}
    found = run(mean, graph, {"ids": torch.arange(3), **values})
    torch.testing.assert_close(found, run_reference(mean, graph, values).float())
    other = Builder()
    alone = other.build(other.sum(other.reciprocal_degree()))
    with pytest.raises(ArgumentError, match="the program reads no floats"):
        run(alone, graph, {})
