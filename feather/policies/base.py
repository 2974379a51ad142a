"""The interface of a stopping policy: what it sees, what it answers, and what it is told afterwards."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from feather.cht import ChunkedHashTree
from feather.cost import Load
from feather.policies.checkpoint import read_checkpoint, write_checkpoint


class BatchState(NamedTuple):
    """The state in which one decision is made. Prefix depths are in chunks.

    The first three fields are the paper's state. The fields after ``stragglers`` are filled in only for a ``wide`` policy.
    """

    batch_size: int
    """b: requests in the batch so far, at least 1"""
    tip_loss: int
    """Δ: how much shared prefix the batch would lose by adding the candidate (tip depth before − after)"""
    sharing: int
    """w: waiting requests that share the batch's whole tip"""
    waiting: int
    """requests that wait, the candidate included"""
    stragglers: int = 0
    """requests of earlier batches that still run"""
    tip: int = 0
    """depth of the batch's shared-prefix tip"""
    length: int = 0
    """length of the candidate's own prefix, shared or not"""
    oldest_wait: float = 0.0
    """how long the oldest waiting request has waited, seconds"""
    kv_use: float = 0.0
    """share of the KV cache in use, 0 … 1"""


class Decision(NamedTuple):
    """A policy's answer in one state."""

    state: BatchState
    add: bool
    """True: ADD, False: STOP"""


class Step(NamedTuple):
    """One engine step that has run, as a policy is told of it."""

    tokens: int
    """output tokens"""
    seconds: float
    """duration"""
    prefill_tokens: int = 0
    """prompt tokens computed; a step with prefill says nothing about decode throughput"""
    decisions: tuple[Decision, ...] = ()
    """the decisions that formed the batch. An ADD that cost shared prefix, and a STOP of a policy that ``commits``, count as long
    as any request runs that was in the batch then; a STOP of any other policy counts for this step only"""
    contended: bool = True
    """whether there were more requests than fit, so that another decision would have made another step"""
    alone: bool = True
    """False while much of what ran were stragglers of earlier batches"""
    load: Load = Load()
    """what the batch held when the step was scheduled"""
    admitted: int = 0
    """requests that were admitted in it"""
    burst: bool = False
    """whether the queue is taken for a burst: then tail latency matters, and throughput does not"""


class CommonOptions(Protocol):
    """What a policy may use of the options that all policies share (``feather.options.Options``)."""

    @property
    def chunk_size(self) -> int: ...


@dataclass(frozen=True)
class NoSettings:
    """The options of a policy that has none of its own."""


class Policy:
    """When to stop filling the batch. A subclass answers ``decide``; one that learns overrides ``feedback``, ``learned`` and
    ``restore`` too; one with options overrides ``settings`` and ``make``.

    The methods follow Stable-Baselines3's predict, learn, save and load, except that learning goes on while serving:
    ``feedback`` is called after every engine step.
    """

    settings: ClassVar[type] = NoSettings
    """the policy's own options: a dataclass whose fields are made by ``feather.settings.setting``"""
    kind: ClassVar[str | None] = None
    """the mark of its checkpoints; None: it learns nothing"""
    version: ClassVar[int] = 1
    """version of its checkpoints"""
    wide: bool = False
    """whether it looks at the wider state"""
    fills: bool = False
    """True while it never stops: the batch is then everything that runs, however mixed"""
    commits: bool = False
    """whether its STOP holds until the batch is gone (only requests that cost no shared prefix may join) and is judged by all
    of that time; otherwise it is asked again in every step"""
    plans: bool = False
    """whether it chooses the request too, by ``choose``; otherwise the tree does, and it answers ``decide``"""

    @classmethod
    def make(cls, settings: Any, common: CommonOptions) -> "Policy":
        """A new policy with these settings (an instance of ``cls.settings``). Raises ValueError or OSError if that fails."""
        return cls()

    @classmethod
    def check(cls, settings: Any) -> None:
        """Raises ValueError for settings that can be seen to be wrong at start-up; called only if the policy is chosen."""

    def decide(self, state: BatchState) -> bool:
        """True: ADD the candidate. False: STOP and run the batch as it stands."""
        raise NotImplementedError

    def arrived(self, tree: ChunkedHashTree, request_id: Hashable) -> None:
        """A new request waits; only a policy that ``plans`` is told."""

    def finished(self, request_id: Hashable, steps: int) -> None:
        """A request has ended that ran for so many steps; only a policy that ``plans`` is told."""

    def begin_step(self, tree: ChunkedHashTree, max_batch: float, max_wait: float, contended: bool) -> None:
        """A scheduling step begins; only a policy that ``plans`` is told. ``max_wait``: seconds that a request may wait because of its prefix.
        ``contended``: whether requests wait that are no burst."""

    def choose(self, tree: ChunkedHashTree, room: float, waited: float) -> Hashable | None:
        """For a policy that ``plans``: the id of the waiting request to admit next, or None to run the batch as it stands. There is at least
        one that waits. ``room``: requests that the batch can still take, at least 1. ``waited``: seconds that the oldest has."""
        raise NotImplementedError

    def feedback(self, step: Step) -> None:
        """A step has run. Called once per step, in the order of the steps."""

    def told(self) -> dict[str, float]:
        """Numbers for the operator's metrics: "price_…" and "promise_…"."""
        return {}

    def learned(self) -> Any:
        """Everything it has learned, as values that JSON can hold."""
        raise TypeError(f"{type(self).__name__} learns nothing: there is nothing to save or load")

    def restore(self, learned: Any) -> None:
        """Continue from what ``learned`` returned."""
        raise TypeError(f"{type(self).__name__} learns nothing: there is nothing to save or load")

    def save(self, path: Path) -> None:
        """Write what it has learned to a file."""
        learned = self.learned()
        write_checkpoint(path, self.kind or "", self.version, learned)

    def load(self, path: Path) -> None:
        """Continue from what ``save`` wrote. Raises FileNotFoundError, or ValueError for a file that is damaged or of another
        kind or version; the policy is then unchanged."""
        learned = read_checkpoint(Path(path), self.kind or "", self.version)
        try:
            self.restore(learned)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is not what a {self.kind} of version {self.version} writes ({error})") from None
