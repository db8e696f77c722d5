"""What the ledger counts is what the formulas and the plan say, to the byte, on real graphs."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

from gnnsys.commands.cli import main
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg_name
from gnnsys.pipeline import GNNPipe, deep_layers
from gnnsys.pipeline.models import DEEP_MODELS
from gnnsys.pipeline.schedule import Kind, epoch_actions, num_slots
from gnnsys.pipeline.timeline import idle_share, simulate
from gnnsys.training.datasets import load_dataset

LAYERS, HIDDEN = 8, 4
SPLITS = {"pipeline": (4, 1, 7), "graph": (1, 7, 7), "hybrid": (2, 3, 9)}


@pytest.fixture(scope="module", params=["cora", "actor", "citeseer"])
def graph(
    request: pytest.FixtureRequest, real_graphs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Data, int]:
    """A folder, which is read in less time than raw files, what it holds, the number of classes."""
    folder = tmp_path_factory.mktemp("graphs") / request.param
    convert_pyg_name(request.param, real_graphs, folder, ConvertOptions())
    with closing(load_dataset(str(folder))) as dataset:
        data = Data(x=dataset.features.materialize(), y=dataset.node_task.labels)
        data.edge_index = dataset.edge_index()
        data.train_mask = torch.isin(torch.arange(len(data.x)), dataset.node_task.train)
        return folder, data, dataset.task.outputs


@pytest.mark.parametrize("mode", SPLITS)
@pytest.mark.parametrize("model", DEEP_MODELS)
def test_the_ledger_equals_the_formulas_and_the_plan(
    graph: tuple[Path, Data, int], capsys, model: str, mode: str
) -> None:
    stages, ways, chunks = SPLITS[mode]
    folder, data, classes = graph
    layers = deep_layers(
        model, in_channels=data.x.shape[1], hidden=HIDDEN, out_channels=classes, layers=LAYERS
    )
    pipe = GNNPipe(layers, data, stages=stages, ways=ways, chunks=chunks)
    assert len(set(pipe.partition.chunk_sizes)) > 1  # uneven
    pipe.train_epoch(torch.optim.SGD(pipe.parameters(), lr=0.01))
    sent = {kind: pipe.ledger().get(kind, 0) for kind in ("layer", "graph", "weight")}

    vertices = len(data.x)
    owner = torch.empty(vertices, dtype=torch.int64)
    chunk = torch.repeat_interleave(torch.tensor(pipe.partition.chunk_sizes))
    owner[pipe.partition.order] = chunk // (chunks // ways)
    source, target = data.edge_index
    foreign = owner[source] != owner[target]
    read = torch.stack([owner[target], source])[:, foreign].unique(dim=1).shape[1]
    parameters = sum(p.numel() for layer in layers for p in layer.parameters())
    shared = 2 if model == "gcnii" else 1
    assert sent == {
        "layer": 2 * (stages - 1) * vertices * HIDDEN * 4 * shared,
        "graph": 2 * LAYERS * read * HIDDEN * 4,
        "weight": 2 * (ways - 1) * parameters * 4,
    }

    arguments = ["plan", str(folder), "--parallel", mode, "--json"]
    options = {"stages": stages, "ways": ways, "chunks": chunks, "layers": LAYERS, "hidden": HIDDEN}
    for option, value in options.items():
        arguments += [f"--{option}", str(value)]
    assert main([*arguments, "--model", model]) == 0
    plan = json.loads(capsys.readouterr().out)
    (row,) = (row for row in plan["splits"] if row["mode"] == mode)
    assert pipe.ledger().get("control", 0) == 0  # all ranks share this process
    control = row["bytes"].pop("control")
    assert control > 0
    assert row["bytes"] == {**sent, "total": sum(sent.values()) + control}
    assert row["slots"] == num_slots(chunks // ways, stages)


@pytest.mark.parametrize(("slots", "stages"), [(1, 1), (7, 1), (1, 4), (8, 3), (5, 8)])
def test_a_simulated_epoch_takes_the_slots_of_the_formula(slots: int, stages: int) -> None:
    work = {Kind.FORWARD: 1.0, Kind.BACKWARD: 1.0}
    events = simulate(stages, range(slots), lambda stage, action: work.get(action.kind, 0.0))
    span = max(event.end for event in events)
    assert span == 2 * num_slots(slots, stages)
    assert idle_share(events) == pytest.approx(1 - slots / num_slots(slots, stages))
    for stage in range(stages):  # each does every action of its list once
        done = [(e.kind, e.chunk) for e in events if e.rank == stage and e.kind in work]
        wanted = [(a.kind, a.chunk) for a in epoch_actions(stage, stages, range(slots))]
        assert done == [pair for pair in wanted if pair[0] in work]


CLUSTER = """
name = "eight"
[memory]
bandwidth = "2000GB"
[compute]
flops = 50e12
[network]
bandwidth = "12GB"
latency = 2e-5
"""


def test_a_plan_tells_times_and_draws(real_graphs: Path, tmp_path: Path, capsys) -> None:
    hardware = tmp_path / "eight.toml"
    hardware.write_text(CLUSTER)
    base = ["plan", "cora", "--root", str(real_graphs), "--parallel", "all", "--ranks", "8"]
    for suffix in ("png", "html"):
        picture = tmp_path / f"plan.{suffix}"
        assert main([*base, "--hardware", str(hardware), "--picture", str(picture)]) == 0
        assert picture.stat().st_size > 10_000
    page = (tmp_path / "plan.html").read_text()
    assert page.count("<svg") == 4
    told = capsys.readouterr().out
    assert "fastest here" in told
    assert main([*base, "--hardware", str(hardware), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [(row["stages"], row["ways"]) for row in plan["splits"]] == [
        (8, 1),
        (4, 2),
        (2, 4),
        (1, 8),
    ]
    for row in plan["splits"]:
        time = row["time"]
        assert time["seconds"] >= time["computing"] + time["halo"] + time["weights"] - 1e-9
        assert 0 <= time["idle"] < 1
    assert main([*base[:-2], "--ranks", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"][0]["time"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "6", "--stages", "4"], r"--ranks 6 % --stages 4 != 0"),
        (["--stages", "2", "--ways", "2", "--ranks", "8"], r"--stages 2 \* --ways 2 != --ranks 8"),
        (["--ranks", "1"], r"--ranks 1: expected at least 2"),
        (["--ranks", "8", "--chunks", "9"], r"--chunks 9 % ways\(2\) != 0"),
        (["--ranks", "8", "--layers", "4"], r"stages\(8\) > graph layers\(4\)"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(real_graphs, capsys, options, message) -> None:
    import re

    base = ["plan", "cora", "--root", str(real_graphs), "--parallel", "all"]
    assert main([*base, *options]) == 2
    assert re.search(message, capsys.readouterr().err)
