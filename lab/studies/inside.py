"""The same workloads inside vLLM and inside SGLang: on the modelled device all that differs is whose scheduling code runs."""

from collections.abc import Sequence
from dataclasses import replace

from feather.sglang import missing
from lab.engines.arms import MAIN, SGLANG_ARMS, Arm
from lab.studies import scale
from lab.studies.evaluation import over_chunk_sizes
from lab.studies.study import Condition
from lab.workloads import make_prefixes


def arms() -> dict[str, Sequence[Arm]]:
    """What is compared inside each engine that is here."""
    found = {"vllm": MAIN}
    if not missing():
        found["sglang"] = [SGLANG_ARMS[name] for name in
                           ("FCFS", "LPM", "LPM, no cut-off", "DFS-weight", "Feather (never stop)", "Feather (threshold, patient)")]  # fmt: skip
    return found


def compared(figure: str, vary: str, values: Sequence, among: Sequence[str] | None = None, **fixed) -> list[Condition]:
    """``scale.sweep`` of all arms, or of those named in ``among``, inside each engine that is here."""
    return [
        condition
        for inside, chosen in arms().items()
        for condition in scale.sweep(
            figure, vary, values, [arm for arm in chosen if among is None or arm.name in among], inside=inside, **fixed
        )
    ]


def chunk_sizes(
    sizes: Sequence[int], requests: int, decode_tokens: tuple[int, int], batch: int, groups: int, prefix_tokens: int
) -> list[Condition]:
    """Feather (never stop) inside SGLang with chunks of each size. Its CPU time is the one that it takes here and now, since the cost
    table holds chunks of 64 and 512 as one kind: runs differ a little from one to the next."""
    from lab.engines.modelled import ModelledEngine

    engine, prefixes = ModelledEngine(max_batch=batch, engine="sglang", scheduling="measured"), make_prefixes(groups, prefix_tokens)
    engine.warm(prefixes)
    conditions = over_chunk_sizes(engine, prefixes, list(sizes), requests, decode_tokens)
    return [replace(condition, engine=engine) for condition in conditions]
