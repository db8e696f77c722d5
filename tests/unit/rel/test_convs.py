"""Relational layers give what PyG's give, in values, in all derivatives and in what they refuse."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing

from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.rel import HGTConv, RelationalGraph, RGATConv, RGCNConv
from gnnsys.rel.passes import PASSES
from gnnsys.system.once import warn_once

# Of the five relations the third has no edges; of the nodes the last two have none.

NODES, EDGES, RELATIONS, EMPTY, WIDTH = 13, 60, 5, 3, 6


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random_edges(sources: int = NODES - 2, targets: int = NODES - 2) -> tuple[Tensor, Tensor]:
    """Unsorted, with repeated edges and relations of different sizes."""
    edge_index = torch.stack([torch.randint(sources, (EDGES,)), torch.randint(targets, (EDGES,))])
    kinds = torch.tensor([0, 0, 0, 1, 2, 4])
    return edge_index, kinds[torch.randint(len(kinds), (EDGES,))]


def assert_as_pyg(theirs: MessagePassing, ours: Any, *inputs: Any, **options: Any) -> None:
    """The same values, and the same derivatives by all parameters and inputs."""
    results = [_with_derivatives(layer, inputs, options) for layer in (theirs, ours)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


def _with_derivatives(layer: Any, inputs: Any, options: Any) -> tuple[Any, ...]:
    inputs = _map(lambda x: x.detach().requires_grad_(x.is_floating_point()), inputs)
    options = _map(lambda x: x.detach().requires_grad_(x.is_floating_point()), options)
    out = layer(*inputs, **options)
    tensors: list[Tensor] = []
    _map(tensors.append, out)
    leaves: list[Tensor] = list(layer.parameters())
    _map(lambda x: leaves.append(x) if x.requires_grad else None, (inputs, options))
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (x * torch.rand(x.shape, generator=generator)).sum() for x in tensors if x.requires_grad
    )
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    # PyG leaves out some derivatives that are zero.
    pairs = zip(leaves, grads, strict=True)
    whole = [torch.zeros_like(x) if grad is None else grad for x, grad in pairs]
    return out, whole


def _map(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """A function of each tensor in tuples and dicts, of which each object remains itself."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        return tuple(_map(function, each) for each in tree)
    if isinstance(tree, dict):
        return {key: _map(function, each) for key, each in tree.items()}
    return tree


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# The layers by options ----------------------------------------------------------------------------

RGCN_OPTIONS: list[dict[str, Any]] = [
    {},
    {"aggr": "add", "bias": False},
    {"num_bases": 2, "root_weight": False},
    {"num_bases": 2, "aggr": "add"},
    {"num_blocks": 2},
    {"num_blocks": 3, "aggr": "add"},
]


@pytest.mark.parametrize("options", RGCN_OPTIONS, ids=str)
def test_rgcn_equals_pyg(options: dict[str, Any]) -> None:
    theirs = pyg.RGCNConv(WIDTH, 2 * WIDTH, RELATIONS, **options)
    ours = RGCNConv.from_pyg(theirs)
    assert_as_pyg(theirs, ours, torch.randn(NODES, WIDTH), *random_edges())
    fast = pyg.FastRGCNConv(WIDTH, 2 * WIDTH, RELATIONS, **options)
    assert_as_pyg(fast, RGCNConv.from_pyg(fast), torch.randn(NODES, WIDTH), *random_edges())
    pair = pyg.RGCNConv((WIDTH, 4), 2 * WIDTH, RELATIONS, **options)
    x = (torch.randn(9, WIDTH), torch.randn(NODES, 4))
    assert_as_pyg(pair, RGCNConv.from_pyg(pair), x, *random_edges(sources=9))


@pytest.mark.parametrize("options", RGCN_OPTIONS[:4], ids=str)
def test_rgcn_of_ids_equals_pyg(options: dict[str, Any]) -> None:
    theirs = pyg.RGCNConv(NODES, WIDTH, RELATIONS, **options)
    ours = RGCNConv.from_pyg(theirs)
    ids = torch.randperm(NODES)
    edges = random_edges()
    for x in (None, ids, (None, ids), (ids[:11], ids)):
        assert_as_pyg(theirs, ours, x, *edges)


def test_rgcn_takes_bases_before_sums_or_matrices_of_relations_whichever_is_less() -> None:
    for relations in (2, 300):
        theirs = pyg.RGCNConv(WIDTH, 4, relations, num_bases=2)
        edge_index, _ = random_edges()
        kinds = torch.randint(min(relations, 30), (EDGES,))
        ours = RGCNConv.from_pyg(theirs)
        x = torch.randn(NODES, WIDTH)
        assert_as_pyg(theirs, ours, x, edge_index, kinds)
        call = ours._call(x, edge_index, kinds)
        assert ("comp" in call.values) == (relations == 300)


RGAT_OPTIONS: list[dict[str, Any]] = [
    {},
    {"heads": 2},
    {"heads": 3, "concat": False, "attention_mechanism": "within-relation", "bias": False},
    {"heads": 2, "dim": 3, "attention_mode": "multiplicative-self-attention"},
    {"heads": 2, "attention_mode": "multiplicative-self-attention", "concat": False, "dim": 2},
    {"heads": 2, "num_bases": 2, "edge_dim": 3},
    {"heads": 2, "num_blocks": 2, "edge_dim": 1, "attention_mechanism": "within-relation"},
    {"heads": 2, "dim": 2, "attention_mode": "multiplicative-self-attention", "edge_dim": 3},
    *({"heads": 2, "mod": mod} for mod in ("additive", "scaled", "f-additive", "f-scaled")),
    *(
        {"heads": 2, "dim": 2, "mod": mod, "attention_mode": "multiplicative-self-attention"}
        for mod in ("additive", "scaled", "f-additive", "f-scaled")
    ),
]


@pytest.mark.parametrize("options", RGAT_OPTIONS, ids=str)
def test_rgat_equals_pyg(options: dict[str, Any]) -> None:
    theirs = pyg.RGATConv(WIDTH, 4, RELATIONS, **options)
    for parameter in theirs.parameters():  # of which PyG leaves some as they were found
        torch.nn.init.normal_(parameter)
    given = {}
    if "edge_dim" in options:
        width = options["edge_dim"]
        given["edge_attr"] = torch.randn(EDGES, width) if width > 1 else torch.randn(EDGES)
    ours = RGATConv.from_pyg(theirs)
    x, edges = torch.randn(NODES, WIDTH), random_edges()
    assert_as_pyg(theirs, ours, x, *edges, **given)
    assert_as_pyg(theirs, ours, x, *edges, **given, return_attention_weights=True)


def test_rgat_between_two_sets_of_nodes_equals_pyg() -> None:
    theirs = pyg.RGATConv(WIDTH, 4, RELATIONS, heads=2)
    x = (torch.randn(9, WIDTH), torch.randn(NODES, WIDTH))
    edges = random_edges(sources=9)
    assert_as_pyg(theirs, RGATConv.from_pyg(theirs), x, *edges, size=(9, NODES))


METADATA = (
    ["author", "paper", "venue", "lonely"],
    [("author", "writes", "paper"), ("paper", "by", "author"), ("author", "knows", "author"),
     ("paper", "in", "venue"), ("venue", "of", "lonely")],
)  # fmt: skip

HGT_SIZES = {"author": 7, "paper": 9, "venue": 3, "lonely": 2}


def hetero_graph(**widths: int) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
    """Not all edge types have edges; nothing leads to the last node of a type."""
    x_dict = {name: torch.randn(n, widths.get(name, WIDTH)) for name, n in HGT_SIZES.items()}
    edges = {}
    for kind, count in zip(METADATA[1], (20, 15, 8, 10, 0), strict=True):
        ends = [torch.randint(HGT_SIZES[kind[end]] - end // 2, (count,)) for end in (0, 2)]
        edges[kind] = torch.stack(ends)
    return x_dict, edges


@pytest.mark.parametrize("heads", [1, 3])
def test_hgt_equals_pyg(heads: int) -> None:
    x_dict, edges = hetero_graph()
    theirs = pyg.HGTConv(WIDTH, WIDTH, METADATA, heads)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    assert_as_pyg(theirs, HGTConv.from_pyg(theirs), x_dict, edges)


def test_hgt_of_rows_of_several_widths_equals_pyg() -> None:
    """Lazily made parameters, no skip where widths differ, edge types that are not given."""
    x_dict, edges = hetero_graph(paper=2 * WIDTH, venue=5)
    theirs = pyg.HGTConv(-1, 2 * WIDTH, METADATA, heads=2)
    lazy = copy.deepcopy(theirs)
    theirs(x_dict, edges)
    ours = HGTConv.from_pyg(lazy)
    ours(x_dict, edges)
    assert {x: ours.kqv_lin.lins[x].in_channels for x in x_dict} == {
        name: rows.size(1) for name, rows in x_dict.items()
    }
    ours.load_state_dict(theirs.state_dict())
    assert_as_pyg(theirs, ours, x_dict, edges)
    few = {kind: edges[kind] for kind in METADATA[1][1:3]}
    some = {name: x_dict[name] for name in ("author", "paper")}
    assert_as_pyg(theirs, ours, some, few)


def test_hgt_does_not_depend_on_the_order_of_edge_types() -> None:
    x_dict, edges = hetero_graph()
    conv = HGTConv(WIDTH, WIDTH, METADATA, heads=2)
    turned = dict(reversed(edges.items()))
    assert_close(conv(x_dict, turned), conv(x_dict, edges))


def test_hgt_without_any_edges_gives_what_is_left() -> None:
    x_dict, _ = hetero_graph()
    conv = HGTConv(WIDTH, WIDTH, METADATA)
    for name, rows in conv(x_dict, {}).items():
        skip = conv.skip[name].sigmoid()
        bias = conv.out_lin.lins[name].bias
        assert_close(rows, skip * bias + (1 - skip) * x_dict[name])


# What holds of every layer ------------------------------------------------------------------------

LAYERS: dict[str, Callable[..., Any]] = {
    "rgcn": lambda **options: RGCNConv(WIDTH, 4, RELATIONS, **options),
    "rgat": lambda **options: RGATConv(WIDTH, 4, RELATIONS, heads=2, **options),
    "hgt": lambda **options: HGTConv(WIDTH, 4, METADATA, heads=2, **options),
}

each_layer = pytest.mark.parametrize("kind", LAYERS)


def inputs_of(kind: str) -> tuple[Any, ...]:
    return hetero_graph() if kind == "hgt" else (torch.randn(NODES, WIDTH), *random_edges())


@each_layer
def test_results_do_not_depend_on_passes_and_backend(kind: str) -> None:
    conv, inputs = LAYERS[kind](), inputs_of(kind)
    for passes, backend in (((), "ref"), (("infer", "compact"), "ref"), (PASSES, "ref")):
        other = LAYERS[kind](passes=passes, backend=backend)
        other.load_state_dict(conv.state_dict())
        assert_as_pyg(conv, other, *inputs)


@each_layer
def test_graphs_made_beforehand_stand_for_edges(kind: str) -> None:
    conv, (x, *edges) = LAYERS[kind](), inputs_of(kind)
    if kind == "hgt":
        graph = RelationalGraph.from_hetero(*edges, HGT_SIZES, METADATA[1])
    else:
        graph = RelationalGraph(*edges, num_relations=RELATIONS, num_sources=NODES)
    assert_close(conv(x, graph), conv(x, *edges))
    one = torch.zeros(2, 1, dtype=torch.long)
    small = RelationalGraph(one, one[0], num_relations=1, num_sources=1)
    with pytest.raises(ArgumentError, match="a RelationalGraph of"):
        conv(x, small)
    conv.register_message_forward_hook(lambda *arguments: None)
    with pytest.raises(ArgumentError, match="for PyG's own forward: a hook"):
        conv(x, graph)


@each_layer
def test_state_dicts_of_pyg_are_ours_and_back(kind: str) -> None:
    conv = LAYERS[kind]()
    theirs = copy.deepcopy(conv)
    theirs.__class__ = type(conv)._pyg
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    conv.load_state_dict(theirs.state_dict())
    assert isinstance(conv, type(theirs))
    assert_as_pyg(theirs, conv, *inputs_of(kind))
    theirs.load_state_dict(conv.state_dict())


@each_layer
def test_layers_from_pyg_share_its_parameters(kind: str) -> None:
    theirs = LAYERS[kind]()
    theirs.__class__ = type(theirs)._pyg
    ours = type(LAYERS[kind]()).from_pyg(theirs)
    assert all(a is b for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert repr(ours) == repr(theirs)
    ours.eval()
    assert theirs.training


@each_layer
def test_layers_can_be_copied_and_pickled(kind: str) -> None:
    conv, inputs = LAYERS[kind](), inputs_of(kind)
    expected = conv(*inputs)
    file = io.BytesIO()
    torch.save(conv, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)), loaded):
        assert type(other) is type(conv)
        assert (other.passes, other.backend) == (conv.passes, conv.backend)
        assert_close(other(*inputs), expected)


@each_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_element_types_give_rounded_results(kind: str, dtype: torch.dtype) -> None:
    conv, inputs = LAYERS[kind](), inputs_of(kind)
    half = copy.deepcopy(conv).to(dtype)
    cast = _map(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)
    exact = copy.deepcopy(half).double()(*_map(lambda x: x.double(), cast[:1]), *cast[1:])
    bound = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        half(*cast), _map(lambda x: x.to(dtype), exact), rtol=bound, atol=bound
    )


@each_layer
def test_autocast_computes_in_its_element_type(kind: str) -> None:
    conv, inputs = LAYERS[kind]().float(), inputs_of(kind)
    inputs = (*_map(lambda x: x.float(), inputs[:1]), *inputs[1:])
    exact = conv(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(*inputs)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05, check_dtype=False)


@each_layer
def test_autocast_to_what_is_not_summed_is_left_to_pyg(kind: str) -> None:
    conv, inputs = LAYERS[kind]().float(), inputs_of(kind)
    inputs = (*_map(lambda x: x.float(), inputs[:1]), *inputs[1:])
    exact = conv(*inputs)
    with torch.autocast("cpu", torch.float16):
        with pytest.raises(ArgumentError, match=r"PyG's own forward: .*autocast is of .*float16"):
            conv.explain_program(*inputs)
        found = conv(*inputs)
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02, check_dtype=False)


def test_autocast_casts_no_float64() -> None:
    conv, x, edges = LAYERS["rgat"]().float(), torch.randn(NODES, WIDTH), random_edges()
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(DTypeError, match="expected one element type"),
    ):
        conv((x, x.double()), *edges)


@each_layer
def test_compiled_layers_give_the_same(kind: str) -> None:
    conv, inputs = LAYERS[kind](), inputs_of(kind)
    compiled = torch.compile(Scaled(conv), backend="eager")
    assert_as_pyg(Scaled(conv), compiled, *inputs)


class Scaled(torch.nn.Module):
    """Something to compile before and behind a layer."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Any, *edges: Any) -> Any:
        return _map(lambda y: 2 * y, self.conv(_map(lambda y: y + 1, x), *edges))


@pytest.mark.parametrize("kind", ["rgcn", "rgat"])
def test_order_of_edges_and_names_of_relations_do_not_matter(kind: str) -> None:
    conv = LAYERS[kind]()
    x, edge_index, edge_type = inputs_of(kind)
    expected = conv(x, edge_index, edge_type)
    order = torch.randperm(EDGES)
    assert_close(conv(x, edge_index[:, order], edge_type[order]), expected)
    names = torch.randperm(RELATIONS)
    other = copy.deepcopy(conv)
    other.weight.data[names] = conv.weight.data
    assert_close(other(x, edge_index, names[edge_type]), expected)


def test_one_relation_is_a_homogeneous_mean() -> None:
    x, (edge_index, _) = torch.randn(NODES, WIDTH), random_edges()
    conv = RGCNConv(WIDTH, 4, 1)
    mean = pyg.SAGEConv(WIDTH, 4)
    mean.lin_l.weight.data, mean.lin_l.bias.data = conv.weight.data[0].t(), conv.bias.data
    mean.lin_r.weight.data = conv.root.data.t()
    assert_close(conv(x, edge_index, torch.zeros(EDGES, dtype=torch.long)), mean(x, edge_index))


def test_nodes_without_edges_get_bias_and_root_alone() -> None:
    x, edges = torch.randn(NODES, WIDTH), random_edges()
    rgcn, rgat = LAYERS["rgcn"](), LAYERS["rgat"]()
    torch.nn.init.normal_(rgat.bias)
    assert_close(rgcn(x, *edges)[-2:], x[-2:] @ rgcn.root + rgcn.bias)
    assert_close(rgat(x, *edges)[-2:], rgat.bias.expand(2, -1))
    none = torch.empty(2, 0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    assert_close(rgcn(x, *none), x @ rgcn.root + rgcn.bias)
    assert_close(rgat(x, *none), rgat.bias.expand(NODES, -1))


@pytest.mark.parametrize("mechanism", ["across-relation", "within-relation"])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_attention_sums_to_one(mechanism: str, size: float) -> None:
    conv = RGATConv(WIDTH, 4, RELATIONS, heads=2, attention_mechanism=mechanism)
    x, (edge_index, edge_type) = torch.randn(NODES, WIDTH) * size, random_edges()
    out, (same, alpha) = conv(x, edge_index, edge_type, return_attention_weights=True)
    assert same is edge_index
    assert out.isfinite().all()
    groups = edge_index[1] if mechanism == "across-relation" else edge_index[1] * 9 + edge_type
    sums = torch.zeros(NODES * 9, 2).index_add(0, groups, alpha)
    assert_close(sums[groups.unique()], torch.ones(len(groups.unique()), 2))


def test_dropout_drops_attention_while_training() -> None:
    conv = RGATConv(WIDTH, 4, 1, dropout=0.25, bias=False)
    targets = torch.arange(1, 2001)
    edges = torch.stack([torch.zeros_like(targets), targets]), torch.zeros_like(targets)
    x = torch.randn(2001, WIDTH)
    message = x[:1] @ conv.weight[0]
    ratio = conv(x, *edges)[1:] / message
    kept = (ratio - 1 / 0.75).abs() < 1e-9
    assert (kept | (ratio == 0)).all()
    assert 0.7 < kept.double().mean() < 0.8
    assert_close(conv.eval()(x, *edges)[1:], message.expand(2000, -1))


def test_weights_that_are_not_contiguous_are_read() -> None:
    theirs = pyg.RGCNConv(WIDTH, 4, RELATIONS)
    theirs.weight = torch.nn.Parameter(torch.randn(4, WIDTH, RELATIONS).permute(2, 1, 0))
    ours, x = RGCNConv.from_pyg(theirs), torch.randn(WIDTH, NODES).t()
    assert not ours.weight.is_contiguous()
    assert_as_pyg(theirs, ours, x, *random_edges())


# What a program does not express, and what nothing does -------------------------------------------


def test_pyg_computes_what_programs_do_not_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    x, (edge_index, edge_type) = torch.randn(NODES, WIDTH), random_edges()
    warn_once.cache_clear()
    for options, words in (({"aggr": "max"}, "neither mean nor add"),
                           ({"flow": "target_to_source"}, "source_to_target")):  # fmt: skip
        theirs = pyg.RGCNConv(WIDTH, 4, RELATIONS, **options)
        ours = RGCNConv(WIDTH, 4, RELATIONS, **options)
        ours.load_state_dict(theirs.state_dict())
        assert_as_pyg(theirs, ours, x, edge_index, edge_type)
        ours(x, edge_index, edge_type)
        assert [words in record.getMessage() for record in caplog.records] == [True]
        caplog.clear()
        with pytest.raises(ArgumentError, match=words):
            ours.explain_program(x, edge_index, edge_type)
    with pytest.raises(ArgumentError, match=r"torch\.int32, on cpu, not a plain tensor of int64"):
        LAYERS["rgat"]().explain_program(x, edge_index.int(), edge_type)


@each_layer
def test_hooks_see_the_messages_of_pyg(kind: str) -> None:
    conv, inputs = LAYERS[kind](), inputs_of(kind)
    hooked, seen = copy.deepcopy(conv), []
    hooked.register_message_forward_hook(lambda *arguments: seen.append(arguments))
    assert_as_pyg(hooked, conv, *inputs)
    assert seen


def test_layers_with_messages_of_their_own_are_pygs(caplog: pytest.LogCaptureFixture) -> None:
    class Doubled(RGCNConv):
        def message(self, x_j: Tensor, edge_type_ptr: Any) -> Tensor:
            return 2 * x_j

    warn_once.cache_clear()
    conv = Doubled(WIDTH, 4, RELATIONS)
    x, edges = torch.randn(NODES, WIDTH), random_edges()
    doubled = RGCNConv(WIDTH, 4, RELATIONS)
    doubled.load_state_dict(conv.state_dict())
    doubled.weight.data *= 2
    assert_close(conv(x, *edges), doubled(x, *edges))
    assert "the class has its own message" in caplog.text
    with pytest.raises(DTypeError, match=r"Doubled, expected a torch_geometric.nn.RGCNConv"):
        RGCNConv.from_pyg(conv)


@each_layer
def test_programs_are_explained(kind: str) -> None:
    conv, inputs = LAYERS[kind](), inputs_of(kind)
    assert {"linear", "compact"} <= set(str(conv.explain_program(*inputs)).split())


def test_what_cannot_be_is_told_in_one_line() -> None:
    conv, x, (edge_index, edge_type) = LAYERS["rgcn"](), torch.randn(NODES, WIDTH), random_edges()
    rgat, hgt = LAYERS["rgat"](), LAYERS["hgt"]()
    x_dict, edges = hetero_graph()
    late = {kind: each + HGT_SIZES[kind[0]] for kind, each in edges.items()}
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: conv(x, edge_index), ArgumentError, "edge_type: missing, expected"),
        (lambda: conv(x, edge_index, edge_type + 1), RowIndexError, "edge_type 5 at position"),
        (lambda: conv(x, edge_index - 1, edge_type), RowIndexError, "source -1 at position"),
        (lambda: conv(x[:5], edge_index, edge_type), RowIndexError, "there are 5 sources"),
        (lambda: conv(x[:, :3], edge_index, edge_type), ArgumentError, r"expected .*\(rows, 6\)"),
        (lambda: conv(x.float(), edge_index, edge_type), DTypeError, "x: torch.float32, but"),
        (lambda: conv((x, torch.arange(3)), edge_index, edge_type), ArgumentError, "ids of the"),
        (lambda: conv(torch.arange(WIDTH), edge_index * 0, edge_type + 9), RowIndexError, "type"),
        (lambda: conv(torch.tensor([WIDTH]), edge_index * 0, edge_type), RowIndexError, "x: 6 at"),
        (lambda: RGCNConv(6, 6, 3, num_blocks=2)(None, edge_index, edge_type), ArgumentError, "id"),
        (lambda: rgat(x, edge_index), ArgumentError, "edge_type: missing, expected"),
        (lambda: rgat(x[:, :3], edge_index, edge_type), ArgumentError, r"expected .*\(rows, 6\)"),
        (lambda: rgat(x, edge_index, edge_type, x), ArgumentError, "a layer without edge_dim"),
        (lambda: rgat(x, edge_index, edge_type, None, (3, 3)), ArgumentError, "size: .3, 3., exp"),
        (lambda: hgt({**x_dict, "venue": x[:, :2]}, edges), ArgumentError, r"x_dict\['venue'\]"),
        (lambda: hgt({"paper": x}, edges), ArgumentError, "num_nodes"),
        (lambda: hgt(x_dict, late), RowIndexError, "there are 7 nodes"),
        (lambda: hgt(x_dict, {("a", "b", "c"): edge_index}), ArgumentError, "edge_types"),
        (lambda: LAYERS["rgcn"](passes=("quick",)), ArgumentError, "passes: 'quick', expected"),
        (lambda: LAYERS["rgcn"](backend="gpu"), ArgumentError, "backend: 'gpu', expected one"),
        (lambda: RGCNConv.from_pyg(rgat), DTypeError, "RGATConv, expected a torch_geometric"),
    ]
    for call, error, words in calls:
        with pytest.raises(error, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_weight_that_pyg_forgets_is_not_what_was_in_its_memory() -> None:
    layer = RGATConv(8, 16, RELATIONS)
    assert torch.equal(layer.l2, torch.full((16, 16), 1 / 16))
    layer.l2.data.fill_(torch.nan)
    layer.reset_parameters()
    assert torch.equal(layer.l2, torch.full((16, 16), 1 / 16))
