"""What nodes are called in the source of a dataset: numbers, or words of any length.

Words are kept in one of two layouts. ``node_id``: as many bytes for each as the longest takes.
Where one that is long would pad all, ``node_id_text`` holds them one after another in UTF-8 and
``node_id_ends`` says where each ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.errors import FileFormatError

__all__ = ["NodeIds", "pack_ids"]

_PADDED = 4
"""How many times the bytes of the other layout the padded one may take."""


def pack_ids(words: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The tables that hold words, by name.

    >>> {name: table.tolist() for name, table in pack_ids(["a", "bc"]).items()}
    {'node_id': [b'a', b'bc']}
    >>> pack_ids(["a"] * 9 + ["b" * 100])["node_id_ends"][-2:].tolist()
    [9, 109]
    """
    encoded = [word.encode() for word in words]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    padded = int(lengths.max(initial=1)) * len(encoded)
    if padded <= _PADDED * (int(lengths.sum()) + lengths.nbytes):
        return {"node_id": np.array(encoded, dtype=bytes)}
    text = np.frombuffer(b"".join(encoded), np.uint8)
    return {"node_id_ends": np.cumsum(lengths), "node_id_text": text}


class NodeIds:
    """The ids of nodes by their numbers, read as they are asked for.

    Args:
        padded: (nodes,) integers or bytes; or None.
        ends: (nodes,) int64, where each ends in ``text``.
        text: (bytes,) uint8.
        path: of the file that is blamed for what is wrong.

    Raises:
        FileFormatError: ends that do not ascend to the end of the text.

    >>> ids = NodeIds(None, np.array([1, 3]), np.frombuffer(b"abc", np.uint8), Path("ends.npy"))
    >>> len(ids), ids[:].tolist(), ids[np.array([1, 0])].tolist()
    (2, ['a', 'bc'], ['bc', 'a'])
    """

    def __init__(
        self,
        padded: NDArray[Any] | None,
        ends: NDArray[np.int64],
        text: NDArray[np.uint8],
        path: Path,
    ) -> None:
        self._padded, self._ends, self._text, self._path = padded, ends, text, path
        last = int(ends[-1]) if len(ends) else 0
        if last != len(text) or (len(ends) and ends[0] < 0) or (np.diff(ends) < 0).any():
            raise FileFormatError(
                f"{path}: does not ascend to the {len(text)} bytes of node_id_text; convert the "
                "source again"
            )

    def __len__(self) -> int:
        return len(self._ends if self._padded is None else self._padded)

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[Any]:
        """Integers, or Python strings as objects."""
        if self._padded is not None:
            found = np.asarray(self._padded[rows])
            if found.dtype.kind != "S":
                return found
            words = found.tolist()
        else:
            numbers = np.arange(len(self))[rows]
            ends = self._ends[numbers]
            starts = np.where(numbers > 0, self._ends[numbers - 1], 0)
            pairs = zip(starts.tolist(), ends.tolist(), strict=True)
            words = [self._text[start:end].tobytes() for start, end in pairs]
        try:
            return np.array([word.decode() for word in words] + [None], object)[:-1]
        except UnicodeDecodeError as error:
            raise FileFormatError(
                f"{self._path}: an id is not UTF-8 ({error}); convert the source again"
            ) from error
