"""RelBench folders to dataset folders, against what pandas makes of the same tables."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from rich.console import Console

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.commands.info import print_tables
from gnnsys.convert import relational_keys, relational_table, relbench_tasks
from gnnsys.convert.relational_table import NEVER, RelationalTable
from gnnsys.convert.relbench import convert_relbench
from gnnsys.convert.relbench_manifest import RelBenchManifest
from gnnsys.convert.reorder import convert_in_order
from gnnsys.convert.spec import ConvertOptions, RelationalParts
from gnnsys.dataset.folder import Dataset
from gnnsys.errors import (
    ArgumentError,
    FileFormatError,
    GnnsysError,
    MissingFileError,
    TooLargeError,
    UnsupportedError,
)

sys.path.insert(0, str(Path(__file__).parent))
from relational_database import (
    CUT,
    Database,
    expected_categories,
    expected_numeric,
    expected_times,
)

OPTIONS = ConvertOptions(threads=1)


def convert(database: Database, folder: Path, **parts: Any) -> Dataset:
    source = database.write(folder / "source")
    made = convert_relbench(source, folder / "graph", OPTIONS, RelationalParts(**parts))
    return gnnsys.open_dataset(made)


def features_of(dataset: Dataset, table: str, column: str) -> np.ndarray:
    about = dataset.manifest.source["columns"][table][column]
    rows = dataset.node_table("features", table)
    return rows[:, about["first"] : about["first"] + about["width"]]


def sources_of(dataset: Dataset, edge_type: tuple[str, str, str]) -> list[tuple[int, int]]:
    return list(map(tuple, dataset.edge_index(edge_type).T.tolist()))


# What comes out -----------------------------------------------------------------------------------


def test_columns_are_encoded_as_pandas_would(tmp_path: Path) -> None:
    database = Database()
    dataset = convert(database, tmp_path, categories=2)
    users, orders, items = (database.frames[name] for name in ("users", "orders", "items"))
    wanted = {
        ("users", "age"): expected_numeric(users["age"], database.known("users")),
        ("users", "plan"): expected_categories(users["plan"], database.known("users"), 2),
        ("users", "city"): expected_categories(users["city"], database.known("users"), 2),
        ("users", "tags"): expected_categories(users["tags"], database.known("users"), 2),
        ("users", "joined"): expected_times(users["joined"], database.known("users")),
        ("items", "price"): expected_numeric(items["price"], database.known("items")),
        ("items", "vector"): np.stack(items["vector"].to_list()),
        ("orders", "amount"): expected_numeric(orders["amount"], database.known("orders")),
        ("orders", "gift"): expected_numeric(orders["gift"], database.known("orders")),
        ("orders", "at"): expected_times(orders["at"], database.known("orders")),
    }
    for (table, column), expected in wanted.items():
        found = features_of(dataset, table, column)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6, err_msg=column)
    widths = {name: dataset.node_table("features", name).shape[1] for name in database.frames}
    for table, width in widths.items():
        assert width == sum(each.shape[1] for (name, _), each in wanted.items() if name == table)
    assert "text" in dataset.manifest.source["columns"]["users"]["nickname"]["why"]


def test_foreign_keys_are_edges_both_ways(tmp_path: Path) -> None:
    database = Database()
    dataset = convert(database, tmp_path)
    sku = {name: row for row, name in enumerate(database.frames["items"]["sku"])}
    columns = {
        ("orders", "user", "users"): database.frames["orders"]["user"],
        ("orders", "item", "items"): database.frames["orders"]["item"].map(sku),
        ("items", "maker", "users"): database.frames["items"]["maker"],
    }
    assert len(dataset.edge_types) == 2 * len(columns)
    for (table, column, other), keys in columns.items():
        pairs = [(row, int(key)) for row, key in enumerate(keys) if not pd.isna(key)]
        forth, back = (table, f"f2p_{column}", other), (other, f"rev_f2p_{column}", table)
        assert sources_of(dataset, forth) == sorted(pairs, key=lambda pair: pair[::-1])
        turned = [pair[::-1] for pair in pairs]
        assert sources_of(dataset, back) == sorted(turned, key=lambda pair: pair[::-1])
    assert dataset.manifest.source["references"]["orders.user"] == {
        "rows": 200, "edges": 181, "absent": 0, "empty": 19,
    }  # fmt: skip


def test_rows_keep_their_times_and_names(tmp_path: Path) -> None:
    database = Database()
    dataset = convert(database, tmp_path)
    times = (database.frames["orders"]["at"] - pd.Timestamp(0)) // pd.Timedelta(microseconds=1)
    assert dataset.node_table("time", "orders").tolist() == times.tolist()
    assert not dataset.has("time", "users")
    ids = dataset.node_ids("items")
    assert ids is not None
    assert list(ids[np.arange(12)]) == database.frames["items"]["sku"].tolist()
    assert dataset.node_ids("users") is None  # their numbers


def test_tasks_become_seeds(tmp_path: Path) -> None:
    database = Database()
    about, rows = database.tasks["churn"]
    values = rows.assign(spent=np.arange(len(rows)) / 4)
    database.tasks["spent"] = (
        {**about, "task_type": "regression", "target_col": "spent"},
        values.drop(columns="churns"),
    )
    skus = database.frames["items"]["sku"].to_numpy()
    lists = [list(skus[: n % 4]) for n in range(len(rows))]
    database.tasks["buys"] = (
        {
            "kind": "forecast", "task_type": "recommendation", "src_entity_table": "users",
            "src_entity_col": "id", "dst_entity_table": "items", "dst_entity_col": "sku",
            "time_col": "when", "eval_k": 10, "sql": "SELECT 1", "timedelta": "30 days",
        },
        rows[["id", "when"]].assign(sku=lists),
    )  # fmt: skip
    dataset = convert(database, tmp_path)
    for split, part in Database.split(rows, "when").items():
        seeds = dataset.seeds("churn", split)
        assert seeds.node_type == "users"
        assert seeds.nodes.tolist() == part["id"].tolist()
        assert seeds.labels is not None
        assert seeds.labels.tolist() == part["churns"].tolist()
        assert seeds.time is not None
        assert pd.to_datetime(seeds.time.numpy(), unit="us").tolist() == part["when"].tolist()
        spent = dataset.seeds("spent", split).labels
        assert spent is not None
        assert spent.dtype == torch.float32
        assert spent.tolist() == values.loc[part.index, "spent"].tolist()
        links = dataset.seeds("buys", split)
        assert (links.target_type, links.labels) == ("items", None)
        assert links.targets is not None
        expected = [list(range(n % 4)) for n in part.index]
        assert [each.tolist() for each in links.targets] == expected
    assert dataset.task is None  # users are asked for several times
    shown = io.StringIO()
    print_tables(dataset, Console(file=shown, width=160))
    rows_of = ", ".join(
        f"{split} {len(part):,}" for split, part in Database.split(rows, "when").items()
    )
    assert f"binary classification of users, rows: {rows_of}" in shown.getvalue()
    assert "recommendation of users to items, rows: " in shown.getvalue()
    with pytest.raises(ArgumentError, match="has buys, churn, spent"):
        dataset.seeds("nothing", "train")
    with pytest.raises(ArgumentError, match="task churn has train, val, test"):
        dataset.seeds("churn", "all")


def autocomplete(database: Database) -> None:
    """A task that asks for each order once."""
    rows = database.frames["orders"][["order", "at", "gift"]]
    about = {
        "kind": "autocomplete", "task_type": "binary_classification", "entity_table": "orders",
        "entity_col": None, "target_col": "gift", "time_col": "at",
        "remove_columns": [["orders", "amount"]],
    }  # fmt: skip
    database.tasks["is-gift"] = (about, rows)


def test_one_label_a_node_is_the_task_of_a_folder_without_times(tmp_path: Path) -> None:
    database = Database()
    autocomplete(database)
    assert convert(database, tmp_path / "timed", task="is-gift").task is None
    database.tables["orders"]["time_col"] = None
    dataset = convert(database, tmp_path, task="is-gift")
    orders = database.frames["orders"]
    assert dataset.task is not None
    assert (dataset.task.node_type, dataset.task.num_classes) == ("orders", 2)
    assert dataset.task.metric == "rocauc"
    assert dataset.labels("orders").tolist() == orders["gift"].astype(int).tolist()
    for split, part in Database.split(orders, "at").items():
        assert dataset.split(split, "orders").tolist() == part["order"].tolist()
        seeds = dataset.seeds("is-gift", split)
        assert seeds.nodes.tolist() == part["order"].tolist()


def test_columns_that_a_task_hides_are_no_features(tmp_path: Path) -> None:
    database = Database()
    autocomplete(database)
    shown = {}
    for task in (None, "is-gift", "churn"):
        dataset = convert(database, tmp_path / str(task), task=task)
        told = dataset.manifest.source["columns"]["orders"]
        shown[task] = sorted(name for name, about in told.items() if "first" in about)
        assert list(dataset.manifest.source["tasks"]) == ([task] if task else ["churn", "is-gift"])
    assert shown == {None: ["at"], "is-gift": ["at"], "churn": ["amount", "at", "gift"]}


# Leakage ------------------------------------------------------------------------------------------


def test_no_statistic_sees_rows_after_the_cut(tmp_path: Path) -> None:
    first, second = Database(), Database()
    orders = second.frames["orders"]
    later = orders["at"] > CUT
    orders.loc[later, "amount"] = 10**6
    orders.loc[later, "gift"] = True
    for each in (first, second):
        frame = each.frames["orders"]
        frame["state"] = np.where(np.arange(len(frame)) % 3, "sent", "paid")
        frame["weight"] = np.arange(len(frame)) / 8
    orders.loc[later, "state"] = "lost"
    orders.loc[later, "weight"] = np.nan
    made = [convert(each, tmp_path / str(n)) for n, each in enumerate((first, second))]
    told = [each.manifest.source["columns"] for each in made]
    assert told[0] == told[1]
    rows = [each.node_table("features", "orders") for each in made]
    before = (~later).to_numpy()
    assert (rows[0][before] == rows[1][before]).all()
    assert (rows[0][~before] != rows[1][~before]).any()


def test_no_sampled_row_is_later_than_its_seed_unless_times_are_left_out(tmp_path: Path) -> None:
    dataset = convert(Database(), tmp_path)
    seeds = dataset.seeds("churn", "test")
    assert seeds.time is not None
    orders = {True: 0, False: 0}
    by_time = {"input_time": seeds.time, "time_attr": "time", "temporal_strategy": "last"}
    for options in (by_time, {"disjoint": True}):
        loader = gnnsys.NeighborLoader(
            dataset.stores(), [8, 4], input_nodes=(seeds.node_type, seeds.nodes), batch_size=16,
            seed=1, **options,
        )  # fmt: skip
        for batch in loader:
            asked = seeds.time[batch["users"].input_id][batch["orders"].batch]
            later = batch["orders"].time > asked
            assert not (later.any() and options is by_time)
            orders[options is by_time] += len(later) if options is by_time else int(later.sum())
    assert min(orders.values()) > 50  # times matter


def _hide_by_remove(database: Database) -> None:
    database.tasks["churn"][0]["remove_columns"] = [["orders", "item"]]


def _hide_by_asking(database: Database) -> None:
    autocomplete(database)
    about, rows = database.tasks.pop("is-gift")
    about |= {"target_col": "item", "task_type": "multiclass_classification"}
    rows["item"] = database.frames["orders"]["item"]
    database.tasks["which"] = about, rows.drop(columns="gift")


@pytest.mark.parametrize("hide", [_hide_by_remove, _hide_by_asking])
def test_a_foreign_key_that_a_task_hides_is_no_edge(
    tmp_path: Path, hide: Callable[[Database], None]
) -> None:
    database = Database()
    hide(database)
    dataset = convert(database, tmp_path)
    assert not any("item" in relation for _, relation, _ in dataset.edge_types)
    assert ("orders", "f2p_user", "users") in dataset.edge_types
    source = dataset.manifest.source
    assert source["columns"]["orders"]["item"] == {"kind": "left out", "why": "a task hides it"}
    assert "orders.item" not in source["references"]


# Blocks and keys ----------------------------------------------------------------------------------


def test_the_size_of_blocks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database()
    autocomplete(database)
    whole = convert(database, tmp_path / "whole", categories=2)
    for module in (relational_keys, relational_table, relbench_tasks):
        monkeypatch.setattr(module, "_BLOCK_ROWS", 7)
    cut = convert(database, tmp_path / "cut", categories=2)
    files = list(whole.path.rglob("*.npy"))
    assert len(files) > 20
    for path in files:
        name = path.relative_to(whole.path)
        expected, found = (np.load(folder / name) for folder in (whole.path, cut.path))
        if name.name == "features.npy":  # sums of other blocks round otherwise
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        else:
            assert (found == expected).all(), name
    table = RelationalTable(
        tmp_path / "cut" / "source" / "db" / "orders.parquet",
        pkey="order", fkeys=set(), time="at", hidden=set(), cut=0, categories=5,
    )  # fmt: skip
    table.take_statistics()
    for read in (table.features().blocks, table.times):
        rows = np.concatenate([*read(0)])
        for first in (0, 6, 7, 8, 193, 199):
            assert (np.concatenate([*read(first)]) == rows[first:]).all()


def test_an_interrupted_conversion_goes_on(tmp_path: Path) -> None:
    source = Database().write(tmp_path / "source")
    whole = convert_relbench(source, tmp_path / "whole", OPTIONS)

    left = 0

    def stop(what: str, done: int, total: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    for calls in (8, 21, 40):
        left = calls
        with pytest.raises(KeyboardInterrupt):
            convert_relbench(source, tmp_path / "cut", replace(OPTIONS, progress=stop))
    cut = convert_relbench(source, tmp_path / "cut", OPTIONS)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.*"))
    assert len(files) > 20
    assert all((whole / file).read_bytes() == (cut / file).read_bytes() for file in files)


def test_views_of_strings_are_strings(tmp_path: Path) -> None:
    rows = []
    for kind in (pa.string(), pa.string_view()):
        words = pa.array(["a", None, "b", "a"], kind)
        lists = pa.array([["p"], [], None, ["q", "p"]], pa.list_(kind))
        at = pa.array([0, 1, 2, 3], pa.timestamp("us"))
        path = tmp_path / f"{kind}.parquet"
        parquet.write_table(pa.table({"at": at, "words": words, "lists": lists}), path)
        table = RelationalTable(
            path, pkey=None, fkeys=set(), time="at", hidden=set(), cut=2, categories=5
        )
        table.take_statistics()
        rows.append(np.concatenate([*table.features().blocks(0)]))
    assert rows[0].shape == (4, 7 + 3 + 2)
    np.testing.assert_array_equal(rows[0], rows[1])


def test_edges_are_read_from_any_one_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relational_keys, "_BLOCK_ROWS", 7)
    source = Database().write(tmp_path / "source") / "db"
    tables = [relational_keys.ParquetTable(source / f"{n}.parquet") for n in ("users", "orders")]
    keys = relational_keys.Keys(source / "users.parquet", tables[0], "id", 1 << 20)
    refers = relational_keys.ForeignKeys(source / "orders.parquet", tables[1], "user", keys)
    edges = np.concatenate([np.stack(each) for each in refers.edges(0)], axis=1)
    for first in (0, 5, 6, 7, 100):
        rest = np.concatenate([np.stack(each) for each in refers.edges(first)], axis=1)
        assert (rest == edges[:, first:]).all()


def test_keys_may_be_any_numbers_or_names(tmp_path: Path) -> None:
    database = Database()
    database.frames["users"]["id"] = np.arange(30)[::-1] * 1000 - 7
    number = dict(zip(np.arange(30), database.frames["users"]["id"], strict=True))
    for table, column in (("items", "maker"), ("orders", "user")):
        keys = database.frames[table][column]
        database.frames[table][column] = keys.map(number, na_action="ignore").astype(float)
    rows = database.tasks["churn"][1]
    rows["id"] = rows["id"].map(number)
    found, plain = convert(database, tmp_path / "a"), convert(Database(), tmp_path / "b")
    for edge_type in plain.edge_types:
        assert sources_of(found, edge_type) == sources_of(plain, edge_type)
    one, other = (each.seeds("churn", "train").nodes.tolist() for each in (found, plain))
    assert one == other
    ids = found.node_ids("users")
    assert ids is not None
    assert list(ids[np.arange(30)]) == database.frames["users"]["id"].tolist()
    options = ConvertOptions(threads=1, memory=100)
    with pytest.raises(TooLargeError, match="12 names take more than the 100 bytes"):
        convert_relbench(tmp_path / "a" / "source", tmp_path / "c", options)
    options = ConvertOptions(threads=1, memory=160 * 35)  # for either table alone
    with pytest.raises(TooLargeError, match=r"users\.parquet: id: 30 names take more than"):
        convert_relbench(tmp_path / "a" / "source", tmp_path / "c", options)


def test_keys_of_absent_rows_are_refused_or_dropped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = Database()
    database.frames["orders"].loc[[3, 50], "item"] = ["sku-77", "nothing"]
    source = database.write(tmp_path / "source")
    with pytest.raises(FileFormatError, match=r"2 of 200 keys .* the first 'sku-77' in row 3"):
        convert_relbench(source, tmp_path / "graph", OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    command = ["convert", str(source), str(tmp_path / "graph")]
    assert main(command) == 2
    assert "2 of 200 keys" in capsys.readouterr().err
    assert main([*command, "--dangling", "drop"]) == 0
    dataset = gnnsys.open_dataset(tmp_path / "graph")
    told = dataset.manifest.source["references"]["orders.item"]
    assert told == {"rows": 200, "edges": 198, "absent": 2, "empty": 0}
    forth = sources_of(dataset, ("orders", "f2p_item", "items"))
    assert len(forth) == 198
    assert {3, 50}.isdisjoint(row for row, _ in forth)


def test_rows_of_tasks_about_absent_rows_are_refused_or_dropped(tmp_path: Path) -> None:
    database = Database()
    rows = database.tasks["churn"][1]
    rows.loc[4, "id"] = 30
    source = database.write(tmp_path / "source")
    with pytest.raises(FileFormatError, match="has 30 in column id, which no row of users has"):
        convert_relbench(source, tmp_path / "graph", OPTIONS)
    made = convert_relbench(source, tmp_path / "graph", OPTIONS, RelationalParts(dangling="drop"))
    dataset = gnnsys.open_dataset(made)
    assert dataset.manifest.source["tasks"]["churn"]["dropped"] == 1
    kept = [dataset.seeds("churn", split).nodes for split in ("train", "val", "test")]
    assert sum(map(len, kept)) == len(rows) - 1


# What is unusual is defined, or one clear error ---------------------------------------------------


def test_empty_tables_and_tables_without_early_rows_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database()
    frames = database.frames
    frames["items"] = frames["items"].iloc[:0]
    frames["orders"] = frames["orders"][frames["orders"]["at"] > CUT].reset_index(drop=True)
    frames["orders"]["order"] = np.arange(len(frames["orders"]))
    frames["orders"]["item"] = pd.Series([None] * len(frames["orders"]), dtype=object)
    frames["orders"] = frames["orders"].astype({"item": "string"})
    dataset = convert(database, tmp_path)
    assert dataset.num_nodes("items") == 0
    assert dataset.num_edges(("orders", "f2p_item", "items")) == 0
    amount = features_of(dataset, "orders", "amount")[:, 0]
    assert amount.tolist() == frames["orders"]["amount"].tolist()  # as it is
    assert "no row is as early as val_timestamp" in caplog.text
    seeds = dataset.seeds("churn", "test")
    loader = gnnsys.NeighborLoader(
        dataset.stores(), [4, 4], input_nodes=("users", seeds.nodes), input_time=seeds.time,
        time_attr="time", batch_size=90,
    )  # fmt: skip
    assert len(next(iter(loader))["orders"].n_id) > 0


def test_rows_without_a_time_are_never_neighbours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database()
    database.frames["orders"].loc[195:, "at"] = pd.NaT
    dataset = convert(database, tmp_path)
    assert (dataset.node_table("time", "orders")[195:] == NEVER).all()
    assert "5 of 200 rows have no time" in caplog.text
    found = features_of(dataset, "orders", "at")
    assert found.shape == (200, 7)  # no row up to the cut lacks it
    assert not found[195:].any()


def test_labels_in_lists_may_be_unknown(tmp_path: Path) -> None:
    database = Database()
    about, rows = database.tasks["churn"]
    about["task_type"] = "multilabel_classification"
    lists = [None, [0.0, np.nan], [1.0, 0.0]]
    rows["churns"] = pd.Series([lists[n // 3 % 3] for n in range(len(rows))], dtype=object)
    dataset = convert(database, tmp_path)
    labels = dataset.seeds("churn", "train").labels
    assert labels is not None
    expected = torch.tensor([[np.nan] * 2, [0.0, np.nan], [1.0, 0.0]]).repeat_interleave(2, 0)
    torch.testing.assert_close(labels[:6], expected, equal_nan=True)


def test_words_that_the_first_split_lacks_are_unknown_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database()
    _, rows = database.tasks["churn"]
    rows["churns"] = np.where(rows["when"] > CUT, "later", np.where(rows["id"] % 2, "no", "yes"))
    dataset = convert(database, tmp_path)
    labels = dataset.seeds("churn", "test").labels
    assert labels is not None
    assert labels.tolist() == [-1] * 30
    assert "30 labels are words" in caplog.text
    assert dataset.manifest.source["tasks"]["churn"]["unknown"] == 30


def _set(table: str, column: str, value: Any) -> Callable[[Database], None]:
    def change(database: Database) -> None:
        database.frames[table][column] = value

    return change


def _about(table: str, **about: Any) -> Callable[[Database], None]:
    return lambda database: database.tables[table].update(about)


def _task(**about: Any) -> Callable[[Database], None]:
    return lambda database: database.tasks["churn"][0].update(about)


def _turn(database: Database) -> None:
    database.frames["orders"]["at"] = database.frames["orders"]["at"].to_numpy()[::-1]


def _lengthen(database: Database) -> None:
    database.frames["items"].at[5, "vector"] = np.zeros(4, np.float32)


def _repeat(database: Database) -> None:
    database.frames["items"].loc[7, "sku"] = database.frames["items"]["sku"][2]


def _forget(database: Database) -> None:
    database.frames["items"].loc[7, "sku"] = None


def _empty(database: Database) -> None:
    database.frames["items"].at[0, "vector"] = np.zeros(0, np.float32)


def _widen(database: Database) -> None:
    database.frames["items"]["vector"] = [np.array([1, np.inf, 0], np.float32)] * 12


def _far_key(database: Database) -> None:
    users = database.frames["orders"]["user"].astype(float)
    users[1] = 2.0**53
    database.frames["orders"]["user"] = users


def _lists(kind: str, value: Any, first: Any = None) -> Callable[[Database], None]:
    """Labels of a task of another kind, of which row 1 is unlike the others."""

    def change(database: Database) -> None:
        about, rows = database.tasks["churn"]
        about["task_type"] = kind
        labels = [first] * len(rows)
        labels[1] = value
        if isinstance(value, str):
            labels[3] = "maybe"
        rows["churns"] = pd.Series(labels, index=rows.index)

    return change


def _label(value: Any) -> Callable[[Database], None]:
    def change(database: Database) -> None:
        database.tasks["churn"][1].loc[0, "churns"] = value

    return change


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (_turn, FileFormatError, "row 1 is earlier by column at than the row before it"),
        (_lengthen, FileFormatError, "row 5 has a list of 4 in column vector, expected 3"),
        (_empty, FileFormatError, "row 0 has a list of 0 in column vector, expected 3"),
        (_repeat, FileFormatError, "row 7 has the id .* which row 2 has already"),
        (_forget, FileFormatError, "row 7 has no primary key in column sku"),
        (_set("orders", "user", "x"), FileFormatError, "user holds strings, but column id"),
        (_set("orders", "item", 3), FileFormatError, "item holds whole numbers, but column sku"),
        (_set("orders", "user", 1.5), FileFormatError, "a key that is no whole number"),
        (_set("orders", "user", True), FileFormatError, "keys of bool in column user"),
        (_set("orders", "at", 3), FileFormatError, "the time column at is int64"),
        (_about("orders", time_col="nothing"), FileFormatError, "no column nothing"),
        (_about("orders", pkey="nothing"), FileFormatError, "no column nothing"),
        (_about("orders", fkeys={"user": "x"}), FileFormatError, "'x', expected one of items"),
        (_about("users", pkey=None), FileFormatError, "'users', which has no pkey to refer to"),
        (_about("orders", fkeys=3), FileFormatError, "fkeys is 3, expected an object"),
        (_task(entity_col="x"), FileFormatError, "no column x, which the task's manifest names"),
        (_task(entity_table="x"), FileFormatError, "entity_table is 'x', expected one of items"),
        (_task(entity_table=None), FileFormatError, "no entity_table"),
        (_task(task_type="chess"), FileFormatError, "task_type is 'chess', expected one of"),
        (_set("items", "price", 1e200), FileFormatError, "column price has 1e\\+200"),
        (_widen, FileFormatError, "the first in row 0, column vector"),
        (_far_key, FileFormatError, "row 1 has the key 9007199254740992.0 in column user"),
        (_task(remove_columns=[["orders", "x"]]), FileFormatError,
         r"churn.manifest\.yaml: remove_columns names column 'x' of orders, expected one of order"),
        (_task(remove_columns=[["x", "at"]]), FileFormatError, "column 'at' of 'x', expected a"),
        (_task(target_col="chruns"), FileFormatError, "no column chruns, which the task's"),
        (_lists("multilabel_classification", 1, 0), FileFormatError, "int64, expected lists"),
        (_lists("multilabel_classification", ["a"], ["b"]), FileFormatError, "list.*, expected l"),
        (_lists("multilabel_classification", [7, 0], [1, 0]), FileFormatError, "row 1 has 7.0"),
        (_lists("multilabel_classification", [1], [1, 0]), FileFormatError, "row 1 has a list of"),
        (_lists("multilabel_classification", np.empty(0)), FileFormatError, "has no label"),
        (_lists("multiclass_classification", np.inf, 0), FileFormatError, "row 1 has inf in col"),
        (_lists("regression", 1e39, 0), FileFormatError, "churns: row 1 has 1e\\+39, expected"),
        (_lists("binary_classification", "no", "yes"), FileFormatError, "3 classes .'maybe', 'no'"),
        (_label(2), FileFormatError, "row 0 has 2.0 in column churns, expected 0 or 1"),
        (_task(task_type="regression", target_col="when"), FileFormatError, "when holds timestamp"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_error(
    tmp_path: Path, change: Callable[[Database], None], error: type[GnnsysError], told: str
) -> None:
    database = Database()
    change(database)
    source = database.write(tmp_path / "source")
    with pytest.raises(error, match=told):
        convert_relbench(source, tmp_path / "graph", OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_columns_of_mixed_types_are_one_error(tmp_path: Path) -> None:
    source = Database().write(tmp_path / "source")
    parts = source / "db" / "users.parquet"
    first = pd.read_parquet(parts)
    parts.unlink()
    parts.mkdir()
    first.to_parquet(parts / "part-0.parquet")
    first.assign(age="old").to_parquet(parts / "part-1.parquet")
    with pytest.raises(FileFormatError, match=r"column age is string, in .* it is double"):
        convert_relbench(source, tmp_path / "graph", OPTIONS)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    source = Database().write(tmp_path / "source")
    task = source / "tasks" / "churn"
    for split in ("train", "val", "test"):
        (task / f"{split}.parquet").unlink()
    with pytest.raises(MissingFileError, match=r"churn: no train\.parquet"):
        convert_relbench(source, tmp_path / "graph", OPTIONS)
    (source / "db" / "items.parquet").unlink()
    with pytest.raises(MissingFileError, match=r"items\.parquet: no such file, but .*manifest"):
        convert_relbench(source, tmp_path / "graph", OPTIONS)
    (source / "manifest.yaml").write_text("a: [")
    with pytest.raises(FileFormatError, match="not YAML"):
        convert_relbench(source, tmp_path / "graph", OPTIONS)
    for time in ("soon", "today", "NaT", "2005"):
        (source / "manifest.yaml").write_text(f"val_timestamp: '{time}'\ntables: {{users: {{}}}}")
        with pytest.raises(FileFormatError, match=f"val_timestamp is '{time}', expected a time"):
            convert_relbench(source, tmp_path / "graph", OPTIONS)
    task.joinpath("train.parquet").touch()
    for time in ("2005-01-01T02:00:00+02:00", "'2005-01-01T00:00:00Z'", "2005-01-01"):
        tables = "{users: {pkey: id}}"
        (source / "manifest.yaml").write_text(f"val_timestamp: {time}\ntables: {tables}")
        assert RelBenchManifest(source, None).cut == 1_104_537_600_000_000


# The command --------------------------------------------------------------------------------------


def test_the_command_converts_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, path = Database().write(tmp_path / "source"), tmp_path / "graph"
    assert main(["convert", str(source), str(path), "--task", "churn", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["name"] == "shop"
    assert told["nodes"]["orders"]["count"] == 200
    assert told["source"]["tasks"]["churn"]["rows"] == {"train": 60, "val": 0, "test": 30}
    refused = {
        ("--task", "nothing"): "has churn",
        ("--order", "degree"): "stay in order of time",
        ("--undirected",): "have their reverses already",
        ("--categories", "0"): "--categories",
        ("--label-column", "x"): "goes with an edge list",
        ("--nan", "mean"): "tell of those after val_timestamp",
    }
    for options, why in refused.items():
        assert main(["convert", str(source), str(tmp_path / "other"), *options]) == 2
        assert why in capsys.readouterr().err
    assert main(["convert", str(path), str(tmp_path / "other"), "--dangling", "drop"]) == 2
    assert "--dangling: goes with a RelBench folder" in capsys.readouterr().err


def test_seeds_survive_another_precision_and_refuse_another_order(tmp_path: Path) -> None:
    dataset = convert(Database(), tmp_path)
    assert main(["convert", str(dataset.path), str(tmp_path / "small"), "--dtype", "int8"]) == 0
    small = gnnsys.open_dataset(tmp_path / "small")
    one, other = (each.seeds("churn", "train").labels for each in (dataset, small))
    assert one is not None
    assert other is not None
    assert one.tolist() == other.tolist()
    with pytest.raises(UnsupportedError, match="seeds of a task"):
        convert_in_order(
            tmp_path / "ordered", OPTIONS, "degree", name="x", files=[],
            prepare=lambda place: dataset.path,
        )  # fmt: skip
