"""A small relational database in RelBench's folder format, and what pandas makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from numpy.typing import NDArray
from pyarrow import parquet

CUT = pd.Timestamp("2020-06-01")
TABLES: dict[str, dict[str, Any]] = {
    "users": {"pkey": "id", "time_col": None, "fkeys": {}},
    "items": {"pkey": "sku", "time_col": None, "fkeys": {"maker": "users"}},
    "orders": {"pkey": "order", "time_col": "at", "fkeys": {"user": "users", "item": "items"}},
}


class Database:
    """Frames that can be changed before they are written."""

    def __init__(self, seed: int = 0, users: int = 30, items: int = 12, orders: int = 200) -> None:
        random = np.random.default_rng(seed)
        self.tables = {name: {**about, "fkeys": dict(about["fkeys"])}
                       for name, about in TABLES.items()}  # fmt: skip
        days = pd.to_timedelta(random.integers(0, 365, users), unit="D")
        age = random.normal(40, 10, users)
        age[::7] = np.nan
        plans = np.array(["basic", "pro", "free", None], object)
        tags = ["red", "blue", "green"]
        self.frames = {
            "users": pd.DataFrame(
                {
                    "id": np.arange(users),
                    "age": age,
                    "plan": plans[random.integers(0, 4, users)],
                    "joined": pd.Timestamp("2019-01-01") + days,
                    "city": np.array(list("abcdefgh"), object)[random.integers(0, 8, users)],
                    "tags": [tags[: random.integers(0, 4)] for _ in range(users)],
                    "nickname": [f"user number {each}" for each in range(users)],
                }
            ),
            "items": pd.DataFrame(
                {
                    "sku": [f"sku-{each * 7 % items}" for each in range(items)],
                    "price": random.gamma(2.0, 5.0, items),
                    "maker": random.integers(0, users, items),
                    "vector": list(random.normal(size=(items, 3)).astype(np.float32)),
                }
            ),
        }
        hours = np.sort(random.integers(0, 366 * 24, orders))
        user = pd.Series(random.integers(0, users, orders), dtype="Int64")
        user[::11] = pd.NA
        self.frames["orders"] = pd.DataFrame(
            {
                "order": np.arange(orders),
                "at": pd.Timestamp("2020-01-01") + pd.to_timedelta(hours, unit="h"),
                "user": user,
                "item": self.frames["items"]["sku"].to_numpy()[random.integers(0, items, orders)],
                "amount": random.integers(1, 9, orders),
                "gift": random.random(orders) < 0.3,
            }
        )
        when = pd.to_datetime(["2020-03-01", "2020-06-01", "2020-09-01"])
        asked = pd.DataFrame({"id": np.repeat(np.arange(users), 3), "when": np.tile(when, users)})
        asked["churns"] = random.integers(0, 2, len(asked))
        self.tasks: dict[str, tuple[dict[str, Any], pd.DataFrame]] = {
            "churn": (
                {
                    "kind": "forecast", "task_type": "binary_classification",
                    "entity_table": "users", "entity_col": "id", "target_col": "churns",
                    "time_col": "when", "sql": "SELECT 1", "timedelta": "30 days",
                },
                asked,
            )
        }  # fmt: skip

    def write(self, folder: Path) -> Path:
        (folder / "db").mkdir(parents=True)
        content = {
            "name": "shop",
            "manifest_version": 1,
            "val_timestamp": str(CUT.date()),
            "test_timestamp": "2020-09-01",
            "tables": self.tables,
        }
        (folder / "manifest.yaml").write_text(yaml.safe_dump(content))
        for name, frame in self.frames.items():
            table = pa.Table.from_pandas(frame, preserve_index=False)
            if "vector" in frame:
                place = table.schema.get_field_index("vector")
                vectors = pa.array(list(frame["vector"]), pa.list_(pa.float32()))
                table = table.set_column(place, "vector", vectors)
            parquet.write_table(table, folder / "db" / f"{name}.parquet", row_group_size=17)
        for name, (about, rows) in self.tasks.items():
            place = folder / "tasks" / name
            place.mkdir(parents=True)
            (place / "manifest.yaml").write_text(yaml.safe_dump({"name": name, **about}))
            for split, part in self.split(rows, about["time_col"]).items():
                part.to_parquet(place / f"{split}.parquet", index=False)
        return folder

    @staticmethod
    def split(rows: pd.DataFrame, time: str) -> dict[str, pd.DataFrame]:
        train, test = rows[time] <= CUT, rows[time] > "2020-08-01"
        return {"train": rows[train], "val": rows[~train & ~test], "test": rows[test]}

    def known(self, table: str) -> NDArray[np.bool_]:
        """Rows that statistics may be taken of."""
        frame, time = self.frames[table], self.tables[table]["time_col"]
        if time is None:
            return np.ones(len(frame), bool)
        return (frame[time] <= CUT).to_numpy()


def expected_numeric(values: pd.Series, known: NDArray[np.bool_]) -> NDArray[Any]:
    """Standardised by pandas, with a column for gaps where there are any."""
    values = values.astype(float)
    some = values[known]
    deviation = some.std(ddof=0) or 1.0
    scaled = ((values - some.mean()) / deviation).fillna(0).to_numpy()
    columns = [scaled, values.isna().to_numpy()] if some.isna().any() else [scaled]
    return np.stack(columns, axis=1).astype(float)


def expected_categories(values: pd.Series, known: NDArray[np.bool_], most: int) -> NDArray[Any]:
    """One column for each frequent value, by pandas."""
    counts = values[known].explode().dropna().value_counts()
    ranked = sorted(counts.index, key=lambda value: (-counts[value], str(value)))[:most]
    rows = []
    for value in values:
        given = list(value) if isinstance(value, list | np.ndarray) else [value]
        given = [each for each in given if each is not None and each == each]
        row = [float(value in given) for value in ranked]
        rows.append([*row, float(any(each not in ranked for each in given))])
    return np.array(rows)


def expected_times(values: pd.Series, known: NDArray[np.bool_]) -> NDArray[Any]:
    """Days standardised, and waves of the day, the week and the year."""
    days = (values - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1)
    of_day = (values - values.dt.normalize()) / pd.Timedelta(days=1)
    length = np.where(values.dt.is_leap_year, 366, 365)
    turns = [
        of_day,
        (values.dt.day_of_week + of_day) / 7,
        (values.dt.day_of_year - 1 + of_day) / length,
    ]
    waves = [wave(2 * np.pi * turn) for turn in turns for wave in (np.sin, np.cos)]
    return np.column_stack([expected_numeric(days, known), *waves])
