"""The command ``gnnsys report``: one HTML page about a training run, which works offline.

``gnnsys.report`` reads the run (``reader``), says what the charts show (``charts``) and makes the
texts of the page (``page``); ``gnnsys.pages`` has its template.
"""

from __future__ import annotations

from pathlib import Path

from gnnsys.config.report import ReportConfig
from gnnsys.errors import StorageError
from gnnsys.report.reader import read_run
from gnnsys.system.files import replace_file

__all__ = ["run_command", "write_report"]


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a training run, finished or not, and returns its path.

    The page holds its charts and its style, and loads nothing. The same run gives the same bytes
    under one version of matplotlib. It is written to a temporary name and renamed.

    Args:
        run: the folder that ``gnnsys train --out`` made.
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

    # matplotlib is large: it is imported when a report is made, and not when an input is wrong.
    from gnnsys.report.charts import draw_charts
    from gnnsys.report.page import make_page

    page = make_page(content, draw_charts(content))
    # JSON can hold halves of surrogate pairs, which UTF-8 cannot.
    replace_file(path, page.encode("utf-8", "xmlcharrefreplace"))
    return path


def run_command(config: ReportConfig) -> int:
    """``gnnsys report``: writes the page and prints its path."""
    print(write_report(config.run, config.out))
    return 0


def _check_place(path: Path) -> None:
    way_out = "name a file in a folder that exists with --out"
    if path.is_dir():
        raise StorageError(f"{path}: is a folder, expected the name of a file; {way_out}")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: {path.parent} is not a folder; {way_out}")
