"""Replicas that die, that join, and that fall silent, while clients go on asking."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from lab.routing import fleet


async def soak(handle, requests: Iterator[Any], clients: int, most: int, kills: int, pause: float = 2.0) -> tuple[fleet.Outcome, int]:
    """``most`` requests from ``clients`` that send again what a dead replica owed them, while replicas are killed, one every ``pause`` seconds
    as long as two of them run. Returns what came of it, and how many were killed."""
    import ray

    outcome, killed = fleet.Outcome(), 0
    asking = asyncio.create_task(fleet.ask(handle, requests, clients, most=most, outcome=outcome))
    bar = tqdm(total=most, desc="soak", unit="request", mininterval=1)
    while not asking.done():
        await asyncio.wait([asking], timeout=pause)
        bar.update(len(outcome.answers) - bar.n)
        if killed < kills and not asking.done() and await asyncio.to_thread(fleet.ready) > 1:
            alive = await asyncio.to_thread(fleet.running)
            ray.kill(alive[killed % len(alive)], no_restart=True)
            killed += 1
            bar.set_postfix(killed=killed)
    bar.close()
    return await asking, killed


def joined(outcome: fleet.Outcome, ready: float, window: float = 5.0) -> tuple[float, float]:
    """Of the replica whose first answer came last: seconds from ``ready`` to that answer, and its share of all answers in the ``window`` after it."""
    replica = max(outcome.by_replica, key=lambda id_: min(outcome.by_replica[id_]))
    first = min(outcome.by_replica[replica])
    answers = [when for times in outcome.by_replica.values() for when in times if first <= when <= first + window]
    return first - ready, sum(when <= first + window for when in outcome.by_replica[replica]) / len(answers)


async def grow(handle, requests: Iterator[Any], clients: int, number: int, window: float = 8.0) -> tuple[fleet.Outcome, float]:
    """Clients ask until Ray has added replicas up to ``number``, and ``window`` seconds more. Returns what came of it, and when the last of them
    was ready, in seconds since the start. Raises TimeoutError after two minutes without it."""
    start, stop = time.perf_counter(), asyncio.Event()
    asking = asyncio.create_task(fleet.ask(handle, requests, clients, stop=stop))
    try:
        async with asyncio.timeout(120):
            while await asyncio.to_thread(fleet.ready) < number:
                await asyncio.sleep(0.2)
        ready = time.perf_counter() - start
        await asyncio.sleep(window)
    finally:
        stop.set()
    return await asking, ready
