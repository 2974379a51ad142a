"""Bursts, and the sweeps in which they are served.

While the engine keeps up, little is gained by throughput, and users notice tail latency. In a burst, relatives of the running
requests would go first for as long as they keep coming, which is what makes the tails of prefix-aware queues. So a burst is
served in sweeps: a request that comes while others wait joins the tree once those have gone. (Disk arms are scheduled like
that under the name of FSCAN.)
"""

from collections.abc import Hashable

from feather.request import Request


class Bursts:
    """Tells a burst from an overload. Once a queue has been seen to end, the next one is a burst until its requests, admitted
    and waiting, amount to ``saturated_after`` times the largest batch so far.

    The first queue is no burst: nothing is known of the engine yet. 0: no queue is one.
    """

    def __init__(self, saturated_after: float):
        self.saturated_after = saturated_after
        self._admitted = float("inf")  # from the present queue
        self._largest = 0  # batch so far

    def admit(self, running: int) -> None:
        """A request was admitted; ``running`` requests run now."""
        self._admitted += 1
        self._largest = max(self._largest, running)

    def end_queue(self) -> None:
        """A step was scheduled with nobody waiting and room for more."""
        if self._largest:
            self._admitted = 0

    def is_burst(self, waiting: int) -> bool:
        """Whether the present queue is a burst, with so many requests waiting."""
        return self._admitted + waiting < self.saturated_after * self._largest


class Sweeps:
    """Holds back the requests that belong to the next sweep."""

    def __init__(self) -> None:
        self.later: dict[Hashable, Request] = {}  # for the next sweep
        self._end = 0  # arrival number that the present sweep ends before

    def is_later(self, arrival: int) -> bool:
        """Whether a request with this number came too late for the present sweep."""
        return arrival >= self._end

    def join(self, arrival: int) -> None:
        """A request with this number is served without waiting for a sweep."""
        self._end = max(self._end, arrival + 1)

    def next(self, came: int) -> list[Request]:
        """Begin the next sweep, with all that were held back, after so many arrivals. Returns their records."""
        sweep = list(self.later.values())
        self.later.clear()
        self._end = came
        return sweep
