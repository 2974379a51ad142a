"""The paper's own settings: what its figures vary, one thing at a time, on the modelled device or on a real engine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache

import pandas as pd

from lab.engines import Engine
from lab.engines.arms import ARMS, Arm
from lab.engines.modelled import ModelledEngine
from lab.studies.study import Condition, Study
from lab.workloads import Workload, even_sizes, grouped, make_prefixes


@dataclass(frozen=True)
class Setting:
    """One point of a figure; the defaults are the paper's set-up of E1."""

    groups: int = 5
    prefix_tokens: int = 5000
    requests: int = 1000
    decode_tokens: int | tuple[int, int] = 100
    batch: int = 500
    requests_per_s: float = 0.0
    """Poisson arrivals; 0: all there at the start"""
    backlog: int = 0
    """requests that are there at the start, before the others arrive at that rate"""
    shared: float = 1.0
    """share of the prefix that the requests of a group really have in common; the rest is each one's own"""
    levels: int = 1
    """levels of the prefix tree: a prefix is cut evenly, and below the first level every node has two children"""
    model: str = "llama-3-8b"
    device: str = "rtx-6000-ada"
    kernel: str = "cascade"
    inside: str = "vllm"
    """the engine whose scheduling code runs: "vllm" or "sglang" """

    def __post_init__(self) -> None:
        for name, low, high in (
            ("groups", 1, None),
            ("prefix_tokens", 1, None),
            ("requests", 1, None),
            ("batch", 1, None),
            ("requests_per_s", 0, None),
            ("backlog", 0, self.requests),
            ("shared", 0, 1),
            ("levels", 1, None),
        ):
            value = getattr(self, name)
            if not (value >= low and (high is None or value <= high)):
                raise ValueError(f"{name}={value} must be {f'at least {low}' if high is None else f'from {low} to {high}'}")
        low, high = (self.decode_tokens,) * 2 if isinstance(self.decode_tokens, int) else self.decode_tokens
        if not 1 <= low <= high:
            raise ValueError(f"decode_tokens={self.decode_tokens} must be at least 1, or two such numbers, the lesser first")
        if self.levels > 1 and self.groups != 1:
            raise ValueError(f"groups={self.groups} with levels={self.levels}: a tree has 2 ** (levels - 1) groups, leave groups at 1")

    def prefixes(self) -> list[list[int]]:
        tokens = int(self.prefix_tokens * self.shared)
        if self.levels == 1:
            return make_prefixes(self.groups, tokens)
        leaves, part = 2 ** (self.levels - 1), tokens // self.levels
        levels = [make_prefixes(2**level, part, seed=level) for level in range(self.levels)]
        return [sum((levels[level][leaf * 2**level // leaves] for level in range(self.levels)), []) for leaf in range(leaves)]

    def workload(self, prefixes: list[list[int]], seed: int) -> Workload:
        own = self.prefix_tokens - int(self.prefix_tokens * self.shared)
        workload = grouped(
            prefixes, even_sizes(self.requests, len(prefixes)), seed, 20 + own, self.decode_tokens, self.requests_per_s or None
        )
        if not self.backlog:
            return workload
        start = workload.prompts[self.backlog - 1].arrival
        return Workload([replace(prompt, arrival=max(0.0, prompt.arrival - start)) for prompt in workload.prompts])


def check_axes(shortest: int, **axes: Sequence) -> None:
    """Raises ValueError for an axis that has fewer than ``shortest`` values or is not in ascending order."""
    for name, values in axes.items():
        if len(values) < shortest or any(not low < high for low, high in zip(values, values[1:])):
            raise ValueError(f"{name}={list(values)} must be {'two values or more' if shortest > 1 else 'values'} in ascending order")


def sweep(
    figure: str, vary: str, values: Sequence, arms: Sequence[Arm] = (ARMS["FCFS"],), engine: Engine | None = None, **fixed
) -> list[Condition]:
    """A condition of ``figure`` for every value of the ``Setting`` field ``vary`` under every arm, the other fields as
    ``fixed``. They run on ``engine``, whatever model, device and kernel that has, or on the modelled one that the setting names.

    Raises ValueError for a setting that cannot be, or whose batch is larger than the engine's."""
    return [_condition(figure, replace(Setting(**fixed), **{vary: value}), arm, engine) for value in values for arm in arms]


def measured(study: Study, conditions: Sequence[Condition], vary: str, kernels: Sequence[str], repeats: int) -> pd.DataFrame:
    """Rows of a sweep over ``vary`` under the first attention kernel, and of its last point, by which claims go, under the others, too."""
    last = conditions[-1].parameters[vary]
    return study.measure(conditions, repeats, kernels=kernels, beside=lambda one: one.parameters[vary] == last)


def _condition(figure: str, setting: Setting, arm: Arm, given: Engine | None) -> Condition:
    engine = given or _engine(setting.model, setting.batch, setting.device, setting.kernel, setting.inside)
    if setting.batch > engine.max_batch:
        raise ValueError(f"batch={setting.batch} must be at most the engine's {engine.max_batch}")

    def run(seed: int):
        prefixes = setting.prefixes()
        engine.warm(prefixes, anew=setting.shared < 1)  # each one's own part fills whole blocks, and every arm has the same requests
        workload = setting.workload(prefixes, seed)
        if setting.batch < engine.max_batch:
            workload = replace(workload, clients=setting.batch)  # no more than these are ever there, so none of them waits
        return engine.run(workload, arm)

    told = asdict(setting)
    if given:
        told = {name: value for name, value in told.items() if name not in ("device", "kernel", "inside")} | {"model": engine.model}
    return Condition(arm.name, {"figure": figure, **told}, run, engine)


@cache
def _engine(model: str, batch: int, device: str, kernel: str, inside: str) -> ModelledEngine:
    return ModelledEngine(model, batch, device=device, kernel=kernel, engine=inside)
