"""The command ``gnnsys report``: one HTML page about runs, which works offline.

``gnnsys.report`` reads a run (``reader``), says what the charts show (``charts``) and makes the
texts of the page (``page``); ``comparison`` and its kin do so for several runs. ``gnnsys.pages``
has the templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnnsys.config.report import ReportConfig
from gnnsys.config.run_files import PICTURE
from gnnsys.errors import ArgumentError, FileFormatError, StorageError
from gnnsys.report.comparison import Runs, compare, run_names
from gnnsys.report.reader import read_run
from gnnsys.system.files import check_file, replace_file
from gnnsys.system.records import json_text

__all__ = ["run_command", "write_comparison", "write_report"]


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a training or clustering run, finished or not, and returns its path.

    The page holds its charts and its style, and loads nothing. The same run gives the same bytes
    under one version of matplotlib. It is written to a temporary name and renamed.

    Args:
        run: the folder that ``gnnsys train --out`` or ``gnnsys cluster --out`` made.
        out: of the page; default: report.html in ``run``. What is there is replaced.

    Raises:
        MissingFileError: there is no such folder, or no metrics.jsonl in it.
        FileFormatError: a line of metrics.jsonl other than a cut last one, or config.toml, is not
            what ``gnnsys train`` writes.
        StorageError: the page cannot be written.

    Example::

        run_training(TrainConfig(dataset="demo", out="runs/demo"))
        page = write_report("runs/demo")  # runs/demo/report.html
    """
    folder = Path(run)
    path = folder / "report.html" if out is None else Path(out)
    content = read_run(folder)
    _check_place(path)
    if content.is_clustering:
        from gnnsys.report.clusters import make_cluster_page

        _write(path, make_cluster_page(content, _picture(folder / PICTURE)))
        return path

    # matplotlib is large: it is imported when a report is made, and not when an input is wrong.
    from gnnsys.report.charts import draw_charts, draw_timeline
    from gnnsys.report.page import make_page

    _write(path, make_page(content, draw_charts(content), draw_timeline(content)))
    return path


def write_comparison(runs: Sequence[str | Path], out: str | Path = "comparison.html") -> Path:
    """Writes a page of several runs side by side, finished or not, and returns its path.

    Runs of different metrics or datasets have tables and charts of their own, which a note says.

    Args:
        runs: folders that ``gnnsys train --out`` made, or ``gnnsys cluster --out``, all of them.
        out: of the page. What is there is replaced.

    Raises:
        ArgumentError: a folder stands there twice, or runs are of both commands.
        MissingFileError, FileFormatError, StorageError: as ``write_report``, for any of the runs.
    """
    content = _read_runs(runs)
    path = Path(out)
    _check_place(path)
    if _are_clusterings(content):
        from gnnsys.report.clusters import make_cluster_comparison

        _write(path, make_cluster_comparison(content))
        return path

    from gnnsys.report.comparison_page import make_comparison

    _write(path, make_comparison(content))
    return path


def run_command(config: ReportConfig) -> int:
    """``gnnsys report``: writes the page and prints its path, or the numbers with ``--json``."""
    if not config.runs:
        raise ArgumentError("expected the folder of a run, which gnnsys train --out RUN makes")
    path: Path | None = None
    if not config.json or config.out is not None:
        if len(config.runs) == 1:
            path = write_report(config.runs[0], config.out)
        else:
            path = write_comparison(config.runs, config.out or "comparison.html")
    print(json_text(_compared(_read_runs(config.runs))) if config.json else path)
    return 0


def _compared(runs: Runs) -> dict[str, Any]:
    if not _are_clusterings(runs):
        return compare(runs)
    from gnnsys.report.clusters import compare_clusterings

    return compare_clusterings(runs)


def _are_clusterings(runs: Runs) -> bool:
    """Whether all are of ``gnnsys cluster``, or none.

    Raises:
        ArgumentError: some are.
    """
    kinds = {name: run.is_clustering for name, run in runs.items()}
    if len(set(kinds.values())) < 2:
        return any(kinds.values())
    clusterings = ", ".join(name for name, found in kinds.items() if found)
    raise ArgumentError(
        f"{clusterings}: of gnnsys cluster, which cannot be compared with runs of gnnsys train; "
        "name runs of one command"
    )


def _picture(path: Path) -> bytes | None:
    """The picture that a clustering run has, if it has one."""
    if not path.exists():
        return None
    check_file(path)
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise FileFormatError(f"{path}: not a PNG picture; remove it")
    return content


def _read_runs(folders: Sequence[str | Path]) -> Runs:
    paths = [Path(folder) for folder in folders]
    return {name: read_run(path) for name, path in zip(run_names(paths), paths, strict=True)}


def _check_place(path: Path) -> None:
    way_out = "name a file in a folder that exists with --out"
    if path.is_dir():
        raise StorageError(f"{path}: is a folder, expected the name of a file; {way_out}")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: {path.parent} is not a folder; {way_out}")


def _write(path: Path, page: str) -> None:
    # JSON can hold halves of surrogate pairs, which UTF-8 cannot.
    replace_file(path, page.encode("utf-8", "xmlcharrefreplace"))
