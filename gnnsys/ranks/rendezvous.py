"""Where ranks meet before they have a process group, and what must be alike among them by then.

Each says at one store that it has come, and what is wrong on its side, so that all end with one
same error: a process group whose ranks do not fit only waits. No clock is compared with another's.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil
from torch.distributed import (  # type: ignore[attr-defined]
    DistError,
    PrefixStore,
    Store,
    TCPStore,
)

from gnnsys.errors import ArgumentError, RankFailedError
from gnnsys.ranks.environment import (
    held_by_launcher,
    place_to_meet,
    rank_of_process,
    restarts_so_far,
)
from gnnsys.system.background import result_of, start_thread

__all__ = ["check_equal", "interface_to", "meet", "tell_of_end"]

_WITHIN = 60.0
_LEAVE_WITHIN = 5.0
_LOOK = 0.05
_INTERFACE = "GLOO_SOCKET_IFNAME"
_ENDED = "ended"


def meet(
    world: int, facts: Mapping[str, Any], within: float = _WITHIN, wrong: str | None = None
) -> Store:
    """Waits until all ranks have come to the place that the environment names.

    Gloo is told to use the network by which that place is reached, unless GLOO_SOCKET_IFNAME says
    otherwise: by itself it takes the one that the machine's name stands for, often its loopback.

    Args:
        world: number of ranks.
        facts: of this rank, by their names, which must be the same on all.
        within: seconds for all to come.
        wrong: why this rank cannot go on.

    Returns:
        A store for a process group of these ranks, not of those before a restart.

    Raises:
        ArgumentError: what is wrong with one of them, or differs; on all ranks.
        RankFailedError: ranks that do not come.
    """
    (host, port), rank = place_to_meet(), rank_of_process()
    deadline, place = time.monotonic() + within, f"{host}:{port}"
    store = PrefixStore(f"gnnsys/{restarts_so_far()}", _store_at(host, port, rank, within))
    hello = {"wrong": wrong or _choose_interface(host), "facts": {"WORLD_SIZE": world, **facts}}

    def look() -> None:
        if time.monotonic() > deadline + 2 * _LEAVE_WITHIN:
            raise RankFailedError(f"{place}: what listens there no longer answers", 0)

    # The store never answers where the process that holds it is stopped.
    result_of(lambda: _greet(store, place, hello, rank, world, deadline, within), look)
    return store


def tell_of_end(store: Store, restarts: int, told: str) -> None:
    """Tells ranks that have not met yet how one of them has ended; of a launcher."""
    PrefixStore(f"gnnsys/{restarts}", store).set(_ENDED, told)


def check_equal(found: Mapping[int, Mapping[str, Any]]) -> None:
    """Raises ArgumentError where a rank's facts are others than those of the first in ``found``."""
    first, *others = sorted(found)
    for rank in others:
        for name, value in found[first].items():
            if found[rank].get(name) != value:
                raise ArgumentError(
                    f"rank {rank} has {name} {found[rank].get(name)} != {value} of rank {first}: "
                    "start all ranks with the same options, dataset and versions"
                )


def interface_to(host: str) -> str | None:
    """The network interface by which a host is reached; None where that is not known, or where the
    host's name is this machine's own and stands for its loopback, which others cannot reach.

    >>> interface_to("127.0.0.1"), interface_to("127.0.1.1")
    ('lo', None)
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    if place[0] != own and ipaddress.ip_address(own).is_loopback:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == own for each in addresses):
            return name
    return None


def _choose_interface(host: str) -> str | None:
    """Sets the interface for gloo where none is; returns what is wrong with one that is."""
    there = psutil.net_if_addrs()
    asked = os.environ.get(_INTERFACE)
    if asked is None:
        found = interface_to(host)
        if found is not None:
            os.environ[_INTERFACE] = found
        return None
    missing = [name for name in asked.split(",") if name not in there]
    if not missing:
        return None
    return (
        f"{_INTERFACE}={asked}: no network interface {', '.join(missing)} with an address; unset "
        f"it, or name one of {', '.join(there)}"
    )


def _greet(
    store: Store, place: str, hello: Any, rank: int, world: int, deadline: float, within: float
) -> None:
    """Waits for all ranks, and looks at what each says."""
    found: dict[int, Any] = {}
    try:
        store.set(f"hello/{rank}", json.dumps(hello))
        while True:
            for other in sorted(set(range(world)) - found.keys()):
                if store.check([f"hello/{other}"]):
                    found[other] = json.loads(store.get(f"hello/{other}"))
                    _check_hello(found)
            if len(found) == world:
                return
            if store.check([_ENDED]):
                raise RankFailedError(f"{store.get(_ENDED).decode()} before all had met")
            if time.monotonic() > deadline:
                missing = sorted(set(range(world)) - found.keys())
                raise RankFailedError(
                    f"rank {', '.join(map(str, missing))} of {world} did not come to {place} "
                    f"within {within:.0f} s: start all ranks, and see what that one says",
                    missing[0],
                )
            time.sleep(_LOOK)
    except ArgumentError:
        _let_others_read(store, rank, world)
        raise
    except DistError as error:
        raise RankFailedError(f"rank 0 has left {place} before all had met", 0) from error


def _check_hello(found: Mapping[int, Any]) -> None:
    for rank, hello in sorted(found.items()):
        if hello["wrong"] is not None:
            raise ArgumentError(f"rank {rank}: {hello['wrong']}")
    check_equal({rank: hello["facts"] for rank, hello in found.items()})


def _store_at(host: str, port: int, rank: int, within: float) -> Store:
    """The store of all ranks, which the first holds where no launcher does."""
    holds = rank == 0 and not held_by_launcher()
    place = f"MASTER_ADDR={host} MASTER_PORT={port}"
    if not holds:
        _wait_for_listener(host, port, place, within)
    made: list[Store | RuntimeError] = []

    def make() -> None:
        try:
            made.append(
                TCPStore(host, port, is_master=holds, wait_for_workers=False, multi_tenant=True)
            )
        except RuntimeError as error:
            made.append(error)

    # Where something else listens, this may wait for ever.
    start_thread(make, "gnnsys-store").join(within)
    store = made[0] if made else RuntimeError("no answer")
    if isinstance(store, Store):
        return store
    if "EADDRINUSE" in str(store):
        raise ArgumentError(
            f"{place}: the port is in use on this machine; give all ranks another"
        ) from store
    raise ArgumentError(
        f"{place}: what listens there is no rank 0 ({str(store).splitlines()[0]}); give all ranks "
        "another port"
    ) from store


def _wait_for_listener(host: str, port: int, place: str, within: float) -> None:
    """Of torch's own waiting, its log would tell at length."""
    deadline = time.monotonic() + within
    while True:
        try:
            socket.create_connection((host, port), timeout=within).close()
            return
        except socket.gaierror as error:
            raise ArgumentError(f"{place}: no such host ({error.strerror})") from error
        except OSError as error:
            if time.monotonic() > deadline:
                raise RankFailedError(
                    f"{place}: rank 0 did not answer within {within:.0f} s ({error.strerror}); has "
                    "it begun, is that its machine, and may other machines reach the port?",
                    0,
                ) from error
        time.sleep(_LOOK)


def _let_others_read(store: Store, rank: int, world: int) -> None:
    """Rank 0 may hold the store: it stays until the others have read why none goes on."""
    with suppress(RuntimeError):  # it is gone
        store.add("read", 1)
        until = time.monotonic() + _LEAVE_WITHIN
        while rank == 0 and store.add("read", 0) < world and time.monotonic() < until:
            time.sleep(_LOOK)
