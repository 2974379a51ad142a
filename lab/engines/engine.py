"""What every engine under study can do, and the function that makes the one asked for."""

from typing import Any, Protocol

from lab.engines.arms import Arm
from lab.engines.run import Enough, Run
from lab.machine import rehearses
from lab.workloads import Workload


class Engine(Protocol):
    """An engine that studies run workloads on. It has its size and its model for good; arms are exchanged between runs."""

    backend: str
    """"cpu", "gpu" or "sim" """
    model: Any
    max_batch: int
    """requests that run at once, at most"""
    kernel: str
    """The attention kernel: "paged" (a prefix is read once for each row), "cascade" (once, where all running rows share it) or "packed" (each
    shared prefix once)."""
    sorted_rows: bool
    """whether rows of one prefix stand side by side in the batch, whatever the order in which they were admitted"""
    warms_up: bool
    """whether the first run is slower than those after it, so that studies throw one away"""

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""

    @property
    def device_name(self) -> str: ...

    @property
    def engine_version(self) -> str: ...

    def use_batch(self, rows: int) -> None:
        """So many requests at once, at most, in the runs to come: ``max_batch`` from now on, no more than the engine was made for."""

    def use_kernel(self, kernel: str, sorted_rows: bool = False) -> None:
        """The attention kernel and the order of rows for the runs to come. Raises ValueError for what the engine does not have."""

    def warm(self, prefixes: list[list[int]], anew: bool = False) -> None:
        """Every warm workload finds these prefixes in the prefix cache from now on; with ``anew``, nothing of earlier runs."""

    def forget(self) -> None:
        """The next warm workload finds in the prefix cache what ``warm`` was given last, and nothing of earlier runs."""

    def run(self, workload: Workload, arm: Arm, enough: Enough | None = None) -> Run:
        """Run a workload under an arm to its end, or until it is ``enough``. Raises RuntimeError unless every request that was not dropped gets
        exactly its tokens."""


def make_engine(backend: str = "auto", model: str = "tiny-llama", **options) -> Engine:
    """The engine of a backend: "cpu" or "gpu" (``real.RealEngine``), "sim" (``modelled.ModelledEngine``), or "auto", a GPU where there is
    one and else the CPU. ``options`` are that engine's; those which size a real KV cache (``kv_gib``, ``kv_tokens``) do not concern
    the modelled one, whose KV cache is what the weights leave, as on a GPU. In a rehearsal the modelled one stands in for "gpu"."""
    if backend != "sim" and not (backend == "gpu" and rehearses()):
        from lab.engines.real import RealEngine

        return RealEngine(backend, model, **options)
    from lab.engines.modelled import ModelledEngine

    options = {name: value for name, value in options.items() if name not in ("kv_gib", "kv_tokens")}
    return ModelledEngine(model, **options)
