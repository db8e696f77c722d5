"""Names of torch and PyG that they do not promise to keep: each is there, and does what we use."""

from __future__ import annotations

import ast
import copy
import datetime
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch_geometric
from torch import Tensor
from torch.utils import _pytree
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.storage import BaseStorage
from torch_geometric.nn import GATConv, GCNConv, MessagePassing, SAGEConv

import gnnsys
from gnnsys import compat

ROOT = Path(__file__).parents[2]

OF_TORCH = (
    "torch._C.DisableTorchFunction",
    "torch._C._disabled_torch_function_impl",
    "torch._C._functorch.peek_interpreter_stack",
    "torch._C._get_tracing_state",
    "torch.Tensor._indices",
    "torch.Tensor._make_wrapper_subclass",
    "torch.Tensor._version",
    "torch.autograd.forward_ad._current_level",
    "torch.distributed.distributed_c10d._get_default_store",
    "torch.distributed.distributed_c10d._set_pg_timeout",
    "torch.nn.modules.batchnorm._NormBase",
    "torch.ops.aten._to_copy.default",
    "torch.ops.aten._to_copy.default._schema",
    "torch.utils._pytree.tree_flatten",
    "torch.utils._pytree.tree_unflatten",
    "torch.utils.data._utils.pin_memory.pin_memory",
    "torch.utils.weak.WeakIdKeyDictionary",
)
OF_LAYERS = (
    "_aggregate_forward_hooks", "_aggregate_forward_pre_hooks", "_check_input",
    "_decomposed_layers", "_explain", "_message_forward_hooks", "_message_forward_pre_hooks",
    "_propagate_forward_hooks", "_propagate_forward_pre_hooks", "_set_size",
)  # fmt: skip
OF_LAYER_CLASSES = ("_jinja_propagate", "_orig_propagate")
OF_OTHERS = (
    "_cached_attr", "_cached_edge_index", "_forward_hooks", "_forward_pre_hooks", "_key",
    "_orig_mod", "_store", "_to_canonical",
)  # fmt: skip
THEIRS = {*OF_LAYERS, *OF_LAYER_CLASSES, *OF_OTHERS} | {name.split(".")[-1] for name in OF_TORCH}


def gone(library: Any, name: str, instead: str) -> str:
    return (
        f"{library.__name__} {library.__version__} has no {name} ({instead}); gnnsys/compat.py was "
        f"tried with {compat.TRIED[library.__name__]}: find what replaces it and adapt compat.py"
    )


@pytest.mark.parametrize("name", OF_TORCH)
def test_torch_has(name: str) -> None:
    found: Any = torch
    for part in name.split(".")[1:]:
        assert hasattr(found, part), gone(torch, name, f"{part} is missing")
        found = getattr(found, part)


@pytest.mark.parametrize("name", [*OF_LAYERS, *OF_LAYER_CLASSES])
def test_layers_of_pyg_have(name: str) -> None:
    layer = SAGEConv(2, 2)
    owner = type(layer) if name in OF_LAYER_CLASSES else layer
    assert hasattr(owner, name), gone(torch_geometric, f"MessagePassing.{name}", "of a SAGEConv")


def test_hooks_of_modules_are_where_they_are_looked_for() -> None:
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        assert name in torch.nn.Linear(1, 1).__dict__, gone(torch, name, "of a Module")


# What they do ------------------------------------------------------------------------------------


def test_transformations_are_noticed() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(compat.is_transformed())
        return x * 2

    x = torch.ones(2)
    look(x)
    torch.func.vmap(look)(x)
    with torch.autograd.forward_ad.dual_level():
        look(x)
    torch.jit.trace(look, x, check_trace=False)
    look(x)
    assert seen == [False, True, True, True, False]


def test_sparse_adam_updates_rows_in_place() -> None:
    rows, first, second = (torch.zeros(3, 1) for _ in range(3))
    grad = torch.sparse_coo_tensor([[0, 2]], torch.ones(2, 1), (3, 1)).coalesce()
    compat.sparse_adam(
        [rows], [grad], [first], [second], [1],
        eps=0.0, beta1=0.5, beta2=0.5, lr=1.0, maximize=False,
    )  # fmt: skip
    assert rows.flatten().tolist() == pytest.approx([-1, 0, -1])
    assert first.flatten().tolist() == second.flatten().tolist() == [0.5, 0, 0.5]


def test_versions_count_changes() -> None:
    x = torch.zeros(2)
    before = compat.version_of(x)
    x.add_(1)
    assert compat.version_of(x) == before + 1


def test_indices_of_a_coo_matrix_keep_their_order() -> None:
    positions = torch.tensor([[1, 0, 1], [0, 1, 0]])
    matrix = torch.sparse_coo_tensor(positions, torch.ones(3), (2, 2))
    assert compat.coo_indices(matrix).equal(positions)


def test_operators_say_what_they_write_to() -> None:
    arguments = compat.schema_of(torch.ops.aten.add_.Tensor).arguments
    assert [a.name for a in arguments if a.alias_info and a.alias_info.is_write] == ["self"]
    assert not any(a.alias_info for a in compat.schema_of(compat.TO_COPY).arguments)


def test_wrappers_have_no_memory() -> None:
    class Wrapped(Tensor):
        @classmethod
        def __torch_dispatch__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            raise NotImplementedError

    x = compat.make_wrapper(Wrapped, torch.Size([3, 2]), dtype=torch.int8, device="cpu")
    assert (type(x), x.shape, x.dtype) == (Wrapped, (3, 2), torch.int8)
    with pytest.raises(RuntimeError):
        x.untyped_storage().data_ptr()


def test_functions_run_as_for_plain_tensors() -> None:
    class Wrapped(Tensor):
        __torch_function__ = compat.as_plain_tensors

    ones = torch.ones(2).as_subclass(Wrapped)
    assert type(ones + ones) is Tensor


def test_batch_and_instance_norms_have_one_base() -> None:
    for norm in (torch.nn.BatchNorm1d(2), torch.nn.SyncBatchNorm(2), torch.nn.InstanceNorm1d(2)):
        assert isinstance(norm, compat.NORM_WITH_STATISTICS)
    assert not isinstance(torch.nn.LayerNorm(2), compat.NORM_WITH_STATISTICS)


def test_trees_are_taken_apart_and_put_together() -> None:
    leaves, spec = compat.tree_flatten({"a": (1, [2]), "b": 3})
    assert leaves == [1, 2, 3]
    assert compat.tree_unflatten([4, 5, 6], spec) == {"a": (4, [5]), "b": 6}
    assert compat.tree_flatten is _pytree.tree_flatten


def test_weak_dictionaries_hold_tensors_by_object() -> None:
    known, x = compat.WeakIdKeyDictionary(), torch.zeros(2)
    known[x] = 1
    assert known.get(x) == 1
    assert known.get(x[:]) is None
    del x
    assert len(known) == 0


def test_compiled_models_know_what_they_stand_for() -> None:
    model = torch.nn.Linear(2, 2)
    assert compat.uncompiled(torch.compile(model)) is model
    assert compat.uncompiled(model) is None


def test_the_default_groups_store_and_timeout(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        compat.default_store().set("key", "value")
        assert compat.default_store().get("key") == b"value"
        compat.set_group_timeout(datetime.timedelta(days=1))
    finally:
        dist.destroy_process_group()


def test_storages_know_their_group() -> None:
    data = HeteroData()
    data["a"].x = torch.ones(1, 1)
    data["a", "to", "a"].edge_index = torch.zeros(2, 1, dtype=torch.int64)
    groups = [compat.group_of(store) for store in data.stores]
    assert groups == [None, "a", ("a", "to", "a")]
    assert compat.store_of(data, "a") is data["a"]
    assert compat.canonical_edge_type(data, ("a", "a")) == ("a", "to", "a")
    single = Data(x=torch.ones(1, 1))
    assert compat.group_of(compat.store_of(single, None)) is None
    assert compat.store_of(single, None).x is single.x


def test_a_copy_of_data_learns_its_attributes_anew() -> None:
    data = Data(x=torch.ones(2, 1), num_nodes=2)
    assert data.is_node_attr("x")
    copied = copy.copy(data)
    copied.x = 3
    compat.forget_attributes(compat.store_of(copied, None))
    assert not copied.is_node_attr("x")
    assert hasattr(BaseStorage(), "_cached_attr") or "_cached_attr" in data._store.__dict__, gone(
        torch_geometric, "BaseStorage._cached_attr", "drop forget_attributes"
    )


def _layer_with(hook: str) -> Any:
    layer = SAGEConv(2, 2)
    getattr(layer, f"register_{hook}_hook")(lambda *args: None)
    return layer


@pytest.mark.parametrize(
    "hook",
    [
        f"{method}_forward{pre}"
        for method in ("propagate", "message", "aggregate")
        for pre in ("_pre", "")
    ],
)
def test_hooks_on_messages_are_noticed(hook: str) -> None:
    assert not compat.shows_messages(SAGEConv(2, 2))
    assert compat.shows_messages(_layer_with(hook)), gone(torch_geometric, hook, "hooks moved")


@pytest.mark.parametrize("pre", ["_pre", ""])
def test_hooks_on_updates_of_edges_are_noticed(pre: str) -> None:
    layer = GATConv(2, 2)
    assert not compat.shows_edge_updates(layer)
    getattr(layer, f"register_edge_update_forward{pre}_hook")(lambda *args: None)
    assert compat.shows_edge_updates(layer), gone(torch_geometric, "edge_update", "hooks moved")


@pytest.mark.parametrize("hook", ["forward_pre", "forward", "full_backward", "full_backward_pre"])
def test_hooks_on_modules_are_noticed(hook: str) -> None:
    module = torch.nn.Linear(2, 2)
    assert not compat.has_hooks(module)
    getattr(module, f"register_{hook}_hook")(lambda *args: None)
    assert compat.has_hooks(module), gone(torch, hook, "hooks moved")
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert compat.has_hooks(torch.nn.Linear(2, 2))
    handle.remove()


def test_explaining_and_decomposing_are_noticed() -> None:
    explained = SAGEConv(2, 2)
    explained.explain = True
    assert compat.is_explained(explained)
    assert compat.shows_messages(explained)
    assert not compat.is_explained(SAGEConv(2, 2))
    assert compat.shows_messages(SAGEConv(2, 2, decomposed_layers=2))
    aggregated = SAGEConv(2, 2)
    aggregated.aggr_module.register_forward_hook(lambda *args: None)
    assert compat.shows_messages(aggregated)


def test_sizes_are_checked_as_pyg_does() -> None:
    layer, edges = SAGEConv(2, 2), torch.tensor([[0, 1], [1, 0]])
    sizes = compat.sizes_of(layer, edges, None)
    assert sizes == [None, None]
    compat.set_size(layer, sizes, 0, torch.ones(3, 2))
    assert sizes == [3, None]
    with pytest.raises(ValueError, match="3"):
        compat.set_size(layer, sizes, 0, torch.ones(4, 2))
    with pytest.raises(ValueError, match="integer"):
        compat.sizes_of(layer, edges.float(), None)


def test_a_cached_gcn_keeps_its_edges() -> None:
    layer, edges = GCNConv(1, 1, cached=True, add_self_loops=False), torch.tensor([[0, 1], [1, 0]])
    assert compat.cached_edges(layer) is None
    layer(torch.ones(2, 1), edges)
    found = compat.cached_edges(layer)
    assert found is not None
    assert found[0].equal(edges)
    assert found[1].tolist() == [1.0, 1.0]


class Plain(SAGEConv):
    pass


class Own(SAGEConv):
    def propagate(self, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
        return super().propagate(edge_index, *args, **kwargs)


def _borrowed(self: Any, edge_index: Any, **kwargs: Any) -> Any:
    raise NotImplementedError


_borrowed.__module__ = "users_helpers"


class Borrowed(SAGEConv):
    propagate = _borrowed


def test_propagates_of_users_are_told_from_those_of_pyg() -> None:
    for kind in (SAGEConv, Plain):
        assert not compat.has_own_propagate(kind(2, 2))
        assert not compat.has_own_propagate(gnnsys.fuse(kind(2, 2)))
    assert compat.has_own_propagate(Own(2, 2))
    assert compat.has_own_propagate(Borrowed(2, 2))
    layer = SAGEConv(2, 2)
    layer.propagate = functools.partial(_borrowed, layer)
    layer.propagate.__module__ = "users_helpers"
    assert compat.has_own_propagate(layer)


def test_a_fused_layer_propagates_by_messages_while_it_is_explained() -> None:
    x, edges = torch.rand(3, 2), torch.tensor([[0, 1, 2], [1, 2, 0]])
    layer = gnnsys.fuse(SAGEConv(2, 2))
    expected = layer(x, edges)
    seen = []
    layer.register_message_forward_hook(lambda *args: seen.append(1))
    assert layer(x, edges).allclose(expected)
    layer.explain = True
    layer._edge_mask, layer._loop_mask = torch.ones(3), torch.ones(3).bool()
    layer._apply_sigmoid = False
    assert layer(x, edges).allclose(expected)
    layer.explain = False
    assert layer(x, edges).allclose(expected)
    assert len(seen) == 3


def test_template_propagates_lie_in_modules_of_their_own() -> None:
    SAGEConv(2, 2)
    made = getattr(SAGEConv, compat.TEMPLATE_PROPAGATE)
    assert made.__module__.startswith(f"{SAGEConv.__module__}_SAGEConv_propagate")
    assert MessagePassing.__module__ == "torch_geometric.nn.conv.message_passing"


# And nobody else uses them -----------------------------------------------------------------------


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in ("gnnsys", "loaders", "cache", "pipeline"):
        for path in (ROOT / folder).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            if name != "gnnsys/compat.py":
                yield name, ast.parse(path.read_text())


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.Module) -> set[str]:
    """Names that a module gives to members of its classes and to objects."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign):
            found.add(ast.unparse(node.target))
    return found


def private_uses(tree: ast.Module) -> Iterator[str]:
    ours = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            home = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for full in (home + alias.name for alias in node.names):
                if full.startswith("torch") and any(map(is_private, full.split("."))):
                    yield f"imports {full}"
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            of_us = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            of_us = of_us or ast.unparse(node.value) in ("super()", "os")
            if not of_us and node.attr not in ours:
                yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and node.value in THEIRS:
            yield f"the name {node.value!r}"


def test_private_names_of_torch_and_pyg_are_touched_in_compat_alone() -> None:
    for name, tree in sources():
        uses = [*private_uses(tree)]
        assert not uses, f"{name} uses private names, which belong into compat.py: {uses}"


@pytest.mark.parametrize(
    "line",
    [
        "import torch; torch._C._get_tracing_state()",
        "from torch.utils._pytree import tree_flatten",
        "layer._explain",
        "getattr(layer, '_orig_propagate')",
        "tensor._version",
    ],
)
def test_private_names_are_found(line: str) -> None:
    assert [*private_uses(ast.parse(line))]
