"""Strict stop: the other extreme, for comparison."""

from feather.policies.base import BatchState, Policy


class StrictStop(Policy):
    """Stops rather than lose any shared prefix, and holds the stop until the batch is gone."""

    commits = True

    def decide(self, state: BatchState) -> bool:
        return not state.tip_loss
