"""Never stop: the baseline for every other policy."""

from collections.abc import Hashable

from feather.cht import ChunkedHashTree
from feather.policies.base import Policy


class NeverStop(Policy):
    """Fills the batch as far as the engine allows. What remains of Feather is the order in which requests are admitted."""

    def choose(self, tree: ChunkedHashTree, room: float, waited: float, late: bool) -> Hashable | None:
        best = tree.find_best()
        return tree.oldest() if late or best is None else best.request_id
