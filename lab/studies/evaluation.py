"""The evaluation: a full queue or a stream of arrivals, under every arm, to the end."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from feather.options import Options
from lab.engines import Engine
from lab.engines.arms import ARMS, MAIN_ARMS, Arm
from lab.studies.study import Condition
from lab.workloads import Workload, even_sizes, grouped, unshared


def over_groups(
    engine: Engine,
    prefixes: list,
    groups: list[int],
    requests: int,
    decode_tokens: int | tuple[int, int],
    requests_per_s: float | None = None,
    arms: Sequence[str | Arm] = MAIN_ARMS,
) -> list[Condition]:
    """``requests`` over the first ``count`` prefixes, for each ``count`` in ``groups``, under each arm: all there at the
    start, or arriving as a Poisson process. The prefix cache is warm."""

    def condition(count: int, arm: Arm) -> Condition:
        def run(seed: int):
            engine.warm(prefixes[:count])  # where the KV cache does not hold all prefixes, those that are asked for are in it
            sizes = even_sizes(requests, count)
            workload = grouped(prefixes, sizes, seed, decode_tokens=decode_tokens, requests_per_s=requests_per_s)
            return engine.run(workload, arm)

        parameters = {"groups": count, "requests": requests, "prefix tokens": len(prefixes[0]), "decode tokens": decode_tokens}
        if requests_per_s:
            parameters["requests per s"] = round(requests_per_s, 2)
        return Condition(arm.name, {**parameters, **_told(arm)}, run)

    chosen = [arm if isinstance(arm, Arm) else ARMS[arm] for arm in arms]
    return [condition(count, arm) for count in groups for arm in chosen]


def over_chunk_sizes(engine: Engine, prefixes: list, chunk_sizes: list[int], requests: int, decode_tokens: int) -> list[Condition]:
    """A full queue over all the prefixes under Feather (never stop) with chunks of each size."""
    arms = [Arm("Feather (never stop)", "feather", {"policy": "never_stop", "chunk_size": size}) for size in chunk_sizes]
    return over_groups(engine, prefixes, [len(prefixes)], requests, decode_tokens, arms=arms)


def without_sharing(engine: Engine, requests: int, prompt_tokens: int, decode_tokens: int) -> list[Condition]:
    """Prompts with nothing in common, on an empty prefix cache, under vLLM's own queue and Feather's default. Two arms, so that the runs
    of a pair stand side by side in time: what is to be shown is that there is no difference."""

    def condition(arm: Arm) -> Condition:
        parameters = {"groups": 0, "requests": requests, "prompt tokens": prompt_tokens, "decode tokens": decode_tokens}
        return Condition(
            arm.name,
            {**parameters, **_told(arm)},
            lambda seed: engine.run(unshared(requests, prompt_tokens, seed, decode_tokens), arm),
        )

    return [condition(ARMS[name]) for name in ("FCFS", "Feather")]


def over_workload(
    engine: Engine, make: Callable[[int, int], Workload], parameters: dict, arms: Sequence[str | Arm] = MAIN_ARMS
) -> list[Condition]:
    """A workload of its own, ``make(seed, salt)``, under each arm. The same seed makes the same requests for every arm;
    ``salt`` is another number in every run, for what must not be found in the prefix cache by the next one."""
    runs = count()

    def condition(arm: Arm) -> Condition:
        return Condition(arm.name, {**parameters, **_told(arm)}, lambda seed: engine.run(make(seed, next(runs)), arm))

    return [condition(arm if isinstance(arm, Arm) else ARMS[arm]) for arm in arms]


def scaled(arms: Sequence[str], factor: float) -> list[Arm]:
    """Arms for a workload whose lengths were scaled: what their options count in tokens is scaled with them."""

    def scale(arm: Arm) -> Arm:
        if arm.kind != "feather":
            return arm
        options = Options.from_mapping(arm.options)
        values, known = options.flat(), options.declared()
        tokens = {name: max(1, round(factor * value)) for name, value in values.items() if known[name].metadata["unit"] == "tokens"}
        return replace(arm, options={**arm.options, **tokens})

    return [scale(ARMS[name]) for name in arms]


def _told(arm: Arm) -> dict:
    """The options of an arm that its name does not say; of a file only the name."""
    options = {name: value for name, value in arm.options.items() if name != "policy"}
    return {name: Path(value).name if name == "network" else value for name, value in options.items()}
