"""How long a decision takes, for every policy: ``python -m benchmarks.decisions [--json]``.

On states drawn at random, the same for all policies, in turns. Policies that learn have been told of every state; the networks have
the layers that ``lab.train`` gives them, with random weights.
"""

import numpy as np

from benchmarks.timing import main, spread, timed
from feather.options import Options
from feather.policies import POLICIES, BatchState, Decision, Network, Policy, Step
from feather.policies.network import NARROW

LAYERS, STATES, REPEATS = (32, 32), 200, 60


def states(seed: int = 0) -> list[BatchState]:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 500, (STATES, 3))
    return [BatchState(int(b), int(loss) % 20 + 1, int(w), int(w) + 10, 3, 20, 21, 4.5, 0.5) for b, loss, w in counts]


def network(wide: bool, seed: int = 0) -> Network:
    rng, inputs, layers = np.random.default_rng(seed), len(BatchState._fields) if wide else NARROW, []
    for outputs in (*LAYERS, 1):
        layers.append((rng.normal(size=(outputs, inputs)), rng.normal(size=outputs)))
        inputs = outputs
    return Network(layers, wide)


def policies(seen: list[BatchState]) -> dict[str, Policy]:
    made = {name.replace("_", " "): Options(policy=name).make_policy() for name in POLICIES if name not in ("network", "planner")}
    for state in seen:
        for policy in made.values():
            policy.feedback(Step(100, 0.02, decisions=(Decision(state, True), Decision(state, False))))
    return {**made, "network, narrow": network(False), "network, wide": network(True)}


def run() -> dict:
    seen = states()
    chosen = policies(seen)
    taken: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(REPEATS):
        for name, policy in chosen.items():
            taken[name].append(timed(lambda policy=policy: [policy.decide(state) for state in seen]) / STATES)
    return {"decision_us": {name: spread(values) for name, values in taken.items()}}


def show(found: dict) -> None:
    print("a decision, µs: median [quartiles]")
    for name, value in found["decision_us"].items():
        print(f"  {name:<18}{value['median']:>8.2f}  [{value['low']:.2f}, {value['high']:.2f}]")


if __name__ == "__main__":
    main("benchmarks.decisions", __doc__.splitlines()[0], run, show)
