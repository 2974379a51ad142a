"""What a stopping policy sees, answers, and is told afterwards."""

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from feather.policies import checkpoint


class BatchState(NamedTuple):
    """The moment of one decision. Prefix depths are in chunks. The first three are the paper's state; those after
    ``stragglers`` are filled in only for a policy that is ``wide``."""

    batch_size: int
    """b: requests in the batch so far, at least 1"""
    tip_loss: int
    """Δ: how much shared prefix the batch would lose by adding the candidate (tip depth before − after)"""
    sharing: int
    """w: waiting requests that share the batch's whole tip"""
    waiting: int
    """requests that wait, the candidate included"""
    stragglers: int = 0
    """requests that still run of batches before this one"""
    tip: int = 0
    """depth of the batch's shared-prefix tip"""
    length: int = 0
    """the candidate's own prefix, shared or not"""
    oldest_wait: float = 0.0
    """seconds that the request has waited which waits longest"""
    kv_use: float = 0.0
    """share of the KV cache in use, 0 … 1"""


class Decision(NamedTuple):
    state: BatchState
    add: bool
    """True: ADD, False: STOP"""


class Step(NamedTuple):
    """One engine step that was run, as a policy is told of it."""

    tokens: int
    """output tokens that it gave"""
    seconds: float
    """what it took"""
    prefill_tokens: int = 0
    """prompt tokens that it computed; such a step says nothing about decoding"""
    decisions: tuple[Decision, ...] = ()
    """those that formed its batch: each ADD that cost shared prefix, and each STOP of a policy that ``commits``, for as long as
    any request runs that was in the batch then; and the STOP of one that does not, for this step"""
    contended: bool = True
    """whether there were more requests than fit, so that deciding otherwise would have made another step of it"""
    phase: int = 0
    """the policy's ``phase`` when the step was scheduled: with steps in flight it may have moved on since"""
    settled: bool = True
    """False while much of the batch was admitted in an earlier phase"""
    alone: bool = True
    """False while much of what ran were stragglers of earlier batches"""
    burst: bool = False
    """whether the queue is taken for a burst, so that tails are at stake, and throughput is not"""


class Policy:
    """When to stop filling the batch. Subclasses answer ``decide``; those that learn override the rest.

    The surface follows Stable-Baselines3's predict, learn, save and load, except that learning goes on while serving:
    ``feedback`` is called after every engine step.
    """

    kind: ClassVar[str | None] = None
    """what its checkpoints are marked with; None: it learns nothing"""
    version: ClassVar[int] = 1
    """of its checkpoints"""
    wide: ClassVar[bool] = False
    """whether it looks at the wider state"""
    fills = False
    """True: it means to stop nowhere, so that the batch is everything that runs, however mixed"""
    commits: ClassVar[bool] = False
    """whether its STOP holds until the batch is gone (only those join that cost no shared prefix), and is judged by all of
    that time; otherwise it is asked again in every step"""
    phase = 0
    """changes when what it does now must not be judged by the batch it found"""

    def decide(self, state: BatchState) -> bool:
        """True: ADD the candidate. False: STOP and run the batch as it stands."""
        raise NotImplementedError

    def feedback(self, step: Step) -> None:
        """A step has run. Called once for every step, in their order."""

    def learned(self) -> Any:
        """All that it has learned, of what JSON knows."""
        raise TypeError(f"{type(self).__name__} learns nothing: there is nothing to save or load")

    def restore(self, learned: Any) -> None:
        """Go on from what ``learned`` gave."""
        raise TypeError(f"{type(self).__name__} learns nothing: there is nothing to save or load")

    def save(self, path: Path) -> None:
        checkpoint.write(path, self.kind, self.version, self.learned())

    def load(self, path: Path) -> None:
        """Go on from what ``save`` wrote. Raises FileNotFoundError, or ValueError for a file that is damaged or of another
        kind or version; the policy is then as it was."""
        learned = checkpoint.read(path, self.kind, self.version)
        try:
            self.restore(learned)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is not what a {self.kind} of version {self.version} writes ({error})") from None
