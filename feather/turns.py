"""Whose turn it would be, were the queue first come, first served."""

from collections import deque
from collections.abc import Callable


class Turns:
    """A request's turn is when as many requests have left the queue as came before it. Requests are numbered as they come,
    from 0."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._given: deque[float] = deque()  # when those numbered from `_first` on had their turn
        self._first = 0

    def give(self) -> None:
        """A request has left the queue."""
        self._given.append(self._clock())

    def take_back(self) -> None:
        """A request that had left the queue is in it again: one turn fewer has been given."""
        if self._given:
            self._given.pop()
        else:
            self._first -= 1

    def seconds_past(self, oldest: int) -> float:
        """How long ago the request numbered ``oldest`` had its turn; 0 before that. None with a lower number may be asked for
        later, unless it came back."""
        while self._given and self._first < oldest:
            self._given.popleft()
            self._first += 1
        return self._clock() - self._given[0] if oldest <= self._first and self._given else 0.0
