"""``NeighborLoader``: PyG's loader over the sampler and stores of gnnsys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler
from torch_geometric.loader import NodeLoader
from torch_geometric.loader.utils import get_input_nodes, infer_filter_per_worker
from torch_geometric.sampler import NodeSamplerInput

from gnnsys import rng
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.loaders.neighbor_sampler import NeighborSampler

__all__ = ["NeighborLoader"]


class NeighborLoader(NodeLoader):
    """Mini-batches of sampled neighbourhoods; PyG's ``NeighborLoader`` with a faster sampler.

    Takes the arguments of ``torch_geometric.loader.NeighborLoader`` and yields the same attributes:
    ``x``, ``y``, ``edge_index``, ``n_id``, ``e_id``, ``input_id``, ``batch_size``,
    ``num_sampled_nodes``, ``num_sampled_edges``. Needs neither pyg-lib nor torch-sparse. A batch
    depends on the data, ``seed``, the epoch and the batch's number alone: not on ``num_workers``
    or ``threads``.

    Args:
        data: PyG ``Data``, or ``(FeatureStore, GraphStore)``; features may be unified tensors.
        num_neighbors: neighbours per node and hop, nearest the seeds first; -1 takes all.
        input_nodes: (n,) ids or (nodes,) mask of the seeds; None for all nodes.
        replace: whether to sample with replacement.
        transform: applied to every batch.
        transform_sampler_output: applied to the sampler's output.
        is_sorted: ``edge_index`` is sorted by target already.
        filter_per_worker: whether DataLoader workers gather features; see PyG.
        neighbor_sampler: a sampler to use instead of making one.
        custom_cls: class of batches for ``(FeatureStore, GraphStore)``.
        input_id: (n,) names for the seeds, instead of their positions.
        seed: of the draws and of the order of shuffled seeds.
        threads: that sample; 0 for all cores this process may use.
        **kwargs: of ``torch.utils.data.DataLoader``, such as ``batch_size`` or ``shuffle``.

    Raises:
        UnsupportedError: options of PyG's loader that this version does not offer.

    >>> from torch_geometric.data import Data
    >>> data = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]))
    >>> batch = next(iter(NeighborLoader(data, num_neighbors=[-1], batch_size=2)))
    >>> batch.n_id.tolist(), batch.batch_size
    ([0, 1, 2], 2)
    """

    def __init__(
        self,
        data: Any,
        num_neighbors: Any,
        input_nodes: Any = None,
        input_time: Tensor | None = None,
        replace: bool = False,
        subgraph_type: Any = "directional",
        disjoint: bool = False,
        temporal_strategy: str = "uniform",
        time_attr: str | None = None,
        weight_attr: str | None = None,
        transform: Callable[..., Any] | None = None,
        transform_sampler_output: Callable[..., Any] | None = None,
        is_sorted: bool = False,
        filter_per_worker: bool | None = None,
        neighbor_sampler: NeighborSampler | None = None,
        directed: bool = True,
        *,
        custom_cls: Any = None,
        input_id: Tensor | None = None,
        seed: int = 0,
        threads: int = 0,
        **kwargs: Any,
    ) -> None:
        _refuse_unsupported(
            input_time=input_time is not None,
            subgraph_type=getattr(subgraph_type, "value", subgraph_type) != "directional",
            disjoint=disjoint,
            temporal_strategy=temporal_strategy != "uniform",
            time_attr=time_attr is not None,
            weight_attr=weight_attr is not None,
            directed=not directed,
        )
        sampler = neighbor_sampler or NeighborSampler(
            data, num_neighbors, replace=replace, seed=seed, threads=threads, is_sorted=is_sorted
        )
        input_type, nodes, names = get_input_nodes(data, input_nodes, input_id)
        if filter_per_worker is None:
            filter_per_worker = infer_filter_per_worker(data)
        self.data = data
        self.node_sampler = sampler
        self.input_nodes = input_nodes
        self.input_time = None
        self.transform = transform
        self.transform_sampler_output = transform_sampler_output
        self.filter_per_worker = filter_per_worker
        self.custom_cls = custom_cls
        self.input_id = input_id
        self.input_data = NodeSamplerInput(names, nodes, None, input_type)
        self._init_batches(len(nodes), seed, kwargs)

    def _init_batches(self, num_seeds: int, seed: int, kwargs: dict[str, Any]) -> None:
        """Batches that know their epoch and number take the place of DataLoader's own."""
        kwargs = {key: value for key, value in kwargs.items() if key not in _OURS}
        batch_size = kwargs.pop("batch_size", 1)
        shuffle = kwargs.pop("shuffle", None) or False
        drop_last = kwargs.pop("drop_last", False)
        order = kwargs.pop("sampler", None)
        batches = kwargs.pop("batch_sampler", None)
        if batches is None:
            if batch_size is None or batch_size < 1:
                raise ArgumentError(f"batch_size: {batch_size}, expected at least 1")
            if order is not None:
                batches = BatchSampler(order, batch_size, drop_last)
        if shuffle and batches is not None:
            raise ArgumentError("shuffle: excludes sampler and batch_sampler, which set the order")
        self._seed_batches = (
            _ListedBatches(batches)
            if batches is not None
            else _EpochBatches(num_seeds, batch_size, shuffle, drop_last, seed)
        )
        DataLoader.__init__(
            self,
            _Positions(num_seeds),
            collate_fn=self.collate_fn,
            batch_sampler=self._seed_batches,  # type: ignore[arg-type]
            **kwargs,
        )
        # DataLoader forgets these beside a batch_sampler, but users and Lightning read them.
        self.__dict__["batch_size"] = batch_size
        self.__dict__["drop_last"] = drop_last

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Makes ``epoch`` the number of the next epoch; by itself it counts from 0.

        With ``first_batch`` that epoch leaves out the batches before it: the rest of an epoch that
        was broken off, the same batches as in the whole one.
        """
        self._seed_batches.epoch = epoch
        self._seed_batches.first_batch = first_batch

    def collate_fn(self, index: Any) -> Any:
        """Samples the batch of ``index`` and, where workers do so, gathers its features."""
        if not isinstance(index, _SeedBatch):
            return super().collate_fn(index)
        seeds = self.input_data[index.positions]
        out = self.node_sampler.sample(seeds.node, index.number, index.epoch)
        out.metadata = (seeds.input_id, seeds.time)
        return self.filter_fn(out) if self.filter_per_worker else out


_OURS = ("dataset", "collate_fn")


def _refuse_unsupported(**asked: bool) -> None:
    wrong = [name for name, used in asked.items() if used]
    if wrong:
        raise UnsupportedError(
            f"{', '.join(wrong)}: not offered by this version of gnnsys.NeighborLoader; "
            "torch_geometric.loader.NeighborLoader takes unified tensors too"
        )


@dataclass(frozen=True, slots=True)
class _SeedBatch:
    epoch: int
    number: int
    positions: Tensor  # (batch,) int64 into the loader's input nodes


class _Positions(Dataset[Any]):
    """The dataset: hands each batch of positions on as it is."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: int) -> int:
        return range(self.size)[position]

    def __getitems__(self, batch: _SeedBatch) -> _SeedBatch:
        return batch


class _EpochBatches(Sampler[_SeedBatch]):
    """The seeds of one epoch after another, shuffled by (seed, epoch) if asked for."""

    def __init__(
        self, num_seeds: int, batch_size: int, shuffle: bool, drop_last: bool, seed: int
    ) -> None:
        self.num_seeds = num_seeds
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        whole, rest = divmod(self.num_seeds, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[_SeedBatch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        if self.shuffle:
            order = torch.from_numpy(rng.permutation(self.num_seeds, self.seed, epoch))
        else:
            order = torch.arange(self.num_seeds)
        begin, self.first_batch = self.first_batch, 0
        for number in range(begin, len(self)):
            first = number * self.batch_size
            yield _SeedBatch(epoch, number, order[first : first + self.batch_size])


class _ListedBatches(Sampler[_SeedBatch]):
    """The batches of a sampler that the user gave, numbered."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[_SeedBatch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        begin, self.first_batch = self.first_batch, 0
        for number, positions in islice(enumerate(self.batches), begin, None):
            yield _SeedBatch(epoch, number, torch.as_tensor(positions, dtype=torch.int64))
