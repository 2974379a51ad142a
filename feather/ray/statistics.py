"""What a replica tells the routers: how many requests run and wait, and which prefixes they share."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

KEY = "feather"  # of the report among a replica's routing statistics
_MOST = 512  # chunks told of, those with the most requests first


class Outstanding:
    """The requests that a replica has. ``chunks``: that its prefix cache holds, where it is known."""

    def __init__(self, chunks: int | None = None):
        self.chunks = chunks
        self._paths: dict[int, Sequence[Hashable]] = {}
        self._running: set[int] = set()
        self._numbers, self._reports = count(), count()

    @contextmanager
    def request(self, path: Sequence[Hashable]) -> Iterator[int]:
        """While a request is here. It waits until ``runs`` is told its number."""
        number = next(self._numbers)
        self._paths[number] = path
        try:
            yield number
        finally:
            del self._paths[number]
            self._running.discard(number)

    def runs(self, number: int) -> None:
        """The first token of a request has come."""
        self._running.add(number)

    def report(self) -> dict[str, Any]:
        """To be returned by ``record_routing_stats``. Never the same twice: Ray passes on what changes, and a router sees that it is new."""
        relatives = Counter(chunk for path in self._paths.values() for chunk in path)
        shared = [(chunk, requests) for chunk, requests in relatives.most_common(_MOST) if requests > 1]
        told = {"report": next(self._reports), "running": len(self._running), "prefixes": shared, "chunks": self.chunks}
        return {KEY: told | {"waiting": len(self._paths) - len(self._running)}}
