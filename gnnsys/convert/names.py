"""Node ids that are names: strings or any numbers, each given the next number."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.dialect import require_pyarrow
from gnnsys.dataset.node_ids import pack_ids
from gnnsys.errors import FileFormatError, TooLargeError

__all__ = ["Names"]

_INTEGER = re.compile("0|-?[1-9][0-9]*")  # one way only of writing each
_BYTES_A_NAME = 160  # of a dict entry with a short string and its number, measured


class Names:
    """Numbers for names, in the order in which they are added.

    Args:
        label: what to call their file in messages.
        memory: bytes that they may take.
    """

    def __init__(self, label: str, memory: int) -> None:
        self._pyarrow = require_pyarrow(label)
        self._label = label
        self._memory = memory
        self._numbers: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def num_bytes(self) -> int:
        """What they take."""
        return len(self._numbers) * _BYTES_A_NAME

    def add_edges(self, sources: Any, targets: Any) -> None:
        """Numbers the ends of edges that are new, the source of an edge before its target.

        Raises:
            FileFormatError: sources and targets that have no common type.
            TooLargeError: too many names for the memory.
        """
        pa = self._pyarrow
        ends = [pa.array(names) for names in (sources, targets)]
        if ends[0].type != ends[1].type:
            try:
                ends = [end.cast(pa.int64()) for end in ends]
            except pa.ArrowInvalid as error:
                raise FileFormatError(
                    f"{self._label}: sources of {ends[0].type}, targets of {ends[1].type} "
                    f"({error}); expected one type"
                ) from error
        in_turn = np.arange(2 * len(sources)).reshape(2, -1).T.ravel()
        for name in pa.concat_arrays(ends).take(pa.array(in_turn)).unique().to_pylist():
            self._numbers.setdefault(name, len(self._numbers))
        self._check_memory()

    def _check_memory(self) -> None:
        if self.num_bytes > self._memory:
            raise TooLargeError(
                f"{self._label}: {len(self._numbers)} names take more than the {self._memory} "
                "bytes of --memory; give it more, or number the nodes before"
            )

    def add_unique(self, names: list[Any]) -> None:
        """Numbers names of which none may be there already, one for each row.

        Raises:
            FileFormatError: one that is there twice, with the rows.
            TooLargeError: too many names for the memory.
        """
        for row, name in enumerate(names, len(self._numbers)):
            known = self._numbers.setdefault(name, len(self._numbers))
            if known != row:
                raise FileFormatError(
                    f"{self._label}: row {row} has the id {name!r}, which row {known} has already; "
                    "expected each node once"
                )
        self._check_memory()

    def numbers(self, names: Any, label: str, first: int, what: str) -> NDArray[np.int64]:
        """The number of each name.

        Args:
            names: sources or targets.
            label: what to call their file in messages.
            first: number of the first one's edge.
            what: source or target.

        Raises:
            FileFormatError: a name without a number.
        """
        found = self.find(names)
        if len(found) and found.min() < 0:
            place = int(np.argmin(found))
            raise FileFormatError(
                f"{label}: edge {first + place} has the {what} {names[place]!s}, which is not "
                f"among the {len(self)} nodes of {self._label}"
            )
        return found

    def find(self, names: Any) -> NDArray[np.int64]:
        """The number of each name, -1 where it has none."""
        encoded = self._pyarrow.array(names).dictionary_encode()
        distinct = encoded.dictionary.to_pylist()
        table = np.array([self._numbers.get(name, -1) for name in distinct], np.int64)
        return table[encoded.indices.to_numpy()] if len(distinct) else np.empty(0, np.int64)

    def tables(self) -> dict[str, NDArray[Any]]:
        """The tables that hold the names by number: of integers where all are, else of words."""
        names = list(self._numbers)
        if all(isinstance(name, int) or _INTEGER.fullmatch(name) for name in names):
            numbers = [int(name) for name in names]
            for dtype in (np.int64, np.uint64):
                least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
                if least <= min(numbers, default=0) and max(numbers, default=0) <= most:
                    return {"node_id": np.array(numbers, dtype)}
        return pack_ids([str(name) for name in names])
