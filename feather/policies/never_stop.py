"""Never stop: the baseline for every other policy."""

from feather.policies.base import BatchState, Policy


class NeverStop(Policy):
    """Fills the batch as far as the engine allows. What remains of Feather is the order in which requests are admitted."""

    fills = True

    def decide(self, state: BatchState) -> bool:
        return True
