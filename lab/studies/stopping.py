"""What stopping does, told apart from what the order of admission does; and what happens when the workload changes."""

from collections.abc import Sequence
from dataclasses import replace

from lab.engines.arms import Arm
from lab.studies.study import Condition
from lab.workloads import even_sizes, grouped

CLIENTS = 2  # in closed loop, for each row of the batch


def in_closed_loop(engine, prefixes: list, requests: int, decode_tokens, arms: Sequence[Arm], **told) -> list[Condition]:
    """``requests`` over the prefixes from clients in closed loop, under each arm, on a warm prefix cache. ``told`` goes into
    the parameters of the rows."""
    clients = CLIENTS * engine.max_batch
    parameters = {"groups": len(prefixes), "requests": requests, "prefix tokens": len(prefixes[0]), "decode tokens": decode_tokens,
                  "clients": clients, **told}  # fmt: skip

    def condition(arm: Arm) -> Condition:
        def run(seed: int):
            workload = grouped(prefixes, even_sizes(requests, len(prefixes)), seed, decode_tokens=decode_tokens)
            return engine.run(replace(workload, clients=clients), arm)

        return Condition(arm.name, parameters, run)

    return [condition(arm) for arm in arms]
