"""Features of edges are announced to their caches as those of nodes are, and equal indexing."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

import gnnsys
from gnnsys.cache.store import CachedStore
from gnnsys.cache.tickets import is_aside
from gnnsys.dataset.writer import DatasetWriter, cut_rows

NODES, EDGES, CAPACITY = 200, 1500, 150
CITES, WRITES = ("paper", "cites", "paper"), ("author", "to", "paper")


def save(folder: Path, name: str, rows: int, width: int = 3) -> tuple[Tensor, Path]:
    table = np.random.default_rng(rows + width).random((rows, width), np.float32)
    np.save(folder / f"{name}.npy", table)
    return torch.from_numpy(table), folder / f"{name}.npy"


def edges_between(sources: int, targets: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    ends = [torch.randint(count, (EDGES,), generator=draw) for count in (sources, targets)]
    return torch.stack(ends)  # in no order: the sampler sorts them


def cached(path: Path, **options: Any) -> gnnsys.UnifiedTensor:
    options = {"cache": CAPACITY, "policy": "lookahead", "window": 6, "device": "cpu", **options}
    return gnnsys.unified(path, storage="pread", **options)


def loader_of(data: Any, links: bool = False, **options: Any) -> Any:
    options = {"num_neighbors": [4, 3], "batch_size": 20, "shuffle": True, **options}
    if links:
        return gnnsys.LinkNeighborLoader(data, edge_label_index=data.edge_index, **options)
    return gnnsys.NeighborLoader(data, **options)


Announced = dict[int, list[list[int]]]


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> Announced:
    """By the id of a store, the ids of each batch that was gathered as it was announced."""
    found: Announced = defaultdict(list)
    gather = CachedStore.gather

    def spy(self: CachedStore, ids: Tensor, *args: Any, ticket: Any = None, **more: Any) -> Tensor:
        if ticket is not None and not is_aside(ticket):
            found[id(self)].append(ids.tolist())
        return gather(self, ids, *args, ticket=ticket, **more)

    monkeypatch.setattr(CachedStore, "gather", spy)
    return found


def assert_announced(store: Any, trace: list[Tensor], announced: Announced) -> None:
    """All batches were announced to the cache, which counts each row."""
    assert announced[id(store)] == [edges.tolist() for edges in trace]
    stats = store.stats
    assert stats.batches == len(trace)
    assert stats.rows == sum(map(len, trace)) == stats.hits + stats.reads + stats.copies


@pytest.mark.parametrize("links", [False, True])
def test_edge_attr_of_data_is_announced(links: bool, tmp_path: Path, announced: Announced) -> None:
    edge_attr, path = save(tmp_path, "edges", EDGES)
    index = edges_between(NODES, NODES, 1)
    data = Data(x=torch.arange(NODES), edge_index=index, edge_attr=cached(path))
    options = {"batch_size": 100} if links else {}
    trace = []
    for batch in loader_of(data, links, **options):
        assert type(batch.edge_attr) is Tensor
        assert torch.equal(batch.edge_attr, edge_attr[batch.e_id])
        trace.append(batch.e_id)
    assert_announced(data.edge_attr.store, trace, announced)
    counted = {tier: served.rows for tier, served in data.edge_attr.counters.tiers().items()}
    stats = data.edge_attr.store.stats
    assert counted == {"cache": stats.hits, "file": stats.reads}


def hetero(make_x: Any, make_edges: Any) -> HeteroData:
    data = HeteroData()
    data["paper"].x, data["author"].x = make_x("paper", NODES), make_x("author", 90)
    for kind, sources, seed in ((CITES, NODES, 2), (WRITES, 90, 3)):
        data[kind].edge_index = edges_between(sources, NODES, seed)
        data[kind].edge_attr = make_edges("-".join(kind), EDGES)
    return data


@pytest.mark.filterwarnings("ignore:Cannot convert to bidirectional")
@pytest.mark.parametrize("subgraph", ["directional", "bidirectional"])
def test_edge_attr_of_each_type_is_announced_and_may_share_an_arena(
    subgraph: str, tmp_path: Path, announced: Announced
) -> None:
    arena = gnnsys.CacheArena(9000)
    plain = hetero(*[lambda name, rows: save(tmp_path, name, rows)[0]] * 2)
    ahead = hetero(*[lambda name, rows: cached(tmp_path / f"{name}.npy", cache=arena)] * 2)
    options = {"input_nodes": "paper", "subgraph_type": subgraph}
    traces: dict[Any, list[Tensor]] = {CITES: [], WRITES: []}
    batches = loader_of(ahead, **options)
    for found, expected in zip(batches, loader_of(plain, **options), strict=True):
        for kind, trace in traces.items():
            # PyG leaves out the rows of edges that have no number, such as added reverses.
            assert ("edge_attr" in found[kind]) == ("edge_attr" in expected[kind])
            if expected[kind].get("edge_attr") is not None:
                assert torch.equal(found[kind].edge_attr, expected[kind].edge_attr)
                trace.append(found[kind].e_id)
        assert torch.equal(found["author"].x, expected["author"].x)
    for kind, trace in traces.items() if subgraph == "directional" else ():
        assert_announced(ahead[kind].edge_attr.store, trace, announced)


def write_dataset(folder: Path, types: bool) -> Path:
    """A dataset folder with edge_features, of one type or of two."""
    kinds = {CITES: (NODES, NODES), WRITES: (90, NODES)} if types else {
        ("node", "to", "node"): (NODES, NODES)}  # fmt: skip
    with DatasetWriter(folder, name="some", heterogeneous=types) as writer:
        for kind, (sources, targets) in kinds.items():
            for name, rows in ((kind[0], sources), (kind[2], targets)):
                if not writer.has_nodes(name):
                    writer.add_nodes(rows, name)
                    x, _ = save(folder.parent, f"x-{name}", rows)
                    writer.write_nodes("features", cut_rows(x.numpy()), x.shape, "float32", name)
            source, target = edges_between(sources, targets, 5).numpy()
            order = np.lexsort((source, target))
            indptr = np.searchsorted(target[order], np.arange(targets + 1))
            indices = source[order].astype(np.int32)
            rows, _ = save(folder.parent, "-".join(kind), EDGES, 4)
            writer.add_edges(EDGES, kind)
            writer.write_edges("indptr", cut_rows(indptr), indptr.shape, "int64", kind)
            writer.write_edges("indices", cut_rows(indices), (EDGES,), "int32", kind)
            writer.write_edges("edge_features", cut_rows(rows.numpy()), rows.shape, "float32", kind)
        return writer.commit()


@pytest.mark.parametrize("types", [False, True])
def test_edge_features_of_a_folder_come_into_batches_through_the_cache(
    types: bool, tmp_path: Path, announced: Announced
) -> None:
    dataset = gnnsys.open_dataset(write_dataset(tmp_path / "g", types))
    options = {"cache": CAPACITY, "policy": "lookahead", "window": 6, "device": "cpu"}
    features, graphs = dataset.stores(**options)
    loader = loader_of((features, graphs), input_nodes="paper" if types else None)
    traces: dict[Any, list[Tensor]] = {kind: [] for kind in dataset.edge_types}
    for batch in loader:
        for kind, trace in traces.items():
            part = batch[kind] if types else batch
            rows = torch.from_numpy(np.array(dataset.edge_table("edge_features", kind)))
            assert torch.equal(part.edge_attr, rows[part.e_id])
            trace.append(part.e_id)
    for kind, trace in traces.items():
        table = features.table(kind if types else None, "edge_attr")
        assert_announced(table.store, trace, announced)
    features, _ = dataset.stores(edge_features=False)
    assert {attr.attr_name for attr in features.get_all_tensor_attrs()} == {"x"}


def test_a_folder_as_data_has_them_too_and_text_of_bytes_is_for_all_tables(tmp_path: Path) -> None:
    dataset = gnnsys.open_dataset(write_dataset(tmp_path / "g", False))
    data = dataset.to_data()
    rows = torch.from_numpy(np.array(dataset.edge_table("edge_features")))
    batch = next(iter(loader_of(data)))
    assert torch.equal(batch.edge_attr, rows[batch.e_id])
    stores = dataset.stores(cache="2KB", scores=np.arange(NODES), device="cpu")
    batch = next(iter(loader_of(stores)))
    assert torch.equal(batch.edge_attr, rows[batch.e_id])
    tables = [stores[0].table(None, name).store for name in ("x", "edge_attr")]
    assert sum(table.capacity * table.row_bytes for table in tables) <= 2048


def test_padded_batches_of_stores_have_padded_rows_of_edges(tmp_path: Path) -> None:
    dataset = gnnsys.open_dataset(write_dataset(tmp_path / "g", False))
    rows = torch.from_numpy(np.array(dataset.edge_table("edge_features")))
    stores = dataset.stores(cache=CAPACITY, device="cpu")
    sizes = set()
    for batch in loader_of(stores, static_shapes=True):
        known = batch.pad_edge_mask
        assert torch.equal(batch.edge_attr[known], rows[batch.e_id[known]])
        assert not batch.edge_attr[~known].any()
        sizes.add(batch.edge_attr.shape)
    assert len(sizes) == 1
