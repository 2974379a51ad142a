"""The authors' threshold on the shared prefix that one admission may cost."""

from dataclasses import dataclass

from feather.policies.base import CommonOptions
from feather.settings import setting
from lab.policies.stopping import BatchState, Stopping


@dataclass(frozen=True)
class ThresholdSettings:
    max_loss: int = setting(5 * 50, "tokens of shared prefix that one admission may cost", low=0, unit="tokens")
    max_loss_under_load: int = setting(7 * 50, "the same while more requests wait than run", low=0, unit="tokens")
    min_batch: int = setting(4, "a batch with fewer requests is never stopped", low=1, unit="requests")
    straggler_share: float = setting(
        0.5,
        "a stopped batch that has drained to this share of its largest size no longer holds the queue; from 0 (hold it to the last "
        "request) to 1 (never stop)",
        low=0,
        high=1,
    )


class Threshold(Stopping):
    """The rule of the paper's authors: stops when the candidate would cost the batch too much shared prefix, unless the batch is small.

    The defaults are those of the rule that they published with their vLLM pull request (42134): chunks of
    50 tokens, stop above 5 lost chunks, above 7 under load. They do not define "under load"; here it means that the queue
    is longer than the batch. Whole chunks are counted: if a chunk is longer than the threshold allows, the first lost one stops the
    batch. They do not say how small a "small batch-size floor" is; here it is 4.

    Args:
        chunk_size: tokens per chunk of the tree that measures Δ.
        settings: the thresholds.
    """

    settings = ThresholdSettings

    def __init__(self, chunk_size: int, settings: ThresholdSettings | None = None):
        chosen = settings or ThresholdSettings()
        self.chunk_size = chunk_size
        self.max_loss, self.max_loss_under_load, self.min_batch = chosen.max_loss, chosen.max_loss_under_load, chosen.min_batch
        self.straggler_share = chosen.straggler_share

    @classmethod
    def make(cls, settings: ThresholdSettings, common: CommonOptions) -> "Threshold":
        return cls(common.chunk_size, settings)

    def decide(self, state: BatchState) -> bool:
        if state.batch_size < self.min_batch:
            return True
        allowed = self.max_loss_under_load if state.waiting > state.batch_size else self.max_loss
        return state.tip_loss * self.chunk_size <= allowed
