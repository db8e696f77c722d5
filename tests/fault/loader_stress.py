"""Makes loaders, and pickles, shares, forks, sends away and breaks them off while they are at work.

A program, not a test module: ``scripts/sanitize loaders`` runs it with the compiled part under
AddressSanitizer, which ends it at the first byte that is read where nothing is any more. Each batch
is compared with the graph, edge by edge and row by row, and with the same batch of a loader that
nothing was done to.

    python tests/fault/loader_stress.py 1000 7      # loaders, seed
"""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch_geometric.data import Data, HeteroData

import gnnsys
from gnnsys.loaders import CSC

SPAWNS = 2  # whole processes; other loaders go to one that waits for them


def make_graph(draw: random.Random) -> dict[str, Tensor]:
    """Small or large: torch and the C library treat their memory in different ways."""
    nodes = draw.choice([50, 3000, 60_000])
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    edges = 6 * nodes
    return {
        "edge_index": torch.randint(nodes, (2, edges), generator=generator),
        "x": torch.rand(nodes, draw.choice([1, 8, 40]), generator=generator),
        "time": torch.randint(100, (nodes,), generator=generator),
        "weight": torch.rand(edges, generator=generator),
        "edge_attr": torch.rand(edges, 2, generator=generator),
    }


KINDS = ("plain", "weighted", "timed", "disjoint", "typed", "links", "induced", "unified", "csc")


def make_loader(kind: str, given: dict[str, Tensor], seed: int) -> Any:
    """A loader of a kind over tensors of its own."""
    graph = {name: value.clone() for name, value in given.items()}
    nodes = len(graph["x"])
    options: dict[str, Any] = {"batch_size": 20, "seed": seed, "threads": 2, "shuffle": True}
    if kind == "typed":
        typed = HeteroData()
        typed["n"].x, typed["n", "to", "n"].edge_index = graph["x"], graph["edge_index"]
        typed["n", "to", "n"].edge_attr = graph["edge_attr"]
        return gnnsys.NeighborLoader(typed, [4, 3], input_nodes="n", **options)
    if kind == "timed":
        options |= {"time_attr": "time"}
    elif kind == "weighted":
        options |= {"weight_attr": "weight"}
    elif kind == "disjoint":
        options |= {"disjoint": True}
    elif kind == "induced":
        options |= {"subgraph_type": "induced"}
    elif kind == "unified":
        graph["x"] = gnnsys.unified(graph["x"], device="cpu")
    data = Data(**graph, num_nodes=nodes)
    if kind == "links":
        return gnnsys.LinkNeighborLoader(data, [3, 2], neg_sampling="binary", **options)
    if kind == "csc":  # whose arrays are the user's own
        order = graph["edge_index"][1].argsort(stable=True)
        source, target = graph["edge_index"][:, order]
        indptr = torch.zeros(nodes + 1, dtype=torch.int64)
        indptr[1:] = target.bincount(minlength=nodes).cumsum(0)
        sampler = gnnsys.NeighborSampler(CSC(indptr, source.contiguous(), order), [4, 3], seed=seed)
        loader = gnnsys.NeighborLoader(data, None, neighbor_sampler=sampler, **options)
        loader.arrays = [indptr, source, order]
        return loader
    return gnnsys.NeighborLoader(data, [4, 3], **options)


def check(batch: Any, given: dict[str, Tensor]) -> None:
    """Every edge is one of the graph, every row that of its node."""
    nodes, edges = (batch["n"], batch["n", "to", "n"]) if "n" in batch.to_dict() else (batch, batch)
    ends = nodes.n_id[edges.edge_index]
    assert torch.equal(ends, given["edge_index"][:, edges.e_id]), "edges that the graph has not"
    assert torch.equal(nodes.x, given["x"][nodes.n_id]), "rows of other nodes"
    assert torch.equal(edges.edge_attr, given["edge_attr"][edges.e_id]), "rows of other edges"


def same(batch: Any, expected: Any) -> bool:
    """Whether two batches hold the same numbers."""
    pairs = zip(batch.stores, expected.stores, strict=True)
    return all(
        torch.equal(store[key], value)
        for store, other in pairs
        for key, value in other.items()
        if isinstance(value, Tensor)
    )


# What happens to loaders --------------------------------------------------------------------------


def pickled(loader: Any, batches: Iterator[Any]) -> Any:
    return pickle.loads(pickle.dumps(loader))


def copied(loader: Any, batches: Iterator[Any]) -> Any:
    return draw_from([copy.copy, copy.deepcopy])(loader)


def sent(loader: Any, batches: Iterator[Any]) -> Any:
    """As torch.multiprocessing pickles it, which moves its tensors."""
    return ForkingPickler.loads(ForkingPickler.dumps(loader))


def sent_by_another_thread(loader: Any, batches: Iterator[Any]) -> Any:
    thread = threading.Thread(target=lambda: ForkingPickler.dumps(loader))
    thread.start()
    next(batches, None)
    thread.join()
    return loader


def sent_in_parts(loader: Any, batches: Iterator[Any]) -> Any:
    ForkingPickler.dumps(loader._the_sampler())
    return loader


def shared(loader: Any, batches: Iterator[Any]) -> Any:
    """The user moves what is theirs, between two epochs."""
    batches.close()
    loader.data.share_memory_()
    for array in getattr(loader, "arrays", ()):
        array.share_memory_()
    return loader


def grown(loader: Any, batches: Iterator[Any]) -> Any:
    """The user's tensors get other memory; what was given to the sampler stays as it was."""
    for array in getattr(loader, "arrays", ()):
        array.set_(torch.zeros(3, dtype=torch.int64))
    return loader


def forked(loader: Any, batches: Iterator[Any]) -> Any:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            loader.set_epoch(0)
            code = 0 if next(iter(loader)) is not None else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"
    return loader


def broken_off(loader: Any, batches: Iterator[Any]) -> Any:
    draw_from([lambda: batches.close(), lambda: next(batches, None), lambda: None])()
    return loader


def failing(loader: Any, batches: Iterator[Any]) -> Any:
    def fail(out: Any) -> Any:
        raise ValueError("asked for")

    batches.close()
    loader.transform_sampler_output = fail
    try:
        next(iter(loader))
    except ValueError:
        loader.transform_sampler_output = None
        return loader
    raise AssertionError("no error")


ACTIONS = [
    pickled, copied, sent, sent_by_another_thread, sent_in_parts, shared, grown, forked,
    broken_off, failing,
]  # fmt: skip

_draw = random.Random()


def draw_from(choices: list[Callable[..., Any]]) -> Callable[..., Any]:
    return _draw.choice(choices)


# Other processes ----------------------------------------------------------------------------------


def serve(inbox: Any, outbox: Any) -> None:
    """Takes loaders, and answers with their first batch."""
    parent = os.getppid()

    def receive() -> Any:
        while inbox.empty():
            if os.getppid() != parent:  # which a sanitizer ends without a word to its children
                sys.exit(1)
            time.sleep(0.005)
        return inbox.get()

    while (loader := receive()) is not None:
        loader.set_epoch(0)
        outbox.put(next(iter(loader)))


def work_alone(rank: int, loader: Any) -> None:
    assert sum(1 for _ in itertools.islice(loader, 3)) == 3


def run(loaders: int, seed: int) -> None:
    _draw.seed(seed)
    context = mp.get_context("spawn")
    inbox, outbox = context.SimpleQueue(), context.SimpleQueue()
    server = context.Process(target=serve, args=(inbox, outbox), daemon=True)
    server.start()
    for number in range(loaders):
        kind = KINDS[number % len(KINDS)]
        given = make_graph(_draw)
        expected = next(iter(make_loader(kind, given, number)))
        loader = make_loader(kind, given, number)
        batches = iter(loader)
        if not (same(next(batches), expected)):
            raise AssertionError(f"{kind} {number}: another batch before anything was done")
        action = _draw.choice(ACTIONS)
        told = f"loader {number} ({kind}, {action.__name__})"
        try:
            loader = action(loader, batches)
            if number % 10 == 0:
                inbox.put(loader)
                assert same(outbox.get(), expected), "another batch in another process"
            if number < SPAWNS:
                mp.spawn(work_alone, args=(loader,), nprocs=1)
            for batch in itertools.islice(batches, 2):  # of the iteration under way
                check(batch, given)
            loader.set_epoch(0)
            again = iter(loader)
            assert same(next(again), expected), "another batch afterwards"
            check(next(again, expected), given)
        except Exception as error:
            raise AssertionError(f"{told}: {error}") from error
        if number % 100 == 99:
            print(f"{number + 1} loaders", flush=True)
    inbox.put(None)
    server.join()
    assert server.exitcode == 0
    print(f"{loaders} loaders passed, 0 failed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(int(sys.argv[1]), int(sys.argv[2]))
