"""What a run plans to take, by name, on a graph of 2^26 nodes whose files are holes."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from gnnsys.choices import ImportanceChoice
from gnnsys.config.train import TrainConfig
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import (
    CHECKSUM_CHUNK,
    EDGE_TYPE,
    MANIFEST,
    NODE_TYPE,
    EdgeSet,
    Encoding,
    Manifest,
    NodeSet,
    Shard,
    Table,
    Task,
)
from gnnsys.features.options import FeatureOptions, TopologyOptions
from gnnsys.features.setup import plan_features
from gnnsys.system.budget import CACHE_ROWS, RANKING, SPLITS, Entry, process_budget
from gnnsys.system.files import npy_header
from gnnsys.training import memory

NODES, EDGES, MIB = 1 << 26, 1 << 30, 1 << 20
LIBRARIES = 330 * MIB
"""Anonymous memory of a process that has imported what trains; the tests' own have more."""


def hollow_table(folder: Path, name: str, dtype: str, shape: tuple[int, ...]) -> Table:
    """A file of zeros that takes no disk."""
    encoding = Encoding.of(dtype, shape)
    header = npy_header(shape, encoding.file_dtype)
    data = shape[0] * encoding.row_stride
    with open(folder / f"{name}.npy", "wb") as file:
        file.write(header)
        file.truncate(len(header) + data)
    whole, rest = divmod(data, CHECKSUM_CHUNK)
    crc32 = [f"{zlib.crc32(bytes(CHECKSUM_CHUNK)):08x}"] * whole
    crc32 += [f"{zlib.crc32(bytes(rest)):08x}"] if rest else []
    shard = Shard(path=f"{name}.npy", rows=shape[0], bytes=len(header) + data, crc32=tuple(crc32))
    return Table(shape=shape, encoding=encoding, shards=(shard,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hollow")
    shapes = {
        "features": ("float16", (NODES, 128)),
        "labels": ("int64", (NODES,)),
        "train": ("int64", (NODES // 100,)),
        "val": ("int64", (NODES // 1000,)),
        "test": ("int64", (NODES - NODES // 100 - NODES // 1000,)),
        "static_score": ("uint16", (NODES,)),
    }
    nodes = {name: hollow_table(path, name, *each) for name, each in shapes.items()}
    edges = {
        "indptr": hollow_table(path, "indptr", "int64", (NODES + 1,)),
        "indices": hollow_table(path, "indices", "int32", (EDGES,)),
    }
    manifest = Manifest(
        name="hollow",
        heterogeneous=False,
        task=Task(node_type=NODE_TYPE, num_classes=10, multi_label=False, metric="accuracy"),
        nodes={NODE_TYPE: NodeSet(count=NODES, tables=nodes)},
        edges={EDGE_TYPE: EdgeSet(count=EDGES, tables=edges)},
        source={"static_score": {"kind": "degree"}},
    )
    (path / MANIFEST).write_text(manifest.to_json())
    return path


def planned(
    folder: Path, monkeypatch: pytest.MonkeyPatch, score: ImportanceChoice
) -> dict[str, Entry]:
    """The table of a run; nothing is sampled, for which the offsets would be read."""
    batch = memory._Batch([1024, 3600, 7600], 13000)  # as on an R-MAT graph of this size
    monkeypatch.setattr(memory, "graph_to_sample", lambda *_: None)
    monkeypatch.setattr(memory, "_draw", lambda *_: batch)
    config = TrainConfig(
        dataset=str(folder), layers=2, fanouts=(10, 5), hidden=64, batch_size=1024, eval="sampled"
    )
    dataset = Dataset(folder)
    options = FeatureOptions(cache="3GB", score=score, storage="uring")
    with process_budget().run(24 << 30) as budget:
        memory.plan_memory(config, dataset, options, TopologyOptions())
        plan_features(dataset, options)
        return {entry.name: entry for entry in budget.table() if entry.planned}


@pytest.mark.parametrize(
    ("score", "importance"),
    [("degree", 0), ("pagerank", 2 * NODES)],
    ids=["importance stored", "importance computed"],
)
def test_beside_cache_and_topology_a_run_takes_less_than_a_gibibyte(
    score: ImportanceChoice, importance: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = planned(folder, monkeypatch, score)
    own = {
        name: entry.planned
        for name, entry in table.items()
        if not entry.mapped
        and name not in (CACHE_ROWS, "libraries")
        and not name.startswith("topology")
    }
    assert sum(own.values()) - importance + LIBRARIES < 1 << 30, own
    assert own.get("importance", 0) == importance
    assert own["sampler maps"] < MIB
    assert table[SPLITS].planned < 6 * MIB
    assert RANKING not in table  # comes before the cache, in its memory
