"""Training of one seed: reconstruction, the contrastive loss alone, k-means, and then the
contrastive and the clustering loss together."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.optim import Optimizer

from gnnsys.clustering.batches import Batch, Batches
from gnnsys.clustering.checkpoint import ClusterEpoch, EpochInHand, SeedResult, SeedState
from gnnsys.clustering.encoders import (
    Encoder,
    MlpEncoder,
    make_decoder,
    make_encoder,
    normalize_rows,
)
from gnnsys.clustering.graph import ClusterGraph
from gnnsys.clustering.metrics import cluster_metrics, modularity
from gnnsys.clustering.objectives import make_objective
from gnnsys.config.cluster import ClusterConfig
from gnnsys.errors import DivergedError
from gnnsys.losses import dec_kl, student_t_assign, target_distribution
from gnnsys.system.progress import Progress
from gnnsys.training.checkpoint import CHECKPOINT, fit_weights
from gnnsys.training.optimisation import check_optimizer

__all__ = ["ClusterTask", "fit_means", "scale_of_features", "train_seed"]

_RECONSTRUCTED = 256  # nodes of a batch
_STARTS = 20  # of k-means
_RENEWED = 10  # epochs for which clusters of the contrastive loss alone are kept
_MANY = 200_000  # nodes, from which on k-means sees them in batches
_MEANS_THREADS = 2
"""Of k-means at most. scikit-learn adds up what threads found in the order in which they come; of
two the sum is the same either way, of more it is another each time."""

_SCALED_BY = 1 << 16  # nodes that the scale of features is taken from

_Looked = tuple[list[float], Tensor, Tensor]
"""The loss and its two parts; (n, dim) embeddings; (n, K) assignments."""


@dataclass(frozen=True, slots=True)
class ClusterTask:
    """What all seeds train on."""

    config: ClusterConfig

    graph: ClusterGraph

    batches: Batches

    clusters: int
    """K."""

    device: torch.device

    progress: Progress

    scale: float
    """Of features; ``scale_of_features``."""

    on_epoch: Callable[[SeedResult], None] = lambda result: None
    """Told after each epoch of training."""

    between: Callable[[Callable[[], SeedState]], None] = lambda state: None
    """Called between two batches with what makes the state then; may raise, to end the seed."""


def scale_of_features(batches: Batches, num_nodes: int, normalize: str) -> float:
    """What brings the root of their mean square to 1, whatever unit they are in.

    Without it, the gradients of small features vanish beside what Adam adds to its divisor.
    """
    nodes = torch.arange(num_nodes)
    if num_nodes > _SCALED_BY:
        draw = torch.Generator().manual_seed(0)
        nodes = torch.randint(num_nodes, (_SCALED_BY,), generator=draw)
    square = normalize_rows(batches.rows(nodes), normalize).square().mean().item()
    return 1 / math.sqrt(square) if square > 0 else 1.0


def fit_means(z: NDArray[np.float32], clusters: int, starts: int, seed: int) -> Any:
    """Fitted k-means of rows (n, dim), the same for the same number of torch threads."""
    threads = min(_MEANS_THREADS, torch.get_num_threads())
    with threadpool_limits(threads, user_api="openmp"):
        if len(z) > _MANY:
            return MiniBatchKMeans(clusters, n_init=3, random_state=seed).fit(z)
        return KMeans(clusters, n_init=starts, random_state=seed).fit(z)


def train_seed(task: ClusterTask, seed: int, before: SeedState | None = None) -> SeedResult:
    """Trains one seed.

    Args:
        before: where it goes on; None begins it.

    Raises:
        DivergedError: the loss or the embeddings are NaN or infinite.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _SeedTrainer(task, before or SeedState(result=SeedResult(seed))).train()


class _SeedTrainer:
    """Goes on from any state: each phase begins in the epoch and batch that the state names."""

    def __init__(self, task: ClusterTask, state: SeedState) -> None:
        self._task, self._config, self._batches = task, task.config, task.batches
        self._state, self._seed = state, state.result.seed
        self._begin = time.perf_counter() - state.result.seconds
        self._objective = make_objective(task.config)
        config = task.config
        self._shape = config.encoder, task.graph.data.x.shape[1], config.hidden, config.dim
        self._encoder = self._new_encoder()
        self._centers = nn.Parameter(torch.empty(task.clusters, config.dim, device=task.device))
        self._models: dict[str, nn.Module] = {}
        self._optimizer: Optimizer

    def train(self) -> SeedResult:
        """Trains all phases, and keeps the epoch that the options select."""
        state = self._state
        while state.phase != "train":
            self._reconstruct()
            self._contrast()
            self._compare()
        self._hold(encoder=self._encoder, centers=nn.ParameterDict({"centers": self._centers}))
        while state.epoch <= self._config.epochs:
            self._train_epoch()
        state.result.seconds = self._seconds()
        return state.result

    def _new_encoder(self) -> Encoder:
        normalize = self._config.normalize or "none"
        return make_encoder(*self._shape, normalize, self._task.scale).to(self._task.device)

    def _seconds(self) -> float:
        return time.perf_counter() - self._begin

    def _tell(self, what: str, done: int, total: int) -> None:
        self._task.progress(f"seed {self._seed}: {what}", done, total)

    def _diverged(self, what: str) -> DivergedError:
        config = self._config
        return DivergedError(
            f"{config.dataset}: {what}, of seed {self._seed}; try a lower --lr than {config.lr:g}"
        )

    # The state ------------------------------------------------------------------------------------

    def _enter(self, phase: Literal["reconstruct", "contrast", "train"]) -> None:
        state = self._state
        state.phase, state.epoch, state.batch = phase, 0, 0

    def _hold(self, **models: nn.Module) -> None:
        """What is trained from now on, and as the state has it."""
        state, device = self._state, self._task.device
        self._models = models
        named = [each for model in models.values() for each in model.named_parameters()]
        self._optimizer = torch.optim.Adam([each for _, each in named], self._config.lr)
        path = Path(CHECKPOINT)
        if state.optimizer is not None:
            check_optimizer(self._optimizer, named, state.optimizer, path)
        for name, weights in state.models.items():
            fit_weights(models[name], weights, path)
        if state.optimizer is not None:
            self._optimizer.load_state_dict(state.optimizer)
        if state.torch_rng is not None:
            torch.set_rng_state(state.torch_rng)
        if state.cuda_rng and device.type == "cuda":
            torch.cuda.set_rng_state_all(state.cuda_rng)
        state.models, state.optimizer, state.torch_rng, state.cuda_rng = {}, None, None, []

    def _state_now(self) -> SeedState:
        state = copy.copy(self._state)
        state.result = copy.copy(state.result)
        state.result.seconds = self._seconds()
        state.models = {name: model.state_dict() for name, model in self._models.items()}
        state.optimizer = self._optimizer.state_dict()
        state.torch_rng = torch.get_rng_state()
        if self._task.device.type == "cuda":
            state.cuda_rng = torch.cuda.get_rng_state_all()
        return state

    def _end_batch(self) -> None:
        self._state.batch += 1
        self._task.between(self._state_now)

    def _end_epoch(self) -> None:
        self._state.epoch += 1
        self._state.batch = 0
        self._task.between(self._state_now)

    # The start ------------------------------------------------------------------------------------

    def _reconstruct(self) -> None:
        """Trains the encoder to keep what features can be made of again."""
        config, state = self._config, self._state
        if state.phase != "reconstruct":
            return
        encoder, decoder = self._encoder, make_decoder(*self._shape).to(self._task.device)
        self._hold(encoder=encoder, decoder=decoder)
        while state.epoch < config.pretrain_epochs:
            for x, z in self._embedded(encoder):
                wanted = (
                    encoder.prepare(x) if isinstance(encoder, MlpEncoder) else x * self._task.scale
                )
                _descend(self._optimizer, F.mse_loss(decoder(z), wanted))
                self._end_batch()
            state.order = None
            self._tell(f"reconstruct{self._of_starts()}", state.epoch + 1, config.pretrain_epochs)
            self._end_epoch()
        self._enter("contrast")

    def _of_starts(self) -> str:
        starts = self._config.starts
        return f", start {self._state.start + 1} of {starts}" if starts > 1 else ""

    def _embedded(self, encoder: Encoder) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and embeddings: of few nodes at a time if that is all an encoder needs."""
        state = self._state
        if self._config.encoder != "mlp":
            for batch in self._batches.epoch(state.epoch, self._seed, state.batch):
                yield batch.x, encoder(batch.x, batch.edge_index)
            return
        if state.order is None:
            state.order = torch.randperm(self._task.graph.num_nodes)
        for nodes in state.order.split(_RECONSTRUCTED)[state.batch :]:
            x = self._batches.rows(nodes)
            yield x, encoder(x)

    def _contrast(self) -> None:
        """Trains the encoder by the contrastive loss alone."""
        config, state, encoder = self._config, self._state, self._encoder
        self._hold(encoder=encoder)
        while state.epoch < config.warm_epochs:
            if state.epoch % _RENEWED == 0 and state.batch == 0:
                clusters = config.warm_clusters or self._task.clusters
                state.clusters = torch.from_numpy(self._means(clusters, 1).labels_).long()
            assert state.clusters is not None
            for batch in self._batches.epoch(state.epoch, self._seed, state.batch):
                z = encoder(batch.x, batch.edge_index)
                mine = state.clusters[batch.nodes].to(z.device)
                _descend(self._optimizer, self._objective(encoder, batch, z, mine))
                self._end_batch()
            self._tell(f"contrast{self._of_starts()}", state.epoch + 1, config.warm_epochs)
            self._end_epoch()
        state.clusters = None

    def _compare(self) -> None:
        """Finds centers by k-means; keeps the start whose clusters have the greatest modularity."""
        config, state = self._config, self._state
        means = self._means(self._task.clusters, _STARTS)
        worth = 0.0 if config.starts == 1 else self._modularity(means.labels_)
        if state.worth is None or worth > state.worth:
            state.worth = worth
            state.best = {
                "encoder": copy.deepcopy(self._encoder.state_dict()),
                "centers": {"centers": torch.tensor(means.cluster_centers_)},
            }
        state.start += 1
        if state.start < config.starts:
            self._enter("reconstruct")
            self._encoder = self._new_encoder()
        else:
            self._enter("train")
            state.models, state.best = state.best, {}

    def _means(self, clusters: int, starts: int) -> Any:
        """Fitted k-means of the embedding, the best of some starts."""
        z = self._batches.embed(self._encoder).cpu().numpy()
        if not np.isfinite(z).all():
            raise self._diverged("embeddings are NaN or infinite")
        return fit_means(z, clusters, starts, self._seed)

    # Training -------------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        config, state, result = self._config, self._state, self._state.result
        number = state.epoch
        # The last epoch only looks at what the steps before have made.
        optimizer = self._optimizer if number < config.epochs else None
        run = self._whole_epoch if self._batches.is_whole else self._sampled_epoch
        weights, (losses, z, q) = run(optimizer)
        assignments = q.argmax(1).cpu().numpy()
        loss, contrastive, clustering = losses
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss} in epoch {number}")
        labels = self._task.graph.labels
        metrics = {} if labels is None else cluster_metrics(labels, assignments)
        graded = self._modularity(assignments) if config.select == "modularity" else None
        epoch = ClusterEpoch(number, loss, contrastive, clustering, metrics, graded)
        result.epochs.append(epoch)
        if result.selected is None or self._worth(epoch) > self._worth(result.selected):
            result.selected, result.state, result.assignments = epoch, weights, assignments
            result.embeddings = z.cpu().numpy()
        state.hand = None
        result.seconds = self._seconds()
        self._tell("train", number, config.epochs)
        self._task.on_epoch(result)
        self._end_epoch()

    def _weights(self) -> dict[str, Tensor]:
        weights = copy.deepcopy(self._encoder.state_dict())
        return {**weights, "centers": self._centers.detach().clone()}

    def _whole_epoch(self, optimizer: Optimizer | None) -> tuple[dict[str, Tensor], _Looked]:
        """One step on all nodes: what it embeds is what the epoch is judged by."""
        weights = self._weights()
        (batch,) = self._batches.epoch(self._state.epoch, self._seed)
        return weights, self._step(batch, None, optimizer)

    def _sampled_epoch(self, optimizer: Optimizer | None) -> tuple[dict[str, Tensor], _Looked]:
        """Judged by all nodes as the epoch finds them; the loss is that of its batches."""
        state, device = self._state, self._task.device
        if state.hand is None:
            z = self._batches.embed(self._encoder)
            state.hand = EpochInHand(self._weights(), z)
        hand = state.hand
        z = hand.z = hand.z.to(device)
        with torch.no_grad():
            q = student_t_assign(z, hand.weights["centers"].to(device))
        for batch in self._batches.epoch(state.epoch, self._seed, state.batch):
            losses, _, _ = self._step(batch, q.sum(0), optimizer)
            hand.sums += torch.tensor(losses, dtype=torch.float64) * len(batch.x)
            hand.nodes += len(batch.x)
            self._end_batch()
        return hand.weights, ((hand.sums / hand.nodes).tolist(), z, q)

    def _step(self, batch: Batch, totals: Tensor | None, optimizer: Optimizer | None) -> _Looked:
        """A step on a batch, or none.

        Args:
            totals: (K,), the sums of all nodes' assignments; None if the batch has all nodes.
        """
        config = self._config
        with torch.set_grad_enabled(optimizer is not None):
            z = self._encoder(batch.x, batch.edge_index)
            if not bool(z.isfinite().all()):
                raise self._diverged("embeddings are NaN or infinite")
            q = student_t_assign(z, self._centers)
            of = q.argmax(1)
            contrastive = self._objective(self._encoder, batch, z, of)
            clustering = dec_kl(target_distribution(q, totals), q)
            loss = (config.alpha or 0.0) * contrastive + (config.beta or 0.0) * clustering
        if optimizer is not None:
            _descend(optimizer, loss)
        return [part.item() for part in (loss, contrastive, clustering)], z.detach(), q.detach()

    def _modularity(self, assignments: NDArray[np.int64]) -> float:
        return modularity(self._task.graph.data.edge_index.numpy(), assignments)

    def _worth(self, epoch: ClusterEpoch) -> float:
        worth = {
            "loss": -epoch.loss,
            "modularity": epoch.modularity,
            "last": epoch.number,
            "labels": epoch.metrics.get("acc"),
        }[self._config.select]
        assert worth is not None
        return worth


def _descend(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
