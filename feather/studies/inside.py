"""The same workloads inside vLLM and inside SGLang: on the modelled device all that differs is whose scheduling code runs."""

from collections.abc import Sequence
from dataclasses import replace

from feather.sglang import missing
from feather.studies import scale
from feather.studies.evaluation import over_chunk_sizes
from feather.studies.scheduler import Arm
from feather.studies.study import Condition
from feather.workloads import make_prefixes


def arms() -> dict[str, Sequence[Arm]]:
    """What is compared inside each engine that is here."""
    found = {"vllm": scale.MAIN}
    if not missing():
        from feather.sim.sglang import ARMS

        found["sglang"] = (*(ARMS[name] for name in ("FCFS", "LPM", "LPM, no cut-off", "DFS-weight", "Feather (never stop)")), scale.PATIENT)
    return found


def compared(figure: str, kernels: Sequence[str], vary: str, values: Sequence, **fixed) -> list[Condition]:
    """``scale.sweep`` of all arms inside each engine that is here, with each attention kernel."""
    return [
        condition
        for kernel in kernels
        for inside, chosen in arms().items()
        for condition in scale.sweep(figure, vary, values, chosen, kernel=kernel, inside=inside, **fixed)
    ]


def chunk_sizes(sizes: Sequence[int], requests: int, decode_tokens: tuple[int, int], batch: int, groups: int, prefix_tokens: int) -> list[Condition]:
    """Feather (never stop) inside SGLang with chunks of each size. Its CPU time is the one that it takes here and now, since the cost
    table holds one size: runs differ a little from one to the next."""
    from feather.sim.engine import SimEngine

    engine, prefixes = SimEngine(max_batch=batch, engine="sglang", scheduling="measured"), make_prefixes(groups, prefix_tokens)
    engine.warm(prefixes)
    conditions = over_chunk_sizes(engine, prefixes, list(sizes), requests, decode_tokens)
    return [replace(condition, engine=engine) for condition in conditions]
