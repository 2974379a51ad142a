"""What a stopping policy sees and answers."""

from typing import NamedTuple, Protocol


class BatchState(NamedTuple):
    """The moment of one decision. Prefix depths are in chunks."""

    batch_size: int
    """b: requests in the batch so far, at least 1"""
    tip_loss: int
    """Δ: how much shared prefix the batch would lose by adding the candidate (tip depth before − after)"""
    sharing: int
    """w: waiting requests that share the batch's whole tip"""
    waiting: int
    """requests that wait, the candidate included"""


class Policy(Protocol):
    def decide(self, state: BatchState) -> bool:
        """True: ADD the candidate. False: STOP."""
        ...
