"""Ways in which relational layers are called or changed beside a plain call of a plain layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor
from torch_geometric.explain import Explainer, GNNExplainer, ModelConfig

from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.rel import HGTConv, RelationalGraph, RGATConv, RGCNConv
from gnnsys.training.hetero_models import HeteroClassifier
from gnnsys.training.typed_convs import RelationAttention, RelationMeans

NODES, EDGES, RELATIONS, WIDTH = 13, 60, 5, 6
KINDS = [("a", "to", "b"), ("b", "to", "a")]
METADATA = (["a", "b"], KINDS)


def inputs_of(kind: str, width: int = WIDTH) -> tuple[Any, ...]:
    torch.manual_seed(0)
    if kind == "hgt":
        x = {"a": torch.randn(4, width), "b": torch.randn(5, width)}
        edges = (torch.tensor([[0, 1, 2], [2, 2, 3]]), torch.tensor([[0, 1, 4], [2, 3, 3]]))
        return x, dict(zip(KINDS, edges, strict=True))
    edge_index = torch.randint(NODES - 2, (2, EDGES))
    return torch.randn(NODES, width), edge_index, torch.randint(RELATIONS, (EDGES,))


@pytest.mark.parametrize("layer", [RGCNConv, RGATConv])
def test_types_that_are_no_integers_are_one_error(layer: Any) -> None:
    x, edge_index, edge_type = inputs_of("rgcn")
    with pytest.raises(DTypeError, match=r"edge_type: torch\.float32, expected torch\.int64; call"):
        layer(WIDTH, 4, RELATIONS)(x, edge_index, edge_type.float())


def test_autocast_adds_the_inputs_of_hgt_as_pyg() -> None:
    theirs = pyg.HGTConv(WIDTH, WIDTH, METADATA)
    inputs = inputs_of("hgt")
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = theirs(*inputs), HGTConv.from_pyg(theirs)(*inputs)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


class TwiceRGCN(RGCNConv):
    def forward(self, *inputs: Any) -> Tensor:
        return 2 * super().forward(*inputs)


class TwiceRGAT(RGATConv):
    def forward(self, *inputs: Any, **options: Any) -> Any:
        return 2 * super().forward(*inputs, **options)


class TwiceHGT(HGTConv):
    def forward(self, *inputs: Any) -> dict[str, Any]:
        return {kind: 2 * rows for kind, rows in super().forward(*inputs).items()}


def test_layers_with_a_forward_of_their_own_compile() -> None:
    layers = {
        "rgcn": TwiceRGCN(WIDTH, 4, RELATIONS),
        "rgat": TwiceRGAT(WIDTH, 4, RELATIONS),
        "hgt": TwiceHGT(WIDTH, 4, METADATA),
    }
    for kind, layer in layers.items():
        inputs = inputs_of(kind)
        found = torch.compile(layer, backend="eager")(*inputs)
        torch.testing.assert_close(found, layer(*inputs))


@pytest.mark.parametrize("model", ["rgcn", "rgat", "hgt"])
def test_models_over_types_compile_and_cast(model: str) -> None:
    x, edges = inputs_of("hgt", 8)
    net = HeteroClassifier(
        model, target="a", in_channels={"a": 8, "b": 8}, num_nodes={"a": 4, "b": 5},
        edge_types=KINDS, hidden=8, out_channels=3, layers=1, dropout=0.0,
    )  # fmt: skip
    expected = net(x, edges)
    torch.testing.assert_close(torch.compile(net, backend="eager")(x, edges), expected)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(x, edges)
    found.float().sum().backward()
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("options", [{}, {"num_bases": 2}], ids=str)
def test_ids_first_read_in_inference_mode_can_train(options: dict[str, Any]) -> None:
    theirs = pyg.RGCNConv(NODES, 4, RELATIONS, **options)
    ours = RGCNConv.from_pyg(theirs)
    for ids in (None, torch.randperm(NODES)):
        _, *edges = inputs_of("rgcn")
        with torch.inference_mode():
            ours(ids, *edges)
        grads = [
            torch.autograd.grad(conv(ids, *edges).square().sum(), list(conv.parameters()))
            for conv in (theirs, ours)
        ]
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4)


def test_ids_of_targets_and_types_beside_a_graph_are_checked() -> None:
    conv, ids = RGCNConv(NODES, 4, RELATIONS), torch.arange(NODES)
    _, edge_index, edge_type = inputs_of("rgcn")
    for shift, words in ((-3, "x: -3 at position 0, expected ids from 0 to 12"), (1, "x: 13 at")):
        with pytest.raises(RowIndexError, match=words):
            conv((ids, ids + shift), edge_index, edge_type)
    graph = RelationalGraph(edge_index, edge_type, num_relations=RELATIONS, num_sources=NODES)
    with pytest.raises(ArgumentError, match="edge_type: given beside a RelationalGraph"):
        conv(None, graph, edge_type)


def test_what_is_done_to_inner_layers_is_seen() -> None:
    """Programs read the weights of these, and do not call them."""
    typed = (*inputs_of("rgat"), torch.randn(EDGES, 3))
    calls: list[tuple[Any, list[str], tuple[Any, ...]]] = [
        (RGATConv(WIDTH, 4, RELATIONS, edge_dim=3), ["lin_edge"], typed),
        (HGTConv(WIDTH, 4, METADATA), ["k_rel", "v_rel"], inputs_of("hgt")),
    ]  # fmt: skip
    for conv, names, inputs in calls:
        for name in names:
            hooked = copy.deepcopy(conv)
            hooked.get_submodule(name).register_forward_hook(lambda layer, given, out: 3 * out)
            scaled = copy.deepcopy(conv)
            scaled.get_submodule(name).weight.data *= 3
            torch.testing.assert_close(hooked(*inputs), scaled(*inputs), rtol=1e-4, atol=1e-4)
            with pytest.raises(ArgumentError, match=f"a hook .* in {name}"):
                hooked.explain_program(*inputs)
            scaled.get_submodule(name).forward = lambda *given: None
            with pytest.raises(ArgumentError, match=f"forward of its own is in {name}"):
                scaled.explain_program(*inputs)


def test_methods_that_a_layer_or_its_class_overrides_are_called() -> None:
    class Tripled(RGCNConv):
        def propagate(self, *args: Any, **kwargs: Any) -> Any:
            return 3 * super().propagate(*args, **kwargs)

    inputs = inputs_of("rgcn")
    conv = Tripled(WIDTH, 4, RELATIONS, bias=False, root_weight=False)
    plain = RGCNConv(WIDTH, 4, RELATIONS, bias=False, root_weight=False)
    plain.load_state_dict(conv.state_dict())
    changed = copy.deepcopy(plain)
    changed.message = lambda x_j, edge_type_ptr: 3 * x_j
    assert not plain._why_not(*inputs)
    for other in (conv, changed):
        torch.testing.assert_close(other(*inputs), 3 * plain(*inputs))


@pytest.mark.parametrize("layer", [RGATConv, TwiceRGAT])
@pytest.mark.parametrize("is_shared", [False, True])
def test_explainers_see_messages(layer: Any, is_shared: bool) -> None:
    """Also where PyG has written ``propagate`` for the class above before."""
    inputs = inputs_of("rgat")
    theirs = layer._pyg(WIDTH, 4, RELATIONS)
    ours = layer.from_pyg(theirs) if is_shared else layer(WIDTH, 4, RELATIONS)
    expected = ours(*inputs)
    explainer = Explainer(
        ours, GNNExplainer(epochs=1), explanation_type="model", edge_mask_type="object",
        model_config=ModelConfig("regression", "node", "raw"),
    )  # fmt: skip
    x, edge_index, edge_type = inputs
    mask = torch.full((EDGES,), 0.5)
    half = explainer.get_masked_prediction(x, edge_index, None, mask, edge_type=edge_type)
    torch.testing.assert_close(half, expected / 2)
    explainer(x, edge_index, edge_type=edge_type)
    torch.testing.assert_close(ours(*inputs), expected)


def test_layers_over_types_leave_to_pyg_what_programs_do_not() -> None:
    x, edges = inputs_of("hgt", 8)
    ints = {kind: each.int() for kind, each in edges.items()}
    for conv in (RelationMeans(8, KINDS), RelationAttention(8, KINDS, 2)):
        expected = conv(x, edges)
        calls = [conv(x, ints), torch.func.functional_call(conv, {}, (x, ints))]
        seen: list[Any] = []
        conv.register_message_forward_hook(lambda *given, seen=seen: seen.append(given))
        calls += [conv(x, edges), conv(x, {KINDS[0]: edges[KINDS[0]]})]
        for found in calls[:3]:
            torch.testing.assert_close(found, expected)
        torch.testing.assert_close(calls[3]["b"], expected["b"])
        assert seen
        assert not conv(x, {})["a"].any()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_layers_over_types_can_be_traced() -> None:
    x, edges = inputs_of("hgt", 8)
    conv = RelationMeans(8, KINDS).requires_grad_(False)

    def call(rows: Tensor, forth: Tensor, back: Tensor) -> Tensor:
        result: Tensor = conv({**x, "a": rows}, dict(zip(KINDS, (forth, back), strict=True)))["b"]
        return result

    traced = torch.jit.trace(call, (x["a"], *edges.values()), check_trace=False)
    others = torch.tensor([[3, 2, 1], [0, 1, 1]]), edges[KINDS[1]]
    torch.testing.assert_close(traced(x["a"], *others), call(x["a"], *others))
