"""What gnnsys cluster leaves: weights with checksums, a folder of one process, matching colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gnnsys.clustering.picture import cluster_colors
from gnnsys.commands.cli import main
from gnnsys.config.run_files import LOCK
from gnnsys.generate import generate_community
from gnnsys.system.files import lock_file

_FEW = ["--k", "3", "--epochs", "1", "--pretrain-epochs", "1", "--warm-epochs", "1"]


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(generate_community("g", nodes=60, classes=3, features=4, degree=3))


@pytest.mark.parametrize("seed", range(8))
def test_damaged_weights_are_refused(
    graph: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster", graph, *_FEW, "--out", "run"]) == 0
    again = ["cluster", "--assign", "g/features.npy", "--run", "run", "--out", "clusters.npy"]
    assert main(again) == 0
    assert np.array_equal(np.load("clusters.npy"), np.load("run/assignments.npy"))
    path = next(Path("run").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    length = 40 if seed else 4
    place = len(data) - length - seed * 16
    assert any(data[place : place + length])
    data[place : place + length] = bytes(length)
    path.write_bytes(data)
    Path("clusters.npy").unlink()
    capsys.readouterr()
    assert main(again) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert not Path("clusters.npy").exists()


def test_a_folder_is_of_one_process(graph: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cluster", graph, *_FEW, "--out", "run"]
    with lock_file(Path("run") / LOCK):
        assert main(command) == 2
        assert "is writing this run" in capsys.readouterr().err
    assert main(command) == 0  # the lock of a process that is gone counts no more
    assert not (Path("run") / LOCK).exists()


def test_clusters_have_the_colours_of_their_classes() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 3000)
    renamed = rng.permutation(6)
    clusters = renamed[labels]
    wrong = rng.random(3000) < 0.2
    clusters[wrong] = rng.integers(0, 6, int(wrong.sum()))
    colors = cluster_colors(labels, clusters)
    assert colors == {int(renamed[label]): label for label in range(6)}
    unknown = cluster_colors(np.full(5, -1), np.arange(5))
    assert unknown == {}
    more = cluster_colors(np.array([0, 0, 1]), np.array([3, 2, 1]))
    assert len(set(more.values())) == 3
    assert more[1] == 1
