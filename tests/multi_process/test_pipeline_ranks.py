"""A pipeline of several processes: the bits and bytes of one, and what a killed rank does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

PIPELINE = """
    import json, os, sys
    import torch
    import torch.distributed as dist
    from torch_geometric.data import Data
    from gnnsys.pipeline import GNNPipe, deep_layers

    def graph(nodes=97, edges=400, columns=6):
        draw = torch.Generator().manual_seed(1)
        data = Data(
            x=torch.randn(nodes, columns, generator=draw),
            edge_index=torch.randint(0, nodes, (2, edges), generator=draw),
            y=torch.randint(0, 3, (nodes,), generator=draw),
        )
        data.train_mask = torch.rand(nodes, generator=draw) < 0.5
        return data

    saving = None

    def pipe_of(data, stages, ways, chunks, hidden=8, layers=8, model="gcnii"):
        torch.manual_seed(4)
        made = deep_layers(
            model, in_channels=data.x.shape[1], hidden=hidden, out_channels=3, layers=layers
        )
        return GNNPipe(
            made, data, stages=stages, ways=ways, chunks=chunks, snapshot_period=2, saving=saving
        )

    def run(stages, ways, epochs=3):
        pipe = pipe_of(graph(), stages, ways, chunks=8)
        optimizer = torch.optim.Adam(pipe.parameters(), lr=0.01)
        losses = [pipe.train_epoch(optimizer) for _ in range(epochs)]
        sent = {kind: pipe.ledger().get(kind, 0) for kind in ("layer", "graph", "weight")}
        scores = pipe.evaluate()
        weights = pipe.state_dict()
        moments = pipe.optimizer_state_dict(optimizer)
        held = {}
        for shard in (s for shards in pipe.gather(pipe.history_shards()) for s in shards.values()):
            for name in shard.keys() - {"nodes"}:
                held.setdefault(name, torch.zeros(97, shard[name].shape[1]))
                held[name][shard["nodes"]] = shard[name]
        told = {
            "losses": losses,
            "sent": sent,
            "scores": scores.double().sum().item(),
            "weights": {name: value.double().sum().item() for name, value in weights.items()},
            "moments": {name: m["exp_avg"].double().sum().item() for name, m in moments.items()},
            "history": {name: value.double().sum().item() for name, value in held.items()},
            "staleness": pipe.staleness(),
            "events": len(pipe.events()),
        }
        return json.dumps(told, sort_keys=True)
"""
IN_ONE = PIPELINE + "    print(run({stages}, {ways}))\n"
IN_MANY = (
    PIPELINE
    + """
    class Saving(torch.overrides.TorchFunctionMode):
        steps, hooks = 0, torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone)

        def __enter__(self):
            self.steps += 1
            self.hooks.__enter__()
            return super().__enter__()

        def __exit__(self, *error):
            super().__exit__(*error)
            self.hooks.__exit__(*error)

        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    # What autograd saves goes through a context here, and must not change a bit of it.
    saving = Saving()
    dist.init_process_group("gloo")
    told = run({stages}, {ways})
    assert saving.steps == 3
    print(told)
"""
)
ENDLESS = (
    PIPELINE
    + """
    from gnnsys.ranks import liveness
    liveness.Liveness.__init__.__defaults__ = (0.3, 4.0, 30.0)
    dist.init_process_group("gloo")
    {before}
    pipe = pipe_of(graph(), {stages}, {ways}, chunks=8)
    optimizer = torch.optim.Adam(pipe.parameters(), lr=0.01)
    pipe.train_epoch(optimizer)
    print("training", flush=True)
    while True:
        pipe.train_epoch(optimizer)
        {after}
"""
)


@pytest.mark.parametrize(("stages", "ways"), [(1, 1), (2, 1), (4, 2)])
def test_processes_give_the_bits_and_bytes_of_one(start_ranks, stages: int, ways: int) -> None:
    place = {"stages": stages, "ways": ways}
    one = start_ranks(_fill(IN_ONE, place), 1)
    many = start_ranks(_fill(IN_MANY, place), stages * ways)
    ((status, wanted, errors),) = one.outputs()
    assert status == 0, errors
    for status, found, errors in many.outputs():
        assert status == 0, errors
        assert errors == ""
        assert json.loads(found) == json.loads(wanted)


@pytest.mark.parametrize(("victim", "number"), [(2, signal.SIGKILL), (0, signal.SIGKILL)])
def test_a_killed_rank_is_named_by_all_others(start_ranks, victim: int, number: int) -> None:
    ranks = start_ranks(_endless(stages=2, ways=2), 4)
    for process in ranks.processes:
        process.wait_for("training")
    ranks.processes[victim].send_signal(number)
    begun = time.monotonic()
    told = ranks.outputs()
    assert time.monotonic() - begun < 60
    for rank, (status, _, errors) in enumerate(told):
        if rank != victim:
            assert status == 1
            last = errors.strip().splitlines()[-1]
            assert f"RankFailedError: rank {victim} of 4 is gone" in last, errors


@pytest.mark.parametrize("victim", [1, 0])
def test_a_stopped_rank_is_named_by_all_others(start_ranks, victim: int) -> None:
    ranks = start_ranks(_endless(stages=3, ways=1), 3)
    for process in ranks.processes:
        process.wait_for("training")
    stopped = ranks.processes.pop(victim)
    stopped.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    try:
        for status, _, errors in ranks.outputs():
            assert status == 1
            assert f"rank {victim} of 3 is gone" in errors.strip().splitlines()[-1], errors
        assert time.monotonic() - begun < 60
    finally:
        stopped.kill()


def test_a_rank_that_raises_is_named_by_all_others(start_ranks) -> None:
    raising = "if dist.get_rank() == 1: raise ValueError('of a user')"
    told = start_ranks(_endless(stages=3, ways=1, after=raising), 3).outputs()
    for rank, (status, _, errors) in enumerate(told):
        last = "ValueError: of a user" if rank == 1 else "rank 1 of 3 is gone"
        assert status == 1
        assert last in errors.strip().splitlines()[-1], errors


def test_ranks_wait_for_one_that_comes_late(start_ranks) -> None:
    """Later than a rank may be silent that has begun."""
    late = "import time; time.sleep(7 * dist.get_rank())"
    ranks = start_ranks(_endless(stages=2, ways=1, before=late, after="break"), 2)
    assert [status for status, _, _ in ranks.outputs()] == [0, 0]


IN_A_NAMESPACE = """
    import ctypes, os, subprocess
    import torch
    new_network = 0x40000000
    assert ctypes.CDLL(None).unshare(new_network) == 0
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", WORLD_SIZE="2")
    os.environ["RANK"] = "0" if os.fork() else "1"
"""


@pytest.mark.parametrize(("stages", "ways"), [(2, 1), (1, 2)])
def test_the_network_counts_the_bytes_of_the_ledger(
    run_forked, tmp_path: Path, stages: int, ways: int
) -> None:
    """Two ranks in a network namespace of their own: what its loopback carries is theirs alone."""
    probe = ["unshare", "--net", "sh", "-c", "ip link set lo up"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this machine permits no network namespace")
    script = (
        IN_A_NAMESPACE
        + PIPELINE
        + """
    from pathlib import Path

    def carried():
        lines = Path("/proc/net/dev").read_text().splitlines()
        return sum(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))

    dist.init_process_group("gloo")
    pipe = pipe_of(graph(nodes=3000, edges=9000), {stages}, {ways}, chunks=6, hidden=256, layers=2)
    optimizer = torch.optim.Adam(pipe.parameters(), lr=0.01)
    pipe.reset_ledger()
    dist.barrier()
    before = carried()
    for _ in range(6):
        pipe.train_epoch(optimizer)
    dist.barrier()
    found = carried() - before
    counted = pipe.ledger()
    if pipe.rank == 0:
        print(json.dumps([found, counted]))
        assert os.wait()[1] == 0
"""
    )
    done = run_forked(_fill(script, {"stages": stages, "ways": ways}), tmp_path)
    assert done.returncode == 0, done.stderr
    carried, counted = json.loads(done.stdout)
    assert counted["layer" if stages == 2 else "graph"] > 30e6
    assert carried == pytest.approx(sum(counted.values()), rel=0.05)


def test_control_bytes_are_those_planned_and_parts_of_the_state_are_not_sent(start_ranks) -> None:
    stages, ways = 2, 2
    script = (
        PIPELINE
        + """
    from gnnsys.pipeline.costs import Split, estimate_costs

    dist.init_process_group("gloo")
    pipe = pipe_of(graph(), {stages}, {ways}, chunks=6, hidden=64)
    costs = estimate_costs(
        pipe.infos, Split({stages}, {ways}, 6), num_nodes=97, num_edges=400,
        chunk_sizes=pipe.partition.chunk_sizes, halo=[0] * {ways},
    )
    optimizer = torch.optim.Adam(pipe.parameters(), lr=0.01)
    for _ in range(3):
        pipe.train_epoch(optimizer)
    epochs = pipe.ledger()["control"]
    pipe.reset_ledger()
    weights, moments = pipe.held_state_dict(), pipe.held_optimizer_state_dict(optimizer)
    found = {
        "epochs": [epochs, 3 * costs.control_bytes],
        "sent for parts": pipe.ledger().get("control", 0),
        "parts": pipe.gather([*weights]),
        "moments": pipe.gather([*moments]),
        "whole": [*pipe.state_dict()],
    }
    print(json.dumps(found))
"""
    )
    ranks = start_ranks(_fill(script, {"stages": stages, "ways": ways}), stages * ways)
    for status, out, errors in ranks.outputs():
        assert status == 0, errors
        found = json.loads(out)
        counted, planned = found["epochs"]
        assert counted == planned
        assert found["sent for parts"] == 0
        for parts in (found["parts"], found["moments"]):  # the first ways have all, once
            assert [bool(part) for part in parts] == [True, False, True, False]
            assert [*chain(*parts)] == found["whole"]


def _endless(*, stages: int, ways: int, before: str = "", after: str = "") -> str:
    return _fill(ENDLESS, {"stages": stages, "ways": ways, "before": before, "after": after})


def _fill(script: str, values: dict[str, object]) -> str:
    for name, value in values.items():
        script = script.replace("{" + name + "}", str(value))
    return script


def test_the_example_script_gives_the_same_under_torchrun_and_without(
    tmp_path: Path, fork_script: Callable[..., Any]
) -> None:
    example = Path(__file__).parents[2] / "scripts" / "gnnpipe_example.py"
    script = Path(shutil.copy(example, tmp_path))
    options, one = ("--stages", "2", "--epochs", "10"), {"OMP_NUM_THREADS": "1"}
    status, alone, errors = fork_script(script, "alone", tmp_path, options, one).outcome()
    assert status == 0, errors
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    ranks = subprocess.run(
        [*torchrun, script, *options], cwd=tmp_path, env={**os.environ, **one},
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    told = alone.splitlines()[0]
    assert ranks.stdout.splitlines()[0] == told
    assert float(told.split()[-1]) > 0.25  # of five classes


def test_a_world_of_another_size_is_refused_with_the_equation(start_ranks) -> None:
    script = _fill(IN_MANY, {"stages": 3, "ways": 2})
    for status, _, errors in start_ranks(script, 2).outputs():
        assert status == 1
        wanted = "stages(3) * ways(2) != world size(2): start 6 ranks or change stages and ways"
        assert f"ArgumentError: {wanted}" in errors
