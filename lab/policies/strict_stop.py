"""Strict stop: the other extreme, for comparison."""

from lab.policies.stopping import BatchState, Stopping


class StrictStop(Stopping):
    """Stops as soon as the candidate would cost any shared prefix at all; for comparison."""

    commits = True

    def decide(self, state: BatchState) -> bool:
        return not state.tip_loss
