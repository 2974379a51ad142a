"""Fixed rules: the authors' threshold, and the two extremes (for comparison): never stopping and always."""

from dataclasses import dataclass

from feather.policies.base import BatchState, Policy


@dataclass(frozen=True)
class NeverStop(Policy):
    """Fill the batch as far as the engine allows: what remains of Feather is the order of admission."""

    fills = True

    def decide(self, state: BatchState) -> bool:
        return True


@dataclass(frozen=True)
class StrictStop(Policy):
    """Stop rather than lose any shared prefix, and hold the stop until the batch is gone."""

    commits = True

    def decide(self, state: BatchState) -> bool:
        return not state.tip_loss


@dataclass(frozen=True)
class Threshold(Policy):
    """Stop when the candidate would cost the batch too much shared prefix, unless the batch is still small.

    The defaults are those of the rule that the paper's authors published with their vLLM pull request (42134): chunks
    of 50 tokens, stop above 5 lost, 7 under load. They do not define "under load"; here it is a queue longer than the
    batch. Nor do they say how small a "small batch-size floor" is; here it is 4.
    """

    chunk_size: int
    """tokens per chunk of the tree that measures Δ"""
    max_loss: int = 5 * 50
    """tokens of shared prefix that one admission may cost"""
    max_loss_under_load: int = 7 * 50
    """the same while more requests wait than run"""
    min_batch: int = 4
    """a smaller batch always takes the candidate"""

    def decide(self, state: BatchState) -> bool:
        if state.batch_size < self.min_batch:
            return True
        allowed = self.max_loss_under_load if state.waiting > state.batch_size else self.max_loss
        return state.tip_loss * self.chunk_size <= allowed
