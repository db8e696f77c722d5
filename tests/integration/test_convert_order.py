"""``gnnsys convert --order``: the same graph under other numbers, its nodes by their old ids."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch_geometric.data import HeteroData

from gnnsys.commands import convert as command
from gnnsys.commands.cli import main
from gnnsys.config.convert import ConvertConfig
from gnnsys.convert import csc, permute, reorder, row_order
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg_file
from gnnsys.convert.row_order import community_order
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.dataset.format import NODE_TYPE
from gnnsys.dataset.importance import store_score
from gnnsys.errors import FileFormatError
from gnnsys.generate import generate_community

NODES, EDGES = 150, 600


class Killed(BaseException):
    """Stands for a signal: no ``except Exception`` handles it."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large graphs have many."""
    monkeypatch.setattr(permute, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(reorder, "_BLOCK_EDGES", 250)
    monkeypatch.setattr(reorder, "_BLOCK_NODES", 37)
    monkeypatch.setattr(csc, "_BLOCK_EDGES", 250)


def edge_list(place: Path, words: Callable[[int], str]) -> Path:
    """An edge list with all that goes with it; some nodes have no edge, some pairs several."""
    draw = np.random.default_rng(3)
    names = np.array([words(node) for node in range(NODES)], object)
    ends = (NODES * draw.random((EDGES, 2)) ** 2).astype(int)
    pd.DataFrame({"source": names[ends[:, 0]], "target": names[ends[:, 1]]}).to_csv(
        place / "e.csv", index=False
    )
    table = {"id": names, "label": draw.integers(0, 4, NODES), "time": draw.integers(0, 99, NODES)}
    table |= {f"f{column}": draw.random(NODES) for column in range(5)}
    pd.DataFrame(table).to_csv(place / "n.csv", index=False)
    np.save(place / "w.npy", draw.random(EDGES))
    np.save(place / "x.npy", draw.random((EDGES, 3)).astype(np.float32))
    return place / "e.csv"


def config(place: Path, dst: str, **options: Any) -> ConvertConfig:
    return ConvertConfig(
        src=str(place / "e.csv"),
        dst=str(place / dst),
        **{
            "nodes": place / "n.csv",
            "edge_weight": str(place / "w.npy"),
            "edge_features": str(place / "x.npy"),
            "random_split": (0.5, 0.2, 0.3),
            "name": "some",
            **options,
        },
    )


def names_of(dataset: Dataset, node_type: str = "node") -> NDArray[Any]:
    """What nodes were called in the source; their numbers there where they had no names."""
    ids = dataset.node_ids(node_type)
    return np.arange(dataset.num_nodes(node_type)) if ids is None else ids[:]


def content(dataset: Dataset) -> dict[str, Any]:
    """All of a dataset by the names of nodes, without their numbers."""
    found: dict[str, Any] = {}
    for node_type in dataset.node_types:
        names = names_of(dataset, node_type)
        for name in dataset.manifest.nodes[node_type].tables:
            rows = dataset.node_table(name, node_type)
            if name in ("train", "val", "test"):
                found[f"{node_type} {name}"] = names[rows].tolist()
            elif not name.startswith("node_id"):
                pairs = zip(names.tolist(), rows.tolist(), strict=True)
                found[f"{node_type} {name}"] = dict(pairs)
    for edge_type in dataset.edge_types:
        sources, targets = (names_of(dataset, edge_type[end]) for end in (0, 2))
        indptr = dataset.indptr(edge_type)
        indices = dataset.edge_table("indices", edge_type)
        of = np.repeat(np.arange(len(targets)), np.diff(indptr))
        assert all((np.diff(indices[a:b]) >= 0).all() for a, b in itertools.pairwise(indptr)), (
            "neighbours ascend"
        )
        columns = [sources[indices].tolist(), targets[of].tolist()]
        for name in sorted(dataset.manifest.edges[edge_type].tables):
            if name.startswith("edge_"):
                rows = dataset.edge_table(name, edge_type)
                columns.append([str(row) for row in rows.tolist()])
        found[str(edge_type)] = Counter(zip(*columns, strict=True))
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(place.relative_to(folder)): place.read_bytes()
        for place in sorted(folder.rglob("*"))
        if place.is_file()
    }


WORDS: dict[str, Callable[[int], str]] = {
    "numbers": str,
    "words": lambda node: f"node {node}",
    "a long word": lambda node: "é" * 3000 if node == 7 else f"n{node}",
}


@pytest.mark.parametrize(
    ("order", "words"),
    [("degree", "numbers"), ("degree", "words"), ("community", "a long word")],
)
def test_the_graph_is_the_same_whatever_the_order_and_memory(
    order: Any, words: str, tmp_path: Path
) -> None:
    edge_list(tmp_path, WORDS[words])
    given = {"ids": "dense" if words == "numbers" else "auto"}
    old = command.convert(config(tmp_path, "old", **given), ConvertOptions())
    assert old is not None
    store_score(old, {NODE_TYPE: np.arange(NODES, dtype=np.uint16)}, "degree")
    expected = content(open_dataset(old))
    made = []
    for memory in (1 << 30, 3000):
        again = ConvertConfig(src=str(old), dst=str(tmp_path / f"{memory}"), order=order)
        folder = command.convert(again, ConvertOptions(memory=memory, threads=2))
        assert folder is not None
        made.append(files(folder))
        found = open_dataset(folder)
        found.verify()
        assert content(found) == expected
        assert found.manifest.source["order"] == order
        assert found.task == open_dataset(old).task
    assert made[0] == made[1]
    if order == "degree":
        degree = np.bincount(found.edge_table("indices"), minlength=NODES)
        assert (np.diff(degree) <= 0).all()


def test_an_edge_list_is_put_in_order_at_once_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    edge_list(tmp_path, WORDS["a long word"])
    old = command.convert(config(tmp_path, "old"), ConvertOptions())
    assert old is not None
    expected: dict[str, bytes] | None = None
    for step in ("never", "communities: passes", "distribute features", "node_id_text",
                 "edge_features"):  # fmt: skip
        seen = 0

        def stop(what: str, done: int, total: int, step: str = step) -> None:
            nonlocal seen
            seen += what == step
            if what == step and seen == 2:
                raise Killed

        wanted = config(tmp_path, "new", order="community")
        try:
            folder = command.convert(wanted, ConvertOptions(memory=3000, progress=stop))
            assert step == "never"
        except Killed:
            folder = command.convert(wanted, ConvertOptions(memory=4000))
        assert folder is not None
        if expected is None:
            expected = files(folder)
            assert content(open_dataset(folder)) == content(open_dataset(old))
        assert files(folder) == expected, step
        assert not (tmp_path / "new.partial").exists()
        folder.rename(tmp_path / step.replace(":", ""))


def test_types_have_an_order_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = torch.Generator().manual_seed(0)
    data = HeteroData()
    data["author"].x = torch.rand(40, 3, generator=draw)
    data["paper"].x = torch.rand(70, 2, generator=draw)
    data["paper"].y = torch.arange(70) % 3
    for kind, sizes in {("author", "writes", "paper"): (40, 70), ("paper", "cites", "paper"):
                        (70, 70)}.items():  # fmt: skip
        ends = [torch.randint(0, size, (300,), generator=draw) for size in sizes]
        data[kind].edge_index = torch.stack(ends)
        data[kind].edge_attr = torch.rand(300, 2, generator=draw)
    torch.save(data, tmp_path / "h.pt")
    old = convert_pyg_file(tmp_path / "h.pt", tmp_path / "old", ConvertOptions())
    assert main(["convert", str(old), str(tmp_path / "new"), "--order", "community"]) == 2
    assert "heterogeneous; --order community is for graphs of one" in capsys.readouterr().err
    assert main(["convert", str(old), str(tmp_path / "new"), "--order", "degree"]) == 0
    found = open_dataset(tmp_path / "new")
    assert content(found) == content(open_dataset(old))
    degree = np.bincount(found.edge_table("indices", ("author", "writes", "paper")), minlength=40)
    assert (np.diff(degree) <= 0).all()


def test_predictions_name_nodes_as_before(tmp_path: Path) -> None:
    old = generate_community(tmp_path / "old", nodes=400, classes=4, features=8, degree=8)
    told = {}
    for folder, options in (("old", []), ("new", ["--order", "degree"])):
        if options:
            assert main(["convert", str(old), str(tmp_path / folder), *options]) == 0
        run = tmp_path / f"run-{folder}"
        assert main(["train", str(tmp_path / folder), "--epochs", "1", "--fanouts", "2", "2",
                     "--batch-size", "50", "--out", str(run)]) == 0  # fmt: skip
        assert main(["predict", str(run), "--out", f"{run}.csv"]) == 0
        told[folder] = pd.read_csv(f"{run}.csv").set_index("id")
        labels = open_dataset(tmp_path / folder).node_table("labels")
        told[folder]["label"] = labels
    assert sorted(told["new"].index) == sorted(told["old"].index) == list(range(400))
    assert (told["new"].label == told["old"].label[told["new"].index]).all()


def test_communities_that_were_planted_lie_together(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(5)
    nodes, classes, degree = 2000, 20, 12
    community = draw.permutation(nodes) % classes
    lists = []
    for node in range(nodes):
        own = np.flatnonzero(community == community[node])
        near = draw.choice(own, degree)
        lists.append(np.where(draw.random(degree) < 0.8, near, draw.integers(0, nodes, degree)))
    listless = draw.choice(nodes, 100, replace=False)
    lengths = np.full(nodes, degree)
    lengths[listless] = 0
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.concatenate([found for node, found in enumerate(lists) if lengths[node]])
    alone = draw.choice(listless, 10, replace=False)
    indices = np.where(np.isin(indices, alone), 0, indices)
    counts = np.bincount(indices, minlength=nodes)
    for dtype in (np.int32, np.int64):
        order = community_order(indptr, indices.astype(dtype), counts)
        assert sorted(order.tolist()) == list(range(nodes))
        assert sorted(order[-10:].tolist()) == sorted(alone.tolist())
        borders = np.count_nonzero(np.diff(community[order[:-10]]))
        assert borders < 0.1 * nodes  # 95 % of all places without an order
        degrees = counts[order[:-10]][np.append(True, np.diff(community[order[:-10]]) == 0)]
        assert (np.diff(degrees) <= 0).mean() > 0.8
        with monkeypatch.context() as patch:
            patch.setattr(row_order, "_EDGES", 700)  # many calls a pass give the same
            calls = community_order(indptr, indices.astype(dtype), counts)
        assert np.array_equal(calls, order)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--order", "degree", "--split", "1"], "--split: .* a dataset folder"),
        (["--order", "degree", "--to", "graphbolt"], "--order degree: makes a folder of gnnsys"),
        ([], "a dataset folder of gnnsys already; .* --order numbers"),
        (["--order", "degree", "--keep-order"], "--keep-order: goes with an edge list"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = generate_community(tmp_path / "old", nodes=50, classes=2, features=3)
    assert main(["convert", str(old), str(tmp_path / "new"), *options]) == 2
    assert re.search(told, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("order", ["degree", "community"])
def test_an_edge_from_no_node_is_told_with_its_file(order: Any, tmp_path: Path) -> None:
    old = generate_community(tmp_path / "old", nodes=50, classes=2, features=3)
    damaged = np.load(old / "indices.npy", mmap_mode="r+")
    damaged[77] = 50
    damaged.flush()
    config = ConvertConfig(src=str(old), dst=str(tmp_path / "new"), order=order)
    with pytest.raises(FileFormatError, match=r"old: indices: .*50"):
        command.convert(config, ConvertOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_info_says_the_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = generate_community(tmp_path / "old", nodes=50, classes=2, features=3)
    assert main(["convert", str(old), str(tmp_path / "new"), "--order", "community"]) == 0
    for folder, order in (("old", "none"), ("new", "community")):
        capsys.readouterr()
        assert main(["info", str(tmp_path / folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["order"] == order
