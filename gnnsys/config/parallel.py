"""How the options about several ranks fit each other, and what they come to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnsys.config.checks import check_least
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.ranks.environment import world_around

if TYPE_CHECKING:
    from gnnsys.config.train import TrainConfig

__all__ = ["check_parallel", "check_world", "is_deep", "split_of", "world_of"]

_DEEP = ("gcnii", "resgcn")
_LAYER_LISTS = ("gcn", "sage", *_DEEP)
_DEFAULT_RANKS = 4


def is_deep(config: TrainConfig) -> bool:
    """Whether the model is a list of layers with an encoder and a decoder."""
    return config.parallel is not None or config.model in _DEEP


def world_of(config: TrainConfig) -> int | None:
    """The number of ranks, as torchrun or --ranks say; None if neither does.

    Raises:
        ArgumentError: they differ.
    """
    around = world_around()
    if around and config.ranks and around != config.ranks:
        raise ArgumentError(
            f"--ranks {config.ranks} != world size({around}): leave it out under torchrun"
        )
    return around or config.ranks


def check_world(config: TrainConfig) -> None:
    """Raises ArgumentError where a run does not fit the ranks that were started for it."""
    check_ranks(config)
    world = world_of(config) or 1
    if world > 1 and config.parallel is None and world_around() is None:
        raise ArgumentError(
            f"--ranks {world}: this process is by itself; start the ranks by the command "
            "gnnsys train, or by torchrun"
        )
    split_of(config)


def check_ranks(config: TrainConfig) -> None:
    """Raises ArgumentError or UnsupportedError for options that several ranks on mini-batches
    cannot have; to be known before they are started."""
    world = world_of(config) or 1
    if world == 1 or config.parallel is not None:
        return
    if config.full_batch:
        raise ArgumentError(
            f"{world} ranks train on the full graph with --parallel pipeline, graph or hybrid "
            "only; give it, leave --full-batch out, or start one process"
        )
    if config.cooperative and config.share_cache == "none":
        raise ArgumentError(
            "--cooperative --share-cache none: each row of a joint batch is read by one rank, "
            "whose part of the cache is for the rows that it reads; leave --share-cache out"
        )
    if config.share_cache == "peer" and config.device == "cpu":
        raise ArgumentError(
            "--share-cache peer: is of a cache in the memory of GPUs; give --device cuda and a "
            "size of --cache, or leave it out"
        )
    if config.pack:
        raise UnsupportedError(
            f"--pack: the cache of {world} ranks does not follow packed plans yet; leave it out"
        )
    if config.trace:
        raise UnsupportedError(
            "--trace: ranks do not record their batches; one process does, whose batches, by the "
            "same --batch-size, are those of any number of ranks"
        )
    for name, asked in (("static-shapes", config.static_shapes), ("compile", config.compile)):
        if asked and config.cooperative:
            raise UnsupportedError(
                f"--cooperative --{name}: joint batches are not padded yet; leave one of them out"
            )


def check_parallel(config: TrainConfig) -> None:
    """Raises ArgumentError for options that do not fit each other."""
    counts = ("stages", "ways", "chunks", "ranks")
    check_least(config, 1, *counts, "snapshot_period", "shuffle_factor")
    check_least(config, 0, "max_restarts")
    if config.max_restarts:
        if config.ranks is None:
            raise ArgumentError(
                f"--max-restarts {config.max_restarts}: goes with --ranks; torchrun has one of its "
                "own, before -m gnnsys"
            )
        if config.out is None and config.resume is None:
            raise ArgumentError(
                f"--max-restarts {config.max_restarts}: goes on from checkpoints; add --out FOLDER"
            )
    if config.timeline is not None and not config.timeline.endswith((".png", ".html", ".json")):
        raise ArgumentError(
            f"--timeline {config.timeline}: expected a name in .png, .html or .json"
        )
    if config.parallel is None:
        for name in (*counts, "timeline"):
            if getattr(config, name) is not None and (name != "ranks" or config.full_batch):
                raise ArgumentError(f"--{name}: goes with --parallel pipeline, graph or hybrid")
        if config.model in _DEEP and not config.full_batch:
            raise ArgumentError(
                f"--model {config.model}: is trained on the full graph; add --full-batch"
            )
        return
    if not config.full_batch:
        raise ArgumentError(
            f"--parallel {config.parallel}: trains on the full graph; add --full-batch"
        )
    if config.model not in _LAYER_LISTS:
        raise ArgumentError(
            f"--parallel {config.parallel} --model {config.model}: expected a model of "
            f"{', '.join(_LAYER_LISTS)}; from Python, gnnsys.pipeline.GNNPipe takes any layers"
        )
    if config.precision != "fp32":
        raise ArgumentError(f"--parallel: trains in fp32, not --precision {config.precision}")
    split_of(config)


def split_of(config: TrainConfig) -> tuple[int, int, int]:
    """Stages, ways and chunks, those that are not given filled in.

    Raises:
        ArgumentError: numbers that do not fit each other.
    """
    if config.parallel is None:
        return 1, 1, 1
    stages, ways, world = config.stages, config.ways, world_of(config)
    fixed = {"pipeline": ("ways", ways), "graph": ("stages", stages)}.get(config.parallel)
    if fixed and fixed[1] not in (None, 1):
        raise ArgumentError(
            f"--parallel {config.parallel} --{fixed[0]} {fixed[1]}: expected 1; use --parallel "
            "hybrid for several stages of several ways"
        )
    if config.parallel == "pipeline":
        stages, ways = stages or world or _DEFAULT_RANKS, 1
    elif config.parallel == "graph":
        stages, ways = 1, ways or world or _DEFAULT_RANKS
    else:
        world_here = world or (stages or 2) * (ways or 2)
        if not stages:
            stages = world_here // (ways or 2) or 1
        ways = ways or world_here // stages or 1
    if world is not None and stages * ways != world:
        raise ArgumentError(
            f"--stages {stages} * --ways {ways} != world size({world}): start {stages * ways} "
            "ranks, or change --stages and --ways"
        )
    if stages > config.layers:
        raise ArgumentError(
            f"--stages {stages} > --layers {config.layers}: a stage holds one layer at least"
        )
    from gnnsys.pipeline.schedule import default_chunks

    chunks = config.chunks or default_chunks(stages, ways)
    if chunks % ways:
        raise ArgumentError(
            f"--chunks {chunks} % --ways {ways} != 0: each way takes as many chunks; use --chunks "
            f"{chunks // ways * ways or ways}"
        )
    return stages, ways, chunks
