"""What ranks of a machine save that share one cache: bytes read, hits, memory, batches a second.

Compared are one cache of all ranks, a cache of its part of the memory for each, and one rank with
all of it, fed the same batches of an R-MAT graph, whose seeds are all nodes. Batches are sampled
before; ranks announce and gather them, so that what is read depends on no sampler's speed, and
nothing is trained. Beside the count stands what ``gnnsys plan`` predicts. "metis" estimates,
without running it, what ranks would fetch from each other as DistDGL does (Zheng et al., 2020):
each has the rows of one METIS part in memory and samples from that part's seeds; rows of other
parts that a batch needs are fetched, and none is kept. "hits" times gathers whose rows are all in
the shared cache against those of tensors. "asks" times gathers that nobody announces, of two ranks,
from the file and through the shared cache.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from disk import prime
from environment import describe_environment
from harness import BenchError, add_options, check_options, run_entry
from options import make_parser, positive, positive_list
from peers import Peer
from report import print_head, write_json

import gnnsys
from gnnsys.cache.shared.simulator import simulate_ranks
from gnnsys.cache.simulator import SimulationResult
from gnnsys.cache.trace import TraceWriter, read_trace
from gnnsys.errors import GnnsysError
from gnnsys.features.importance import importance, ranked_importance
from gnnsys.features.replay import sampled_ids
from gnnsys.generate import generate_rmat
from gnnsys.plan.caches import count_touched

_WORKER = Path(__file__).resolve().parent / "workers" / "cache_rank.py"
_CACHE_STATE = (
    "caches filled by degree; of the rounds of one run the first is not timed; files past the page "
    "cache, primed by one sequential O_DIRECT pass before each run"
)
_EXAMPLES = """
examples:
  python scripts/bench/shared_cache.py --json shared.json
  python scripts/bench/shared_cache.py --scale 22 --graph RMAT22 --capacities 10 --parts caches
  python scripts/bench/shared_cache.py --quick --scale 10 --batch-size 32 --batches 12
"""


class Ranks:
    """Processes of ranks, which are asked at once."""

    def __init__(self, world: int) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        self._pool = ThreadPoolExecutor(world)

        def start(rank: int) -> Peer:
            return Peer(Path(sys.executable), _WORKER, [str(rank), str(world), port])

        self._peers = list(self._pool.map(start, range(world)))

    def ask(self, job: str, **request: Any) -> list[dict[str, Any]]:
        """The answers of all ranks."""
        return list(self._pool.map(lambda peer: peer.ask({"job": job, **request}), self._peers))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *exception: object) -> None:
        list(self._pool.map(Peer.close, self._peers))
        self._pool.shutdown()


class Bench:
    """A graph, its batches, and what is done with them.

    Args:
        folder: of the dataset.
        work: for what is made of it.
        options: of the command line.
    """

    def __init__(self, folder: Path, work: Path, options: argparse.Namespace) -> None:
        self._options = options
        dataset = gnnsys.open_dataset(folder)
        self._graph = dataset.graph()
        self.nodes = dataset.num_nodes()
        self._features = folder / "features.npy"
        self._seeds = torch.arange(self.nodes)
        self.epoch_batches = -(-self.nodes // options.batch_size)
        table = np.load(self._features, mmap_mode="r")
        self._row_bytes, self._offset = table.strides[0], int(table.offset)
        self._scores = ranked_importance("degree", importance("degree", self._graph), self._graph)
        self._request = {
            "features": str(self._features),
            "scores": str(work / "scores.npy"),
            "threads": options.threads,
            "storage": options.storage,
            "policy": options.policy,
            "window": options.window,
        }
        np.save(work / "scores.npy", self._scores)
        self._trace = work / "trace"
        with TraceWriter(self._trace, self.nodes) as writer:
            for ids in self._sample(self._seeds, options.batches):
                writer.add(ids)

    def _sample(self, seeds: torch.Tensor, batches: int) -> Iterator[Any]:
        options = self._options
        return sampled_ids(
            self._graph,
            seeds,
            options.fanouts,
            batch_size=options.batch_size,
            batches=batches,
            threads=options.threads,
        )

    def describe(self) -> dict[str, Any]:
        """The graph and its batches."""
        trace = read_trace(self._trace)
        return {
            "nodes": self.nodes,
            "row_bytes": self._row_bytes,
            "batches": len(trace),
            "ids": trace.num_ids,
            "rows_touched": count_touched(trace),
            "epoch_batches": self.epoch_batches,
        }

    def caches(self) -> Iterator[dict[str, Any]]:
        """One record for each number of ranks, size, and way to have a cache."""
        for world in self._options.worlds:
            for share in self._options.capacities:
                rows = self.nodes * share // 100
                for way in ["private", *(self._options.sharing if world > 1 else [])]:
                    with Ranks(world) as ranks:  # whose memory nothing was in before
                        yield {"world": world, "share": share, **self._run(ranks, world, rows, way)}

    def _run(self, ranks: Ranks, world: int, rows: int, way: str) -> dict[str, Any]:
        is_private = way == "private"
        prime(self._features)
        each = rows // world if is_private else rows
        opened = ranks.ask("open", rows=each, shared=None if is_private else way, **self._request)
        told = ranks.ask("run", trace=str(self._trace))
        counts = ranks.ask("counts")
        ranks.ask("close")

        def total(name: str) -> int:
            return sum(count[name] for count in counts)

        scale = self.epoch_batches / self._options.batches
        predicted = self._predict(world, rows, shared=not is_private)
        memory = [
            {name: value - before["memory_before"][name] for name, value in after["memory"].items()}
            for before, after in zip(opened, counts, strict=True)
        ]
        reads = total("reads")
        return {
            "way": "one rank" if world == 1 else way,
            "rows": rows,
            "bytes_read": total("bytes_read"),
            "rows_read": reads,
            "requests": total("requests"),
            "epoch_bytes": total("bytes_read") * scale,
            "predicted_bytes": predicted.bytes_read,
            "predicted_epoch_bytes": predicted.bytes_read * scale,
            "predicted_rows_read": predicted.misses,
            "hit_ratio": 1 - reads / max(1, total("rows")),
            "memory": memory,
            "batches_per_second": self._rates([rank["ends"] for rank in told]),
            "waited_seconds": [count["io_wait_seconds"] for count in counts],
        }

    def _predict(self, world: int, rows: int, shared: bool) -> SimulationResult:
        return simulate_ranks(
            read_trace(self._trace),
            self._options.policy,
            rows,
            self._options.window,
            ranks=world,
            shared=shared,
            num_rows=self.nodes,
            scores=self._scores,
            row_bytes=self._row_bytes,
            offset=self._offset,
        )

    def _rates(self, ends: list[list[float]]) -> list[float]:
        """Of all ranks together in each round: from when the last rank ended the round before."""
        rounds, steps = self._options.rounds, min(map(len, ends))
        borders = [steps * part // (rounds + 1) - 1 for part in range(1, rounds + 2)]
        times = [max(rank[border] for rank in ends) for border in borders]
        return [
            len(ends) * (borders[k + 1] - borders[k]) / (times[k + 1] - times[k])
            for k in range(rounds)
        ]

    def hits(self) -> dict[str, Any]:
        """Seconds of gathers from a shared cache that holds all rows, and from tensors."""
        options = self._options
        gathers = {"gathers": options.gathers + 1, "threads": options.threads}
        with Ranks(2) as ranks:
            ranks.ask("open", rows=self.nodes, shared="shm", **self._request)
            found = ranks.ask("hits", trace=str(self._trace), **gathers)[0]
            ranks.ask("close")
        # The first warms up.
        times = {
            kind: {name: values[1:] for name, values in found[kind].items()}
            for kind in ("seconds", "cpu_seconds")
        }
        return {
            "rows": found["rows"],
            "waited_seconds": found["waited"],
            **times,
            "ratios": {kind: _shared_over(taken) for kind, taken in times.items()},
            "on_huge_pages": found["on_huge_pages"],
        }

    def asks(self) -> Iterator[dict[str, Any]]:
        """What two ranks gather that do not announce, by size and way to share."""
        for share in self._options.capacities:
            for way in self._options.sharing:
                prime(self._features)
                with Ranks(2) as ranks:
                    rows = self.nodes * share // 100
                    ranks.ask("open", rows=rows, shared=way, **self._request)
                    found = ranks.ask("asks", trace=str(self._trace))
                    ranks.ask("close")
                yield {"share": share, "way": way, "ranks": found}

    def metis(self) -> Iterator[dict[str, Any]]:
        """Rows that ranks would fetch from others' parts of the graph."""
        from gnnsys.pipeline.partition import partition_graph

        sources = self._graph.indices.to(torch.int64)
        degrees = self._graph.indptr.diff()
        targets = torch.repeat_interleave(torch.arange(self.nodes), degrees)
        edges = torch.stack([sources, targets])
        for world in self._options.worlds:
            if world == 1:
                continue
            partition = partition_graph(edges, self.nodes, world)
            part = np.empty(self.nodes, np.int8)
            for number, nodes in enumerate(partition.order.split(list(partition.chunk_sizes))):
                part[nodes.numpy()] = number
            rows = remote = batches = 0
            for number in range(world):
                seeds = torch.from_numpy(np.flatnonzero(part == number))
                for ids in self._sample(seeds, self._options.batches // world):
                    rows += len(ids)
                    remote += int((part[ids] != number).sum())
                    batches += 1
            cut = part[sources.numpy()] != part[targets.numpy()]
            yield {
                "world": world,
                "edges_cut": float(cut.mean()),
                "rows": rows,
                "rows_fetched": remote,
                "epoch_bytes": remote * self._row_bytes * self.epoch_batches / batches,
            }


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Bench]:
    """The graph of the options, in a temporary folder unless they name one."""
    with tempfile.TemporaryDirectory(prefix="gnnsys-bench-", dir=options.folder) as work:
        folder = options.graph or Path(work) / "graph"
        if not folder.exists():
            columns = options.columns
            generate_rmat(folder, scale=options.scale, features=columns, threads=options.threads)
        yield Bench(folder, Path(work), options)


def _measure_caches(bench: Bench) -> list[dict[str, Any]]:
    print(
        f"\n{'C':>4} {'ranks':>5} {'cache':>9} {'MiB/epoch':>10} {'predicted':>10} {'hits':>6} "
        f"{'÷ one rank':>10} {'private ÷':>9} {'MiB':>7} {'a rank':>7} {'batches/s':>9}"
    )
    records: list[dict[str, Any]] = []
    for record in bench.caches():
        records.append(record)
        read = {
            (other["world"], other["way"]): other["bytes_read"]
            for other in records
            if other["share"] == record["share"]
        }
        record["of_one_rank"] = _ratio(record["bytes_read"], read.get((1, "one rank")))
        private = read.get((record["world"], "private"))
        record["private_over_this"] = _ratio(private, record["bytes_read"])
        print(_line(record), flush=True)
    return records


def _ratio(one: int | None, other: int | None) -> float | None:
    return one / other if one is not None and other else None


def _line(record: dict[str, Any]) -> str:
    pss = [rank["Pss"] / 2**20 for rank in record["memory"]]
    ratios = [
        "-" if record[name] is None else f"{record[name]:.3f}"
        for name in ("of_one_rank", "private_over_this")
    ]
    return (
        f"{record['share']:3}% {record['world']:5} {record['way']:>9} "
        f"{record['epoch_bytes'] / 2**20:10,.1f} {record['predicted_epoch_bytes'] / 2**20:10,.1f} "
        f"{record['hit_ratio']:6.1%} {ratios[0]:>10} {ratios[1]:>9} {sum(pss):7,.0f} "
        f"{max(pss):7,.0f} {statistics.median(record['batches_per_second']):9.2f}"
    )


def _measure_hits(bench: Bench) -> dict[str, Any]:
    found = bench.hits()
    rows = found["rows"]
    print(
        f"\ngathers of {rows:,.0f} rows on average, {found['on_huge_pages']:.0%} of the shared "
        f"memory on huge pages; waited {found['waited_seconds']:.3f} s in all"
    )
    for name in found["seconds"]:
        told = []
        for kind, label in (("seconds", "ms"), ("cpu_seconds", "ms of a core")):
            told.append(f"{statistics.median(found[kind][name]) * 1e3:.2f} {label}")
            if name != "shared":
                told[-1] += f" (shared takes {found['ratios'][kind][name]:.2f}x)"
        print(f"{name:20} median {', '.join(told)}", flush=True)
    return found


def _shared_over(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The median of the gathers' ratios, for each that is not shared."""
    return {
        name: statistics.median(
            mine / theirs for mine, theirs in zip(seconds["shared"], values, strict=True)
        )
        for name, values in seconds.items()
        if name != "shared"
    }


def _measure_asks(bench: Bench) -> list[dict[str, Any]]:
    records = list(bench.asks())
    for record in records:
        told = []
        for name in ("file", "cache"):
            seconds = [each for rank in record["ranks"] for each in rank[name]["seconds"]]
            nbytes = sum(rank[name]["bytes_read"] for rank in record["ranks"]) / len(seconds)
            told.append(
                f"{name} {statistics.median(seconds) * 1e3:.2f} ms, {nbytes / 2**20:.2f} MiB"
            )
        print(
            f"\nnot announced, {record['share']}%, {record['way']}: a gather by {'; '.join(told)}"
        )
    return records


def _estimate_metis(bench: Bench) -> list[dict[str, Any]]:
    found = []
    for record in bench.metis():
        found.append(record)
        print(
            f"\nmetis, {record['world']} ranks: {record['edges_cut']:.1%} of the edges cut, "
            f"{record['rows_fetched'] / record['rows']:.1%} of the rows fetched, "
            f"{record['epoch_bytes'] / 2**20:,.1f} MiB an epoch",
            flush=True,
        )
    return found


_PARTS: dict[str, Callable[[Bench], Any]] = {
    "caches": _measure_caches,
    "hits": _measure_hits,
    "asks": _measure_asks,
    "metis": _estimate_metis,
}


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    environment = describe_environment()
    print_head("shared_cache", options.rounds, options.quick, _CACHE_STATE, environment)
    described: dict[str, Any] = {
        "format": 1,
        "benchmark": "shared_cache",
        "environment": environment,
        "options": {name: str(value) for name, value in vars(options).items()},
        "cache_state": _CACHE_STATE,
    }
    try:
        with opened(options) as bench:
            described["graph"] = bench.describe()
            print(", ".join(f"{name} {value:,}" for name, value in described["graph"].items()))
            for part in options.parts:
                described[part] = _PARTS[part](bench)
    except GnnsysError as error:
        raise BenchError(str(error)) from error
    if options.json is not None:
        write_json(options.json, described)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("shared_cache.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--parts", nargs="+", choices=_PARTS, default=list(_PARTS), help="default: all")
    add("--scale", type=positive, default=16, help="log2 of the nodes; default 16")
    add("--graph", type=Path, metavar="FOLDER", help="keeps the graph, or has it")
    add("--folder", type=Path, help="for temporary files, on the disk to read from")
    add("--columns", type=positive, default=128, help="float32 of a row; default 128")
    add("--worlds", type=positive_list, default=[1, 2, 4], help="numbers of ranks; default 1,2,4")
    add(
        "--capacities", type=positive_list, default=[2, 5, 10, 20, 50],
        help="of all ranks together, per cent of the rows; default 2,5,10,20,50",
    )  # fmt: skip
    add(
        "--sharing", nargs="+", choices=("shm", "exchange"), default=["shm"],
        help="how ranks read each other's rows; default shm",
    )  # fmt: skip
    add("--fanouts", type=positive, nargs="+", default=[10, 5], metavar="N", help="default 10 5")
    add("--batch-size", type=positive, default=1024, help="seeds per batch; default 1024")
    add("--batches", type=positive, default=192, help="of all ranks together; default 192")
    add("--gathers", type=positive, default=60, help="timed by hits; default 60")
    add("--threads", type=positive, default=1, help="of each rank; default 1")
    add("--policy", default="hybrid", help="default hybrid")
    add("--window", type=int, default=64, help="default 64")
    add("--storage", choices=("uring", "pread"), default="uring", help="default uring")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(options)
    least = max(options.worlds) * (options.rounds + 1)
    if options.batches < least:
        raise BenchError(
            f"--batches {options.batches} < {least}: a batch for each of {max(options.worlds)} "
            f"ranks in {options.rounds} rounds and one before; give more"
        )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("shared_cache.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())
