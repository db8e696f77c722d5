"""When training diverges because chunks read rows that are too old."""

from __future__ import annotations

from collections import deque

__all__ = ["StalenessWatch"]

_EPOCHS = 5
_MORE = 1.1


class StalenessWatch:
    """Warns once when staleness and the loss both grow.

    Each is compared over the last 5 epochs with the 5 before, by the mean: staleness grows when a
    layer's is more than a tenth above, and the loss likewise. Staleness alone rises after every
    snapshot, and means nothing.

    >>> watch = StalenessWatch()
    >>> notes = [watch.look(loss=2.0**epoch, staleness=[0.1 * 2**epoch]) for epoch in range(12)]
    >>> [epoch for epoch, note in enumerate(notes) if note]
    [9]
    """

    def __init__(self) -> None:
        self._told = False
        self._seen: deque[tuple[float, float]] = deque(maxlen=2 * _EPOCHS)

    def look(self, loss: float, staleness: list[float]) -> str | None:
        """Advice, if it is time for it.

        Args:
            loss: of the epoch.
            staleness: of each layer, as ``GNNPipe.staleness`` has it.
        """
        self._seen.append((loss, max(staleness)))
        if self._told or len(self._seen) < 2 * _EPOCHS:
            return None
        before, after = list(self._seen)[:_EPOCHS], list(self._seen)[_EPOCHS:]
        grown = [
            sum(pair[part] for pair in after) > _MORE * sum(pair[part] for pair in before)
            for part in (0, 1)
        ]
        if not all(grown):
            return None
        self._told = True
        layer = staleness.index(max(staleness))
        return (
            f"the loss grows, and so does the distance of layer {layer}'s rows from their snapshot "
            f"(now {max(staleness):.2f} of their norm): take a lower --snapshot-period or --lr, "
            "--boundary-gradient-scale 1, or more --ways (hybrid), so that fewer rows are old"
        )
