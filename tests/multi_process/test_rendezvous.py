"""What ranks are told that cannot work together: the same on all, and soon."""

from __future__ import annotations

# Rounds at one store, as of a launcher that starts all again.
ROUNDS = """
    import os, socket, time
    from pathlib import Path
    import torch.distributed as dist
    from gnnsys.errors import GnnsysError, MissingFileError
    from gnnsys.ranks.group import join_ranks
    from gnnsys.ranks.rendezvous import meet

    FIRST = os.environ["RANK"] == "0"
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    if FIRST:
        port = int(os.environ["MASTER_PORT"])
        agent = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    rounds = iter(range(9))

    def come(world=2, device="cpu", within=30.0, work=meet):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(next(rounds))
        try:
            store = work(world, {"device": device}, within)
        except GnnsysError as error:
            print(f"{type(error).__name__}: {error}")
        else:
            print("met")
            return store

    if not FIRST:
        time.time = lambda: 0.0  # its clock is slow by decades
        os.environ["GLOO_SOCKET_IFNAME"] = "nosuch"
    come()
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    store = come()
    store.set(os.environ["RANK"], "here")
    assert store.get("1" if FIRST else "0") == b"here"
    come(device="cpu" if FIRST else "cuda")
    come(world=2 if FIRST else 3)

    def prepare():
        if not FIRST:
            raise MissingFileError("graph: no such folder")

    come(work=lambda *_: join_ranks("cpu", prepare))

    del os.environ["TORCHELASTIC_USE_AGENT_STORE"]
    if FIRST:
        taken = socket.create_server(("127.0.0.1", 0))
        store.set("port", str(taken.getsockname()[1]))
    os.environ["MASTER_PORT"] = store.get("port").decode()
    come(within=0.5)
    os.environ["MASTER_ADDR"] = "" if FIRST else "nosuch.invalid"
    come()
    store.set("done " + os.environ["RANK"], "")
    store.wait(["done 0", "done 1"])
"""


def test_ranks_that_do_not_fit_are_all_told_what_is_wrong(start_ranks) -> None:
    told = []
    for status, out, errors in start_ranks(ROUNDS, 2).outputs():
        assert status == 0, errors
        told.append(out.splitlines())
    first, second = told
    assert first[:4] == second[:4]
    interface, met, device, world = first[:4]
    wrong = "ArgumentError: rank 1: GLOO_SOCKET_IFNAME=nosuch: no network interface nosuch"
    assert interface.startswith(wrong)
    assert met == "met"
    assert device.startswith("ArgumentError: rank 1 has device cuda != cpu of rank 0: start all")
    assert world.startswith("ArgumentError: rank 1 has WORLD_SIZE 3 != 2 of rank 0: start all")
    assert first[4] == "ArgumentError: rank 1: graph: no such folder"
    assert second[4] == "MissingFileError: graph: no such folder"
    assert first[5].endswith("the port is in use on this machine; give all ranks another")
    assert "what listens there is no rank 0 (no answer)" in second[5]
    assert "the environment says MASTER_ADDR= and MASTER_PORT=" in first[6]
    assert "MASTER_ADDR=nosuch.invalid" in second[6]
