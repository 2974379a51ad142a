"""Train a stopping policy with Stable-Baselines3: ``python -m lab.train --device rtx-6000-ada --kernel cascade --out FILE``.

Writes the policy as plain weights (``lab.policies.network``), with what it was trained on and what came of it. The same options
give the same policy.

Deep Q-learning (Mnih et al., Nature 2015), since the situations in which stopping pays are rare and reached only by those who first add:
a replay buffer keeps them, where proximal policy optimisation had given up stopping before it had learned from them. Settings that are
not the library's: rewards are cut off at two batches' time, since what a STOP too many costs differs by decades; a discount of 0.9,
since a decision is over with the next batch or two. The network is as small as a decision has to be
cheap.
"""

import argparse
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from feather.policies import NeverStop, Policy
from lab.model.formation import Formation
from lab.policies import Network, StrictStop
from lab.train.env import ADD, STOP, BatchFormation, World, draw_traffic, make_world

LAYERS = (32, 32)
ENVIRONMENTS = 4
MOST = 2.0  # batches' time, of one reward
HELD_OUT = 10_000  # seed of the workloads that a policy is tried on
TRIED_ON = 40


@dataclass(frozen=True)
class Training:
    device: str = "rtx-6000-ada"
    """"cpu" or one of ``lab.model.hardware.DEVICES``"""
    kernel: str = "cascade"
    """attention kernel: "paged", "cascade" or "packed" """
    seed: int = 0
    steps: int = 16_000
    """decisions"""
    wide: bool = False
    """see all of the state instead of (b, Δ, w)"""
    latency_weight: float = 0.0
    unfairness_weight: float = 0.0

    def environment(self, world: World) -> BatchFormation:
        return BatchFormation(world, self.wide, self.latency_weight, self.unfairness_weight)


def train(training: Training, world: World | None = None, tried_on: int = TRIED_ON, progress: bool = True) -> Network:
    """Raises ValueError for what is not possible, and FileNotFoundError for a CPU that has not been measured."""
    import torch
    from gymnasium.wrappers import TransformReward
    from stable_baselines3 import DQN
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    if training.steps < 1:
        raise ValueError(f"steps={training.steps} must be at least 1")
    world = world or make_world(training.device, training.kernel)
    torch.set_num_threads(1)  # the network is too small for more, and sums in one order

    def environment():
        return TransformReward(Monitor(training.environment(world)), lambda reward: float(np.clip(reward, -MOST, MOST)))

    shape = {"net_arch": list(LAYERS), "activation_fn": torch.nn.ReLU}
    model = DQN("MlpPolicy", DummyVecEnv([environment] * ENVIRONMENTS), learning_rate=1e-3, buffer_size=training.steps, batch_size=128,
                learning_starts=min(1000, training.steps // 2), gamma=0.9, train_freq=4, gradient_steps=4,
                target_update_interval=500, exploration_fraction=0.4, policy_kwargs=shape, seed=training.seed, device="cpu")  # fmt: skip
    policies = {"before": export(model, training.wide)}
    policies |= {"never stop": NeverStop(), "strict stop": StrictStop()}
    tried = {name: trial(policy, world, tried_on) for name, policy in policies.items()}
    with tqdm(total=training.steps, desc="training", unit="decision", disable=not progress) as bar:
        episodes: list[tuple[int, float]] = []

        def on_step(found: dict, _) -> bool:
            bar.update(ENVIRONMENTS)
            decisions = found["self"].num_timesteps
            episodes.extend((decisions, info["episode"]["r"]) for info in found["infos"] if "episode" in info)
            return True

        model.learn(training.steps, callback=on_step)
    network = export(model, training.wide)
    tried["after"] = trial(network, world, tried_on)
    network.trained = {
        **vars(training),
        "decisions": model.num_timesteps,
        "workloads tried on": tried_on,
        "throughput over never stop": {name: _geomean(rates / tried["never stop"]) for name, rates in tried.items()},
        "curve": _curve(episodes),
        "versions": {name: version(name) for name in ("stable-baselines3", "gymnasium", "torch", "numpy")},
    }
    return network


def export(model, wide: bool) -> Network:
    """A DQN model as plain weights: of the two actions' values only the difference, ADD − STOP, decides."""
    import torch

    layers = [(layer.weight.detach().numpy().astype(float), layer.bias.detach().numpy().astype(float))
              for layer in model.q_net.q_net if isinstance(layer, torch.nn.Linear)]  # fmt: skip
    weights, biases = layers.pop()
    last = weights[ADD : ADD + 1] - weights[STOP : STOP + 1], biases[ADD : ADD + 1] - biases[STOP : STOP + 1]
    return Network([*layers, last], wide)


def trial(policy: Policy, world: World, workloads: int = TRIED_ON) -> np.ndarray:
    """tok/s of a policy on each of so many workloads that training does not draw from; the same for every policy."""
    rng, rates = np.random.default_rng(HELD_OUT), []
    for seed in range(workloads):
        rates.append(Formation(world.steps, draw_traffic(rng, world), policy, HELD_OUT + seed, world.kv_tokens).run())
    return np.array(rates)


def _geomean(ratios: np.ndarray) -> float:
    return round(float(np.exp(np.log(ratios).mean())), 4)


def _curve(episodes: list[tuple[int, float]], points: int = 20) -> list[list[float]]:
    """(decisions so far, mean reward of the episodes that ended in that stretch), of ``points`` stretches."""
    if not episodes:
        return []
    decisions, rewards = np.array(episodes).T
    stretch = np.minimum((decisions / decisions[-1] * points).astype(int), points - 1)
    return [[int(decisions[stretch == part][-1]), round(float(rewards[stretch == part].mean()), 4)] for part in np.unique(stretch)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.train", description=__doc__.splitlines()[0])
    defaults = Training()
    parser.add_argument("--device", default=defaults.device, help="cpu, rtx-6000-ada, a100, h100 or h200")
    parser.add_argument("--kernel", default=None, help="attention kernel: paged, cascade, packed (default: cascade; cpu: paged)")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--steps", type=int, default=defaults.steps, help=f"decisions to train for (default: {defaults.steps})")
    parser.add_argument("--wide", action="store_true", help="see depths, lengths, waits and KV use, too")
    parser.add_argument("--latency-weight", type=float, default=0.0)
    parser.add_argument("--unfairness-weight", type=float, default=0.0)
    parser.add_argument("--out", type=Path, required=True, help="file to write the policy to")
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    options["kernel"] = options["kernel"] or ("paged" if options["device"] == "cpu" else "cascade")
    try:
        if not out.parent.is_dir():
            raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}")
        network = train(Training(**options))
        network.save(out)
    except (OSError, ValueError) as error:
        sys.exit(f"lab.train: {error}")
    found = network.trained["throughput over never stop"]
    print(f"{out}: throughput over never stopping on {TRIED_ON} workloads of other seeds, geometric mean: "
          f"{found['before']:.3f} before, {found['after']:.3f} after; strict stop {found['strict stop']:.3f}")  # fmt: skip
