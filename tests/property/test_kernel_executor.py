"""A cache whose rows the kernels of a GPU move, executed on the CPU, against the CPU's."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gnnsys.cache.kernel_executor import KernelExecutor
from gnnsys.cache.plan import BatchPlan
from gnnsys.cache.store import CachedStore
from gnnsys.errors import ArgumentError
from gnnsys.memory import FileStore, HostStore
from gnnsys.system.gpu import HostExecutorDevice

sys.path.insert(0, str(Path(__file__).parent))
from stored_reference import delivered, open_store

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"
)
ROWS = 60
_PLACE = tempfile.TemporaryDirectory(prefix="gnnsys-executor-")  # goes with the process


def table_of(columns: int) -> tuple[Path, Tensor]:
    values = np.random.default_rng(columns).standard_normal((ROWS, columns)).astype(np.float16)
    path = Path(_PLACE.name) / f"{columns}.npy"
    np.save(path, values)
    return path, torch.from_numpy(values)


@pytest.mark.parametrize(
    ("columns", "stored"), [(1, ""), (7, "int4 row"), (7, ""), (300, ""), (7, "in memory")]
)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_rows_and_decisions_are_those_of_the_cpu(
    columns: int, stored: str, data: st.DataObject
) -> None:
    path, table = table_of(columns)
    source: Any = partial(FileStore, path, storage="pread")
    if stored == "in memory":
        source = partial(HostStore, table)
    elif stored:
        values = table.float().numpy()
        source = partial(open_store, path.with_name(f"{stored}.npy"), values, stored)
        table = torch.from_numpy(delivered(values, stored))
    batches = data.draw(
        st.lists(st.lists(st.integers(0, ROWS - 1), max_size=30), min_size=1, max_size=6)
    )
    options: dict[str, Any] = {
        "cache": data.draw(st.integers(0, 20)),
        "victim_buffer": data.draw(st.integers(0, 8)),
        "policy": data.draw(st.sampled_from(["hybrid", "hybrid-pvp", "lru"])),
        "window": data.draw(st.integers(0, 3)),
        "scores": torch.arange(ROWS) if data.draw(st.booleans()) else None,
    }
    stores = [
        CachedStore(
            source(),
            device=device,
            **options,
        )
        for device in ("cpu", "simt")
    ]
    ids = [torch.tensor(batch, dtype=torch.int64) for batch in batches]
    tickets = [[store.announce(each) for each in ids] for store in stores]
    for number, each in enumerate(ids):
        for store, given_out in zip(stores, tickets, strict=True):
            assert torch.equal(store.gather(each, ticket=given_out[number]), table[each])
        cpu, simt = (store.stats.as_dict() for store in stores)
        assert simt | {"io_wait_seconds": 0} == cpu | {"io_wait_seconds": 0}
    assert stores[0].counters.tiers() == stores[1].counters.tiers()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hits": [[0, 9], [1, 0]]}, "plan: no slot 9"),
        ({"hits": [[0, 0], [0, 1]]}, "plan: position 0 is outside the batch, or given twice"),
        ({"hits": [[0, 0], [2, 1]]}, "plan: position 2 is outside"),
        ({"hits": [[0, 0]]}, "plan: 1 positions"),
        ({"victim_out": [[0, 5]]}, "plan: no cell 5"),
        ({"victim_out": [[-1, 0]]}, "plan: no staging row 0"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change: dict[str, Any], told: str) -> None:
    executor = KernelExecutor(3, 2, 8, HostExecutorDevice())
    lists = {
        name: np.array(change.get(name, found), np.int32).reshape(-1, columns)
        for name, found, columns in (
            ("hits", [[0, 0], [1, 1]], 2),
            ("victim_in", [], 3),
            ("fills", [], 3),
            ("copies", [], 2),
            ("victim_out", [], 2),
        )
    }
    plan = BatchPlan(batch=0, rows=2, reads=np.empty(0, np.int64), drops=0, evictions=0, **lists)
    with pytest.raises(ArgumentError, match=told):
        executor.execute(plan, None, executor.new_output(2))
