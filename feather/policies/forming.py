"""The batch that is being formed, in the tree, as plans look at it (``feather.plans.Forming``)."""

from collections.abc import Hashable

from feather.cht import ChunkedHashTree
from feather.cost import StepCost
from feather.plans import may_join

_PROBE = 0.125  # rows of the batch before, as a share of the next one's, beside which that begins to see what it costs


class InEarnest:
    """Set to the tree by ``asked`` before a plan looks at it. Told of every admission."""

    tree: ChunkedHashTree

    def __init__(self, cost: StepCost) -> None:
        self.last: Hashable = None
        """prefix that was let in last"""
        self.began_empty = True
        self._cost = cost
        self._room = 0.0
        self._probes = False
        self._entering: Hashable | None = None  # prefix that was let in during the present step
        self._held: dict[Hashable, None] = {}  # prefixes of the batch, and some that have gone

    def begin_step(self, tree: ChunkedHashTree) -> None:
        self.tree = tree
        self._entering, self.began_empty = None, not tree.active
        if len(self._held) > 2 * len(tree.active) + 8:
            self._forget_gone()

    def asked(self, tree: ChunkedHashTree, room: float, probes: bool) -> None:
        """``probes``: whether to let the next prefix begin beside a batch's last rows, whatever that costs."""
        self.tree, self._room, self._probes = tree, room, probes

    def admitted(self, request_id: Hashable) -> None:
        self._entering = self.last = self.tree.mark_of(request_id)
        self._held[self.last] = None

    def _forget_gone(self) -> None:
        self._held = {prefix: None for prefix in self._held if self.tree.runs(prefix)}

    @property
    def empty(self) -> bool:
        return not self.tree.active

    @property
    def prefixes(self) -> int:
        self._forget_gone()
        return len(self._held)

    @property
    def strangers(self) -> bool:
        tree, load, oldest = self.tree, self.tree.load(), self.tree.oldest()
        if load.rows <= 1:
            return True
        if load.chunks - load.distinct > (load.rows - 1) * load.tip or tree.mark_of(oldest) != oldest:
            return False
        return tree.load_with(tree.branch_of(oldest), 1).tip >= load.tip  # else they all share what it does not

    def oldest(self) -> Hashable:
        return self.tree.oldest()

    def nearest(self) -> Hashable:
        best = self.tree.find_best()
        return best.request_id if best else self.tree.oldest()

    def follower(self) -> Hashable | None:
        return None if self._entering is None else self.tree.first_through(self._entering)

    def relative(self) -> Hashable | None:
        self._forget_gone()
        return next((found for prefix in self._held if (found := self.tree.first_through(prefix)) is not None), None)

    def largest(self) -> Hashable | None:
        branch = self.tree.largest_branch()
        return branch.request_id if branch else None

    def joins(self, request_id: Hashable) -> bool:
        tree, fresh = self.tree, self.tree.branch_of(request_id)
        load, count = tree.load(), min(fresh.waiting, self._room)
        if self._probes and load.rows <= _PROBE * count:
            return True
        apart = self._cost.seconds(load) + self._cost.seconds(tree.load_alone(fresh, count))
        return may_join(load.rows, count, self._cost.seconds(tree.load_with(fresh, count)), apart)
