"""When each rank of a pipeline would do what: an epoch, simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gnnsys.pipeline.schedule import Action, Event, Kind, epoch_actions

__all__ = ["idle_share", "simulate"]


def simulate(
    stages: int,
    order: Sequence[int],
    seconds: Callable[[int, Action], float],
    transfer: Callable[[int], float] = lambda chunk: 0.0,
) -> list[Event]:
    """Carries out the actions of all stages, each as early as it can be.

    Args:
        stages: S; each has one rank here, since ways do the same at the same time.
        order: of the slots.
        seconds: that an action of a stage takes, once it can begin.
        transfer: seconds that a chunk is on its way between two stages.

    Returns:
        Events of rank 0 … S - 1, in their order; what takes no time is left out.

    >>> events = simulate(2, [0, 1, 2], lambda stage, action: float(action.kind is Kind.FORWARD))
    >>> max(event.end for event in events)
    4.0
    """
    waiting = [list(reversed(epoch_actions(stage, stages, order))) for stage in range(stages)]
    now = [0.0] * stages
    arrivals: dict[tuple[int, Kind, int], float] = {}
    events: list[list[Event]] = [[] for _ in range(stages)]
    advanced = True
    while advanced:
        advanced = False
        for stage in range(stages):
            while waiting[stage]:
                action = waiting[stage][-1]
                begun = now[stage]
                if action.kind in (Kind.RECEIVE_FORWARD, Kind.RECEIVE_BACKWARD):
                    key = stage, action.kind, action.chunk
                    if key not in arrivals:
                        break
                    now[stage] = max(begun, arrivals[key])
                now[stage] += seconds(stage, action)
                if action.kind is Kind.SEND_FORWARD:
                    key = stage + 1, Kind.RECEIVE_FORWARD, action.chunk
                    arrivals[key] = now[stage] + transfer(action.chunk)
                elif action.kind is Kind.SEND_BACKWARD:
                    key = stage - 1, Kind.RECEIVE_BACKWARD, action.chunk
                    arrivals[key] = now[stage] + transfer(action.chunk)
                if now[stage] > begun:
                    kind = action.kind.value
                    events[stage].append(Event(stage, kind, action.chunk, begun, now[stage]))
                waiting[stage].pop()
                advanced = True
    return [event for each in events for event in each]


def idle_share(events: Sequence[Event]) -> float:
    """Share of all ranks' time, from the first event to the last, in which they do not compute.

    >>> idle_share([Event(0, "forward", 0, 0.0, 1.0), Event(1, "forward", 0, 1.0, 2.0)])
    0.5
    """
    if not events:
        return 0.0
    ranks = len({event.rank for event in events})
    span = max(event.end for event in events) - min(event.start for event in events)
    computing = (Kind.FORWARD.value, Kind.BACKWARD.value)
    busy = sum(event.end - event.start for event in events if event.kind in computing)
    return 1 - busy / (ranks * span) if span else 0.0
