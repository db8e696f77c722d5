"""Dataset folders to dataset folders whose features are stored in another precision."""

from __future__ import annotations

from pathlib import Path

from gnnsys.convert.common import Conversion, ConvertOptions
from gnnsys.convert.stored_rows import read_floats
from gnnsys.dataset.format import MANIFEST, EdgeSet, NodeSet, Table
from gnnsys.dataset.tables import DatasetTables
from gnnsys.dataset.writer import NOTES, cut_rows
from gnnsys.errors import ArgumentError

__all__ = ["convert_folder"]

_OF_PRECISION = ("dtype", "scale", "nan_features", "allow_overflow")
"""What ``source`` of ``graph.json`` says of how features were stored."""


def convert_folder(
    folder: Path, path: Path, options: ConvertOptions, *, name: str | None = None
) -> Path:
    """Copies a dataset folder; float features of nodes and edges are stored as the options say.

    Args:
        folder: made by ``gnnsys convert`` or ``gnnsys generate``.
        path: of the folder to make.
        options: with the ``dtype`` of the features.
        name: of the dataset; None for that of the source.

    Raises:
        ArgumentError: no ``dtype``, or ``undirected``, which is for edges that are not sorted.
        MissingFileError, FileFormatError: ``folder`` is not whole, or features that cannot be
            stored so.

    >>> import tempfile
    >>> from gnnsys.generate import generate_community
    >>> place = Path(tempfile.mkdtemp())
    >>> folder = generate_community(place / "g", nodes=50, classes=2, features=6)
    >>> made = convert_folder(folder, place / "small", ConvertOptions(dtype="int8"))
    >>> DatasetTables(made).node_table("features").shape  # a scale and six codes
    (50, 10)
    """
    dataset = DatasetTables(folder)
    if options.undirected:
        raise ArgumentError(
            f"undirected: {folder} is a dataset folder, whose edges are sorted already; convert "
            "what it was made of"
        )
    if options.dtype == "keep":
        raise ArgumentError(
            f"{folder}: a dataset folder of gnnsys already; --dtype stores its features in another "
            "precision, --order numbers its nodes anew, --hold-out holds links out, --to graphbolt "
            "writes it as GraphBolt's"
        )
    manifest = dataset.manifest
    owners: list[NodeSet | EdgeSet] = [*manifest.nodes.values(), *manifest.edges.values()]
    tables = [table for owner in owners for table in owner.tables.values()]
    files = [folder / shard.path for table in tables for shard in table.shards]
    with Conversion(
        path, options, name=name or dataset.name, kind="gnnsys", files=[folder / MANIFEST, *files],
        heterogeneous=dataset.heterogeneous,
    ) as writer:  # fmt: skip
        before = {key: told for key, told in manifest.source.items() if key not in NOTES}
        writer.source = {
            **{key: told for key, told in before.items() if key not in _OF_PRECISION},
            **{key: told for key, told in writer.source.items() if key in _OF_PRECISION},
        }
        if "round_trip" in manifest.source:
            writer.source["round_trip_before"] = manifest.source["round_trip"]
        writer.task = manifest.task
        for node_type, nodes in manifest.nodes.items():
            writer.add_nodes(nodes.count, node_type)
            for key, table in nodes.tables.items():
                rows, label = dataset.node_table(key, node_type), _label(folder, table)
                if key == "features" and _has_floats(table):
                    writer.write_features(read_floats(table, rows), label, node_type, exact=True)
                else:
                    copied = cut_rows(rows), table.shape, table.encoding
                    writer.write_nodes(key, *copied, node_type)
        for edge_type, edges in manifest.edges.items():
            writer.add_edges(edges.count, edge_type)
            for key, table in edges.tables.items():
                rows, label = dataset.edge_table(key, edge_type), _label(folder, table)
                if key == "edge_features" and _has_floats(table):
                    writer.write_edge_features(read_floats(table, rows), label, edge_type)
                else:
                    copied = cut_rows(rows), table.shape, table.encoding
                    writer.write_edges(key, *copied, edge_type)
        return writer.commit()


def _label(folder: Path, table: Table) -> str:
    return str(folder / table.shards[0].path)


def _has_floats(table: Table) -> bool:
    return table.encoding.scale is not None or "float" in table.encoding.dtype
