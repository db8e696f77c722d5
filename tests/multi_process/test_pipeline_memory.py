"""A rank needs its share of the full graph's activations, its histories, and little else."""

from __future__ import annotations

import json

import pytest

SCRIPT = """
    import json, os, tempfile
    import torch
    import torch.distributed as dist
    from torch_geometric.data import Data
    from gnnsys.pipeline import DeepModel, GNNPipe, deep_layers
    from gnnsys.pipeline.costs import Split, estimate_costs
    from gnnsys.pipeline.way_graph import halo_sizes

    STAGES, WAYS, NODES, EDGES, HIDDEN, LAYERS = {stages}, {ways}, 4000, 20000, 64, 8

    def traced(work):
        '''Bytes that torch allocates at most, and at the end, beyond what was there before.'''
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            kept = work()
        path = tempfile.mktemp(dir=".")
        profile.export_chrome_trace(path)
        with open(path) as file:
            events = [e for e in json.load(file)["traceEvents"] if e.get("name") == "[memory]"]
        total = peak = 0
        for event in sorted(events, key=lambda event: event["ts"]):
            total += event["args"]["Bytes"]
            peak = max(peak, total)
        return peak, total, kept

    draw = torch.Generator().manual_seed(0)
    source = torch.randint(0, NODES, (EDGES,), generator=draw)
    target = (source + torch.randint(-80, 81, (EDGES,), generator=draw)).clamp(0, NODES - 1)
    data = Data(x=torch.randn(NODES, 16), edge_index=torch.stack([source, target]))
    data.y = torch.zeros(NODES, dtype=torch.int64)
    data.train_mask = torch.ones(NODES, dtype=torch.bool)
    dist.init_process_group("gloo")
    found = []
    for model in {models}:
        layers = deep_layers(model, in_channels=16, hidden=HIDDEN, out_channels=3, layers=LAYERS)
        full = DeepModel(layers)
        edges = full.make_edges(data.edge_index, NODES)
        full(data.x, edges)  # makes the matrices
        _, activations, _ = traced(lambda: full(data.x, edges))
        pipe = GNNPipe(layers, data, stages=STAGES, ways=WAYS, chunks=8 * WAYS)
        optimizer = torch.optim.Adam(pipe.parameters(), lr=0.01)
        pipe.train_epoch(optimizer)
        optimizer.zero_grad()
        # Of several epochs: how many chunks lie between two ranks at once is a matter of timing.
        peak = max(traced(lambda: pipe.train_epoch(optimizer))[0] for _ in range(3))
        costs = estimate_costs(
            pipe.infos,
            Split(STAGES, WAYS, pipe.chunks),
            num_nodes=NODES,
            num_edges=EDGES,
            chunk_sizes=pipe.partition.chunk_sizes,
            halo=halo_sizes(data.edge_index, NODES, pipe.partition, WAYS),
        )
        planned = costs.memory[pipe.rank]
        held = pipe.stage_layers[pipe.rank // WAYS]
        columns = HIDDEN * (2 if model == "gcnii" else 1)
        found.append({
            "model": model,
            "activations": activations,
            "peak": peak,
            "planned": planned.activations + planned.buffers,
            "planned history": planned.history,
            "aggregations": sum(pipe.infos[i].is_graph for i in held),
            "history": sum(2 * h.snapshot.nbytes for h in pipe._group.ranks[0].stage.histories),
            "boundary": NODES * columns * 4 // WAYS,
            "halo": pipe._group.ranks[0].stage.graph.num_halo,
        })
    print(json.dumps(found))
"""
NODES, HIDDEN, LAYERS = 4000, 64, 8


@pytest.mark.parametrize(
    ("stages", "ways", "models"),
    [(4, 1, ("sage", "gcnii")), (2, 2, ("gcn", "sage", "gcnii", "resgcn"))],
)
def test_a_rank_stays_within_the_bound(
    start_ranks, stages: int, ways: int, models: tuple[str, ...]
) -> None:
    script = SCRIPT.replace("{stages}", str(stages)).replace("{ways}", str(ways))
    script = script.replace("{models}", repr(models))
    for status, out, errors in start_ranks(script, stages * ways).outputs():
        assert status == 0, errors
        for case in json.loads(out.splitlines()[-1]):
            share = case["aggregations"] / LAYERS / ways
            rows = NODES / ways + case["halo"]
            history = 2 * case["aggregations"] * rows * HIDDEN * 4
            assert case["history"] <= history * 1.05, case  # ways are of about the same size
            bound = share * case["activations"] + 3 * case["boundary"]
            assert case["peak"] <= bound, (case, bound)
            assert case["history"] == case["planned history"], case
            assert case["peak"] == pytest.approx(case["planned"], rel=0.3), case


SNAPSHOTS = """
    import json
    from pathlib import Path
    import torch
    import torch.distributed as dist
    from torch_geometric.data import Data
    from gnnsys.pipeline import GNNPipe, deep_layers
    from gnnsys.ranks.group import on_all_ranks
    from gnnsys.training.checkpoint import load_shards, save_shards, snapshot_names

    NODES, HIDDEN, LAYERS, RANKS = 60_000, 64, 16, 4
    source = torch.arange(NODES)
    data = Data(x=torch.ones(NODES, 4), edge_index=torch.stack([source, (source + 1) % NODES]))
    data.y = torch.zeros(NODES, dtype=torch.int64)
    data.train_mask = torch.ones(NODES, dtype=torch.bool)
    dist.init_process_group("gloo")
    layers = deep_layers("gcn", in_channels=4, hidden=HIDDEN, out_channels=3, layers=LAYERS)
    pipe = GNNPipe(layers, data, stages=RANKS, chunks=4)
    run, names = Path("..").absolute(), snapshot_names(0, RANKS)

    def held(name):
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        return int(status[name].split()[0]) * 1024

    def growth(work):  # bytes that the process takes more, at most, than before
        Path("/proc/self/clear_refs").write_text("5")  # of the peak
        before = held("VmRSS")
        work()
        return held("VmHWM") - before

    (shard,) = pipe.history_shards().values()
    wanted = {name: value.clone() for name, value in shard.items()}
    saved = growth(lambda: on_all_ranks(lambda: save_shards(run, names, pipe.history_shards())))
    loaded = growth(lambda: pipe.load_history_shards(load_shards(run, names)))
    (found,) = pipe.history_shards().values()
    print(json.dumps({
        "saved": saved,
        "loaded": loaded,
        "own": sum(value.nbytes for name, value in wanted.items() if name != "nodes"),
        "equal": all(torch.equal(found[name], value) for name, value in wanted.items()),
    }))
"""


def test_no_rank_holds_the_snapshots_of_all(start_ranks) -> None:
    one, layers = 60_000 * 64 * 4, 16
    told = start_ranks(SNAPSHOTS, 4).outputs()
    for status, out, errors in told:
        assert status == 0, errors
        case = json.loads(out)
        assert case["equal"]
        assert case["saved"] < one, case
        assert case["loaded"] < 6 * one < layers * one, case  # one, mapped and chosen
    held = sum(json.loads(out)["own"] for _, out, _ in told)
    assert held in (layers * one, (layers - 1) * one + 60_000 * 3 * 4)
