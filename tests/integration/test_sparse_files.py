"""More than 2^31 edges and rows, in sparse files: zeros but for a few known places."""

from __future__ import annotations

import ctypes
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gnnsys
from gnnsys import rng
from gnnsys.commands.cli import main
from gnnsys.dataset.format import (
    CHECKSUM_CHUNK,
    EDGE_TYPE,
    NODE_TYPE,
    EdgeSet,
    Encoding,
    Manifest,
    NodeSet,
    Shard,
    Table,
)
from gnnsys.errors import ArgumentError
from gnnsys.loaders import NeighborSampler
from gnnsys.memory import FileStore, Reads
from gnnsys.memory.direct_rows import uring_refusal

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from rng_reference import sample_positions

MODES = ["mmap", "pread"] + ([] if uring_refusal() else ["uring"])
FAR = 1 << 31

# Nodes 0 and 1 have more than 2^31 neighbours each; the lists of nodes 2 and 4 lie beyond 2^32.
DEGREES = [3 * FAR // 2, 3 * FAR // 2 + 1, 5, 0, 4]
INDPTR = np.cumsum([0, *DEGREES])
EDGES = int(INDPTR[-1])
SEED, GROUP, FANOUT = 3, 7, 4

ROWS = FAR + 1000
ROW_BYTES = 3
KNOWN = np.array([0, 7, FAR - 1, FAR, FAR + 1, ROWS - 1])
"""Rows that are no zeros."""
VALUES = np.random.default_rng(5).integers(1, 256, (len(KNOWN), ROW_BYTES), dtype=np.uint8)


def make_table(file: Path, shape: tuple[int, ...], dtype: Any, known: Any, values: Any) -> Table:
    """A .npy file that is a hole but for the known rows; its checksum fits where it has no hole."""
    rows = np.lib.format.open_memmap(file, "w+", dtype, shape)
    rows[known] = values
    rows.flush()
    encoding = Encoding.of(rows.dtype.name, shape)
    nbytes = shape[0] * encoding.row_stride
    crc32 = (f"{zlib.crc32(values.tobytes()):08x}",) * -(-nbytes // CHECKSUM_CHUNK)
    shard = Shard(path=file.name, rows=shape[0], bytes=file.stat().st_size, crc32=crc32)
    return Table(shape=shape, encoding=encoding, shards=(shard,))


def drawn_edges(node: int) -> list[int]:
    """Positions of the edges of a node that the reference draws in the first hop."""
    key = rng.stream_key(SEED, 0, GROUP, 0)
    begin = int(INDPTR[node])
    return [begin + place for place in sample_positions(key, node, DEGREES[node], FANOUT)]


@pytest.fixture(scope="module")
def many_edges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 5 nodes and more than 2^32 edges; those that are drawn have known sources."""
    folder = tmp_path_factory.mktemp("edges")
    known = np.array([*drawn_edges(0), *drawn_edges(1), *range(int(INDPTR[2]), EDGES)])
    sources = np.arange(len(known)) % 5
    everywhere = np.arange(len(INDPTR))
    tables = {
        "indptr": make_table(folder / "indptr.npy", (6,), np.int64, everywhere, INDPTR),
        "indices": make_table(folder / "indices.npy", (EDGES,), np.int32, known, sources),
    }
    manifest = Manifest(
        name="many edges",
        heterogeneous=False,
        nodes={NODE_TYPE: NodeSet(count=5)},
        edges={EDGE_TYPE: EdgeSet(count=EDGES, tables=tables)},
    )
    (folder / "graph.json").write_text(manifest.to_json())
    return folder


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 3 users and more than 2^31 items, some of which lead to users."""
    folder = tmp_path_factory.mktemp("rows")
    indptr, indices = np.array([0, 3, 3, 6]), KNOWN[[0, 2, 3, 1, 4, 5]]
    tables = {
        "indptr": make_table(folder / "indptr.npy", (4,), np.int64, np.arange(4), indptr),
        "indices": make_table(folder / "indices.npy", (6,), np.int64, np.arange(6), indices),
    }
    features = make_table(folder / "x.npy", (ROWS, ROW_BYTES), np.uint8, KNOWN, VALUES)
    manifest = Manifest(
        name="many rows",
        heterogeneous=True,
        nodes={
            "user": NodeSet(count=3),
            "item": NodeSet(count=ROWS, tables={"features": features}),
        },
        edges={("item", "of", "user"): EdgeSet(count=6, tables=tables)},
    )
    (folder / "graph.json").write_text(manifest.to_json())
    return folder


def test_positions_of_edges_beyond_two_to_the_32_are_sampled(many_edges: Path) -> None:
    graph = gnnsys.open_dataset(many_edges).graph()
    seeds = [0, 4, 2, 1, 3]
    out = NeighborSampler(graph, [FANOUT], seed=SEED).sample(torch.tensor(seeds), group=GROUP)
    expected = [edge for node in seeds for edge in drawn_edges(node)]
    assert out.edge.tolist() == expected
    assert max(expected) >= 1 << 32
    assert max(drawn_edges(0)) > FAR  # of one list
    indices = np.load(many_edges / "indices.npy", mmap_mode="r")
    assert out.node[out.row].tolist() == indices[expected].tolist()
    assert len(set(indices[expected].tolist())) == 5
    targets = [node for node in seeds for _ in drawn_edges(node)]
    assert out.node[out.col].tolist() == targets


def test_a_loader_takes_all_neighbours_beyond_two_to_the_32(many_edges: Path) -> None:
    dataset = gnnsys.open_dataset(many_edges)
    (batch,) = gnnsys.NeighborLoader(
        dataset.stores(), [-1], input_nodes=torch.tensor([4, 2]), batch_size=2
    )
    assert batch.e_id.tolist() == [*range(EDGES - 4, EDGES), *range(EDGES - 9, EDGES - 4)]
    indices = np.load(many_edges / "indices.npy", mmap_mode="r")
    assert batch.n_id[batch.edge_index[0]].tolist() == indices[batch.e_id.numpy()].tolist()


def test_info_counts_more_edges_than_int32_can(
    many_edges: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(many_edges), "--json"]) == 0
    (edges,) = json.loads(capsys.readouterr().out)["edges"]
    assert edges["count"] == EDGES
    assert edges["in_degree"]["max"] == max(DEGREES)
    assert edges["in_degree"]["mean"] == pytest.approx(EDGES / 5)


def test_nodes_beyond_two_to_the_31_are_sampled_and_their_rows_gathered(many_rows: Path) -> None:
    dataset = gnnsys.open_dataset(many_rows)
    loader = gnnsys.NeighborLoader(
        dataset.stores(device="cpu"), [-1], input_nodes=("user", torch.tensor([2, 0])), batch_size=2
    )
    (batch,) = loader
    items = batch["item"].n_id
    source, target = batch["item", "of", "user"].edge_index
    pairs = zip(items[source].tolist(), batch["user"].n_id[target].tolist(), strict=True)
    expected = [(row, 2) for row in KNOWN[[1, 4, 5]]] + [(row, 0) for row in KNOWN[[0, 2, 3]]]
    assert sorted(pairs) == sorted(expected)
    found = dict(zip(items.tolist(), batch["item"].x.tolist(), strict=True))
    assert found == dict(zip(KNOWN.tolist(), VALUES.tolist(), strict=True))


@pytest.mark.parametrize("storage", MODES)
def test_rows_beyond_two_to_the_31_are_gathered_read_ahead_and_written(
    storage: Any, many_rows: Path
) -> None:
    file = many_rows / "x.npy"
    store = FileStore(file, storage=storage, writable=True)
    order = np.array([5, 0, 3, 2, 5, 1, 4])
    assert np.array_equal(store.gather(torch.from_numpy(KNOWN[order])).numpy(), VALUES[order])
    staged = store.start_reads(Reads(KNOWN)).wait()
    places = (staged.address + staged.offsets).tolist()
    assert b"".join(ctypes.string_at(at, ROW_BYTES) for at in places) == VALUES.tobytes()
    around = np.zeros((4, ROW_BYTES), np.uint8)
    around[1:] = VALUES[2:5]
    assert np.array_equal(store.read_range(FAR - 2, FAR + 2).numpy(), around)
    # Rows that are zeros otherwise.
    ids = torch.tensor([FAR + 500, FAR + 3])
    try:
        store.write(ids, torch.full((2, ROW_BYTES), 9, dtype=torch.uint8))
        again = FileStore(file, storage=storage).gather(torch.tensor([FAR + 3, FAR + 2, FAR + 500]))
        assert again[:, 0].tolist() == [9, 0, 9]
    finally:
        store.write(ids, torch.zeros(2, ROW_BYTES, dtype=torch.uint8))


def test_indices_of_a_unified_tensor_reach_beyond_two_to_the_31(many_rows: Path) -> None:
    x = gnnsys.unified(many_rows / "x.npy", device="cpu", storage="pread")
    assert x.shape == (ROWS, ROW_BYTES)
    assert np.array_equal(x[FAR - 1 : FAR + 2].numpy(), VALUES[2:5])
    assert np.array_equal(x[-1].numpy(), VALUES[-1])
    with pytest.raises(IndexError, match=str(ROWS)):
        x[torch.tensor([ROWS])]


def test_a_cache_says_how_many_rows_its_plans_take(many_rows: Path) -> None:
    features = gnnsys.open_dataset(many_rows).features("item", cache=100, device="cpu")
    with pytest.raises(ArgumentError, match=rf"num_rows={ROWS} > 2147483646: .*leave cache= out"):
        features[torch.tensor([FAR])]
