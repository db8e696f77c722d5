"""``gnnsys predict``: classes or numbers, logits and embeddings of nodes, or links, by the best
weights of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Iterator
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.nn.models.basic_gnn import BasicGNN

from gnnsys.choices import METRICS
from gnnsys.commands.predict_links import Shapes, check_link_options, predict_links, write_rows
from gnnsys.commands.predict_seeds import read_seeds
from gnnsys.commands.prediction_table import TABLES, write_table
from gnnsys.config.checks import check_bytes, given_options, written
from gnnsys.config.file import check_place, resumed_config
from gnnsys.config.predict import PredictConfig
from gnnsys.config.resolve import Run, resolve
from gnnsys.config.run_files import RESULT, result_name
from gnnsys.config.train import TrainConfig
from gnnsys.convert.dialect import require_pyarrow
from gnnsys.dataset.folder import open_dataset
from gnnsys.dataset.format import MANIFEST
from gnnsys.errors import ArgumentError
from gnnsys.features.options import FeatureOptions
from gnnsys.memory.alloc import suit_freed_memory
from gnnsys.pipeline import DeepModel
from gnnsys.system.budget import process_budget
from gnnsys.system.files import as_storage_error
from gnnsys.system.progress import Progress, work_progress
from gnnsys.system.records import json_text
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.checkpoint import load_weights
from gnnsys.training.datasets import NodeDataset, load_run_dataset
from gnnsys.training.embedding_tables import BestRows
from gnnsys.training.evaluation import Scope, scope_of, warn_of_sums
from gnnsys.training.exact_inference import run_layers
from gnnsys.training.hetero_exact import exact_rows
from gnnsys.training.hetero_models import HeteroClassifier, HeteroModel
from gnnsys.training.hetero_steps import HeteroMiniBatch
from gnnsys.training.layer_reads import LayerReads, asked_reads
from gnnsys.training.link_models import LinkModel
from gnnsys.training.memory import activation_folder, plan_run
from gnnsys.training.metrics import Kind, kind_of, measure
from gnnsys.training.mini_batch import MiniBatch
from gnnsys.training.model_layers import model_layers
from gnnsys.training.models import NodeClassifier, make_model
from gnnsys.training.run_folder import check_eval_store
from gnnsys.training.seed_times import goes_by_times, settle_times
from gnnsys.training.task import NodeTask, Part, Task

__all__ = ["predict", "run_command"]

_ROWS = 1 << 16  # of a table that are in memory at a time
_PARTS: tuple[Part, ...] = ("val", "test")

Metrics = dict[str, dict[str, float]]
"""By part and by name."""


def run_command(config: PredictConfig) -> int:
    """Writes the files and says where, and how right they are."""
    # The process is this command's.
    suit_freed_memory(check_bytes("memory", config.memory) or process_budget().left())
    with work_progress() as progress:
        written = predict(config, progress)
    if config.json:
        print(json_text(written))
        return 0
    for name, shape in written["files"].items():
        path = f"{written['path']}/{name}" if name else written["path"]
        print(f"{path}  {' x '.join(map(str, shape))}")
    for line in _judged_lines(written["metrics"], written["run_metrics"]):
        print(line)
    return 0


def _judged_lines(here: Metrics, run: Metrics) -> Iterator[str]:
    for part, found in here.items():
        for name, value in found.items():
            had = run.get(part, {}).get(name)
            beside = "" if had is None else f" (the run's {had:.4f})"
            yield f"{part} {name} {value:.4f}{beside}"


def predict(
    config: PredictConfig, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Classifies nodes, exactly unless ``config.sampled``, and writes .npy files or a table.

    Returns:
        ``{"path": folder or table, "files": {name: shape}}``, the table's name being empty;
        ``task``; ``parts``, the first row and the end of val and test, where a task has rows;
        ``metrics`` and ``run_metrics``, each ``{"val": {name: value}, "test": …}``: of the nodes
        that were classified, where all of a part were, and of the run.

    Raises:
        GnnsysError: no run, weights that do not fit the dataset, ids outside the nodes, or a place
            that cannot be written or is taken.
    """
    run = Path(config.run)
    options = dataclasses.replace(resumed_config(run), resume=None, threads=config.threads)
    if config.dataset is None:
        check_place(options.dataset, config.run, "--dataset")
    options = dataclasses.replace(options, dataset=config.dataset or options.dataset)
    if timed := goes_by_times(options):
        _check_topology(config)
    options = dataclasses.replace(
        options,
        root=config.root or options.root,
        device="cpu",
        sampler="auto",
        eval="sampled" if config.sampled or timed else "layerwise",
        eval_store=config.eval_store,
        eval_reads=config.eval_reads,
        topology=config.topology,
        topology_memory=config.topology_memory,
        pack=False,
        pack_space=None,
        pack_folder=None,
    )
    best = BestRows.of(run, options)
    options.embeddings = "auto" if best is None else str(best.folder)
    features = FeatureOptions(cache=config.cache, storage=config.storage)
    trained = dataclasses.replace(settle_times(resolve(options)), features=features)
    if trained.ranks > 1:
        raise ArgumentError(
            f"{trained.ranks} ranks: predictions are made by one process; start one"
        )
    out = Path(config.out) if config.out else run / "predictions"
    with process_budget().run(check_bytes("memory", config.memory)):
        if out.exists():
            raise ArgumentError(f"{out}: exists already; give another --out, or remove it")
        if out.suffix in TABLES:
            require_pyarrow(f"--out {out.name}")
        check_eval_store(config.eval_store)
        evaluation = plan_run(trained, trains=False)
        dataset = load_run_dataset(trained, device="cpu")
        with closing(dataset):
            reads = asked_reads(trained.config) if evaluation is None else evaluation.reads
            return _predict(config, trained, dataset, reads, best, out, progress)


def _check_topology(config: PredictConfig) -> None:
    for name in given_options(config, ("topology", "topology_memory")):
        raise ArgumentError(
            f"{written(config, name)}: what {config.run} was trained on has times, by which "
            "neighbours are sorted in memory or mapped; leave it out"
        )


def _predict(
    config: PredictConfig,
    trained: Run,
    dataset: NodeDataset,
    reads: LayerReads,
    best: BestRows | None,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    model = make_model(trained, dataset, best.make if best else None)
    check_link_options(config, isinstance(model, LinkModel))
    nodes = read_seeds(config.nodes, dataset)
    load_weights(Path(config.run), model)
    model.eval()
    with as_storage_error(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = ScratchFolder(f".{out.name}.partial-", out.parent)
        made = scratch.path / "predictions"
        made.mkdir()
    with closing(scratch):
        place = made / out.name if out.suffix in TABLES else made
        if isinstance(model, LinkModel):
            files, metrics = predict_links(config, trained, dataset, model, nodes, place, progress)
        else:
            blocks = _blocks(config, trained, dataset, model, nodes, reads, progress)
            files, metrics = _predict_nodes(trained, dataset, nodes, blocks, place)
        with as_storage_error(out):
            place.rename(out)
    return {
        "path": str(out),
        "task": trained.config.task,
        "files": {name: list(shape) for name, shape in files.items()},
        "parts": _parts_of_rows(config, dataset.task),
        "metrics": metrics,
        "run_metrics": _metrics_of_run(Path(config.run)),
    }


def _predict_nodes(
    trained: Run,
    dataset: NodeDataset,
    nodes: Tensor,
    blocks: Iterator[tuple[Tensor | None, Tensor]],
    place: Path,
) -> tuple[Shapes, Metrics]:
    """Writes a folder, or a table in one; returns shapes of the files, and metrics."""
    table = place.suffix in TABLES
    folder = place.parent if table else place
    files = _write_seeds(folder, dataset.node_task, nodes)
    files |= _write_blocks(folder, blocks, len(nodes), kind_of(dataset.node_task.labels))
    scores = np.load(folder / "scores.npy", mmap_mode="r")
    metrics = _judge(trained.config, dataset, nodes, scores)
    if table:
        files = {"": _write_table(place, trained, dataset, nodes, scores)}
    return files, metrics


def _write_seeds(folder: Path, task: NodeTask, seeds: Tensor) -> Shapes:
    """Writes which nodes are classified and, where it counts, at which time."""
    held = {"nodes.npy": task.node_ids(seeds), "times.npy": task.times(seeds)}
    for name, ids in held.items():
        if ids is not None:
            with as_storage_error(folder / name):
                np.save(folder / name, ids.numpy())
    return {name: (len(ids),) for name, ids in held.items() if ids is not None}


def _parts_of_rows(config: PredictConfig, task: Task) -> dict[str, list[int]]:
    if not isinstance(task, NodeTask) or task.seed_nodes is None or config.nodes is not None:
        return {}
    ends = len(task.val), len(task.val) + len(task.test)
    return {"val": [0, ends[0]], "test": [ends[0], ends[1]]}


def _blocks(
    config: PredictConfig,
    trained: Run,
    dataset: NodeDataset,
    model: NodeClassifier | HeteroModel | DeepModel,
    nodes: Tensor,
    reads: LayerReads,
    progress: Progress,
) -> Iterator[tuple[Tensor | None, Tensor]]:
    """What the last layer reads, where it is known, and what it gives, of one block of nodes after
    another."""
    if trained.config.eval != "sampled":
        scope = _scope(config, trained, dataset, model, nodes)
        if isinstance(model, HeteroModel):
            read, logits, folder = exact_rows(trained.config, dataset, model, progress)
        else:
            read, logits, folder = _exact_rows(trained, dataset, model, scope, reads, progress)
        with closing(folder) if folder else nullcontext():
            done = 0
            for some in _split(dataset.node_task.node_ids(nodes)):
                below = None if read is None else _rows(read, scope.inputs(some))
                yield below, _rows(logits, scope.places(some))
                done += len(some)
                progress("write: nodes", done, len(nodes))
        return
    if isinstance(model, DeepModel) or len(nodes) == 0:
        why = (
            "no nodes to classify" if len(nodes) == 0 else f"{trained.config.model} has no fanouts"
        )
        raise ArgumentError(f"--sampled: {why}; leave it out")
    kept: list[Any] = []
    last: torch.nn.Module | None = None
    steps: MiniBatch
    if isinstance(model, HeteroModel):
        steps = HeteroMiniBatch(trained, dataset, model)
        last = model.head if isinstance(model, HeteroClassifier) else None
    else:
        steps = MiniBatch(trained, dataset, model)
        if isinstance(model.gnn, BasicGNN):
            last = model.gnn.convs[-1]
    if last is not None:
        _keep_inputs(last, kept, trained.config.sums == "scaled")
    done = 0
    for logits in steps.logits(nodes):
        # Of the seeds first; where layers are trimmed, also of these alone.
        inputs = kept.pop() if kept else None
        rows = inputs[0] if isinstance(inputs, tuple) else inputs
        yield None if rows is None else rows[: len(logits)].detach(), logits
        done += len(logits)
        progress("sampled batches: nodes", done, len(nodes))


def _rows(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a tensor; of a file, in one pass where they stand in a row."""
    store = getattr(table, "store", None)
    if store is None or store.resident is not None or len(ids) == 0:
        return table[ids]
    first, last = int(ids[0]), int(ids[-1]) + 1
    if not torch.equal(ids, torch.arange(first, last)):
        return table[ids]
    rows = torch.empty((len(ids), *store.shape[1:]), dtype=store.dtype)
    store.read_range(first, last, rows)
    return rows


def _keep_inputs(conv: Any, kept: list[Any], scaled: bool) -> None:
    """Has a layer append what it reads."""
    if not scaled:
        conv.register_forward_pre_hook(lambda layer, inputs: kept.append(inputs[0]))
        return
    propagate = conv.propagate  # all of the layer that is called where sums are scaled

    def keep(edge_index: Tensor, **inputs: Any) -> Tensor:
        kept.append(inputs["x"])
        out: Tensor = propagate(edge_index, **inputs)
        return out

    conv.propagate = keep


def _scope(
    config: PredictConfig,
    trained: Run,
    dataset: NodeDataset,
    model: NodeClassifier | HeteroModel | DeepModel,
    nodes: Tensor,
) -> Scope:
    """The nodes that layers compute: all, or those alone that the chosen ones depend on."""
    if (
        config.eval_reads == "sequential"
        or config.nodes is None
        or len(nodes) == 0
        or isinstance(model, (HeteroModel, DeepModel))
    ):
        return Scope(layers=None, nbytes=0)
    return scope_of(trained.config, dataset.graph, (nodes,), dataset.features.shape[1])


def _exact_rows(
    trained: Run,
    dataset: NodeDataset,
    model: NodeClassifier | DeepModel,
    scope: Scope,
    reads: LayerReads,
    progress: Progress,
) -> tuple[Tensor, Tensor, ScratchFolder | None]:
    """What the last layer reads and what it gives, of a scope; and the folder of their files."""
    if isinstance(model, DeepModel):
        read, logits = _last_rows(model, dataset)
        return read, logits, None
    warn_of_sums(trained.config, dataset.graph)
    layers = model_layers(model, dataset.graph)
    sizes = scope.sizes(dataset.graph.num_nodes, len(layers))
    folder = activation_folder(trained.config, dataset.task.outputs, sizes)
    rows = deque[Tensor]([dataset.features], maxlen=2)
    results = run_layers(
        layers,
        dataset.features,
        dataset.graph,
        device=torch.device("cpu"),
        out=folder.path / "out.npy" if folder else None,
        threads=trained.config.threads,
        only=scope.layers,
        reads=reads,
        progress=progress,
    )
    rows.extend(islice(results, len(layers)))  # not to its end, where files are removed
    read, logits = rows
    return read, logits, folder


def _write_blocks(
    folder: Path, blocks: Iterator[tuple[Tensor | None, Tensor]], count: int, kind: Kind
) -> Shapes:
    """Writes embeddings, where they are known, scores and predictions; returns their shapes."""

    def arrays() -> Iterator[dict[str, NDArray[Any]]]:
        for read, logits in blocks:
            known = {} if read is None else {"embeddings.npy": read}
            made = {**known, "scores.npy": logits, "predictions.npy": _answers(logits, kind)}
            yield {name: rows.numpy() for name, rows in made.items()}

    return write_rows(folder, arrays(), count)


def _answers(logits: Tensor, kind: Kind) -> Tensor:
    if kind == "values":
        return logits[:, 0]
    return (logits > 0).to(torch.uint8) if kind == "labels" else logits.argmax(dim=1)


def _write_table(
    path: Path, trained: Run, dataset: NodeDataset, nodes: Tensor, scores: NDArray[Any]
) -> tuple[int, int]:
    folder, ids, classes = Path(trained.config.dataset), None, None
    if (folder / MANIFEST).is_file():
        opened = open_dataset(folder)
        ids = opened.node_ids(dataset.target)
        about = opened.manifest.source
        found = about.get("tasks", {}).get(trained.config.task, about).get("classes")
        classes = found if isinstance(found, list) else None  # a generated graph has their number
    task = dataset.node_task
    times = task.times(nodes)
    return write_table(
        path,
        task.node_ids(nodes).numpy(),
        scores,
        kind=kind_of(task.labels),
        ids=ids,
        classes=classes,
        times=None if times is None else times.numpy(),
    )


def _judge(
    config: TrainConfig, dataset: NodeDataset, nodes: Tensor, scores: NDArray[Any]
) -> Metrics:
    """Of the parts whose nodes were all classified."""
    task = dataset.node_task
    reported = task.reported(task.chosen(config.metric))
    ids, order = nodes.sort()
    found: Metrics = {}
    for part in _PARTS:
        wanted = task.nodes(part)
        if not task.has_truth(part):
            continue
        places = torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1)
        if len(wanted) == 0 or len(ids) == 0 or not torch.equal(ids[places], wanted):
            continue
        places = order[places].sort().values  # the file is read from its beginning to its end
        blocks = (torch.from_numpy(scores[some.numpy()]) for some in _split(places))
        found[part] = measure(reported, blocks, task.labels, nodes[places])
    return found


def _metrics_of_run(run: Path) -> Metrics:
    """As ``result.json`` has them; none of a run that has not ended."""
    path = run / RESULT
    if not path.is_file():
        return {}
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        told = json.loads(path.read_text())
        known = {name: result_name(name) for kind in METRICS.values() for name in kind}
        return {
            part: {
                name: float(told[f"{part}_{short}"])
                for name, short in known.items()
                if isinstance(told.get(f"{part}_{short}"), (int, float))
            }
            for part in _PARTS
        }
    return {}


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


def _split(nodes: Tensor) -> Iterator[Tensor]:
    return iter(nodes.split(_ROWS))
