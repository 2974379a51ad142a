"""What the modelled engine asks of a serving engine's scheduling code."""

from typing import NamedTuple, Protocol

from lab.engines.arms import Arm
from lab.model.steptime import Batch
from lab.workloads import Prompt


class Scheduled(NamedTuple):
    """What an engine's scheduler has put into a step."""

    rows: int
    """requests in it"""
    admitted: int
    """requests that start with this step"""
    charged: str
    """the kind of queue in the cost table that says what ordering the waiting requests has cost"""


class Scheduling(Protocol):
    """An engine's scheduling code as the loop below drives it, one step at a time.

    ``steps`` holds what each step was given to do (``lab.engines.run.Step``), ``version`` names the engine.
    """

    version: str
    steps: list
    sorts: bool
    """rows of one prefix side by side, instead of where the engine puts them"""

    @property
    def unfinished(self) -> int:
        """Requests, waiting or running."""

    @property
    def waiting(self) -> int: ...

    def use(self, arm: Arm) -> None:
        """Schedule by this arm from now on; ``steps`` begins anew. Raises RuntimeError while a request is unfinished, and
        ValueError for an arm that the engine does not have."""

    def forget(self, warmed: list[list[int]]) -> None:
        """Empty the prefix cache; the next run fills it with ``warmed``."""

    def add(self, id_: str, prompt: Prompt, arrival: float) -> None: ...

    def schedule(self) -> Scheduled | None:
        """The next step; None where there is nothing to run."""

    def batch(self, free_prefill: bool) -> Batch:
        """The step's rows for the step model. The same object again, a token longer, where the same rows decode on."""

    @property
    def row_ids(self) -> list[str]:
        """The requests of that batch, in the order that the kernel has them."""

    def deliver(self) -> tuple[list[str], int]:
        """The step has run: a token for every request whose prefill is through. Returns those requests, and tokens found in the
        prefix cache: each request's once, when it starts or when it is done."""

    def drop(self) -> bool:
        """End all requests as they are; False, and nothing is done, where this engine's code has no way to."""
