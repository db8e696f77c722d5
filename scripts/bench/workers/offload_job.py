"""Trains a deep model on a full graph in one of the ways that keep activations: offload_job.py

What autograd keeps is left to it, moved or shrunk by gnnsys.ActivationOffload, copied by torch's
save_on_cpu, or computed again by torch's checkpoint of each layer.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from offload_models import MODELS, Block
from protocol import Clock, open_channel, serve
from resident import peak_bytes, restart_peak, settled_bytes
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import gnnsys
from gnnsys.memory.alloc import suit_freed_memory
from gnnsys.training.datasets import load_dataset

_LEARNING_RATE = 0.01


class TrainingJob:
    """Answers requests about one model, trained in one way."""

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Makes the model, the same ones for the same sizes."""
        torch.set_num_threads(request["threads"])
        if request["keep_freed"]:
            gnnsys.keep_freed_memory()
        else:
            suit_freed_memory(0)  # large tensors are mapped one by one: no gaps in a heap
        dataset = load_dataset(request["dataset"], request["root"], device="cpu")
        task = dataset.node_task
        self._x, edge_index = dataset.features.materialize(), dataset.edge_index()
        self._train, self._labels = task.train, task.labels[task.train]
        torch.manual_seed(0)
        nodes, features = self._x.shape
        sizes = nodes, features, request["hidden"], task.num_classes, request["depth"]
        self._model = MODELS[request["model"]](edge_index, *sizes)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=_LEARNING_RATE)
        self._run = _run_again if request["side"] == "checkpoint" else _run_plainly
        self._saving = _make_saving(request)
        self._before = 0
        return {"nodes": nodes, "edges": edge_index.shape[1]}

    def saved(self, request: dict[str, Any]) -> dict[str, Any]:
        """Bytes of the storages that autograd keeps from forward to backward, each counted once;
        not those of parameters and features, which are there anyway."""
        storages = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        self._model.begin(0)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self._loss()  # lets no storage go, so that no address comes twice
        outside = [self._x, self._labels, self._train, *self._model.buffers()]
        for tensor in (*outside, *self._model.parameters()):
            storages.pop(tensor.untyped_storage().data_ptr(), None)
        del loss
        return {"bytes": sum(storages.values())}

    def settle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Peaks are told above what is resident now."""
        self._before = settled_bytes()
        return {}

    def step(self, request: dict[str, Any]) -> dict[str, Any]:
        """One training step: its time, the most memory above that of ``settle``, and digests of
        the loss, the gradients and the weights that it gave."""
        self._model.begin(request["seed"])
        self._optimizer.zero_grad()
        restart_peak()
        with Clock() as clock:
            with self._saving:
                loss = self._loss()
            loss.backward()
            self._optimizer.step()
        return {
            "seconds": clock.seconds,
            "cpu_seconds": clock.cpu_seconds,
            "peak_bytes": peak_bytes() - self._before,
            "digests": self._digests(loss),
            "stats": (
                self._saving.stats.as_dict()
                if isinstance(self._saving, gnnsys.ActivationOffload)
                else None
            ),
        }

    def close(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ends threads and removes files."""
        if isinstance(self._saving, gnnsys.ActivationOffload):
            self._saving.close()
        return {}

    def _digests(self, loss: Tensor) -> dict[str, str]:
        found = {"loss": _digest(loss)}
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None:
                found[f"gradient of {name}"] = _digest(parameter.grad)
            found[name] = _digest(parameter)
        return found

    def _loss(self) -> Tensor:
        return F.cross_entropy(self._model(self._x, self._run)[self._train], self._labels)


def _make_saving(request: dict[str, Any]) -> AbstractContextManager[Any]:
    """What forward runs in."""
    if request["side"] == "save_on_cpu":
        return save_on_cpu()
    if request["policies"] is None:
        return nullcontext()
    return gnnsys.ActivationOffload(
        request["budget"], folder=request["folder"], policies=request["policies"]
    )


def _run_plainly(block: Block, x: Tensor) -> Tensor:
    return block(x)


def _run_again(block: Block, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=False)


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy()).hexdigest()[:16]


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    job = TrainingJob()
    jobs = {name: getattr(job, name) for name in ("open", "saved", "settle", "step", "close")}
    serve(channel, {"gnnsys": gnnsys.__version__, "torch": torch.__version__}, jobs)


if __name__ == "__main__":
    main()
