"""Random relational programs: whatever passes run, they return what loops over their rows do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.rel.execute import run
from gnnsys.rel.graph import RelationalGraph
from gnnsys.rel.passes import PASSES, optimise
from gnnsys.rel.program import Builder, Program, Value
from gnnsys.rel.reference import run_reference

NODES, EDGES, RELATIONS, KINDS, HEADS, WIDTH = 8, 24, 4, 2, 2, 3
SEEDS = range(10)


def random_graph(random: np.random.Generator) -> RelationalGraph:
    """With nodes and relations that have no edges."""
    edge_index = torch.from_numpy(random.integers(NODES - 2, size=(2, EDGES)))
    edge_type = torch.from_numpy(random.integers(1, RELATIONS, size=EDGES))
    node_ptr = torch.tensor([0, 3, NODES])
    return RelationalGraph(
        edge_index, edge_type, num_relations=RELATIONS, num_sources=NODES, node_ptr=node_ptr
    )


class Writer:
    """Writes a program at random, and draws what it reads."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.layer = Builder()
        self.values: dict[str, Tensor] = {}

    def program(self) -> Program:
        layer = self.layer
        result = layer.sum(self.message(2), self.share())
        if self.chance(0.5):
            result = layer.add(result, layer.sum(self.message(1), self.share()))
        if self.chance(0.5):
            result = layer.relu(layer.add(result, self.by_head(self.node(2))))
        return layer.build(result)

    def chance(self, p: float) -> bool:
        return bool(self.random.random() < p)

    def draw(self, *shape: int) -> str:
        name = f"v{len(self.values)}"
        self.values[name] = torch.from_numpy(self.random.normal(size=shape) / 2).requires_grad_()
        return name

    def weight(self, *shape: int, by: str | None = "etype") -> Value:
        by = None if self.chance(0.3) else by
        types = {"etype": (RELATIONS,), "ntype": (KINDS,), None: ()}[by]
        return self.layer.weight(self.draw(*types, *shape), *shape, by=by)

    def by_head(self, x: Value) -> Value:
        return self.layer.reshape(x, HEADS, WIDTH)

    def node(self, depth: int) -> Value:
        """(H * C,) of the nodes."""
        layer, wide = self.layer, HEADS * WIDTH
        if depth == 0:
            return layer.nodes(self.draw(NODES, wide), wide)
        x = self.node(depth - 1)
        match self.random.integers(4):
            case 0:
                return layer.linear(x, self.weight(wide, wide, by="ntype"))
            case 1:
                return layer.mul(layer.relu(x), self.weight(wide, by="ntype"))
        return x

    def end(self) -> Value:
        at = self.layer.at_source if self.chance(0.6) else self.layer.at_target
        return at(self.node(1))

    def message(self, depth: int) -> Value:
        """(H, C) of the edges."""
        layer, wide = self.layer, HEADS * WIDTH
        match self.random.integers(8 if depth else 3):
            case 0:
                return self.by_head(self.end())
            case 1 | 2:
                return self.by_head(layer.linear(self.end(), self.weight(wide, wide)))
            case 3:
                return layer.linear(self.message(depth - 1), self.weight(HEADS, WIDTH, WIDTH))
            case 4:
                return layer.add(self.message(depth - 1), self.message(depth - 1))
            case 5:
                return layer.mul(self.message(depth - 1), self.weight(HEADS, WIDTH))
            case 6:
                first, last = layer.split(self.message(depth - 1), (1, WIDTH - 1))
                return layer.concat(layer.scale(last, -0.5), layer.dropout(first, 0.5))
        edges = layer.edges(self.draw(EDGES, HEADS, WIDTH), HEADS, WIDTH)
        return layer.mul(edges, layer.exp(layer.scale(self.message(depth - 1), 0.1)))

    def logit(self) -> Value:
        """(H,) of the edges."""
        layer = self.layer
        match self.random.integers(4):
            case 0:
                return layer.inner(self.message(1), self.weight(HEADS, WIDTH))
            case 1:
                return layer.inner(self.message(1), self.message(1))
            case 2:
                ends = (at(self.node(1)) for at in (layer.at_source, layer.at_target))
                w, q = self.weight(HEADS * WIDTH, HEADS * WIDTH), self.weight(HEADS, WIDTH)
                a, b = (layer.inner(self.by_head(layer.linear(end, w)), q) for end in ends)
                return layer.leaky_relu(layer.add(a, b), 0.2)
        return layer.edges(self.draw(EDGES, HEADS), HEADS)

    def share(self) -> Value | None:
        layer = self.layer
        match self.random.integers(5):
            case 0:
                return None
            case 1:
                return layer.reciprocal_degree()
            case 2:
                return layer.mul(self.logit(), layer.reciprocal_degree())
        return layer.softmax(self.logit(), "target" if self.chance(0.5) else "relation")


@pytest.mark.parametrize("seed", SEEDS)
def test_programs_return_what_loops_over_rows_do(seed: int) -> None:
    random = np.random.default_rng(seed)
    graph, writer = random_graph(random), Writer(random)
    program, values = writer.program(), writer.values
    grad = torch.from_numpy(random.normal(size=(NODES, HEADS, WIDTH)))

    def differentiated(result: Tensor) -> list[Tensor]:
        return [result, *torch.autograd.grad(result, [*values.values()], grad)]

    expected = differentiated(run_reference(program, graph, values))
    counts = graph.counts()
    few_targets = replace(counts, sources=10**6, edges=10**6, source_pairs=10**6)
    few_sources = replace(counts, targets=10**6, edges=10**6, target_pairs=10**6)
    some = [each for each in PASSES if random.random() < 0.5]
    for cost in (counts, few_targets, few_sources):
        for passes in ((), some, PASSES) if cost is counts else (PASSES,):
            made = optimise(program, cost, passes)
            found = differentiated(run(made, graph, values))
            for mine, reference in zip(found, expected, strict=True):
                torch.testing.assert_close(
                    mine, reference, rtol=1e-12, atol=1e-12, msg=f"{passes}\n{program}\n{made}"
                )


def test_values_of_edges_are_returned_in_the_given_order() -> None:
    random = np.random.default_rng(0)
    graph, writer = random_graph(random), Writer(random)
    share = writer.layer.softmax(writer.layer.edges(writer.draw(EDGES)))
    program = writer.layer.build(share)
    expected = run_reference(program, graph, writer.values)
    for passes in ((), PASSES):
        made = optimise(program, graph.counts(), passes)
        torch.testing.assert_close(run(made, graph, writer.values), expected)
    totals = torch.zeros(NODES, dtype=torch.float64)
    totals.index_add_(0, graph.to_given(graph.target), expected.detach())
    has_edges = torch.bincount(graph.target, minlength=NODES) > 0
    torch.testing.assert_close(totals, has_edges.double())


def test_the_reference_runs_programs_as_they_were_built() -> None:
    layer = Builder()
    x, w = layer.nodes("x", 2), layer.weight("w", 2, 2)
    program = layer.build(layer.sum(layer.linear(layer.at_source(x), w)))
    edge_index, edge_type = torch.tensor([[0], [1]]), torch.tensor([0])
    graph = RelationalGraph(edge_index, edge_type, num_relations=1, num_sources=2)
    empty = RelationalGraph(edge_index[:, :0], edge_type[:0], num_relations=0, num_sources=0)
    values = {"x": torch.ones(2, 2), "w": torch.ones(1, 2, 2)}
    assert run_reference(program, graph, values).tolist() == [[0, 0], [2, 2]]
    nothing = {name: value[:0] for name, value in values.items()}
    assert run_reference(program, empty, nothing).shape == (0, 2)
    changed = optimise(program, graph.counts())
    with pytest.raises(ArgumentError, match="'at_source' on src, as passes write it; give the one"):
        run_reference(changed, graph, values)
