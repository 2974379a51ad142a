"""The motivation studies: fixed batches, so that only their composition differs (M1, M2)."""

import random

from lab.engines import Engine
from lab.engines.arms import ARMS
from lab.engines.run import joined
from lab.studies.study import Condition
from lab.workloads import Workload, even_sizes, grouped

_FCFS = ARMS["FCFS"]


def divergence(engine: Engine, prefixes: list, batch: int, divergent: list[int], decode_tokens: int) -> list[Condition]:
    """M1: one batch of ``batch`` requests on two prefixes, ``divergent`` of them on the second; in shuffled rows, and
    with the rows of each prefix side by side."""

    def condition(second: int, rows: str) -> Condition:
        def run(seed: int):
            sizes = [batch - second, second]
            return engine.run(grouped(prefixes, sizes, seed, decode_tokens=decode_tokens, shuffled=rows == "shuffled"), _FCFS)

        parameters = {
            "divergent": second,
            "rows": rows,
            "requests": batch,
            "prefix tokens": len(prefixes[0]),
            "decode tokens": decode_tokens,
        }
        return Condition(_FCFS.name, parameters, run)

    mixed = [condition(second, rows) for second in divergent if second for rows in ("shuffled", "side by side")]
    return [condition(0, "shuffled"), *mixed]


def partitions(engine: Engine, prefixes: list, requests: int, batches: list[int], decode_tokens: list[int]) -> list[Condition]:
    """M2: the same requests as one mixed batch, as several of fewer prefixes, or as homogeneous ones, one batch after
    the other; for several decode lengths."""

    def condition(count: int, length: int) -> Condition:
        def run(seed: int):
            whole = grouped(prefixes, even_sizes(requests, len(prefixes)), seed, decode_tokens=length, shuffled=False)
            size = requests // count
            parts = [whole.prompts[start : start + size] for start in range(0, requests, size)]
            return joined([engine.run(Workload(_shuffled(part, seed)), _FCFS) for part in parts])

        groups = max(1, len(prefixes) // count)
        shape = f"{count} × {requests // count}"
        parameters = {"batches": shape, "groups": groups, "requests": requests, "prefix tokens": len(prefixes[0]), "decode tokens": length}
        return Condition(_FCFS.name, parameters, run)

    return [condition(count, length) for length in decode_tokens for count in batches]


def _shuffled(prompts: list, seed: int) -> list:
    return random.Random(seed).sample(prompts, len(prompts))
