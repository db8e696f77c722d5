"""Training of embeddings that is killed at random points goes on as if undisturbed."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

_TRAINED = """
    import os, random, signal, sys, threading
    from pathlib import Path
    import torch
    from gnnsys import nn
    from gnnsys.cache.embedding import files

    files._LEAST_LOG_BYTES = 2000  # so that kills meet logs that are rewritten
    place, seed, kills, batches = Path(sys.argv[1]), *map(int, sys.argv[2:])
    torch.set_num_threads(1)
    draw = random.Random(seed)

    def train(folder, kill=(None, 0.0), saves=True):
        model, names = torch.nn.ModuleDict(), {"users": "adagrad", "goods": "sparse_adam"}
        for name, kind in names.items():
            torch.manual_seed(1)  # one that is there already draws nothing
            model[name] = nn.Embedding(
                500, 4, folder=folder / name, optimizer=kind, cache=60, threads=1
            )
        torch.manual_seed(2)
        model["head"] = torch.nn.Linear(4, 1)
        optimizers = [
            nn.Adagrad(model["users"].parameters(), lr=0.1),
            nn.SparseAdam(model["goods"].parameters(), lr=0.1),
            torch.optim.Adam(model["head"].parameters()),
        ]
        first, losses, path = 0, [], folder / "c.pt"
        if path.exists():
            state = nn.load_checkpoint(path, model)
            first, losses = state["batch"], state["losses"]
            model.load_state_dict(state["model"])
            for optimizer, kept in zip(optimizers, state["optimizers"]):
                optimizer.load_state_dict(kept)
        else:
            for name in names:
                model[name].store.withdraw()  # killed in the first save_checkpoint
        for batch in range(first, batches):
            if batch - first == kill[0]:  # some time later, in the middle of whatever it is at
                threading.Timer(kill[1], os.kill, (os.getpid(), signal.SIGKILL)).start()
            ids = torch.randint(500, (2, 50), generator=torch.Generator().manual_seed(batch))
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = model["head"](model["users"](ids[0]) * model["goods"](ids[1])).pow(2).mean()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            losses.append(loss.item())
            if saves and batch % 3 == 2:
                nn.save_checkpoint(path, model, {
                    "batch": batch + 1, "losses": losses, "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                })
        tables = [model[name].store for name in names]
        everything = torch.arange(500)
        return losses, [t for s in tables for t in (s.gather(everything),
                                                     *s.gather_state(everything).values())]

    for number in range(kills):
        kill = draw.randint(1, 5), draw.uniform(0, 0.01)
        child = os.fork()
        if child == 0:
            train(place / "killed", kill)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"it ended before kill {number}: make it longer"
    losses, tables = train(place / "killed")
    expected, rows = train(place / "undisturbed", saves=False)
    assert losses == expected and len(losses) == batches
    assert all(map(torch.equal, tables, rows))
"""


def test_training_through_20_kills_equals_undisturbed_training(
    run_forked: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    # What a killed process has written is there, also where nothing waits for a disk.
    in_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=in_memory) as place:
        for name in ("killed", "undisturbed"):
            os.mkdir(f"{place}/{name}")
        done = run_forked(_TRAINED, tmp_path, place, seed, 20, 300)
        assert done.returncode == 0, done.stderr
