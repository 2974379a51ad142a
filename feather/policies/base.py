"""The interface of a policy: whom to admit next, when to stop filling the batch, and what it is told afterwards."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from feather.cht import ChunkedHashTree
from feather.cost import Load
from feather.policies.checkpoint import read_checkpoint, write_checkpoint


class Step(NamedTuple):
    """One engine step that has run, as a policy is told of it."""

    tokens: int
    """output tokens"""
    seconds: float
    """duration"""
    prefill_tokens: int = 0
    """prompt tokens computed; a step with prefill says nothing about decode throughput"""
    contended: bool = True
    """whether there were more requests than fit, so that another decision would have made another step"""
    load: Load = Load()
    """what the batch held when the step was scheduled"""
    admitted: int = 0
    """requests that were admitted in it"""
    burst: bool = False
    """whether the queue is taken for a burst: then tail latency matters, and throughput does not"""
    kv_use: float = 0.0
    """share of the KV cache in use when the step was scheduled; 0 where there is no prefix cache, or nobody tells"""


class CommonOptions(Protocol):
    """What a policy may use of the options that all policies share (``feather.options.Options``)."""

    @property
    def chunk_size(self) -> int: ...


@dataclass(frozen=True)
class NoSettings:
    """The options of a policy that has none of its own."""


class Policy:
    """Who joins the batch, and when it runs as it stands. A subclass answers ``choose``; one that learns overrides ``feedback``,
    ``learned`` and ``restore`` too; one with options overrides ``settings`` and ``make``.

    The methods follow Stable-Baselines3's predict, learn, save and load, except that learning goes on while serving:
    ``feedback`` is called after every engine step.
    """

    settings: ClassVar[type] = NoSettings
    """the policy's own options: a dataclass whose fields are made by ``feather.settings.setting``"""
    kind: ClassVar[str | None] = None
    """the mark of its checkpoints; None: it learns nothing"""
    version: ClassVar[int] = 1
    """version of its checkpoints"""
    former: ClassVar[type | None] = None
    """the kind of ``BatchFormer`` that it needs; None: that one itself"""
    fills: bool = True
    """False while it may stop a batch that is not full"""

    @classmethod
    def make(cls, settings: Any, common: CommonOptions) -> "Policy":
        """A new policy with these settings (an instance of ``cls.settings``). Raises ValueError or OSError if that fails."""
        return cls()

    @classmethod
    def check(cls, settings: Any) -> None:
        """Raises ValueError for settings that can be seen to be wrong at start-up; called only if the policy is chosen."""

    def arrived(self, tree: ChunkedHashTree, request_id: Hashable) -> None:
        """A new request waits."""

    def finished(self, request_id: Hashable, steps: int) -> None:
        """A request has ended that ran for so many steps; 0: it was withdrawn while it waited."""

    def begin_step(self, tree: ChunkedHashTree, max_batch: float, max_wait: float, contended: bool) -> None:
        """A scheduling step begins. ``max_wait``: seconds that a request may wait because of its prefix; negative: as
        the policy finds right. ``contended``: whether requests wait that are no burst."""

    def choose(self, tree: ChunkedHashTree, room: float, waited: float, late: bool) -> Hashable | None:
        """The id of the waiting request to admit next, or None to run the batch as it stands. There is at least one that waits. ``room``:
        requests that the batch can still take. ``waited``: seconds that the oldest has waited. ``late``: whether it is more
        than ``max_wait`` past its turn."""
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
