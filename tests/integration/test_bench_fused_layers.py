"""The benchmark of fused layers, on a small graph."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch


def test_layers_take_turns_on_batches_and_a_full_graph(
    tmp_path: Path, real_graphs: Path, run_entry, check_report
) -> None:
    pytest.importorskip("numba")
    report = tmp_path / "fused_layers.json"
    options = ["--quick", "--scale", "8", "--batch-size", "16", "--batches", "1", "--fanouts", "3"]
    options += ["2", "--threads", "1", "--hidden", "16", "--json", str(report)]
    options += ["--inputs", "rmat", "cora", "--root", str(real_graphs), "--models", "gcn"]
    done = run_entry("fused_layers.py", *options)
    assert done.returncode == 0, done.stderr
    cases = check_report(report, "fused_layers")["cases"]
    told = [(case["labels"]["input"], case["labels"]["model"]) for case in cases]
    assert told == [("rmat", "gcn"), ("cora", "gcn")]
    for case in cases:
        assert float(case["labels"]["difference"]) < 1e-5
        assert [one["name"] for one in case["implementations"]] == ["PyG", "gnnsys.fuse"]


@pytest.mark.parametrize("what", ["outputs", "gradients"])
def test_a_wrong_layer_is_found(bench, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    fused_layers = importlib.import_module("fused_layers")

    def damage(model: torch.nn.Module) -> torch.nn.Module:
        if what == "outputs":
            with torch.no_grad():
                model.last.bias.add_(1e-3)
        else:
            model.last.bias.register_hook(lambda gradient: gradient * 1.001)
        return model

    monkeypatch.setattr(fused_layers.gnnsys, "fuse", damage)
    edges, x = torch.tensor([[0, 1], [1, 2]]), torch.ones(3, 4)
    batch = fused_layers.Batch(x, edges, torch.zeros(1).long(), slice(1))
    training = fused_layers.Training(lambda: fused_layers.Net("gcn", 4, 8, 8, 2), [batch], 1)
    with pytest.raises(bench.harness.CheckError, match=f"{what} differ by"):
        training.check()
