"""Relational layers, forward and training step, on graphs with many relations, with peak memory.

RGCN, RGAT and HGT of gnnsys.rel against the layers of PyG and DGL, from the same weights. Each side
has a process of its own under a memory limit; one that needs more is reported as out of memory and
left out. A training step is forward, backward, to the inputs too, and a step of Adam.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_geometric
from harness import (
    WARM_UP,
    BenchError,
    Case,
    CheckError,
    Implementation,
    Rate,
    Sample,
    add_options,
    check_options,
    run_benchmark,
    run_entry,
)
from memory_group import MemoryGroup
from minibatch import interpreter
from numpy.typing import NDArray
from options import make_parser, positive
from peers import Peer, PeerError
from relational_graphs import NAMES, check_graph, make_graph
from workers.relational_graph import RelationGraph
from workers.relational_layers import CLASSES, make_layers

_FOLDER = Path(__file__).resolve().parent
_WORKERS = _FOLDER / "workers"
_KINDS = tuple(CLASSES)
_WHATS = ("step", "forward")
_OURS, _RENEWED = "gnnsys", "gnnsys new graph"
_SIDES = (_RENEWED, "PyG", "PyG fast", "DGL")
_PART_EDGES = 1000
_TOLERANCE = 1e-4  # of the largest output: float32 in another order
_SPENT = ("exit status -9", "can't allocate memory", "bad_alloc", "MemoryError")
_DEFAULT_GRAPHS = (*NAMES, "zipf:1000000:500:131072")
_EXAMPLES = f"""
Graphs are {", ".join(NAMES)}
(nodes, edges and relations of BGS, generated) and zipf:EDGES:RELATIONS:NODES, generated with skewed
degrees and relations of skewed sizes. ROOT holds Entities, KG and DBLP_hetero, each dataset with
its files in raw/.

"gnnsys new graph" is given a new copy of the edges in each run, as with mini-batches: what gnnsys
otherwise does once for a graph counts then.

examples:
  python scripts/bench/relational.py --root data --dgl dgl/bin/python --json relational.json
  python scripts/bench/relational.py --graphs zipf:10000000:500:1048576 --limit-mib 12288
  python scripts/bench/relational.py --quick --graphs zipf:5000:20:1000 --limit-mib 0
"""


@dataclass(kw_only=True, slots=True)
class Figures:
    """What one side needed for one job on one graph."""

    graph: str
    kind: str
    what: str
    side: str
    before_bytes: int = 0
    """Resident before the first run."""
    peak_bytes: int = 0
    """The most resident during the first two."""
    first_seconds: float = 0.0
    difference: float | None = None
    """Largest difference of an output to that of gnnsys, over the largest output; None where the
    side does not compute the same, or gnnsys had no memory for it."""
    seconds: list[float] = field(default_factory=list)
    """Of a run, in each round."""
    cpu_seconds: list[float] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """A graph and a kind of layer, with what all sides are compared by.

    Args:
        name: of the graph.
        graph: to run on.
        kind: of layer.
        options: of the command line.
        folder: for files.
    """

    name: str
    graph: RelationGraph
    kind: str
    options: argparse.Namespace
    folder: Path

    @property
    def sizes(self) -> dict[str, int]:
        """Of the model."""
        return {name: getattr(self.options, name) for name in ("width", "heads", "depth")}

    def prepare(self) -> NDArray[np.float64]:
        """Writes graphs and weights; returns the outputs of PyG in float64 on part of the graph."""
        part = self.graph.part(_PART_EDGES)
        self.graph.save(self.folder / "whole.npz")
        part.save(self.folder / "part.npz")
        model = make_layers(self.kind, "PyG", part, **self.sizes)
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        np.savez(self.folder / "weights.npz", **weights)
        x = np.random.default_rng(1).standard_normal((part.num_nodes, self.sizes["width"]), "f4")
        with torch.no_grad():
            return model.double()(torch.from_numpy(x).double()).numpy()


class Contestant:
    """A side with its process, which is started when there is something to do."""

    def __init__(self, side: str, setting: Setting, reference: NDArray[np.float64]) -> None:
        self.side = side
        self.figures = {
            what: Figures(graph=setting.name, kind=setting.kind, what=what, side=side)
            for what in _WHATS
        }
        self._setting, self._reference = setting, reference
        self._stack = contextlib.ExitStack()
        self._peer: Peer | None = None

    def implement(self, what: str) -> Implementation:
        """Its part in a case."""
        return Implementation(
            name=self.side,
            check=partial(self._check, what),
            run=partial(self._run, what),
            is_peer=self.side not in (_OURS, _RENEWED),
            reported=(PeerError,),
        )

    def close(self) -> None:
        """Ends its process."""
        self._peer = None
        self._stack.close()

    def _ask(self, job: str, what: str, **request: Any) -> dict[str, Any]:
        try:
            if self._peer is None:
                self._peer = self._start()
            return self._peer.ask({"job": job, "what": what, **request})
        except PeerError as error:
            self.close()
            told = str(error)
            if any(words in told for words in _SPENT):
                limit = self._setting.options.limit_mib
                told = f"out of memory (limit {f'{limit} MiB' if limit else 'none'})"
            self.figures[what].error = told
            raise PeerError(told) from error

    def _start(self) -> Peer:
        options = self._setting.options
        script = _WORKERS / ("relational_dgl.py" if self.side == "DGL" else "relational_pyg.py")
        command = [str(options.dgl if self.side == "DGL" else sys.executable), str(script)]
        if options.limit_mib:
            group = self._stack.enter_context(MemoryGroup(options.limit_mib << 20))
            enter = [sys.executable, str(_FOLDER / "memory_group.py"), str(group.folder)]
            command = [*enter, *command]
        python, script_, *arguments = command
        return self._stack.enter_context(Peer(Path(python), Path(script_), arguments))

    def _open(self, what: str, name: str) -> None:
        setting = self._setting
        self._ask(
            "open",
            what,
            graph=str(setting.folder / f"{name}.npz"),
            weights=str(setting.folder / "weights.npz"),
            kind=setting.kind,
            side=_OURS if self.side == _RENEWED else self.side,
            renew=self.side == _RENEWED,
            threads=setting.options.threads,
            **setting.sizes,
        )

    def _check(self, what: str) -> None:
        """Compares outputs on a part of the graph, then measures memory on the whole one."""
        try:
            if self._peer is None:
                self._open(what, "part")
                if self._is_comparable():
                    self._compare(what, "part", self._reference)
                self._ask("peak", what)  # what libraries take when they are first used
            self._open(what, "whole")  # for each job: nothing is kept for the graph yet
            for name, value in self._ask("peak", what).items():
                setattr(self.figures[what], name, value)
            if self._is_comparable():
                self.figures[what].difference = self._compare_whole(what)
        except CheckError as error:
            self.close()  # the next job begins with the part again
            self.figures[what].error = str(error)
            raise

    def _is_comparable(self) -> bool:
        return (self.side, self._setting.kind) != ("DGL", "hgt")

    def _compare_whole(self, what: str) -> float | None:
        ours = self._setting.folder / "ours.npy"
        if self.side == _OURS:
            if not ours.exists():
                self._ask("export", what, file=str(ours))
            return 0.0
        return self._compare(what, "whole graph", np.load(ours)) if ours.exists() else None

    def _compare(self, what: str, name: str, wanted: NDArray[Any]) -> float:
        """Raises CheckError for other outputs than ``wanted``."""
        file = self._setting.folder / "outputs.npy"
        self._ask("export", what, file=str(file))
        found = np.load(file)
        file.unlink()
        difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        if not difference <= _TOLERANCE:
            raise CheckError(f"outputs on {name} differ by {difference:.2g} of the largest one")
        return difference

    def _run(self, what: str, number: int) -> Sample:
        least = 0.0 if number == WARM_UP else self._setting.options.least_seconds
        answer = self._ask("run", what, least_seconds=least)
        if number != WARM_UP:
            self.figures[what].seconds.append(answer["seconds"] / answer["runs"])
            self.figures[what].cpu_seconds.append(answer["cpu_seconds"] / answer["runs"])
        return Sample(
            seconds=answer["seconds"],
            cpu_seconds=answer["cpu_seconds"],
            amounts={"runs": answer["runs"]},
        )


def make_cases(
    graphs: list[str], options: argparse.Namespace, figures: list[Figures]
) -> Iterator[Case]:
    """A case for each graph, kind of layer and job; ``figures`` gets those of each side."""
    for name in graphs:
        graph = make_graph(name, options.root, options.seed)
        for kind in options.layers:
            with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
                setting = Setting(name, graph, kind, options, Path(scratch))
                reference = setting.prepare()
                contestants = [
                    Contestant(side, setting, reference) for side in _choose_sides(kind, options)
                ]
                for contestant in contestants:
                    stack.callback(contestant.close)
                for what in _WHATS:
                    figures += [contestant.figures[what] for contestant in contestants]
                    yield _make_case(setting, what, contestants)


def _choose_sides(kind: str, options: argparse.Namespace) -> list[str]:
    """Those that were asked for and have such a layer."""
    there = {*CLASSES[kind], _RENEWED, *(["DGL"] if options.dgl else [])}
    return [_OURS, *(side for side in options.sides if side in there)]


def _make_case(setting: Setting, what: str, contestants: list[Contestant]) -> Case:
    graph, options = setting.graph, setting.options
    labels = {
        "graph": setting.name,
        "layer": setting.kind,
        "job": what,
        "nodes": graph.num_nodes,
        "edges": graph.num_edges,
        "relations": graph.num_relations,
        **setting.sizes,
        "threads": options.threads,
        "limit MiB": options.limit_mib or "none",
    }
    return Case(
        labels=labels,
        rates=(Rate(amount="runs", unit="runs/s"),),
        bases=tuple(each.side for each in contestants if each.side not in (_OURS, _RENEWED)),
        implementations=[each.implement(what) for each in contestants],
    )


def print_summary(figures: list[Figures]) -> None:
    """A line for each side: time of a run, memory, and what gnnsys needs of it."""
    print(
        f"\n{'graph':24} {'layer':5} {'job':8} {'side':17}{'wall ms':>10}{'CPU ms':>10}"
        f"{'peak MiB':>10}  times gnnsys' wall, CPU, peak; difference of outputs"
    )
    ours = {(each.graph, each.kind, each.what): each for each in figures if each.side == _OURS}
    for each in figures:
        start = f"{each.graph:24} {each.kind:5} {each.what:8} {each.side:17}"
        base = ours[each.graph, each.kind, each.what]
        if each.error or not each.seconds:
            print(f"{start} {each.error or 'failed'}")
            continue
        mine = _medians(each)
        theirs = (0.0, 0.0, 0.0) if base.error or not base.seconds else _medians(base)
        times = [f"{a / b:.2f}" if b else "-" for a, b in zip(mine, theirs, strict=True)]
        told = "not compared" if each.difference is None else f"{each.difference:.1g}"
        print(f"{start}{mine[0]:10.1f}{mine[1]:10.1f}{mine[2]:10.1f}  {', '.join(times)}; {told}")


def _medians(figures: Figures) -> tuple[float, float, float]:
    """Wall and CPU milliseconds of a run, and MiB of memory above that before."""
    return (
        1e3 * statistics.median(figures.seconds),
        1e3 * statistics.median(figures.cpu_seconds),
        (figures.peak_bytes - figures.before_bytes) / 2**20,
    )


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    peers: dict[str, Any] = {"PyG": {"torch_geometric": torch_geometric.__version__}}
    if options.dgl:
        try:
            with Peer(options.dgl, _WORKERS / "relational_dgl.py") as peer:
                peers["DGL"] = peer.ready
        except PeerError as error:
            peers["DGL"] = {"error": str(error)}
            options.dgl = None
    figures: list[Figures] = []
    notes: dict[str, Any] = {"figures": []}

    def note() -> Iterator[Case]:
        for case in make_cases(options.graphs, options, figures):
            yield case
            notes["figures"] = [asdict(each) for each in figures]

    try:
        run_benchmark(
            "relational",
            note(),
            options,
            cache_state="warm: the same graph, inputs and weights in all runs",
            notes=notes,
            peers=peers,
        )
    finally:
        print_summary(figures)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("relational.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--root", type=Path, default=Path("data"), help="folder of the data sets; default data")
    add("--graphs", nargs="+", default=list(_DEFAULT_GRAPHS), metavar="NAME", help="default all")
    add("--layers", nargs="+", choices=_KINDS, default=list(_KINDS), help="default all")
    add(
        "--sides",
        nargs="*",
        choices=_SIDES,
        default=list(_SIDES),
        help="beside gnnsys; default all",
    )
    add("--depth", type=positive, default=1, help="layers of a model; default 1")
    add("--width", type=positive, default=64, help="of inputs and outputs; default 64")
    add("--heads", type=positive, default=1, help="of attention, in the width; default 1")
    add("--limit-mib", type=int, default=4096, metavar="MIB", help="default 4096; 0: no limit")
    add("--least-seconds", type=float, default=0.2, help="of a round's runs; default 0.2")
    add("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="default all cores")
    add("--seed", type=int, default=1, help="of generated graphs; default 1")
    add("--dgl", type=interpreter, metavar="PYTHON", help="of an environment with DGL")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(options)
    _check_choice(options)
    return options


def _check_choice(options: argparse.Namespace) -> None:
    if options.width % options.heads:
        raise BenchError(f"--width {options.width}: not a multiple of --heads {options.heads}")
    if options.limit_mib < 0:
        raise BenchError(f"--limit-mib {options.limit_mib}: expected MiB, or 0 for no limit")
    if not 0 <= options.least_seconds < math.inf:
        raise BenchError(f"--least-seconds {options.least_seconds}: expected seconds, at least 0")
    for name in ("graphs", "layers", "sides"):
        given = getattr(options, name)
        if len(set(given)) < len(given):
            raise BenchError(f"--{name} {' '.join(given)}: names one twice")
    for name in options.graphs:
        check_graph(name, options.root)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("relational.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())
