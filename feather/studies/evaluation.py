"""The evaluation: a full queue or a stream of arrivals, under every arm, to the end."""

from feather.studies.engine import Engine
from feather.studies.scheduler import ARMS, Arm
from feather.studies.study import Condition
from feather.studies.workloads import even_sizes, grouped, unshared


def over_groups(
    engine: Engine,
    prefixes: list,
    groups: list[int],
    requests: int,
    decode_tokens: int | tuple[int, int],
    requests_per_s: float | None = None,
    arms: list[str] = tuple(ARMS),
) -> list[Condition]:
    """``requests`` over the first ``count`` prefixes, for each ``count`` in ``groups``, under each arm: all there at the
    start, or arriving as a Poisson process. The prefix cache is warm."""

    def condition(count: int, arm: Arm) -> Condition:
        def run(seed: int):
            sizes = even_sizes(requests, count)
            workload = grouped(prefixes, sizes, seed, decode_tokens=decode_tokens, requests_per_s=requests_per_s)
            return engine.run(workload, arm)

        return Condition(arm.name, {"groups": count}, run)

    return [condition(count, ARMS[name]) for count in groups for name in arms]


def without_sharing(engine: Engine, requests: int, prompt_tokens: int, decode_tokens: int) -> list[Condition]:
    """Prompts with nothing in common, on an empty prefix cache, under every arm that needs no group ids."""

    def condition(arm: Arm) -> Condition:
        return Condition(
            arm.name, {"groups": 0}, lambda seed: engine.run(unshared(requests, prompt_tokens, seed, decode_tokens), arm)
        )

    return [condition(arm) for arm in ARMS.values() if arm.kind != "oracle"]
