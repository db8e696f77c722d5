"""``gnnsys convert``: finds out what the source is and calls its converter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from gnnsys.commands.info import describe_dataset, print_tables
from gnnsys.config.convert import ConvertConfig
from gnnsys.convert.deep_clustering import convert_deep_clustering, is_deep_clustering
from gnnsys.convert.edge_list import open_edge_list, write_edge_list
from gnnsys.convert.folder import convert_folder
from gnnsys.convert.graphbolt import convert_graphbolt, is_graphbolt
from gnnsys.convert.graphbolt_export import export_graphbolt
from gnnsys.convert.hold_out import convert_held_out
from gnnsys.convert.ogb import convert_ogb, is_ogb
from gnnsys.convert.parts import holds_parts, is_pattern
from gnnsys.convert.pipes import is_pipe, without_pipes
from gnnsys.convert.pyg import NAMES, convert_pyg_file, convert_pyg_name
from gnnsys.convert.relbench import convert_relbench, is_relbench
from gnnsys.convert.reorder import convert_in_order
from gnnsys.convert.spec import (
    ConvertOptions,
    EdgeListParts,
    EdgeListSpec,
    HoldOut,
    RelationalParts,
    split_member,
)
from gnnsys.dataset.format import EDGE_TYPE, MANIFEST
from gnnsys.dataset.tables import DatasetTables
from gnnsys.errors import ArgumentError, MissingFileError
from gnnsys.pages.tables import pairs_on_terminal
from gnnsys.system.progress import is_quiet, work_progress
from gnnsys.system.records import json_text
from gnnsys.system.sizes import parse_bytes

__all__ = ["run_command"]

_OF_EDGE_LISTS = dataclasses.fields(EdgeListParts)
_OF_DATABASES = [each.name for each in dataclasses.fields(RelationalParts)]
_DEFAULTS = {each.name: each.default for each in dataclasses.fields(ConvertConfig)}
_OF_THE_RUN = {"dst", "name", "order", "memory", "threads", "dry_run", "json", "to"}
"""Options that change no table of the result, or are passed by themselves."""


def run_command(config: ConvertConfig) -> int:
    """Converts and says what was made."""
    with work_progress() as progress:
        options = ConvertOptions(
            dtype=config.dtype,
            scale=config.scale,
            overflow=config.overflow,
            nan=config.nan,
            undirected=config.undirected,
            regression=config.regression,
            memory=parse_bytes(config.memory, "--memory"),
            threads=config.threads,
            progress=progress,
        )
        path = convert(config, options)
    if path is None:
        return 0
    if config.to == "graphbolt":
        print(json_text({"path": str(path)}) if config.json else f"wrote {path}")
    elif config.json:
        print(json_text(describe_dataset(DatasetTables(path))))
    else:
        print_tables(DatasetTables(path), Console())
    return 0


def convert(config: ConvertConfig, options: ConvertOptions) -> Path | None:
    """Converts whatever ``config.src`` is, unless ``config.dry_run``; an edge list is told before.

    Raises:
        ArgumentError: options that this kind of source does not take, or an unknown source.
        GnnsysError: as the converters raise.
    """
    source, path = Path(config.src), Path(config.dst)
    if (source / MANIFEST).is_file():
        _refuse(config, ("split",), f"goes with a named dataset, but {source} is a dataset folder")
        _refuse(config, ("regression",), f"is known of {source}, which is a dataset folder")
    if is_relbench(source):
        _refuse_edge_list_options(config)
        _refuse(config, ("split",), f"goes with a named dataset, but {source} is a database")
        _refuse(config, ("regression",), f"is known of {source}, whose tasks say it")
        _refuse(config, ("order",), f"{source} is a database, whose rows stay in order of time")
    else:
        _refuse(config, _OF_DATABASES, f"goes with a RelBench folder, but {config.src} is none")
    if config.order != "none" and not config.dry_run:
        return _convert_in_order(config, options)
    if config.hold_out is not None and not config.dry_run:
        return _convert_held_out(config, options)
    if config.to == "graphbolt":
        _refuse_edge_list_options(config)
        _refuse(
            config,
            ("dtype", "scale", "overflow", "nan", "undirected", "name"),
            "--to graphbolt writes tables as they are; convert the folder to one of gnnsys first",
        )
        return export_graphbolt(source, path, memory=options.memory, progress=options.progress)
    name = config.name or path.name
    if _is_edge_list(split_member(source)[0], config):
        given = {
            each.name: getattr(config, each.name) for each in dataclasses.fields(EdgeListParts)
        }
        if config.split:
            raise ArgumentError(f"--split {config.split}: goes with a named dataset")
        return _convert_edge_list(EdgeListSpec(edges=source, name=name, **given), config, options)
    if config.dry_run:
        raise ArgumentError(f"--dry-run: goes with an edge list, but {config.src} is none")
    _refuse_edge_list_options(config)
    if source.is_file():
        return convert_pyg_file(source, path, options, name=name, split=config.split)
    if is_relbench(source):
        parts = RelationalParts(**{key: getattr(config, key) for key in _OF_DATABASES})
        return convert_relbench(source, path, options, parts, name=config.name)
    if source.is_dir():
        return _convert_folder(source, path, options, config.name)
    if config.src.startswith("ogbn-"):
        return convert_ogb(config.src, Path(config.root), path, options)
    if config.src in NAMES or config.src.startswith("pyg:"):
        return convert_pyg_name(config.src, Path(config.root), path, options, split=config.split)
    raise MissingFileError(
        f"{config.src}: neither a file or folder nor a known name; see gnnsys convert --help"
    )


def _convert_in_order(config: ConvertConfig, options: ConvertOptions) -> Path:
    before = _made_before(config, options, f"--order {config.order}", {"order": "none"})
    return convert_in_order(Path(config.dst), options, config.order, **before)


def _convert_held_out(config: ConvertConfig, options: ConvertOptions) -> Path:
    held = config.links_held_out()
    assert held is not None
    of_edges = _is_edge_list(split_member(Path(config.src))[0], config)
    if of_edges:
        _check_held_out_of_list(config, held)
    without = {key: _DEFAULTS[key] for key in _DEFAULTS if key.startswith("hold_out")}
    if not of_edges:
        without["seed"] = _DEFAULTS["seed"]
    before = _made_before(config, options, "--hold-out", without)
    return convert_held_out(Path(config.dst), options, held, called=config.src, **before)


def _check_held_out_of_list(config: ConvertConfig, held: HoldOut) -> None:
    """Raises ArgumentError for what an edge list cannot have, before it is read."""
    if held.edge_type not in (None, EDGE_TYPE):
        raise ArgumentError(
            f"--hold-out {','.join(held.edge_type)}: {config.src} is an edge list, which has no "
            "types; give --hold-out alone"
        )
    if held.by == "time" and config.edge_time is None:
        raise ArgumentError(
            f"--hold-out-by time: the edges of {config.src} have no times; name them by "
            "--edge-time, or give random"
        )


def _made_before(
    config: ConvertConfig, options: ConvertOptions, option: str, without: dict[str, Any]
) -> dict[str, Any]:
    """The arguments that ``option`` passes on, for a folder made of another one: the source, or one
    that is made of it first, in the scratch folder, by the options but for those of ``without``."""
    source, path = Path(config.src), Path(config.dst)
    if config.to != "gnnsys":
        raise ArgumentError(
            f"{option}: makes a folder of gnnsys, but --to is {config.to}; convert that folder "
            "afterwards"
        )
    is_folder = (source / MANIFEST).is_file()
    rest = dataclasses.replace(config, **without)
    # One whose tables are stored anew is made first, as of another source.
    as_it_is = is_folder and rest.dtype == "keep" and not rest.undirected and rest.hold_out is None
    if is_folder:
        _refuse_edge_list_options(config)
    if as_it_is:
        _refuse(
            config,
            ("scale", "overflow", "nan"),
            f"{source} is a dataset folder, whose tables {option.split()[0]} takes as they are; "
            "leave it out",
        )

    def prepare(place: Path) -> Path:
        if as_it_is:
            return source
        if not place.exists():
            name = config.name or path.name
            convert(dataclasses.replace(rest, dst=str(place), name=name), options)
        return place

    given = vars(config)
    return {
        "name": config.name or (DatasetTables(source).name if is_folder else path.name),
        "files": [source / MANIFEST] if is_folder else _files_of(config),
        "prepare": prepare,
        **{key: given[key] for key in given.keys() - _OF_THE_RUN},
    }


def _convert_edge_list(
    spec: EdgeListSpec, config: ConvertConfig, options: ConvertOptions
) -> Path | None:
    path = Path(config.dst)
    with without_pipes(spec, path.absolute().parent) as (files, called):
        edges = open_edge_list(files)
        told = {called.get(file, file): about for file, about in edges.describe().items()}
        if config.dry_run and config.json:
            print(json_text(told))
        elif config.dry_run or not is_quiet():
            _tell(told, Console(stderr=config.json))
        return None if config.dry_run else write_edge_list(edges, path, options)


def _is_edge_list(file: Path, config: ConvertConfig) -> bool:
    """Whether the source is a file of edges, a pipe, a pattern, or a folder of parts."""
    if is_pipe(file):
        return True
    if file.is_file() or is_pattern(file):
        return file.suffix != ".pt"
    if not file.is_dir() or (file / MANIFEST).is_file():
        return False
    if any(is_it(file) for is_it in (is_graphbolt, is_ogb, is_deep_clustering, is_relbench)):
        return False
    return config.format != "auto" or holds_parts(file)


def _tell(told: dict[str, dict[str, Any]], console: Console) -> None:
    """How each file was understood."""
    for file, about in told.items():
        console.print(pairs_on_terminal(file, ((name, _spoken(about[name])) for name in about)))


def _spoken(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        parts = [" -> ".join(map(str, each)) if isinstance(each, list) else each for each in value]
        return ", ".join(parts) or "none"
    return str(value)


def _convert_folder(source: Path, path: Path, options: ConvertOptions, name: str | None) -> Path:
    if (source / MANIFEST).is_file():
        return convert_folder(source, path, options, name=name)
    if is_graphbolt(source):
        return convert_graphbolt(source, path, options)
    if is_ogb(source):
        return convert_ogb(source.name.replace("_", "-"), source.parent, path, options)
    if is_deep_clustering(source):
        return convert_deep_clustering(source, path, options)
    raise ArgumentError(
        f"{source}: no metadata.yaml (GraphBolt), manifest.yaml and db/ (RelBench), raw/ and "
        "split/ (OGB), NAME_graph.txt (SDCN) or parts of a table (.parquet, .csv, …) in it; "
        "expected one of these, or a file"
    )


def _files_of(config: ConvertConfig) -> list[Path]:
    """What the source is made of, and what belongs to an edge list."""
    named = [config.src, *(getattr(config, each.name) for each in _OF_EDGE_LISTS)]
    places = [split_member(Path(each))[0] for each in named if isinstance(each, str)]
    inside = [each for place in places for each in (place, *sorted(place.rglob("*")))]
    return [each for each in inside if each.is_file()]


def _refuse_edge_list_options(config: ConvertConfig) -> None:
    of_links = {"seed"} if config.hold_out is not None else set()
    names = [each.name for each in _OF_EDGE_LISTS if each.name not in of_links]
    _refuse(config, names, f"goes with an edge list, but {config.src} is none")


def _refuse(config: ConvertConfig, names: Iterable[str], why: str) -> None:
    """Raises ArgumentError where one of these options is given."""
    for name in names:
        if getattr(config, name) != _DEFAULTS[name]:
            raise ArgumentError(f"--{name.replace('_', '-')}: {why}")
