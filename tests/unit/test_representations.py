"""What unified tensors, stores and loaders say of themselves, and of keywords that they lack."""

from __future__ import annotations

import inspect
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.loader
from torch.utils.data import DataLoader
from torch_geometric.data import Data, HeteroData

import gnnsys
from gnnsys.errors import ArgumentError, GnnsysError
from gnnsys.memory import FileStore, HostStore

ROWS = torch.arange(600.0).view(100, 6)


def table(shown: str) -> dict[str, str]:
    """The rows of a table in HTML, by a strict parser."""
    root = ElementTree.fromstring(shown)
    return {str(row[0].text): str(row[1].text) for row in root.iter("tr")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "a<b.npy", ROWS.numpy())
    return tmp_path / "a<b.npy"


def test_a_tensor_says_rows_bytes_tier_and_cache(path: Path) -> None:
    host, file = gnnsys.unified(ROWS, device="cpu"), gnnsys.unified(path, device="cpu")
    cached = gnnsys.unified(path, device="cpu", cache=0.25, policy="lru", victim_buffer=3)
    told = [table(x._repr_html_()) for x in (host, file, cached)]
    for each in told:
        assert each["rows"] == str(len(ROWS))
        assert each["row"] == "6 float32"
        assert each["bytes"] == f"{ROWS.nbytes / 1024:.4g} KiB, {6 * 4} bytes a row"
        assert each["delivered to"] == "cpu"
    assert [each["tier"] for each in told] == ["host", "file", "file behind a cache"]
    assert [each.get("file") for each in told] == [None, str(path), str(path)]
    assert told[2]["cache"] == f"25 rows, {25 * 24} bytes"
    assert (told[2]["policy"], told[2]["victim buffer"]) == ("lru", "3 rows")
    for x in (host, file, cached):
        for text in (repr(x), str(x), f"{x}"):
            assert "shape=(100, 6), dtype=torch.float32" in text
            assert "bytes='2.344 KiB'" in text
            assert "\n" not in text
    assert "cache='25 rows, 600 bytes'" in repr(cached)
    assert "tier='host'" in repr(host)
    assert table(file.half()._repr_html_())["row"] == "6 float16"
    assert table(file.half()._repr_html_())["stored as"] == "float32"


def test_nothing_is_read_or_allocated_to_tell(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 1 << 40)
    x = gnnsys.unified(large, shape=(1 << 28, 1024), encoding=torch.float32, device="cpu")
    cached = gnnsys.unified(
        large, shape=(1 << 28, 1024), encoding=torch.float32, device="cpu", cache=1000
    )
    data = Data(x=cached, edge_index=torch.zeros(2, 1, dtype=torch.long), num_nodes=1 << 28)
    for each in (x, cached, x.store, cached.store, data):
        assert "268435456" in repr(each)
    assert "1 TiB" in table(cached._repr_html_())["bytes"]
    assert cached.counters.as_dict()["rows"] == x.counters.as_dict()["rows"]
    assert sum(cached.counters.as_dict()["rows"].values()) == 0
    assert not cached.store._engine.is_made


def test_a_share_of_an_arena_is_told_without_dividing_it(path: Path) -> None:
    arena = gnnsys.CacheArena(10 * 24)
    x = gnnsys.unified(path, device="cpu", cache=arena)
    assert "cache='a share of an arena'" in repr(x)
    y = gnnsys.unified(path, device="cpu", cache=arena)  # refused once it is divided
    assert torch.equal(x[torch.tensor([1])], y[torch.tensor([1])])
    assert "a share" not in repr(x)
    assert " rows, " in table(x._repr_html_())["cache"]


def test_closed_tensors_still_say_what_they_were(path: Path) -> None:
    x = gnnsys.unified(path, device="cpu")
    before = repr(x), x._repr_html_()
    x.store.close()
    assert (repr(x), x._repr_html_()) == before


def test_a_loader_says_what_it_makes(path: Path) -> None:
    edges = torch.randint(0, 100, (2, 300))
    x = gnnsys.unified(path, device="cpu")
    loader = gnnsys.NeighborLoader(
        Data(x=x, edge_index=edges), [3, 2], torch.arange(50), batch_size=8, window=2
    )
    told = table(loader._repr_html_())
    expected = {"num_neighbors": "[3, 2]", "seeds": "50", "batch_size": "8", "window": "2"}
    assert told == {**expected, "batches": str(len(list(loader))), "x": repr(x)}
    assert repr(loader) == f"NeighborLoader({', '.join(f'{k}={v}' for k, v in told.items())})"
    links = gnnsys.LinkNeighborLoader(Data(x=x, edge_index=edges), [3], edges[:, :9], batch_size=4)
    assert "seeds=9, batch_size=4, batches=3" in repr(links)
    batches = torch.utils.data.BatchSampler(range(6), 4, drop_last=True)
    own = gnnsys.NeighborLoader(Data(x=x, edge_index=edges), [3], batch_sampler=batches)
    assert "batch_size=None, batches=1" in repr(own)


def test_a_loader_names_the_tables_of_each_type_and_of_a_store(path: Path) -> None:
    graph = HeteroData()
    graph["paper"].x = gnnsys.unified(path, device="cpu")
    graph["paper", "cites", "paper"].edge_index = torch.randint(0, 100, (2, 300))
    loader = gnnsys.NeighborLoader(graph, [3], "paper", batch_size=8)
    assert table(loader._repr_html_())["paper.x"] == repr(graph["paper"].x)
    features = gnnsys.FeatureStore()
    features["paper", "x", None] = graph["paper"].x
    assert repr(features) == f"FeatureStore(paper.x={graph['paper'].x!r})"
    assert table(features._repr_html_()) == {"paper.x": repr(graph["paper"].x)}


DATA = Data(x=ROWS, edge_index=torch.randint(0, 100, (2, 300)))
MAKERS: list[tuple[Callable[..., Any], tuple[Any, ...], str, str]] = [
    (gnnsys.NeighborLoader, (DATA, [2]), "batch_sise", "batch_size"),
    (gnnsys.NeighborLoader, (DATA,), "num_neighbours", "num_neighbors"),
    (gnnsys.NeighborLoader, (DATA, [2]), "num_worker", "num_workers"),
    (gnnsys.NeighborLoader, (DATA, [2]), "layouts", "layout"),
    (gnnsys.LinkNeighborLoader, (DATA, [2]), "neg_samplng", "neg_sampling"),
    (gnnsys.NeighborSampler, (DATA, [2]), "sed", "seed"),
    (gnnsys.unified, (ROWS,), "thread", "threads"),
    (gnnsys.inference, (torch.nn.Identity(), DATA), "layer", "layers"),
    (HostStore, (ROWS,), "writeable", "writable"),
    (FileStore, ("none.npy",), "storag", "storage"),
]


@pytest.mark.parametrize(("make", "arguments", "name", "meant"), MAKERS)
def test_an_unknown_keyword_is_pythons_error_and_names_the_nearest(
    make: Callable[..., Any], arguments: tuple[Any, ...], name: str, meant: str
) -> None:
    with pytest.raises(TypeError) as ours:
        make(*arguments, **{name: 3})
    assert isinstance(ours.value, GnnsysError)
    with pytest.raises(TypeError) as pythons:
        (lambda a=0: a)(**{name: 3})
    words = str(pythons.value).partition("got ")[2].partition(".")[0]
    assert f"got {words}" in str(ours.value)
    assert str(ours.value).endswith(f"; did you mean {meant}?")


def test_keywords_of_torchs_data_loader_are_all_known() -> None:
    known: dict[str, Any] = {"num_workers": 0, "timeout": 0, "drop_last": True, "in_order": True}
    loader = gnnsys.NeighborLoader(DATA, [2], batch_size=30, shuffle=True, **known)
    assert len(loader) == len(DataLoader(range(100), batch_size=30, **known)) == 3
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'xyz'$"):
        gnnsys.NeighborLoader(DATA, [2], xyz=1)


@pytest.mark.parametrize("empty", [[], (), torch.tensor([], dtype=torch.long).tolist()])
def test_no_hop_is_one_error(empty: Any) -> None:
    graph = HeteroData()
    graph["a"].x = ROWS
    graph["a", "to", "a"].edge_index = DATA.edge_index
    for make in (gnnsys.NeighborLoader, gnnsys.LinkNeighborLoader, gnnsys.NeighborSampler):
        with pytest.raises(ArgumentError, match=r"num_neighbors: .* has no hop; give one number"):
            make(DATA, empty)
        with pytest.raises(ArgumentError, match=r"num_neighbors: .* has no hop; give one number"):
            make(graph, {("a", "to", "a"): empty})


def test_loaders_are_still_made_anew_from_their_signature() -> None:
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (gnnsys.NeighborLoader, torch_geometric.loader.NeighborLoader)
    )
    assert list(theirs)[:-1] == list(ours)[: len(theirs) - 1]
