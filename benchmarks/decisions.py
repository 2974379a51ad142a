"""What deciding costs: ``python -m benchmarks.decisions [--waiting 1000] [--json]``.

Every policy serves the same closed loop on a virtual clock (``lab.model.disciplines``: the paged law of a CPU, 32 rows, 8 prefixes of 16 chunks), with
so many requests waiting; what is timed is real. A decision: one question to the former for the next request. A step: all that a former does in one, its
arrivals, its decisions, what it is told, and with the planner what is learned and played through. The networks have the layers that ``lab.train`` gives
them, with random weights.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import main, spread
from feather.policies import NeverStop, Planner, Policy
from lab.model.disciplines import LAWS, Load, Play
from lab.policies import Bandit, BatchState, Network, StrictStop, Threshold
from lab.policies.network import NARROW

LAYERS, CHUNK = (32, 32), 512
LAW, BATCH, SETTLE = "paged", 32, 30.0  # virtual seconds, within which the planner has its experiment behind it
CALLS = ("insert", "new_step", "next", "add_to_batch", "formed", "ran", "finish")


class Timed:
    """A former, and what its calls have taken."""

    def __init__(self, former: Any):
        self.former = former
        self.decisions: list[float] = []
        self.steps: list[float] = []
        self._step = 0.0
        for name in CALLS:
            setattr(self, name, self._timed(name, getattr(former, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.former, name)

    def _timed(self, name: str, call: Callable) -> Callable:
        def method(*arguments: Any) -> Any:
            before, start = self.former.decisions, time.perf_counter_ns()
            answer = call(*arguments)
            taken = (time.perf_counter_ns() - start) / 1e3
            if name == "new_step":
                self.steps.append(self._step)
                self._step = 0.0
            self._step += taken
            if self.former.decisions > before:
                self.decisions.append(taken)
            return answer

        return method


def network(wide: bool, seed: int = 0) -> Network:
    rng, inputs, layers = np.random.default_rng(seed), len(BatchState._fields) if wide else NARROW, []
    for outputs in (*LAYERS, 1):
        layers.append((rng.normal(size=(outputs, inputs)), rng.normal(size=outputs)))
        inputs = outputs
    return Network(layers, wide)


POLICIES: dict[str, Callable[[], Policy]] = {
    "planner": Planner,
    "never stop": NeverStop,
    "threshold": lambda: Threshold(CHUNK),
    "strict stop": StrictStop,
    "bandit": Bandit,
    "network, narrow": lambda: network(False),
    "network, wide": lambda: network(True),
}


def served(make: Callable[[], Policy], waiting: int, seconds: float) -> tuple[Timed, float]:
    """What calls took after ``SETTLE``, and the virtual seconds of a step."""
    play = Play(LAWS[LAW], Load(batch=BATCH, clients=BATCH + waiting), make, max_wait=float("inf"))
    play.run(SETTLE)
    timed = play.former = Timed(play.former)
    play.run(SETTLE + seconds)
    return timed, float(np.mean([elapsed for then, elapsed, *_ in play.log if then > SETTLE]))


def run(waiting: int, seconds: float) -> dict:
    found = {name: served(make, waiting, seconds) for name, make in POLICIES.items()}
    return {
        "waiting": waiting,
        "decision_us": {name: spread(timed.decisions) for name, (timed, _) in found.items()},
        "step_us": {name: spread(timed.steps[1:]) for name, (timed, _) in found.items()},
        "share_of_step": {name: round(float(np.mean(timed.steps[1:])) / 1e6 / step, 5) for name, (timed, step) in found.items()},
    }


def show(found: dict) -> None:
    print(f"{found['waiting']} waiting; µs: median [quartiles], mean; of a step of {BATCH} rows under the {LAW} law of a CPU")
    for name, share in found["share_of_step"].items():
        told = []
        for what in ("decision", "step"):
            value = found[f"{what}_us"][name]
            told.append(f"{what} {value['median']:>7.1f} [{value['low']:.1f}, {value['high']:.1f}], {value['mean']:.1f}")
        print(f"  {name:<18}{told[0]:<44}{told[1]:<48}{share:>7.2%}")


if __name__ == "__main__":
    main("benchmarks.decisions", __doc__.splitlines()[0], run, show,
         waiting={"type": int, "default": 1000}, seconds={"type": float, "default": 60.0, "help": "virtual, of each policy"})  # fmt: skip
