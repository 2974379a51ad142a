"""Bursts: queues too short to mean overload.

While the engine keeps up, little is gained by throughput, and users notice tail latency. So a burst is served in order of arrival.
"""


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
