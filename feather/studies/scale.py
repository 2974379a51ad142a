"""The paper's own settings on the modelled device: what its figures vary, one thing at a time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache

from feather.sim.engine import SimEngine
from feather.studies.scheduler import ARMS, Arm
from feather.studies.study import Condition
from feather.workloads import Workload, even_sizes, grouped, make_prefixes

# The threshold rule without the limit on how long a request may be passed over, which the paper's system does not have.
PATIENT = Arm("Feather (threshold, patient)", "feather", {"policy": "threshold", "chunk_size": 64, "max_wait": float("inf")})
AT_SCALE = (ARMS["FCFS"], ARMS["Feather (never stop)"], ARMS["Feather (threshold)"], PATIENT, ARMS["oracle (stop)"])
MAIN = (ARMS["FCFS"], ARMS["Feather (never stop)"], PATIENT)


@dataclass(frozen=True)
class Setting:
    """One point of a figure; the defaults are the paper's set-up of E1."""

    groups: int = 5
    prefix_tokens: int = 5000
    requests: int = 1000
    decode_tokens: int = 100
    batch: int = 500
    requests_per_s: float = 0.0
    """Poisson arrivals; 0: all there at the start"""
    shared: float = 1.0
    """share of the prefix that the requests of a group really have in common; the rest is each one's own"""
    levels: int = 1
    """levels of the prefix tree: a prefix is cut evenly, and below the first level every node has two children"""
    model: str = "llama-3-8b"
    device: str = "rtx-6000-ada"
    kernel: str = "cascade"
    inside: str = "vllm"
    """the engine whose scheduling code runs: "vllm" or "sglang" """

    def prefixes(self) -> list[list[int]]:
        tokens = int(self.prefix_tokens * self.shared)
        if self.levels == 1:
            return make_prefixes(self.groups, tokens)
        leaves, part = 2 ** (self.levels - 1), tokens // self.levels
        levels = [make_prefixes(2**level, part, seed=level) for level in range(self.levels)]
        return [sum((levels[level][leaf * 2**level // leaves] for level in range(self.levels)), []) for leaf in range(leaves)]

    def workload(self, prefixes: list[list[int]], seed: int) -> Workload:
        own = self.prefix_tokens - int(self.prefix_tokens * self.shared)
        return grouped(prefixes, even_sizes(self.requests, len(prefixes)), seed, 20 + own, self.decode_tokens, self.requests_per_s or None)


def sweep(figure: str, vary: str, values: Sequence, arms: Sequence[Arm] = (ARMS["FCFS"],), **fixed) -> list[Condition]:
    """A condition of ``figure`` for every value of the ``Setting`` field ``vary`` under every arm, the other fields as
    ``fixed``."""
    return [_condition(figure, replace(Setting(**fixed), **{vary: value}), arm) for value in values for arm in arms]


def _condition(figure: str, setting: Setting, arm: Arm) -> Condition:
    engine = _engine(setting.model, setting.batch, setting.device, setting.kernel, setting.inside)

    def run(seed: int):
        prefixes = setting.prefixes()
        engine.warm(prefixes)
        return engine.run(setting.workload(prefixes, seed), arm)

    return Condition(arm.name, {"figure": figure, **asdict(setting)}, run, engine)


@cache
def _engine(model: str, batch: int, device: str, kernel: str, inside: str) -> SimEngine:
    return SimEngine(model, batch, device=device, kernel=kernel, engine=inside)
