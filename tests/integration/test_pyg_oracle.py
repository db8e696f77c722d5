"""Whatever PyG exports gives on a batch of gnnsys what it gives on the same batch made by hand."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import transforms
from torch_geometric.nn import (
    GraphConv,
    SAGEConv,
    conv,
    models,
    pool,
    to_hetero,
    to_hetero_with_bases,
)
from torch_geometric.nn.models.basic_gnn import BasicGNN

import gnnsys

sys.path.insert(0, str(Path(__file__).parent))
from pyg_batches import CHANNELS, Pair, assert_same, outcome, pairs, pieces
from pyg_exports import (
    NEEDS,
    call,
    exported,
    is_differentiable,
    kinds_of_batches,
    make,
    may_have_what_it_needs,
    to_run,
)
from pyg_ways import USUAL, call_conv, make_conv, ways

pytestmark = pytest.mark.usefixtures("one_thread")

ROUNDING = 1e-6
RANDOM_START = {"LaplacianLambdaMax": 1e-5}  # SciPy iterates from a vector that has no seed
FUSED = {"GATConv", "GATv2Conv", "GCNConv", "GINConv", "GraphConv", "SAGEConv"}
CONVS = [(name, way) for _, name in to_run(conv) for way in ways(name)]
MODELS = [
    (group, name) for group, name in to_run(models, pool) if inspect.isclass(getattr(group, name))
]
FAMILY = [
    name
    for name in models.__all__
    if inspect.isclass(getattr(models, name)) and issubclass(getattr(models, name), BasicGNN)
]


def name_of(value: Any) -> str:
    return value if isinstance(value, str) else value.__name__.rpartition(".")[2]


@pytest.fixture(scope="module")
def batches() -> Iterator[dict[str, Pair]]:
    made = pairs()
    before = {kind: list(pieces(copy.deepcopy(pair.plain))) for kind, pair in made.items()}
    yield made
    for kind, pair in made.items():
        for batch in pair:  # nothing that was called has written to its inputs
            assert_same(list(pieces(batch)), before[kind])


@pytest.mark.parametrize("kind", ["nodes", "links", "typed"])
def test_batch_is_the_one_made_by_hand(batches: dict[str, Pair], kind: str) -> None:
    ours, plain = batches[kind]
    assert_same(list(pieces(ours)), list(pieces(plain)))
    assert all(type(store.edge_index) is Tensor for store in ours.edge_stores)


@pytest.mark.parametrize(("group", "name"), to_run(*NEEDS), ids=name_of)
def test_export_gives_the_same(
    batches: dict[str, Pair], group: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "get_ppr":  # compiling it takes seconds
        pytest.importorskip("numba")
        monkeypatch.setattr("numba.config.DISABLE_JIT", True)
    for kind in kinds_of_batches(name):
        found = []
        for batch in batches[kind]:
            made = make(group, name, batch)
            run = functools.partial(call, made)
            found.append(outcome(run, batch, made, is_differentiable(group, name)))
        assert_same(*found, relative=RANDOM_START.get(name, 0))


@pytest.mark.parametrize("name", [name for _, name in to_run(transforms)])
def test_transform_gives_or_raises_the_same_for_typed_nodes(
    batches: dict[str, Pair], name: str
) -> None:
    found = []
    for batch in batches["typed"]:
        try:
            run = functools.partial(call, make(transforms, name, batch))
            found.append(outcome(run, batch, gradients=False))
        except Exception as error:
            found.append([type(error)])
    assert_same(*found)


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in NEEDS for name in NEEDS[group]], ids=name_of
)
def test_export_that_is_left_out_exists_and_fails(
    batches: dict[str, Pair], group: Any, name: str
) -> None:
    assert name in exported(group)
    if not may_have_what_it_needs(group, name):
        plain = [copy.deepcopy(batches[kind].plain) for kind in kinds_of_batches(name)]
        with pytest.raises(Exception):  # noqa: B017
            [call(make(group, name, batch), batch) for batch in plain]


@pytest.mark.parametrize(("name", "way"), [case for case in CONVS if case[1] != USUAL])
def test_convolution_gives_the_same_in_each_way_to_call_it(
    batches: dict[str, Pair], name: str, way: str
) -> None:
    for kind in kinds_of_batches(name):
        layer = make_conv(name, way, batches[kind].plain)
        ours, plain = (
            outcome(functools.partial(call_conv, layer, way=way), batch, layer)
            for batch in batches[kind]
        )
        assert_same(ours, plain)


def assert_fused_gives_the_same(
    model: nn.Module, run: Callable[[nn.Module, Any], Any], pair: Pair, gradients: bool = True
) -> None:
    """Bit by bit where there was nothing to fuse."""
    expected = outcome(functools.partial(run, model), pair.plain, model, gradients)
    assert gnnsys.fuse(model) is model
    relative = ROUNDING if gnnsys.fuse.report(model).fused else 0
    for batch in pair:
        found = outcome(functools.partial(run, model), batch, model, gradients)
        assert_same(found, expected, relative)


@pytest.mark.parametrize(("name", "way"), CONVS)
def test_fused_convolution_gives_the_same(batches: dict[str, Pair], name: str, way: str) -> None:
    for kind in kinds_of_batches(name):
        layer = make_conv(name, way, batches[kind].plain)
        run = functools.partial(call_conv, way=way)
        assert_fused_gives_the_same(layer, run, batches[kind])
        assert name not in FUSED or gnnsys.fuse.report(layer).fused


@pytest.mark.parametrize(("group", "name"), MODELS, ids=name_of)
def test_fused_model_gives_the_same(batches: dict[str, Pair], group: Any, name: str) -> None:
    for kind in kinds_of_batches(name):
        model = make(group, name, batches[kind].plain)
        assert_fused_gives_the_same(model, call, batches[kind], is_differentiable(group, name))


@pytest.mark.parametrize("name", FAMILY)
def test_model_that_trims_no_layers_gives_the_same(batches: dict[str, Pair], name: str) -> None:
    model = make(models, name, batches["nodes"].plain)
    whole = dict.fromkeys(("num_sampled_nodes_per_hop", "num_sampled_edges_per_hop"))
    run = functools.partial(call, **whole)
    ours, plain = (
        outcome(functools.partial(run, model), batch, model) for batch in batches["nodes"]
    )
    assert_same(ours, plain)
    assert_fused_gives_the_same(model, run, batches["nodes"])


class TwoLayers(nn.Module):
    """Takes nothing but nodes and edges, as ``to_hetero_with_bases`` asks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SAGEConv((CHANNELS, CHANNELS), CHANNELS)
        self.second = GraphConv((CHANNELS, CHANNELS), CHANNELS)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def with_types(model: nn.Module, metadata: Any) -> nn.Module:
    return to_hetero(model, metadata)


def with_bases(model: nn.Module, metadata: Any) -> nn.Module:
    return to_hetero_with_bases(model, metadata, num_bases=2, in_channels={"x": CHANNELS})


@pytest.mark.parametrize("transform", [with_types, with_bases])
@pytest.mark.parametrize("fuse_first", [False, True])
def test_model_that_was_given_types_gives_the_same(
    batches: dict[str, Pair], transform: Callable[..., nn.Module], fuse_first: bool
) -> None:
    pair = batches["typed"]

    def make_model(prepare: Callable[[nn.Module], nn.Module] = lambda model: model) -> nn.Module:
        torch.manual_seed(0)
        model = prepare(TwoLayers())
        return transform(model, pair.plain.metadata())

    def run(model: nn.Module, batch: Any) -> Any:
        return model(batch.x_dict, batch.edge_index_dict)

    model = make_model()
    ours, plain = (outcome(functools.partial(run, model), batch, model) for batch in pair)
    assert_same(ours, plain)
    fused = make_model(gnnsys.fuse) if fuse_first else gnnsys.fuse(model)
    assert gnnsys.fuse.report(fused).fused
    for batch in pair:
        assert_same(outcome(functools.partial(run, fused), batch, fused), plain, ROUNDING)
