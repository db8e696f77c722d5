"""``gnnsys convert --hold-out``: links taken out of a graph, against sets of them."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import HeteroData

from gnnsys.commands import convert as command
from gnnsys.commands.cli import main
from gnnsys.config.convert import ConvertConfig
from gnnsys.convert import hold_out, link_parts
from gnnsys.convert.common import ConvertOptions
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.dataset.format import EDGE_TYPE, EdgeType
from gnnsys.dataset.links import held_links, read_links, read_task_links
from gnnsys.dataset.writer import DatasetWriter, cut_rows
from gnnsys.errors import ArgumentError, FileFormatError
from gnnsys.generate import generate_community

USERS, ITEMS, EDGES = 60, 25, 900
LIKES, BACK, OF = ("user", "likes", "item"), ("item", "rev_likes", "user"), ("item", "of", "user")


class Killed(BaseException):
    """Stands for a signal: no ``except Exception`` handles it."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large graphs have many."""
    for module in (hold_out, link_parts):
        monkeypatch.setattr(module, "_BLOCK_EDGES", 100)


def shop(place: Path) -> Path:
    """Likes, some of them several times, each told back; edges back that no like has."""
    draw = torch.Generator().manual_seed(1)
    ends = [torch.randint(0, size, (EDGES,), generator=draw) for size in (USERS, ITEMS)]
    likes = torch.stack(ends)
    data = HeteroData()
    data["user"].num_nodes = USERS
    data["item"].x = torch.rand(ITEMS, 3, generator=draw)
    data[LIKES].edge_index = likes
    data[LIKES].edge_attr = torch.arange(EDGES).float()[:, None]  # tells the edges apart
    data[LIKES].time = torch.randint(0, 50, (EDGES,), generator=draw)
    more = torch.randint(0, ITEMS, (2, 300), generator=draw)
    data[BACK].edge_index = torch.cat([likes.flip(0), more], 1)
    data[OF].edge_index, data["user", "sees", "item"].edge_index = more, more
    torch.save(data, place / "shop.pt")
    return place / "shop.pt"


@pytest.fixture(scope="module")
def whole_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    assert main(["convert", str(shop(place)), str(place / "shop")]) == 0
    return place / "shop"


def edges_of(dataset: Dataset, edge_type: EdgeType = EDGE_TYPE) -> list[tuple[int, ...]]:
    """Source, target and, where there are any, the edge's time and its first feature."""
    columns = [*dataset.edge_index(edge_type)]
    for name in ("edge_time", "edge_features"):
        if dataset.has(name, edge_type):
            columns.append(torch.tensor(dataset.edge_table(name, edge_type).reshape(-1).copy()))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def links_of(dataset: Dataset, part: str, edge_type: EdgeType = EDGE_TYPE) -> list[tuple[Any, ...]]:
    links = read_links(dataset, edge_type, part)
    columns = [links.source, links.target] + ([] if links.time is None else [links.time])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def held(src: Path, dst: Path, memory: int = 1 << 30, **given: Any) -> Dataset:
    config = ConvertConfig(src=str(src), dst=str(dst), **{"hold_out": (",".join(LIKES),), **given})
    folder = command.convert(config, ConvertOptions(memory=memory))
    assert folder is not None
    return open_dataset(folder)


def test_links_and_their_reverses_leave_the_graph_and_nothing_else_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shop(tmp_path)
    assert main(["convert", str(source), str(tmp_path / "whole")]) == 0
    whole = open_dataset(tmp_path / "whole")
    found = held(source, tmp_path / "held", hold_out_shares=(0.1, 0.2))
    found.verify()
    before, kept = edges_of(whole, LIKES), edges_of(found, LIKES)
    parts = {part: links_of(found, part, LIKES) for part in ("val", "test")}
    assert held_links(found, LIKES) == ("val", "test")
    assert held_links(found, BACK) == ()

    assert not Counter(kept) - Counter(before)  # with times and features of their own
    all_links = Counter([edge[:3] for edge in kept] + parts["val"] + parts["test"])
    assert all_links == Counter(edge[:3] for edge in before)
    pairs = [{each[:2] for each in part} for part in (kept, *parts.values())]
    assert len(set.union(*pairs)) == sum(map(len, pairs))
    assert 0 <= len(parts["test"]) - 0.2 * EDGES < 8
    assert 0 <= len(parts["test"] + parts["val"]) - 0.3 * EDGES < 8

    back = [edge for edge in edges_of(whole, BACK) if edge[::-1] not in pairs[1] | pairs[2]]
    assert edges_of(found, BACK) == back
    assert edges_of(found, OF) == edges_of(whole, OF)
    assert (found.node_table("features", "item") == whole.node_table("features", "item")).all()
    (about,) = found.manifest.source["held_out"]
    assert (about["train"], about["val"], about["test"]) == (len(kept), *map(len, parts.values()))
    gone = whole.num_edges(BACK) - len(back)
    assert about["reverses"] == [{"edge_type": list(BACK), "edges": gone}]
    assert main(["info", str(tmp_path / "held")]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"val {len(parts['val'])}, test {len(parts['test'])}, left to train {len(kept)}" in told

    same = held(tmp_path / "whole", tmp_path / "same", 3000, hold_out_shares=(0.1, 0.2))
    assert edges_of(same, LIKES) == kept
    assert edges_of(same, BACK) == back
    other = held(source, tmp_path / "other", hold_out_shares=(0.1, 0.2), seed=1)
    assert set(links_of(other, "test", LIKES)) != set(parts["test"])
    none = held(tmp_path / "whole", tmp_path / "none", hold_out_reverses=())
    assert edges_of(none, BACK) == edges_of(whole, BACK)


def test_the_newest_links_are_held_out_with_those_that_lead_back(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    ends = draw.integers(0, 30, (EDGES, 2))
    ends[::3] = ends[1::3, ::-1]  # links that lead back, at other times
    time = draw.integers(-40, 40, EDGES)
    frame = pd.DataFrame({"source": ends[:, 0], "target": ends[:, 1], "t": time})
    frame.to_csv(tmp_path / "e.csv", index=False)
    for name, memory in (("one", 1 << 30), ("several", 48 * 150)):
        given = {"hold_out": (), "hold_out_by": "time", "hold_out_shares": (0.2, 0.3)}
        found = held(tmp_path / "e.csv", tmp_path / name, memory, edge_time="t", **given)
        kept, val, test = edges_of(found), links_of(found, "val"), links_of(found, "test")
        assert Counter(kept + val + test) == Counter(
            map(tuple, zip(*ends.T.tolist(), time.tolist(), strict=True))
        )
        newest: dict[frozenset[int], float] = defaultdict(lambda: -np.inf)
        for source, target, at in kept + val + test:
            pair = frozenset((source, target))
            newest[pair] = max(newest[pair], at)
        order = [sorted(newest[frozenset(each[:2])] for each in part) for part in (kept, val, test)]
        assert order[0][-1] <= order[1][0]
        assert order[1][-1] <= order[2][0]
        parts = [{frozenset(each[:2]) for each in part} for part in (kept, val, test)]
        assert len(set.union(*parts)) == sum(map(len, parts))
        assert 0 <= len(test) - 0.3 * EDGES < 12
        assert 0 <= len(val + test) - 0.5 * EDGES < 12
        drawn = [files(tmp_path / each) for each in ("one", name)]
        assert drawn[0].keys() == drawn[1].keys()
        assert all(drawn[0][key] == drawn[1][key] for key in drawn[0] if key.endswith(".npy"))


def test_a_killed_conversion_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    source = shop(tmp_path)
    expected: dict[str, bytes] | None = None
    given = {"hold_out": (",".join(LIKES),), "hold_out_by": "time", "order": "degree"}
    config = ConvertConfig(src=str(source), dst=str(tmp_path / "made"), **given)
    place = f"edges/{'__'.join(LIKES)}"
    for step in ("never", "hold out: edges", "hold out: reverses", f"{place}/test.target"):
        seen = 0

        def stop(what: str, done: int, total: int, step: str = step) -> None:
            nonlocal seen
            seen += what == step
            if what == step and seen == 2:
                raise Killed

        try:
            folder = command.convert(config, ConvertOptions(memory=5000, progress=stop))
            assert step == "never"
        except Killed:
            folder = command.convert(config, ConvertOptions(memory=4000))
        assert folder is not None
        expected = expected or files(folder)
        assert files(folder) == expected, step
        folder.rename(tmp_path / step.replace(":", "").replace("/", "_"))


def test_links_follow_their_nodes_into_another_order(tmp_path: Path) -> None:
    source = shop(tmp_path)
    old = held(source, tmp_path / "old")
    new = held(source, tmp_path / "new", order="degree")
    assert new.manifest.source["held_out"] == old.manifest.source["held_out"]
    users, items = (new.node_table("node_id", kind) for kind in ("user", "item"))
    assert not (items == np.arange(ITEMS)).all()
    for part in ("val", "test"):
        named = [(users[u], items[i], t) for u, i, t in links_of(new, part, LIKES)]
        assert named == links_of(old, part, LIKES)
    smaller = command.convert(
        ConvertConfig(src=str(tmp_path / "old"), dst=str(tmp_path / "half"), dtype="float16"),
        ConvertOptions(dtype="float16"),
    )
    assert smaller is not None
    assert links_of(open_dataset(smaller), "val", LIKES) == links_of(old, "val", LIKES)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--hold-out user,likes,shop", "has user,likes,item, .*; name one of them"),
        ("--hold-out", "has user,likes,item, .*; name one of them"),
        ("--hold-out likes", "--hold-out likes: expected an edge type, SRC,REL,DST"),
        ("--hold-out item,of,user", "cannot be told, user,likes,item, user,sees,item lead back"),
        ("--hold-out user,likes,item --hold-out-reverses item,of,shop", "item,of,shop: does not"),
        ("--hold-out user,likes,item --hold-out-shares 0,0.1", "each above 0, together below 1"),
        ("--hold-out user,likes,item --hold-out-shares 0.5,0.5", "each above 0, together below 1"),
        (
            "--hold-out user,likes,item --hold-out-shares 0.5",
            "0.5: expected a share to validate on and one",
        ),
        ("--hold-out user,likes,item --hold-out-shares 0.1,1e-5", "leaves no link for test of the"),
        ("--hold-out user,likes,item --hold-out-shares 0.5,0.4999", "leaves nothing to train with"),
        ("--hold-out item,of,user --hold-out-reverses --hold-out-by time", "have no times"),
        ("--hold-out-by time", "--hold-out-by: goes with --hold-out"),
        ("--hold-out user,likes,item --to graphbolt", "--hold-out: makes a folder of gnnsys"),
    ],
)
def test_what_cannot_be_held_out_is_refused(
    options: str, told: str, tmp_path: Path, whole_shop: Path
) -> None:
    arguments = ["convert", str(whole_shop), str(tmp_path / "made"), "--debug", *options.split()]
    with pytest.raises(ArgumentError, match=told):
        main(arguments)
    assert not list(tmp_path.iterdir())
    source = whole_shop.parent / "shop.pt"  # which messages name, not what is made of it on the way
    if "name one of them" in told:
        with pytest.raises(ArgumentError, match=rf"{source} {told}"):
            main(["convert", str(source), *arguments[2:]])


def test_what_is_held_out_or_damaged_is_refused(tmp_path: Path, whole_shop: Path) -> None:
    first = tmp_path / "first"
    held(whole_shop, first)
    for kind in (LIKES, BACK):
        with pytest.raises(ArgumentError, match=f"links of {','.join(LIKES)} are held out .* alre"):
            held(first, tmp_path / "again", hold_out=(",".join(kind),))
    found = open_dataset(first)
    with pytest.raises(ArgumentError, match="'train'; gnnsys convert --hold-out makes"):
        read_links(found, LIKES, "train")
    with pytest.raises(ArgumentError, match="nothing held out of item,of,user"):
        read_links(found, OF, "val")
    for folder, table, value in ((first, "val.target", ITEMS), (tmp_path / "w", "indices", 59)):
        if not folder.exists():
            shutil.copytree(whole_shop, folder)
        rows = np.load(folder / "edges" / "__".join(LIKES) / f"{table}.npy", mmap_mode="r+")
        rows[3] = value
        rows.flush()
    with pytest.raises(FileFormatError, match=r"val\.target: id 25 at position 3 is outside"):
        read_links(open_dataset(first), LIKES, "val")
    with pytest.raises(FileFormatError, match="position 4 is below the one before it"):
        held(tmp_path / "w", tmp_path / "made")


def test_times_are_one_whole_number_for_each_edge(tmp_path: Path, whole_shop: Path) -> None:
    data = torch.load(whole_shop.parent / "shop.pt", weights_only=False)
    times, expected = data[LIKES].time, held(whole_shop, tmp_path / "one", hold_out_by="time")
    data[LIKES].time, data["user"].time = times[:, None], torch.arange(USERS)[:, None]
    torch.save(data, tmp_path / "column.pt")
    found = held(tmp_path / "column.pt", tmp_path / "column", hold_out_by="time")
    assert edges_of(found, LIKES) == edges_of(expected, LIKES)
    assert found.edge_table("edge_time", LIKES).ndim == found.node_table("time", "user").ndim == 1
    for name, owner, wrong in (("two", LIKES, times), ("users", "user", torch.arange(USERS))):
        other = data.clone()
        other[owner].time = torch.stack([wrong, wrong], 1)
        torch.save(other, tmp_path / f"{name}.pt")
        with pytest.raises(FileFormatError, match=rf"\({len(wrong)}, 2\) are times, expected one"):
            held(tmp_path / f"{name}.pt", tmp_path / "made")
    for wrong in (times.float(), times > 9):
        data[LIKES].time = wrong
        torch.save(data, tmp_path / "wrong.pt")
        told = rf"{tmp_path}/wrong.pt are (float32|bool) \({EDGES},\), expected one whole number"
        with pytest.raises(ArgumentError, match=told):
            held(tmp_path / "wrong.pt", tmp_path / "made", hold_out_by="time")


def test_an_edge_list_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("no edges\n")
    for given, told in (
        ({}, "is an edge list, which has no types; give --hold-out alone"),
        ({"hold_out": (), "hold_out_by": "time"}, "have no times; name them by --edge-time, or"),
    ):
        with pytest.raises(ArgumentError, match=told):
            held(tmp_path / "e.csv", tmp_path / "made", **given)
    assert [each.name for each in tmp_path.iterdir()] == ["e.csv"]


def test_links_of_a_task_are_one_for_each_answer(tmp_path: Path) -> None:
    folder = generate_community(tmp_path / "g", nodes=20, classes=2)
    tables = {"nodes": [3, 7, 3], "time": [10, 20, 30], "targets": [1, 2, 9], "ends": [2, 2, 3]}
    about = {"node_type": "node", "target_type": "node", "rows": {"val": 3}}
    source = {"tasks": {"buys": about}}
    with DatasetWriter(tmp_path / "d", name="d", source=source) as writer:
        writer.add_nodes(20)
        for name, rows in tables.items():
            array = np.array(rows)
            writer.write_nodes(f"val.buys.{name}", cut_rows(array), array.shape, "int64")
        writer.add_edges(0)
        writer.write_edges("indptr", cut_rows(np.zeros(21, np.int64)), (21,), "int64")
        writer.write_edges("indices", cut_rows(np.zeros(0, np.int32)), (0,), "int32")
        writer.commit()
    links = read_task_links(open_dataset(tmp_path / "d"), "buys", "val")
    assert [links.source.tolist(), links.target.tolist()] == [[3, 3, 3], [1, 2, 9]]
    assert links.time is not None
    assert links.time.tolist() == [10, 10, 30]
    with pytest.raises(ArgumentError, match="task 'sells'"):
        read_task_links(open_dataset(folder), "sells", "val")
