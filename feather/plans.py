"""Ways to form batches, and the one rule that says whom each of them admits next, in earnest (``feather.policies.forming``) or in a rehearsal."""

from typing import NamedTuple, Protocol, TypeVar

Waiter = TypeVar("Waiter")

_TAIL = 0.25  # rows of the batch before, as a share of the next one's, beside which that may begin
_SAVES = 1.05  # times as long as both at once, that one after the other must take for it


class Plan(NamedTuple):
    """A way to form batches."""

    name: str
    prefixes: int = 0
    """in a batch at most; 0: any number"""
    refilled: bool = False
    """whether relatives may join while the batch runs, and another prefix once one has gone"""


ARRIVAL, RELATIVES = Plan("arrival"), Plan("relatives first")
PLANS = (
    ARRIVAL,
    RELATIVES,
    *(
        Plan(f"{count} prefix{'es' * (count > 1)}, {'refilled' if refilled else 'gated'}", count, refilled)
        for count in (4, 2, 1)
        for refilled in (True, False)
    ),
)
"""From the fairest on"""


class Forming(Protocol[Waiter]):
    """A batch that is being formed, and who waits for it: at least one does."""

    @property
    def empty(self) -> bool:
        """Whether nobody runs."""

    @property
    def began_empty(self) -> bool:
        """Whether nobody ran when this step began."""

    @property
    def prefixes(self) -> int:
        """In the batch."""

    @property
    def strangers(self) -> bool:
        """Whether those in the batch, and the oldest that waits, share with each other no more than all share with all."""

    def oldest(self) -> Waiter:
        """Who came first."""

    def nearest(self) -> Waiter:
        """Who shares most with the batch, or else the oldest."""

    def follower(self) -> Waiter | None:
        """A relative of who was let in last in this step."""

    def relative(self) -> Waiter | None:
        """A relative of anybody in the batch."""

    def largest(self) -> Waiter | None:
        """The first of those who share one prefix and are most; None where nobody shares any."""

    def joins(self, waiter: Waiter) -> bool:
        """Whether this one's prefix may begin the next batch beside the last rows of the one before."""


def next_of(plan: Plan, forming: Forming[Waiter], gone: float) -> Waiter | None:
    """Whom the plan admits next; None: the batch runs as it stands. ``gone``: the ``patience`` of the oldest that is used up. From half of it on
    nobody joins whose turn is later, and the next batch begins with the oldest; from 1 on the oldest joins whatever runs."""
    late = gone > 0.5
    if plan == ARRIVAL or gone >= 1 or plan == RELATIVES and late:
        return forming.oldest()
    if plan == RELATIVES:
        return forming.nearest()
    if (follower := forming.follower()) is not None:
        return follower
    fresh = forming.oldest() if late else forming.largest()
    if forming.empty:
        return forming.oldest() if fresh is None else fresh
    refills = plan.refilled and not late and forming.prefixes <= plan.prefixes  # more: the last rows of one that goes
    if refills and (relative := forming.relative()) is not None:
        return relative
    if fresh is None:  # nobody that waits shares with another: no batch of theirs is of fewer prefixes
        return forming.oldest() if forming.strangers else None
    if forming.prefixes < plan.prefixes and (forming.began_empty or plan.refilled):
        return fresh
    return fresh if forming.joins(fresh) else None


def may_join(rows: float, count: float, together: float, apart: float) -> bool:
    """Whether so many requests of the next prefix begin beside the last rows of the one before: predicted seconds of a step with both, and the sum
    of a step's with either."""
    return rows <= _TAIL * count and apart > _SAVES * together


def patience(waited: float, fair_wait: float, max_wait: float) -> float:
    """0 for a request that has waited no longer than in order of arrival, 1 for one that goes next."""
    return (waited - fair_wait) / max_wait if waited > fair_wait and max_wait else float(waited > fair_wait)
