"""Makes the reads of a spill file fail, as a disk does."""

from __future__ import annotations

import os

from gnnsys.offload.spill_file import SpillFile


def fail_reads_of(spill: SpillFile) -> None:
    """What reads the file is put over this process's memory, whose first pages are real EIOs."""
    own = {spill._store._table.shards[0].handle, int(spill._path.rpartition("/")[2])}
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    for handle in {int(name) for name in os.listdir("/proc/self/fd")} - own:
        link = f"/proc/self/fd/{handle}"
        if os.path.exists(link) and os.path.samefile(link, spill._path):
            os.dup2(memory, handle)
    os.close(memory)
