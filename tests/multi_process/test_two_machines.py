"""Ranks on two machines, each a network namespace with a link to the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gnnsys.generate import generate_community

TRAIN = """
    import os
    from gnnsys.commands.cli import main
    from gnnsys.ranks import liveness

    liveness.Liveness.__init__.__defaults__ = (0.3, 4.0, 30.0)
    options = "--hidden 8 --fanouts 4 3 --batch-size 32 --threads 1 --device cpu --eval sampled"
    options += " --cache 0.3 --storage pread"  # shared: in place on one machine, sent between two
    print(main(["train", {graph!r}, *options.split(), "--epochs", "{epochs}", "--out", "run"]))
"""
FIRST = "10.93.0.1"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Two network namespaces; their ends of the link between them are called ``wire``."""
    names = [f"gnnsys-{os.getpid()}-{number}" for number in range(2)]
    if shutil.which("ip") is None:
        pytest.skip("no iproute2")
    try:
        for name in names:
            probe = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
            if probe.returncode:
                pytest.skip(f"no network namespace: {probe.stderr.strip()}")
        first, second = names
        ends = ["wire", "netns", first, "type", "veth", "peer", "name", "wire", "netns", second]
        ip("link", "add", *ends)
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.93.0.{number}/24", "dev", "wire")
            for link in ("lo", "wire"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def losses_of(run: Path) -> list[float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "epoch"]


def test_two_machines_train_as_one_and_name_each_other_when_their_link_is_cut(
    start_ranks, tmp_path: Path, machines: list[str]
) -> None:
    graph = str(generate_community(tmp_path / "graph", nodes=400, classes=4, features=8, degree=6))
    far = start_ranks(TRAIN.format(graph=graph, epochs=10**6), 2, (machines, FIRST))
    near = start_ranks(TRAIN.format(graph=graph, epochs=3), 2)
    assert [status for status, _, _ in near.outputs()] == [0, 0]
    wanted = losses_of(tmp_path / "1" / "run")
    metrics = tmp_path / "0" / "run" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count('"epoch",') < len(wanted):
        assert far.processes[0].alive(), far.processes[0].outcome()
        time.sleep(0.02)
    ip("-n", machines[1], "link", "set", "wire", "down")
    begun = time.monotonic()
    told = far.outputs()
    assert time.monotonic() - begun < 60
    assert losses_of(metrics.parent)[: len(wanted)] == wanted
    for rank, (status, out, errors) in enumerate(told):
        assert out.split()[-1] == "2", errors
        assert status in (0, 1)  # gloo's threads may wait on: then the process ends by 1
        assert "Traceback" not in errors
        [line] = [line for line in errors.splitlines() if line.startswith("gnnsys: ")]
        assert line.startswith("gnnsys: error: ")  # where it was, if in a batch
        lost = f"rank {1 - rank} of 2 is gone or no longer answers; this rank, {rank}, "
        assert lost + "cannot go on without it" in line  # or its part of the cache
