"""Batch formation as a Gymnasium environment: a queue of prefix groups, the real tree and former, a modelled step time."""

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium
import numpy as np
import pandas as pd

from feather.options import Options
from lab.llm import LLAMA_3_8B, TINY_LLAMA
from lab.model import calibration
from lab.model.formation import PATIENT, Formation, Traffic
from lab.model.hardware import DEVICES, MEMORY_SHARE
from lab.model.steptime import StepModel
from lab.policies import BatchState, Stopping
from lab.policies.network import NARROW, features

STOP, ADD = 0, 1
_CPU_KV_BYTES = 4 * 2**30  # the studies' kv_gib
_BATCHED_TOKENS = 32_768  # as in ModelledEngine


@dataclass(frozen=True)
class World:
    """What a policy is trained for: a device with a model on it."""

    steps: StepModel
    kv_tokens: int
    """tokens that the KV cache holds"""
    batches: Sequence[int]
    """largest batches that are drawn from"""


def make_world(device: str, kernel: str = "cascade") -> World:
    """``device``: "cpu", this machine's as it was measured, with the studies' small model; or one of ``hardware.DEVICES`` with
    Llama-3-8B and this attention kernel.

    Raises ValueError for an unknown device or kernel, and FileNotFoundError where the CPU has not been measured."""
    if device == "cpu":
        if kernel != "paged":
            raise ValueError(f"kernel={kernel!r}: the CPU's attention kernel is 'paged'")
        if not calibration.STEPS.exists():
            raise FileNotFoundError(f"no measured steps in {calibration.STEPS}: run python -m benchmarks.cpu_steps --write first")
        steps = StepModel(calibration.this_cpu(pd.read_csv(calibration.STEPS)), TINY_LLAMA, kernel)
        return World(steps, _CPU_KV_BYTES // TINY_LLAMA.kv_bytes_per_token, (8, 16, 32))
    if device not in DEVICES:
        raise ValueError(f"device={device!r} must be one of: cpu, {', '.join(DEVICES)}")
    free = MEMORY_SHARE * DEVICES[device].memory_bytes - LLAMA_3_8B.weight_bytes - LLAMA_3_8B.activation_bytes(_BATCHED_TOKENS)
    return World(StepModel(DEVICES[device], LLAMA_3_8B, kernel), int(free // LLAMA_3_8B.kv_bytes_per_token), (64, 256, 512))


def draw_traffic(rng: np.random.Generator, world: World) -> Traffic:
    """One of many workloads: some on which stopping pays and many on which it does not. What would not fit the KV cache is
    drawn anew, since memory is not modelled."""
    while True:
        prefix, max_batch = int(rng.choice([2048, 4096, 8192])), int(rng.choice(world.batches))
        in_system = max_batch * int(rng.choice([2, 4]))
        traffic = Traffic(
            groups=int(rng.choice([2, 4, 8, 16])),
            prefix_tokens=prefix,
            root_tokens=int(rng.choice([0, 0, 0, prefix // 2])),
            suffix_tokens=int(rng.choice([20, 20, 20, 600])),
            decode=((16, 16), (64, 64), (128, 128), (16, 112))[rng.integers(4)],
            max_batch=max_batch,
            requests=in_system + max_batch,
            in_system=in_system,
        )
        if traffic.kv_tokens <= world.kv_tokens:
            return traffic


class _Question(Exception):
    """Raised out of the former by the policy that has no answer yet."""


class _Asker(Stopping):
    commits = True

    def __init__(self, wide: bool):
        self.wide = wide
        self.answer: bool | None = None

    def decide(self, state: BatchState) -> bool:
        if not state.tip_loss:
            return True
        if self.answer is None:
            self.state = state
            raise _Question
        answer, self.answer = self.answer, None
        return answer


class BatchFormation(gymnasium.Env):
    """To ADD the next candidate to the batch or to STOP, asked wherever the candidate costs shared prefix; one that costs none
    simply joins. A STOP holds until the batch is gone: a learner that is asked again while a batch drains, and judges by the
    next steps, finds that its last few requests had better be joined by others, and mixes batches for ever.

    An episode is a queue of requests of one ``Traffic``, to its end.

    **Observation**: (b, Δ, w), or with ``wide`` all of ``BatchState``, scaled (``features``). **Action**: 0 STOP, 1 ADD.
    **Reward**, of the time from a decision to the next: what was decoded in it ÷ the throughput of a full mixed batch (about
    what never stopping gives) − the seconds it took: the batch's relative throughput − 1, weighed by how long it ran. So an
    episode's sum is the time saved. In units of the time that a full mixed batch takes to decode.

    Args:
        world: the device, from ``make_world``.
        wide: see above.
        latency_weight: on the seconds that requests waited until they started, in the same unit, ÷ the largest batch.
        unfairness_weight: on those of them past a request's turn in order of arrival, likewise.
        traffic: the same for every episode; None: drawn for each.

    The seed given to ``reset`` decides all that follows.
    """

    metadata: dict = {"render_modes": []}

    def __init__(self, world: World, wide: bool = False, latency_weight: float = 0.0, unfairness_weight: float = 0.0,
                 traffic: Traffic | None = None, options: Options = PATIENT):  # fmt: skip
        for name, weight in (("latency_weight", latency_weight), ("unfairness_weight", unfairness_weight)):
            if not 0 <= weight < np.inf:
                raise ValueError(f"{name}={weight!r} must be a finite number of at least 0")
        self.world, self.wide, self.traffic, self.options = world, wide, traffic, options
        self.latency_weight, self.unfairness_weight = latency_weight, unfairness_weight
        count = len(BatchState._fields) if wide else NARROW
        self.observation_space = gymnasium.spaces.Box(0.0, np.inf, (count,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        while True:  # until a queue asks anything
            traffic = self.traffic or draw_traffic(self.np_random, self.world)
            self._asker = _Asker(self.wide)
            self._formation = Formation(self.world.steps, traffic, self._asker, int(self.np_random.integers(2**31)),
                                        self.world.kv_tokens, self.options)  # fmt: skip
            self._reference = self._formation.full_batch_throughput()
            self._unit = traffic.max_batch * sum(traffic.decode) / 2 / self._reference
            self._value = 0.0
            if self._ask():
                self._value = self._total()
                return self._observation(), {}

    def step(self, action):
        self._asker.answer = bool(action)
        asked = self._ask()
        before, self._value = self._value, self._total()
        formation = self._formation
        info = {} if asked else {"relative_throughput": formation.tokens / formation.now / self._reference}
        return self._observation(), self._value - before, not asked, False, info

    def _ask(self) -> bool:
        """Go on to the next question. False: there is none any more."""
        while not self._formation.done:
            try:
                self._formation.advance()
            except _Question:
                return True
        return False

    def _observation(self) -> np.ndarray:
        return features(self._asker.state, self.wide).astype(np.float32)

    def _total(self) -> float:
        """The rewards so far, summed."""
        formation = self._formation
        saved = formation.tokens / self._reference - formation.now
        wait = self.latency_weight * formation.waited + self.unfairness_weight * formation.passed_over
        return float((saved - wait / formation.traffic.max_batch) / self._unit)
