"""What a store says of itself: rows, bytes, tier, without reading any."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnsys.system.sizes import size_text

if TYPE_CHECKING:
    from gnnsys.memory.store import Store

__all__ = ["facts_of", "in_short"]


def facts_of(store: Store) -> dict[str, str]:
    """What is said of each thing, by its name, for people."""
    row = " x ".join(map(str, store.shape[1:])) or "1"
    encoding = store.encoding
    stored = _name(encoding.stored) if encoding.codes is None else encoding.codes.dtype
    facts = {
        "rows": f"{store.shape[0]:,}",
        "row": f"{row} {_name(store.dtype)}",
        "stored as": "" if stored == _name(store.dtype) else stored,
        "bytes": f"{size_text(_num_bytes(store))}, {store.row_bytes:,} bytes a row",
        "tier": store.tier,
        "file": store.path or "",
    }
    return {name: told for name, told in facts.items() if told}


def in_short(store: Store) -> str:
    """The same, as the representation of a store has it."""
    shape = f"shape={tuple(store.shape)}, dtype={store.dtype}"
    return f"{shape}, tier={store.tier!r}, bytes={size_text(_num_bytes(store))!r}"


def _num_bytes(store: Store) -> int:
    return int(store.shape[0]) * store.row_bytes


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
