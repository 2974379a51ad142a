"""A replica without an engine, for faults and tests: it takes requests, reports and dies like one, and its answers take next to no time."""

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from feather.ray.prompts import prefix_path
from feather.ray.statistics import Outstanding
from lab.routing.real import CHUNK, Ask


class StandIn:
    """``rows`` at once, a step every ``step`` seconds, ``holds`` prefixes. ``reports``: how many reports it gives before it falls silent
    (repeats the last one); None: for ever."""

    def __init__(self, rows: int = 8, step: float = 0.002, holds: int = 4, reports: int | None = None):
        self._rows = asyncio.Semaphore(rows)
        self._step, self._holds, self._reports = step, holds, reports
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._outstanding = Outstanding()
        self._last: dict[str, Any] = {}

    async def __call__(self, ask: Ask) -> AsyncIterator[dict[str, Any]]:
        with self._outstanding.request(prefix_path([ask], CHUNK)) as number:
            async with self._rows:
                cached = ask.group in self._cached
                self._cached[ask.group] = None
                self._cached.move_to_end(ask.group)
                if len(self._cached) > self._holds:
                    self._cached.popitem(last=False)
                await asyncio.sleep(self._step * (1 if cached else 10))
                self._outstanding.runs(number)
                yield {"tokens": [0]}
                await asyncio.sleep(self._step * (ask.decode_tokens - 1))
                yield {"all": [0] * ask.decode_tokens, "cached": len(ask.prompt) * cached, "groups": 1, "replica": os.getpid()}

    async def record_routing_stats(self) -> dict[str, Any]:
        if self._reports != 0:
            self._last = self._outstanding.report()
            self._reports = None if self._reports is None else self._reports - 1
        return self._last
