"""Replicas that die, that join, and that fall silent, while clients go on asking."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

from lab.routing import fleet


async def soak(handle, requests: Iterator[Any], clients: int, most: int, kills: int, pause: float = 2.0) -> tuple[fleet.Outcome, int]:
    """``most`` requests from ``clients`` that send again what a dead replica owed them, while replicas are killed, one every ``pause`` seconds
    as long as two of them run. Returns what came of it, and how many were killed."""
    import ray

    asking = asyncio.create_task(fleet.ask(handle, requests, clients, most=most))
    killed = 0
    while not asking.done():
        await asyncio.sleep(pause)
        if killed < kills and not asking.done() and await asyncio.to_thread(fleet.ready) > 1:
            alive = await asyncio.to_thread(fleet.running)
            ray.kill(alive[killed % len(alive)], no_restart=True)
            killed += 1
    return await asking, killed


def joined(outcome: fleet.Outcome, since: float, window: float = 5.0) -> tuple[float, float]:
    """Seconds from ``since`` to the first answer of the replica that answered first after it and never before, and its share of the answers
    in the ``window`` after that; infinity and 0 where none joined."""
    new = {replica: times for replica, times in outcome.by_replica.items() if times and min(times) > since}
    if not new:
        return float("inf"), 0.0
    replica = min(new, key=lambda id_: min(new[id_]))
    first = min(new[replica])
    answers = [when for times in outcome.by_replica.values() for when in times if first <= when <= first + window]
    own = [when for when in new[replica] if when <= first + window]
    return first - since, len(own) / len(answers)


async def grow(
    handle, requests: Iterator[Any], clients: int, more: Callable[[], Any], at: float, window: float = 6.0
) -> tuple[fleet.Outcome, float]:
    """While clients ask, ``more()`` deploys another replica ``at`` so many seconds; they go on for ``window`` seconds after it is ready. Returns
    what came of it, and when the newcomer was ready, in seconds since the start."""
    start, stop = time.perf_counter(), asyncio.Event()
    asking = asyncio.create_task(fleet.ask(handle, requests, clients, stop=stop))
    await asyncio.sleep(at)
    await asyncio.to_thread(more)
    ready = time.perf_counter() - start
    await asyncio.sleep(window)
    stop.set()
    return await asking, ready
