"""Whose turn it would be if the queue were first come, first served."""

from collections import deque
from collections.abc import Callable

USUAL_WAIT = 10.0
"""seconds past its turn that a request may wait where nobody has said how long"""
_KEPT = 10_000  # turns remembered


class Turns:
    """A request has its turn when as many requests have left the queue as came before it. Requests are numbered in order of
    arrival, from 0. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._given: deque[float] = deque()  # when those numbered from `_first` on had their turns
        self._first = 0

    def give(self) -> None:
        """A request has left the queue."""
        self._given.append(self._clock())
        if len(self._given) > _KEPT:
            self._given.popleft()
            self._first += 1

    def take_back(self) -> None:
        """A request that had left the queue is in it again: one turn fewer has been given."""
        if self._given:
            self._given.pop()
        else:
            self._first -= 1

    def seconds_past(self, oldest: int) -> float:
        """Seconds since the request numbered ``oldest`` had its turn; 0 before that. If that turn is no longer remembered (10 000
        later ones were given): seconds since the first that is."""
        place = max(0, oldest - self._first)
        return self._clock() - self._given[place] if place < len(self._given) else 0.0
