"""What ``NeighborLoader`` and ``LinkNeighborLoader`` share: batches made ahead, in threads.

Owns the iteration of the loaders, their epochs and the layout of batches. Sampling belongs to the
sampler, joining nodes with features to PyG's ``filter_fn``, threads to ``Lookahead``. Invariant: a
batch is a function of the data, ``seed``, its epoch and its number alone.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data.distributed import DistributedSampler

from gnnsys import rng
from gnnsys.compat import forget_attributes, pin_memory
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.loaders.edge_layouts import Layout, lay_out
from gnnsys.loaders.loader_inputs import check_joined
from gnnsys.loaders.lookahead import Lookahead, stages_paused
from gnnsys.loaders.neighbor_sampler import NeighborSampler
from gnnsys.loaders.row_tables import RowTables, TableView, Tickets, unified_tensors
from gnnsys.loaders.sampled_bytes import bytes_ahead, size_of
from gnnsys.loaders.sampler_checks import check_beside_sampler
from gnnsys.loaders.seed_batches import (
    Epochs,
    GeneratedSeeds,
    SeedBatch,
    SequentialSeeds,
    ShuffledSeeds,
    number_batches,
)
from gnnsys.loaders.side_stream import SideStream
from gnnsys.loaders.static_shapes import Padding, Sizes, StaticShapes
from gnnsys.loaders.stored_features import names_of_rows, stored_of_edges
from gnnsys.memory import keep_freed_memory
from gnnsys.system.notebook import facts_as_html
from gnnsys.system.once import warn_once
from gnnsys.system.sizes import parse_bytes
from gnnsys.system.threads import num_threads

__all__ = ["LookaheadLoader", "LookaheadOptions", "check_batching", "sampler_of"]

_log = logging.getLogger(__name__)

_MOST_MEASURED = 1024  # batches


@dataclass(frozen=True, slots=True, kw_only=True)
class LookaheadOptions:
    """What both loaders take beside PyG's arguments; ``NeighborLoader`` says what each means."""

    seed: int
    threads: int
    window: int
    window_bytes: int | str
    layout: Layout
    keep_freed_memory: bool
    rank: int
    world_size: int
    seed_block: int

    filter_per_worker: bool | None
    """As it was given: PyG would fill in what it infers."""

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ArgumentError(f"window: {self.window} < 0; give a number of batches, or 0")
        if self._parse_window_bytes() < 0:
            raise ArgumentError(f"window_bytes: {self.window_bytes} < 0; give bytes, or 0")
        num_threads(self.threads)  # refuses a negative one
        if self.seed_block < 1:
            raise ArgumentError(f"seed_block: {self.seed_block}, expected at least 1")
        if self.layout not in ("coo", "csr"):
            raise ArgumentError(f"layout: {self.layout!r}, expected 'coo' or 'csr'")
        if not 0 <= self.rank < self.world_size:
            raise ArgumentError(
                f"rank: {self.rank}, expected 0 to world_size({self.world_size}) - 1; give both, "
                "such as those of torch.distributed"
            )

    def _parse_window_bytes(self) -> int:
        given = self.window_bytes
        return parse_bytes(given, "window_bytes") if isinstance(given, str) else given

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> LookaheadOptions:
        """Those among the arguments of a loader."""
        return cls(**{each.name: given[each.name] for each in dataclasses.fields(cls)})

    def sampled_bytes(self) -> int:
        """Bytes of sampled batches that may wait where a cache asks for many."""
        return self._parse_window_bytes() or bytes_ahead()


def check_batching(kwargs: dict[str, Any], world_size: int) -> None:
    """Raises ArgumentError for arguments of DataLoader that exclude one another, or no batches."""
    if kwargs.get("batch_sampler") is None:
        batch_size = kwargs.get("batch_size", 1)
        if batch_size is None or batch_size < 1:
            raise ArgumentError(f"batch_size: {batch_size}, expected at least 1")
    sampler = kwargs.get("sampler")
    if world_size > 1 and isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
        raise ArgumentError(
            f"world_size: {world_size}, but sampler divides the seeds among ranks already; leave "
            "one of them out (of PyTorch Lightning: use_distributed_sampler=False)"
        )
    given = [name for name in ("sampler", "batch_sampler") if kwargs.get(name) is not None]
    if given and kwargs.get("shuffle"):
        raise ArgumentError(f"shuffle: excludes {given[0]}, which sets the order")


def sampler_of(given: Mapping[str, Any]) -> Any:
    """The sampler among the arguments of a loader, or one that is made as they say.

    Raises:
        ArgumentError, DTypeError, UnsupportedError: arguments that cannot be used, or not together.
    """
    data, sampler = given["data"], given["neighbor_sampler"]
    check_joined(data)
    if sampler is None:
        names = inspect.signature(NeighborSampler).parameters.keys() & given.keys()
        return NeighborSampler(**{name: given[name] for name in names})
    check_beside_sampler(given)
    return sampler


class LookaheadLoader(DataLoader[Any]):
    """Stands before PyG's ``NodeLoader`` or ``LinkLoader`` among the bases of a loader."""

    data: Any
    input_data: Any
    transform: Callable[..., Any] | None
    transform_sampler_output: Callable[..., Any] | None
    filter_per_worker: bool | None
    custom_cls: Any
    num_neighbors: Any

    _epochs: Epochs
    _tables: RowTables
    _sampled_bytes: int
    _shapes: StaticShapes | None = None

    # What a loader says -------------------------------------------------------------------------

    def _the_sampler(self) -> Any:
        """The sampler that draws the batches."""
        raise NotImplementedError

    def _draw(self, inputs: Any, **place: int) -> Any:
        """The sampler's output for seeds; ``place`` has their group and epoch where those count."""
        raise NotImplementedError

    _join: Callable[[Any, Any], Any]
    """PyG's ``filter_fn`` as a function of anything that has the attributes of a loader."""

    # Making one ---------------------------------------------------------------------------------

    def _init_lookahead(self, options: LookaheadOptions, kwargs: dict[str, Any]) -> None:
        """Called last, when DataLoader has checked ``kwargs`` and made its samplers."""
        # Kept by name: PyTorch Lightning makes loaders anew from their attributes.
        self.seed, self.threads, self.window = options.seed, options.threads, options.window
        self.window_bytes, self.layout = options.window_bytes, options.layout
        self._sampled_bytes = options.sampled_bytes()
        self.keep_freed_memory = options.keep_freed_memory
        self.rank, self.world_size = options.rank, options.world_size
        self.seed_block = options.seed_block
        self.filter_per_worker = options.filter_per_worker
        # A bound method, which in a copy of this loader would still be bound to this one.
        self.__dict__.pop("collate_fn")
        self._epochs = Epochs()
        self._tables = RowTables(options.threads, options.world_size)
        if kwargs.get("sampler") is None and kwargs.get("batch_sampler") is None:
            self._order_seeds(bool(kwargs.get("shuffle")))
        if isinstance(self.sampler, ShuffledSeeds) and self.sampler.block != options.seed_block:
            raise ArgumentError(
                f"seed_block: {options.seed_block}, but the sampler shuffles blocks of "
                f"{self.sampler.block}; give the same, or no sampler"
            )
        if options.seed_block > 1 and not isinstance(self.sampler, ShuffledSeeds):
            raise ArgumentError(
                f"seed_block: {options.seed_block}, but the order of seeds is not drawn from seed; "
                "give shuffle=True, and no sampler or generator"
            )
        if options.keep_freed_memory:
            keep_freed_memory()
        if self.num_workers:
            warn_once(
                _log,
                "num_workers: samples and features come from threads of this process, whatever "
                "its value; 0, the default, says so, and worker_init_fn is not called",
            )

    def __len__(self) -> int:
        """Batches of an epoch, those of this rank."""
        return -((self.rank - super().__len__()) // self.world_size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self._facts().items())})"

    def _repr_html_(self) -> str:
        return facts_as_html(type(self).__name__, self._facts())

    def _facts(self) -> dict[str, str]:
        """What is shown of a loader, of which nothing is read or sampled for it."""
        facts = {"num_neighbors": repr(self.num_neighbors)}
        if isinstance(self.dataset, Sized):
            facts["seeds"] = str(len(self.dataset))
        facts["batch_size"] = str(self.batch_size)
        batches: Any = self.batch_sampler
        if isinstance(batches, Sized):
            facts["batches"] = str(len(self))
        if self.world_size > 1:
            facts["rank"] = f"{self.rank} of {self.world_size}"
        facts["window"] = str(self.window)
        return facts | {name: repr(table) for name, table in unified_tensors(self.data).items()}

    def _order_seeds(self, shuffle: bool) -> None:
        """Puts an order that knows the epoch in the place of DataLoader's own; one that is drawn
        from a ``generator`` knows none."""
        num_seeds = len(self.dataset)  # type: ignore[arg-type]
        order: SequentialSeeds | ShuffledSeeds | GeneratedSeeds
        if not shuffle:
            order = SequentialSeeds(num_seeds, self._epochs)
        elif self.generator is None:
            ids = getattr(self.input_data, "node", None)  # links have none
            order = ShuffledSeeds(num_seeds, self._epochs, self.seed, self.seed_block, ids)
        else:
            order = GeneratedSeeds(num_seeds, self.generator)
        assert self.batch_size is not None
        # DataLoader lets neither be set once it is made.
        self.__dict__["sampler"] = order
        self.__dict__["batch_sampler"] = BatchSampler(order, self.batch_size, self.drop_last)

    def check_worker_number_rationality(self) -> None:
        """Nothing to check: ``num_workers`` starts no process."""

    # Iterating ----------------------------------------------------------------------------------

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Makes ``epoch`` the number of the next epoch; by itself it counts from 0.

        With ``first_batch`` that epoch leaves out the batches before it: the rest of an epoch that
        was broken off, the same batches as in the whole one. With several ranks it counts the
        batches of all of them, and is the same number on each: step t of a rank is then batch
        ``first_batch + t * world_size + rank``, whatever the ``world_size`` before was.
        """
        self._epochs.next, self._epochs.first_batch = epoch, first_batch

    @property
    def padding(self) -> Padding | None:
        """How much of the batches made so far is padding; None without ``static_shapes``."""
        return None if self._shapes is None else self._shapes.padding

    @property
    def padded_sizes(self) -> Sizes | None:
        """Nodes and edges of each hop that batches are padded to; None before they are known, and
        without ``static_shapes``. May be set, to those of a run that goes on."""
        return None if self._shapes is None else self._shapes.sizes

    @padded_sizes.setter
    def padded_sizes(self, sizes: Sizes) -> None:
        if self._shapes is None:
            raise ArgumentError("padded_sizes: the loader was made without static_shapes=True")
        self._shapes.sizes = sizes

    def __iter__(self) -> Any:
        return self._get_iterator()

    def _get_iterator(self) -> Any:
        return _Batches(self)

    def filter_fn(self, out: Any) -> Any:
        """The batch of a sampler's output: nodes joined with their features, and transformed."""
        if self.transform_sampler_output:
            out = self.transform_sampler_output(out)
        view = self._view()
        batch = self._make_batch(out, view.data)
        view.bring_late_rows(batch)
        return self._transformed(batch)

    def _view(self) -> TableView:
        """The data as it is now, to read batches from."""
        return self._tables.view(self.data, stored_of_edges(self.data, self._the_sampler()))

    def _make_batch(self, out: Any, data: Any) -> Any:
        reader = SimpleNamespace(
            data=data,
            input_data=self.input_data,
            custom_cls=self.custom_cls,
            neg_sampling=getattr(self, "neg_sampling", None),
            node_sampler=self._the_sampler(),
            link_sampler=self._the_sampler(),
            transform=None,
            transform_sampler_output=None,
        )
        batch = type(self)._join(reader, out)
        for store in batch.stores:
            forget_attributes(store)
        if self._shapes is not None:
            of_nodes, of_edges = names_of_rows(data, self._the_sampler())
            self._shapes.pad(batch, of_nodes | {"n_id"}, of_edges | {"e_id"})
        return lay_out(batch, self.layout)

    def _transformed(self, batch: Any) -> Any:
        return batch if self.transform is None else self.transform(batch)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_tables": RowTables(self.threads, self.world_size)}
        read = {name: state.pop(name) for name in _READ_BY_STAGES if name in state}
        return {"still": _Still(read), **state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        still = state.pop("still")
        self.__dict__.update(still.value, **state)
        self._epochs = copy.copy(self._epochs)  # a copy counts its own
        self._shapes = copy.copy(self._shapes)
        if isinstance(self.sampler, (SequentialSeeds, ShuffledSeeds)):
            self._order_seeds(isinstance(self.sampler, ShuffledSeeds))


_READ_BY_STAGES = ("data", "input_data", "input_id", "edge_label", "edge_label_time")


@dataclass(frozen=True, slots=True)
class _Still:
    """What is sent to another process while no stage is at work: see ``stages_paused``."""

    value: Any


def _reduce_still(still: _Still) -> Any:
    with stages_paused():
        return _load_still, (bytes(ForkingPickler.dumps(still.value)),)


def _load_still(pickled: bytes) -> _Still:
    return _Still(pickle.loads(pickled))


ForkingPickler.register(_Still, _reduce_still)


class _Batches(Lookahead):
    """One epoch of a loader."""

    def __init__(self, loader: LookaheadLoader) -> None:
        self._loader = loader
        self._work = work = _Batching(loader)
        super().__init__(
            number_batches(
                loader.batch_sampler,  # type: ignore[arg-type]
                loader._epochs,
                loader.rank,
                loader.world_size,
            ),
            work,
            window=work.window,
            timeout=loader.timeout,
        )

    def __next__(self) -> Any:
        batch = super().__next__()
        try:
            return self._work.hand_over(batch)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._loader)


@dataclass(slots=True)
class _Sampled:
    out: Any  # SamplerOutput or HeteroSamplerOutput
    tickets: Tickets


class _Batching:
    """The stages of an epoch, over the data as it was when the epoch began."""

    def __init__(self, loader: LookaheadLoader) -> None:
        self._loader = loader
        self._view = loader._view()
        self._sampler = loader._the_sampler()
        self._draws_by_place = isinstance(self._sampler, NeighborSampler)
        self._pins = bool(loader.pin_memory) and _can_pin()
        devices = {table.device for table in unified_tensors(loader.data).values()}
        self._side = SideStream(next((d for d in devices if d.type == "cuda"), None))
        # A transform sees whole batches only.
        self._transforms_ahead = loader.filter_per_worker and not self._view.has_late_rows
        self._largest = 0  # bytes of a sampled batch
        if loader._shapes is not None:
            _measure(loader, loader._shapes, self._view)

    def window(self) -> int:
        """Batches to sample ahead: what a cache asks for, once their size is known."""
        least = self._loader.window
        if least == 0 or self._largest == 0:
            return least
        return max(least, min(self._view.lookahead, self._loader._sampled_bytes // self._largest))

    def sample(self, seeds: SeedBatch) -> _Sampled:
        loader = self._loader
        place = {"group": seeds.number, "epoch": seeds.epoch} if self._draws_by_place else {}
        out = loader._draw(loader.input_data[seeds.positions], **place)
        # Before the announcement, because it may change which nodes the batch has.
        if loader.transform_sampler_output:
            out = loader.transform_sampler_output(out)
        self._largest = max(self._largest, size_of(out))
        return _Sampled(out, self._view.announce(out, self._sampler.edge_permutation))

    def finish(self) -> None:
        self._view.finish()

    def fetch(self, sampled: _Sampled) -> Any:
        return self._side.run(lambda: self._fetch(sampled))

    def _fetch(self, sampled: _Sampled) -> Any:
        loader = self._loader
        batch = loader._make_batch(sampled.out, self._view.redeem(sampled.tickets))
        if self._transforms_ahead:
            batch = loader._transformed(batch)
        return _pinned(batch) if self._pins else batch

    def hand_over(self, batch: Any) -> Any:
        """What is left to do in the consumer's thread."""
        self._side.join(batch)
        self._view.bring_late_rows(batch)
        return batch if self._transforms_ahead else self._loader._transformed(batch)

    def discard(self, sampled: Sequence[_Sampled]) -> None:
        del sampled  # all that the view has announced and not gathered
        self._view.end()


def _measure(loader: LookaheadLoader, shapes: StaticShapes, view: TableView) -> None:
    """Sees to it that the sizes of the batches of an epoch that begins are known."""
    if view.has_late_rows:
        raise UnsupportedError(
            "static_shapes: not offered for features that require grad; look their rows up by "
            "batch.n_id in the model"
        )
    if shapes.sizes is None:
        began = time.perf_counter()
        shapes.measure(_sample_sizes(loader))
        seconds = time.perf_counter() - began
        _log.info(
            "static_shapes: nodes and edges a hop: %s; found in %.1f s", shapes.sizes, seconds
        )


def _sample_sizes(loader: LookaheadLoader) -> Iterator[Sizes]:
    """Of the batches of the epoch that begins, or of as many others where their order is not known
    beforehand; of ``_MOST_MEASURED`` evenly spread ones if there are more."""
    epoch, size, seeds = loader._epochs.next, loader.batch_size, loader.sampler
    assert size is not None
    if isinstance(seeds, (SequentialSeeds, ShuffledSeeds)):
        order = seeds.order(epoch)
    else:
        num_seeds = len(loader.dataset)  # type: ignore[arg-type]
        order = torch.from_numpy(rng.permutation(num_seeds, loader.seed, epoch))
    batches = -(-len(order) // size)
    measured = min(batches, _MOST_MEASURED)
    for number in (n * batches // measured for n in range(measured)):
        inputs = loader.input_data[order[number * size : (number + 1) * size]]
        out = loader._draw(inputs, group=number, epoch=epoch)
        yield out.num_sampled_nodes, out.num_sampled_edges


def _pinned(batch: Any) -> Any:
    """The batch with pinned memory, where it lies on the CPU."""
    if any(isinstance(x, Tensor) and x.is_cuda for store in batch.stores for x in store.values()):
        return batch.apply(lambda x: x if x.is_cuda else x.pin_memory())
    return pin_memory(batch)


def _can_pin() -> bool:
    if torch.cuda.is_available():
        return True
    _log.info("pin_memory: True, but there is no CUDA device, so batches stay in pageable memory")
    return False
