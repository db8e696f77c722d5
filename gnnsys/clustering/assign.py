"""Clusters of new nodes by their features alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gnnsys.clustering.encoders import make_encoder
from gnnsys.clustering.runs import ENCODER, ENCODER_OPTIONS, WEIGHTS
from gnnsys.convert.tables import open_array
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError, UnsupportedError
from gnnsys.losses import student_t_assign
from gnnsys.system.files import check_folder_of, read_text_file, replace_npy
from gnnsys.training.tensor_file import TensorFile

__all__ = ["assign_clusters", "write_clusters"]


def assign_clusters(run: Path, features: Path) -> NDArray[np.int64]:
    """The cluster of each row of features, by the encoder and centers of a run.

    Args:
        run: folder that ``gnnsys cluster --out`` made.
        features: a file (n, features): .npy, .npz, .csv, .parquet, .pt.

    Returns:
        (n,), numbered as the run's assignments are.

    Raises:
        MissingFileError, FileFormatError: files that are not there, or damaged.
        UnsupportedError: an encoder that needs the graph.
        ArgumentError: features of another width.
    """
    about = _read_about(run)
    if about["kind"] != "mlp":
        raise UnsupportedError(
            f"{run}: its encoder is {about['kind']}, which needs the graph of new nodes; train "
            "with --encoder mlp"
        )
    rows = open_array(features)
    width = about["in_channels"]
    if len(rows.shape) != 2 or rows.shape[1] != width:
        raise ArgumentError(
            f"{features}: {tuple(rows.shape)}, expected (n, {width}), the features of {run}"
        )
    encoder = make_encoder(**about).eval()
    try:
        state = dict(TensorFile(run / WEIGHTS))
        centers = state.pop("centers")
        encoder.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise FileFormatError(f"{run / WEIGHTS}: not the weights of {ENCODER} ({error})") from error
    found = []
    with torch.no_grad():
        for block in rows.blocks():
            x = torch.from_numpy(block.astype(np.float32))
            found.append(student_t_assign(encoder(x), centers).argmax(1).numpy())
    return np.concatenate(found) if found else np.empty(0, np.int64)


def write_clusters(run: Path, features: Path, out: Path) -> NDArray[np.int64]:
    """Writes what ``assign_clusters`` gives to a .npy file, and returns it."""
    check_folder_of(out, f"--out {out}")
    found = assign_clusters(run, features)
    replace_npy(out, found)
    return found


def _read_about(run: Path) -> dict[str, Any]:
    path = run / ENCODER
    try:
        about = json.loads(read_text_file(path, "JSON"))
        return {name: about[name] for name in ENCODER_OPTIONS}
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; gnnsys cluster --out makes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path}: does not describe an encoder ({error})") from error
