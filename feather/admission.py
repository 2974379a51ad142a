"""What every engine's adapter needs between its waiting queue and the batch former: priorities, requests that the engine
passes over, and a watch over decisions that fail or take too long."""

import time
from collections.abc import Callable, Hashable, Sequence

from feather.former import BatchFormer, Formed

_OVERRUNS = 3


class Admission:
    """The waiting requests of an engine, by keys of its own, offered to the former as priorities allow.

    Args:
        former: forms the batches; not shared.
        by_priority: only the best priority that waits (the least number) is offered to the former, and a stop never holds it
            back behind a running request of a worse one.
        decision_budget: seconds that a decision may take; one overrun may be the machine's, three in a row are not.

    Nothing that the former or the policy in it does wrong reaches the engine: an exception, or decisions beyond their
    budget, are kept in ``failure``; from then on nothing happens here, and the engine is to go on by itself.
    """

    def __init__(self, former: BatchFormer, by_priority: bool = False, decision_budget: float = float("inf")):
        self.former = former
        self.failure: str | None = None
        self.stops = 0  # decisions that ended in one
        self.decision_seconds = 0.0
        self._by_priority = by_priority
        self._decision_budget = decision_budget
        self._overruns = 0  # decisions in a row that took too long
        self._waiting: dict[Hashable, int] = {}  # priorities, in order of arrival
        self._offered: dict[Hashable, None] = {}  # those of them that the former knows
        self._aside: set[Hashable] = set()  # neither waiting nor running
        self._came_or_went = False  # since the best priority was offered
        self._arrivals: dict[Hashable, int] = {}  # arrival numbers of those that the former will see again
        self._paths: dict[Hashable, Sequence[Hashable]] = {}
        self._running: dict[Hashable, int] = {}  # priorities

    @property
    def waiting(self):
        return self._waiting.keys()

    @property
    def aside(self):
        return self._aside

    @property
    def running(self):
        return self._running.keys()

    def guarded(self, action: Callable, *arguments):
        """Do something that involves the former, unless it has failed. None where it has, or does so now."""
        if self.failure is not None:
            return None
        try:
            return action(*arguments)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            return None

    # -- what happens to requests ------------------------------------------------------------------------------------

    def wait(self, key: Hashable, path_of: Callable[[], Sequence[Hashable]], priority: int = 0) -> None:
        """A request waits: a new one, one that was set aside, or one that ran and was preempted."""
        self._came_or_went = True
        self._waiting[key] = priority
        if self._running.pop(key, None) is not None:
            self.former.preempt(key)
            self._offered[key] = None
            return
        self._aside.discard(key)
        if key not in self._paths:
            self._paths[key] = path_of()
        if not self._by_priority:  # otherwise it waits to be offered until its priority's turn comes
            self._offer(key)

    def set_aside(self, key: Hashable) -> None:
        """A waiting request cannot be admitted now, for reasons of the engine's; it keeps its place should it wait again."""
        del self._waiting[key]
        self._take_back(key)
        self._aside.add(key)

    def withdraw(self, key: Hashable) -> None:
        """A request that waits, or was set aside, is gone."""
        self._came_or_went = True
        self._waiting.pop(key, None)
        if key in self._offered:
            self._take_back(key)
        self._aside.discard(key)
        self._arrivals.pop(key, None)
        del self._paths[key]

    def start(self, key: Hashable) -> None:
        """The engine has admitted a waiting request, offered or not."""
        if key not in self._offered:
            self._offer(key)
        del self._offered[key]
        self._running[key] = self._waiting.pop(key)
        self.former.start(key)

    def finish(self, key: Hashable) -> None:
        """A running request is gone, for whatever reason."""
        del self._running[key], self._paths[key]
        self.former.finish(key)

    # -- the batch ---------------------------------------------------------------------------------------------------

    def next(self, busy: bool) -> Hashable | None:
        """The request to admit next; None: nobody can be, or the batch is best run as it stands. ``busy``: something runs,
        without which a stop would never end."""
        if self._by_priority and (self._came_or_went or not self._offered):
            self._offer_best_priority()
        if not self._offered:
            return None
        start, before = time.perf_counter(), self.former.decisions
        key = self.former.next()
        taken = time.perf_counter() - start
        decided = self.former.decisions > before
        if decided:
            self.decision_seconds += taken
            self._overruns = self._overruns + 1 if taken > self._decision_budget else 0
        if self._overruns == _OVERRUNS:
            raise TimeoutError(f"{_OVERRUNS} decisions in a row took too long, the last {taken:.3f} s of {self._decision_budget:g} s")
        if key is None and not (busy and self._may_stop()):
            key = self.former.oldest()
        self.stops += decided and key is None
        return key

    def formed(self) -> Formed:
        """The step has been scheduled: see ``BatchFormer.formed``."""
        return self.former.formed(len(self._waiting) - len(self._offered))

    def _may_stop(self) -> bool:
        if not self._by_priority or not self._running:
            return True
        return self._waiting[next(iter(self._offered))] >= max(self._running.values())

    def _offer(self, key: Hashable) -> None:
        self.former.wait(key, self._paths[key], self._arrivals.pop(key, None))
        self._offered[key] = None

    def _take_back(self, key: Hashable) -> None:
        del self._offered[key]
        self._arrivals[key] = self.former.cancel(key)

    def _offer_best_priority(self) -> None:
        self._came_or_went = False
        if not self._waiting:
            return
        best = min(self._waiting.values())
        for key in [key for key in self._offered if self._waiting[key] != best]:
            self._take_back(key)
        for key, priority in self._waiting.items():
            if priority == best and key not in self._offered:
                self._offer(key)
