"""Ranks of links and the best targets of each source, over all candidates, exactly and in tiles.

Sources and candidates are rows of two tables, in memory or in files. A block of sources is in
memory while all candidates pass by; scores are computed in tiles of one shape at fixed places, so
that neither ranks nor the order of equal scores depend on how large a block is.

n sources or queries, m candidates, d columns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, DivergedError, DTypeError
from gnnsys.loaders.checks import check_ids_below
from gnnsys.system.files import append_file, as_storage_error, npy_header, write_at
from gnnsys.system.progress import Progress
from gnnsys.system.scratch import ScratchFolder
from gnnsys.system.whole import check_whole
from gnnsys.unified_tensor import UnifiedTensor

__all__ = ["Score", "fill_top_ids", "rank_links", "read_rows", "top_links", "write_top_links"]

Score = Callable[[Tensor, Tensor], Tensor]
"""(q, d) rows of queries and (c, e) of candidates to (q, c) scores, in new memory."""

_QUERIES, _CANDIDATES = 256, 4096  # of a tile
_BLOCK_BYTES = 256 << 20


def _dot(queries: Tensor, candidates: Tensor) -> Tensor:
    return queries @ candidates.t()


@torch.no_grad()
def rank_links(
    queries: Tensor,
    candidates: Tensor,
    targets: Tensor,
    *,
    known: Tensor | None = None,
    score: Score = _dot,
    block_bytes: int = _BLOCK_BYTES,
) -> Tensor:
    """The rank of each query's target among all candidates, from 1 on.

    With ``known`` it is the filtered rank (Bordes et al.: "Translating Embeddings for Modeling
    Multi-relational Data", NeurIPS 2013, section 4.2): other right answers do not count. Of
    candidates that score the same, half are counted before the target, as by the Open Graph
    Benchmark.

    Args:
        queries: (n, d), such as embeddings of sources, times those of relations for DistMult.
            Ordinary or unified, as are candidates.
        candidates: (m, e); with the default score e is d.
        targets: (n,) ids of candidates.
        known: (2, k) numbers of queries above candidates that are left out, the target apart; see
            ``known_answers``.
        score: of queries with candidates; the inner product by default.
        block_bytes: of queries and what is known of them that are in memory at a time, roughly.

    Returns:
        (n,) float64.

    Raises:
        ArgumentError, DTypeError: shapes, ids or options that do not fit.
        DivergedError: NaN scores.

    >>> rank_links(torch.eye(2), torch.tensor([[1.0, 0], [2, 1], [3, 1]]), torch.tensor([1, 1]))
    tensor([2.0000, 1.5000], dtype=torch.float64)
    """
    count = _check_tables(queries, candidates, score, block_bytes)
    targets = _check_targets(targets, len(queries), count)
    others = None
    if known is not None:
        known = _check_known(known, len(queries), count)
        others = known[:, known[1] != targets[known[0]]]
    left_out = _LeftOut(others, count)
    ranks = torch.empty(len(queries), dtype=torch.float64)
    for first, last in _blocks(queries, 32, block_bytes):
        wanted = targets[first:last]
        own = torch.empty(0)
        # Scores of the targets come from the tiles, too: another product would round otherwise.
        for query, begin, tile in _tiles(queries, candidates, score, left_out, first, last):
            if len(own) == 0:
                own = tile.new_empty(last - first)
            there = wanted[query - first : query - first + len(tile)]
            rows = ((there >= begin) & (there < begin + tile.shape[1])).nonzero()[:, 0]
            own[rows + query - first] = tile[rows, there[rows] - begin]
        above, same = torch.zeros(2, last - first, dtype=torch.int64)
        for query, _, tile in _tiles(queries, candidates, score, left_out, first, last):
            part = slice(query - first, query - first + len(tile))
            above[part] += (tile > own[part, None]).sum(1).cpu()
            same[part] += (tile == own[part, None]).sum(1).cpu()
        lowest = (own == -math.inf).nonzero()[:, 0].cpu() + first
        if others is not None and len(lowest):  # to which those left out seemed equal
            hidden = others[:, torch.isin(others[0], lowest)].unique(dim=1)[0]
            same -= (hidden - first).bincount(minlength=last - first)
        ranks[first:last] = 1 + above + (same - 1).double() / 2
    return ranks


@torch.no_grad()
def top_links(
    queries: Tensor,
    candidates: Tensor,
    k: int,
    *,
    known: Tensor | None = None,
    score: Score = _dot,
    block_bytes: int = _BLOCK_BYTES,
) -> tuple[Tensor, Tensor]:
    """The k candidates that score highest with each query, exactly; of equal ones the lower ids.

    Args:
        k: how many; where fewer are left, the others are -1 with the score -inf. What scores -inf
            is not among them.

    The other arguments are those of ``rank_links``; ``known`` candidates are not among the k.

    Returns:
        (n, k) scores, descending, and (n, k) int64 ids.

    Raises:
        ArgumentError, DTypeError: shapes, ids or options that do not fit.
        DivergedError: NaN scores.

    >>> top_links(torch.eye(2), torch.tensor([[1.0, 0], [2, 1], [3, 1]]), 2)[1]
    tensor([[2, 1],
            [1, 2]])
    """
    found = [
        (scores, ids)
        for _, scores, ids in _top_blocks(queries, candidates, k, known, score, block_bytes)
    ]
    if not found:
        return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
    scores, ids = (torch.cat(parts) for parts in zip(*found, strict=True))
    return scores, ids


def fill_top_ids(
    out: Tensor,
    queries: Tensor,
    candidates: Tensor,
    *,
    known: Tensor | None = None,
    score: Score = _dot,
    block_bytes: int = _BLOCK_BYTES,
) -> Tensor:
    """The ids of ``top_links`` into a table, block by block, so that no scores are kept.

    Args:
        out: (n, k) of any integer type that has the ids, on the CPU.

    The other arguments are those of ``top_links``.

    Returns:
        ``out``.

    Raises:
        ArgumentError, DTypeError: shapes, ids or options that do not fit; NaN scores.

    >>> fill_top_ids(torch.empty(2, 1, dtype=torch.int32), torch.eye(2), torch.eye(2)).tolist()
    [[0], [1]]
    """
    first = 0
    blocks = _top_blocks(queries, candidates, out.shape[1], known, score, block_bytes)
    for last, _, ids in blocks:
        out[first:last] = ids
        first = last
    return out


def write_top_links(
    out: str | os.PathLike[str],
    queries: Tensor,
    candidates: Tensor,
    k: int,
    *,
    known: Tensor | None = None,
    score: Score = _dot,
    block_bytes: int = _BLOCK_BYTES,
    progress: Progress = lambda what, done, total: None,
) -> Path:
    """``top_links`` into a folder that appears when it is whole: ``ids.npy``, (n, k) int64, and
    ``scores.npy``, (n, k) float32.

    Neither the tables nor the result need to fit in memory.

    Args:
        out: the folder, which is not there yet.
        progress: is told how far the work is, in queries.

    The other arguments are those of ``top_links``.

    Returns:
        The folder.

    Raises:
        ArgumentError, DTypeError: shapes, ids or options that do not fit, a folder that is there.
        DivergedError: NaN scores.
        StorageError: the folder cannot be written.

    >>> import tempfile
    >>> folder = write_top_links(Path(tempfile.mkdtemp()) / "top", torch.eye(2), torch.eye(2), 1)
    >>> np.load(folder / "ids.npy").tolist()
    [[0], [1]]
    """
    place = Path(out)
    if place.exists():
        raise ArgumentError(f"{place}: exists already; name another folder, or remove it")
    blocks = _top_blocks(queries, candidates, k, known, score, block_bytes)
    with as_storage_error(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = ScratchFolder(f".{place.name}.partial-", place.parent)
    with closing(scratch):
        made = scratch.path / "top"
        with as_storage_error(place):
            made.mkdir()
        ends = {}
        for name, dtype in (("ids", np.int64), ("scores", np.float32)):
            header = np.frombuffer(npy_header((len(queries), k), np.dtype(dtype)), np.uint8)
            write_at(made / f"{name}.npy", 0, header)
            ends[name] = len(header)
        for last, scores, ids in blocks:
            for name, rows in (("ids", ids), ("scores", scores.float())):
                ends[name] = append_file(made / f"{name}.npy", ends[name], [rows.numpy()])
            progress("rank: sources", last, len(queries))
        with as_storage_error(place):
            made.rename(place)
    return place


def _top_blocks(
    queries: Tensor,
    candidates: Tensor,
    k: int,
    known: Tensor | None,
    score: Score,
    block_bytes: int,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Where a block of queries ends, and its best scores and candidates, on the CPU."""
    count = _check_tables(queries, candidates, score, block_bytes)
    check_whole("k", k, least=1)
    if known is not None:
        known = _check_known(known, len(queries), count)
    return _walk_top(queries, candidates, k, _LeftOut(known, count), score, block_bytes)


@torch.no_grad()
def _walk_top(
    queries: Tensor,
    candidates: Tensor,
    k: int,
    left_out: _LeftOut,
    score: Score,
    block_bytes: int,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    for first, last in _blocks(queries, 12 * k, block_bytes):
        best, ids = torch.empty(0), torch.full((last - first, k), -1)
        for query, begin, tile in _tiles(queries, candidates, score, left_out, first, last):
            if len(best) == 0:
                best, ids = tile.new_full(ids.shape, -math.inf), ids.to(tile.device)
            part = slice(query - first, query - first + len(tile))
            _take_better(best[part], ids[part], tile, begin)
        yield last, best.cpu(), ids.cpu()


def _take_better(best: Tensor, ids: Tensor, tile: Tensor, begin: int) -> None:
    """Puts what scores higher among a tile's candidates into the (q, k) best of its queries.

    The best descend and have lower ids than the tile's, so that sorting both, stably, keeps the
    lower of equal ones.
    """
    k = best.shape[1]
    rows = (tile.amax(1) > best[:, -1]).nonzero()[:, 0]
    if len(rows) == 0:
        return
    scores = tile[rows]
    columns = _first_best(scores, k)
    scores = torch.cat([best[rows], scores.gather(1, columns)], 1)
    numbers = torch.cat([ids[rows], columns + begin], 1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    best[rows], ids[rows] = scores[:, :k], numbers.gather(1, order[:, :k])


def _first_best(scores: Tensor, k: int) -> Tensor:
    """(q, k) ascending columns of the k highest scores, of equal ones the first."""
    if scores.shape[1] <= k:
        return torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    least = scores.topk(k).values[:, -1:]
    above, same = scores > least, scores == least
    wanted = k - above.sum(1, keepdim=True)
    return (above | (same & (same.cumsum(1) <= wanted))).nonzero()[:, 1].view(-1, k)


class _LeftOut:
    """Pairs of queries and candidates that do not count, by tile.

    Args:
        pairs: (2, n) checked, or None.
        candidates: their number.
    """

    def __init__(self, pairs: Tensor | None, candidates: int) -> None:
        self._across = -(-candidates // _CANDIDATES)  # tiles
        pairs = torch.empty(2, 0, dtype=torch.int64) if pairs is None else pairs
        self._tile, order = self._number(*pairs).sort()
        self._pairs = pairs[:, order]

    def hide(self, tile: Tensor, query: int, begin: int) -> None:
        """Sets their scores in the tile that begins there to -inf."""
        number = self._number(torch.tensor(query), torch.tensor(begin))
        bounds = torch.stack([number, number + 1])
        first, last = torch.searchsorted(self._tile, bounds).tolist()
        if first < last:
            rows, columns = self._pairs[:, first:last].to(tile.device)
            tile[rows - query, columns - begin] = -math.inf

    def _number(self, query: Tensor, candidate: Tensor) -> Tensor:
        return query // _QUERIES * self._across + candidate // _CANDIDATES


def _tiles(
    queries: Tensor, candidates: Tensor, score: Score, left_out: _LeftOut, first: int, last: int
) -> Iterator[tuple[int, int, Tensor]]:
    """The first query, the first candidate and the scores of each tile of some queries."""
    rows = read_rows(queries, first, last)
    for begin in range(0, len(candidates), _CANDIDATES):
        columns = read_rows(candidates, begin, min(begin + _CANDIDATES, len(candidates)))
        for query in range(first, last, _QUERIES):
            asked = rows[query - first : query - first + _QUERIES]
            tile = score(asked, columns)
            if tile.shape != (len(asked), len(columns)) or not tile.is_floating_point():
                raise ArgumentError(
                    f"score: gave {tuple(tile.shape)} {tile.dtype} for {len(asked)} queries and "
                    f"{len(columns)} candidates, expected ({len(asked)}, {len(columns)}) floats"
                )
            if tile.sum(1).isnan().any():
                _check_numbers(tile, query, begin)
            left_out.hide(tile, query, begin)
            yield query, begin, tile


def _check_numbers(tile: Tensor, query: int, begin: int) -> None:
    """Raises DivergedError for a score that is NaN; sums of infinite ones are, too."""
    wrong = tile.isnan().nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise DivergedError(
            f"score: NaN for query {query + row} and candidate {begin + column}; has the training "
            "diverged?"
        )


def read_rows(table: Tensor, first: int, last: int) -> Tensor:
    """The rows [first, last) of a table, ordinary or unified."""
    if isinstance(table, UnifiedTensor):
        return table.store.read_range(first, last).to(table.device)
    return table[first:last]


def _blocks(queries: Tensor, more_bytes: int, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of queries of whole tiles; one takes ``more_bytes`` beside its row."""
    each = math.prod(queries.shape[1:]) * queries.element_size() + more_bytes
    step = max(1, block_bytes // each // _QUERIES) * _QUERIES
    for first in range(0, len(queries), step):
        yield first, min(first + step, len(queries))


def _check_tables(queries: Tensor, candidates: Tensor, score: Score, block_bytes: int) -> int:
    """The number of candidates."""
    check_whole("block_bytes", block_bytes, least=1)
    if queries.dim() < 2 or candidates.dim() < 2:
        raise ArgumentError(
            f"queries {tuple(queries.shape)} and candidates {tuple(candidates.shape)}: expected "
            "rows, (n, d) and (m, d)"
        )
    if len(candidates) == 0:
        raise ArgumentError("candidates: none, expected at least one")
    if score is _dot:
        if queries.dim() != 2 or queries.shape[1:] != candidates.shape[1:]:
            raise ArgumentError(
                f"queries {tuple(queries.shape)} and candidates {tuple(candidates.shape)}: "
                "expected (n, d) and (m, d) for inner products; give a score of other rows"
            )
        if queries.dtype != candidates.dtype or not queries.dtype.is_floating_point:
            raise DTypeError(
                f"queries {queries.dtype} and candidates {candidates.dtype}: expected floats of "
                "one type; convert one of them"
            )
    return len(candidates)


def _check_targets(targets: Tensor, queries: int, candidates: int) -> Tensor:
    if targets.shape != (queries,):
        raise ArgumentError(f"targets {tuple(targets.shape)}: expected ({queries},), one a query")
    return check_ids_below("targets", targets, candidates)


def _check_known(known: Tensor, queries: int, candidates: int) -> Tensor:
    if known.dim() != 2 or len(known) != 2:
        raise ArgumentError(
            f"known {tuple(known.shape)}: expected (2, k), numbers of queries above candidates"
        )
    parts = [
        check_ids_below(f"known, {name}", ids, count)
        for name, ids, count in zip(
            ("queries", "candidates"), known, (queries, candidates), strict=True
        )
    ]
    return torch.stack(parts)
