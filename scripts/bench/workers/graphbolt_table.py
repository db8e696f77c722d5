"""Reads a feature table by GraphBolt: python graphbolt_table.py TABLE_FOLDER

Needs a GraphBolt that has ``DiskBasedFeature`` (io_uring), newer than the last release on PyPI.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from protocol import open_channel


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl.graphbolt as gb
    from table_job import Read, Request, serve_reader
    from torch import Tensor

    folder = Path(sys.argv[1])

    def open_reader(request: Request, lists: list[Tensor]):  # type: ignore[no-untyped-def]
        table = gb.DiskBasedFeature(str(folder / "feat.npy"), num_threads=request["threads"])
        cached = gb.cpu_cached_feature(table, request["cache_bytes"])
        read: Read = lambda number, ids: cached.read(ids)  # noqa: E731
        return read, dict

    serve_reader(channel, folder, open_reader, {"graphbolt": getattr(gb, "__version__", "?")})


if __name__ == "__main__":
    main()
