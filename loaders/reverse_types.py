"""Which edge types may hold the reverses of another's edges, by their names."""

from __future__ import annotations

from collections.abc import Sequence

from torch_geometric.typing import EdgeType

__all__ = ["types_back"]


def types_back(kind: EdgeType, kinds: Sequence[EdgeType | None]) -> list[EdgeType]:
    """``rev_rel`` alone of ``rel``, or ``rel`` of ``rev_rel``, where that is among the types; or
    else all that lead back, as the type itself does where both of its ends are alike.

    >>> types_back(("a", "to", "b"), [("a", "to", "b"), ("b", "from", "a"), ("b", "of", "a")])
    [('b', 'from', 'a'), ('b', 'of', 'a')]
    >>> types_back(("a", "to", "b"), [("b", "rev_to", "a"), ("b", "of", "a")])
    [('b', 'rev_to', 'a')]
    """
    source, relation, target = kind
    name = relation.removeprefix("rev_") if relation.startswith("rev_") else f"rev_{relation}"
    if (target, name, source) in kinds:
        return [(target, name, source)]
    return [each for each in kinds if each and (each[0], each[-1]) == (target, source)]
