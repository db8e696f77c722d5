"""``gnnsys predict``: classes, logits and embeddings of nodes by the best weights of a run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.config.checks import check_bytes
from gnnsys.config.file import resumed_config
from gnnsys.config.predict import PredictConfig
from gnnsys.config.resolve import Run, resolve
from gnnsys.convert.tables import open_array
from gnnsys.dataset.folder import check_nodes
from gnnsys.errors import ArgumentError, FileFormatError
from gnnsys.features.options import FeatureOptions
from gnnsys.pipeline import DeepModel
from gnnsys.system.budget import process_budget
from gnnsys.system.files import as_storage_error, npy_header
from gnnsys.system.progress import Progress, work_progress
from gnnsys.training.checkpoint import load_weights
from gnnsys.training.exact_inference import model_layers, run_layers
from gnnsys.training.memory import plan_run
from gnnsys.training.models import make_model
from gnnsys.training.steps import activation_folder
from gnnsys.training.task import NodeDataset, load_run_dataset

__all__ = ["predict", "run_command"]

_ROWS = 1 << 16  # of a table that are in memory at a time


def run_command(config: PredictConfig) -> int:
    """Writes the files and says where."""
    with work_progress() as progress:
        written = predict(config, progress)
    if config.json:
        print(json.dumps(written))
        return 0
    for name, shape in written["files"].items():
        print(f"{written['path']}/{name}  {' x '.join(map(str, shape))}")
    return 0


def predict(
    config: PredictConfig, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Classifies nodes exactly, layer by layer, and writes the results as .npy files.

    Returns:
        ``{"path": folder, "files": {name: shape}}``.

    Raises:
        GnnsysError: no run, weights that do not fit the dataset, ids outside the nodes, or a folder
            that cannot be written or holds files already.
    """
    run = Path(config.run)
    options = dataclasses.replace(resumed_config(run), resume=None, threads=config.threads)
    options = dataclasses.replace(
        options,
        dataset=config.dataset or options.dataset,
        root=config.root or options.root,
        device="cpu",
        eval="layerwise",
    )
    features = FeatureOptions(cache=config.cache, storage=config.storage)
    trained = dataclasses.replace(resolve(options), features=features)
    out = Path(config.out) if config.out else run / "predictions"
    with process_budget().run(check_bytes("memory", config.memory)):
        if out.exists():
            raise ArgumentError(
                f"{out}: exists already; give another folder with --out, or remove it"
            )
        plan_run(trained)
        dataset = load_run_dataset(trained, device="cpu")
        with closing(dataset):
            return _predict(config, trained, dataset, out, progress)


def _predict(
    config: PredictConfig, trained: Run, dataset: NodeDataset, out: Path, progress: Progress
) -> dict[str, Any]:
    nodes = _read_nodes(config.nodes, dataset)
    model = make_model(trained, dataset)
    load_weights(Path(config.run), model)
    model.eval()
    folder = None
    if isinstance(model, DeepModel):
        results, count = iter(_last_rows(model, dataset)), 2
    else:
        layers = model_layers(model, dataset.graph)
        count = len(layers)
        folder = activation_folder(trained.config, dataset)
        results = run_layers(
            layers,
            dataset.features,
            dataset.graph,
            device=torch.device("cpu"),
            out=Path(folder.name) / "out.npy" if folder else None,
            threads=trained.config.threads,
            progress=progress,
        )
    with as_storage_error(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{out.name}.partial-", dir=out.parent))
    try:
        files = {"nodes.npy": _write(partial / "nodes.npy", nodes, Tensor.numpy)}
        if count == 1:
            files["embeddings.npy"] = _write_rows(partial, "embeddings", dataset.features, nodes)
        for number, rows in enumerate(results, start=1):
            if number == count - 1:
                files["embeddings.npy"] = _write_rows(partial, "embeddings", rows, nodes)
            if number == count:
                files["scores.npy"] = _write_rows(partial, "scores", rows, nodes)
                classes = _classes_of(rows, dataset.multi_label)
                files["predictions.npy"] = _write(partial / "predictions.npy", nodes, classes)
        with as_storage_error(out):
            partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return {"path": str(out), "files": {name: list(shape) for name, shape in files.items()}}


@torch.no_grad()
def _last_rows(model: DeepModel, dataset: NodeDataset) -> list[Tensor]:
    """What the decoder reads and what it gives, of all nodes: deep models run in memory."""
    read: list[Tensor] = []
    handle = model.layers[-1].register_forward_pre_hook(lambda layer, inputs: read.append(*inputs))
    try:
        logits = model(dataset.features.materialize(), dataset.edge_index())
    finally:
        handle.remove()
    return [read[0], logits]


def _read_nodes(path: str | None, dataset: NodeDataset) -> Tensor:
    count = dataset.graph.num_nodes
    if path is None:
        return torch.arange(count)
    source = open_array(path)
    if len(source.shape) != 1 or source.dtype.kind not in "iu":
        raise FileFormatError(
            f"{path}: {source.dtype} of shape {source.shape}, expected (n,) node ids"
        )
    blocks = [block.astype(np.int64) for block in source.blocks()]
    ids = np.concatenate([np.empty(0, np.int64), *blocks])
    check_nodes(ids, count, path)
    return torch.from_numpy(ids)


def _write(
    path: Path, nodes: Tensor, array_of: Callable[[Tensor], NDArray[Any]]
) -> tuple[int, ...]:
    """Writes what ``array_of`` gives for blocks of nodes as one .npy file; returns its shape."""
    with as_storage_error(path), open(path, "wb") as file:
        blocks = map(array_of, nodes.split(_ROWS))
        first = next(blocks)
        shape = (len(nodes), *first.shape[1:])
        file.write(npy_header(shape, first.dtype))
        for block in chain([first], blocks):
            file.write(np.ascontiguousarray(block).data)
    return shape


def _write_rows(folder: Path, name: str, rows: Tensor, nodes: Tensor) -> tuple[int, ...]:
    return _write(folder / f"{name}.npy", nodes, lambda some: rows[some].numpy())


def _classes_of(logits: Tensor, multi_label: bool) -> Callable[[Tensor], NDArray[Any]]:
    if multi_label:
        return lambda some: (logits[some] > 0).to(torch.uint8).numpy()
    return lambda some: logits[some].argmax(dim=1).numpy()
