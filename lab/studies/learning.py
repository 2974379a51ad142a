"""What learned policies do: how fast, what, and with which result, on the modelled device."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from tqdm import tqdm

from feather.options import Options
from feather.policies import POLICIES, BatchState, Network, NeverStop, Policy
from lab.model.formation import Formation, Traffic
from lab.stats import Ratio, median_of, ratio
from lab.train.env import World, draw_traffic

CHUNK = Options.chunk_size
WINDOW = 10.0  # seconds
NEAR = 0.95  # of the throughput in the end


def rules(network: Network) -> dict[str, Callable[[], Policy]]:
    """The policies that are compared, by name: all that are registered, the guarded bandit, and ``network``. Each is made anew for
    every run, since some learn."""
    alone = {name.replace("_", " "): Options(policy=name, guard=False).make_policy for name in POLICIES if name != "network"}
    return {**alone, "bandit, guarded": Options(policy="bandit").make_policy, "SB3": lambda: network}


# -- convergence -------------------------------------------------------------------------------------------------------


def over_time(world: World, traffic: Traffic, make: Callable[[], Policy], seed: int, seconds: float) -> tuple[pd.DataFrame, Policy]:
    """Throughput in windows of virtual time (columns second, throughput), and the policy as it was at the end. Raises
    ValueError where the traffic ends before the time is up."""
    policy = make()
    run = Formation(world.steps, traffic, policy, seed, world.kv_tokens)
    while run.now < seconds:
        if run.done:
            raise ValueError(f"{traffic.requests} requests are done after {run.now:.0f} of {seconds:.0f} s: give the traffic more")
        run.advance()
    began, rows, step, steps = np.array(run.log).T
    edges = np.arange(0, seconds + 1e-9, WINDOW)
    done = np.concatenate([[0.0], np.cumsum(rows * steps)])
    tokens = np.interp(edges, np.append(began, run.now), done)
    return pd.DataFrame({"second": edges[1:], "throughput": np.diff(tokens) / WINDOW}), policy


def converged(curve: pd.DataFrame) -> float:
    """The second from which on the mean over three windows stays within 5 % of that of the last third; the curve's end where it
    never does."""
    away = np.flatnonzero(~_near_its_end(curve))
    return 0.0 if not len(away) else float(curve["second"].iloc[away[-1]])


def reached(curve: pd.DataFrame) -> float:
    """The second at which it first is as near, whether or not it stays; the curve's end where it never is."""
    near = np.flatnonzero(_near_its_end(curve))
    return float(curve["second"].iloc[near[0]] - WINDOW if len(near) else curve["second"].iloc[-1])


def _near_its_end(curve: pd.DataFrame) -> np.ndarray:
    smooth = curve["throughput"].rolling(3, min_periods=1, center=True).mean()
    final = curve["throughput"].iloc[-len(curve) // 3 :].mean()
    return ((smooth / final - 1).abs() <= 1 - NEAR).to_numpy()


def convergence(world: World, traffic: Traffic, policies: Mapping[str, Callable], seconds: float, seeds: int) -> pd.DataFrame:
    """The curves of every policy on ``seeds`` seeds: columns policy, seed, second, throughput."""
    curves = []
    for seed, (name, make) in tqdm(list(product(range(seeds), policies.items())), desc="convergence", unit="run"):
        curves.append(over_time(world, traffic, make, seed, seconds)[0].assign(policy=name, seed=seed))
    return pd.concat(curves, ignore_index=True)


def times(curves: pd.DataFrame, until: Callable[[pd.DataFrame], float] = converged) -> dict[str, Ratio]:
    """Policy → seconds until it has converged (or ``reached`` where it ends), median over the seeds."""
    return {name: median_of([until(curve) for _, curve in part.groupby("seed")])
            for name, part in curves.groupby("policy", sort=False)}  # fmt: skip


def in_the_end(curves: pd.DataFrame, base: str = "never stop") -> dict[str, Ratio]:
    """Policy → throughput of the last third over that of ``base``, paired by seed."""
    last = curves[curves["second"] > curves["second"].max() * 2 / 3].groupby(["policy", "seed"], sort=False)["throughput"].mean().unstack()
    return {name: ratio(last.loc[name], last.loc[base]) for name in last.index}


# -- what was learned --------------------------------------------------------------------------------------------------


def experienced(policy: Policy, world: World, workloads: int, seed: int) -> Policy:
    """The policy after so many drawn workloads, one after the other."""
    rng = np.random.default_rng(seed)
    for number in tqdm(range(workloads), desc="experience", unit="workload"):
        Formation(world.steps, draw_traffic(rng, world), policy, seed + number, world.kv_tokens).run()
    return policy


def decisions(policies: Mapping[str, Policy], batches: Sequence[int], losses: Sequence[int], sharing: Sequence[int], waiting: int,
              ) -> pd.DataFrame:  # fmt: skip
    """Each policy's answer (``add``) over b × Δ × w, with columns of these names and policy."""
    states = [BatchState(b, loss, w, max(w + 1, waiting)) for w, loss, b in product(sharing, losses, batches)]
    return pd.DataFrame([
        {"policy": name, "b": state.batch_size, "Δ": state.tip_loss, "w": state.sharing, "add": policy.decide(state)}
        for name, policy in policies.items() for state in states
    ])  # fmt: skip


def maps(table: pd.DataFrame, title: str):
    """Where each policy adds and where it stops: a row of panels for every w, a column for every policy."""
    policies, sharing = list(table["policy"].unique()), list(table["w"].unique())
    figure, places = plt.subplots(len(sharing), len(policies), figsize=(3 * len(policies), 2.3 * len(sharing) + 0.6),
                                  sharex=True, sharey=True, squeeze=False, layout="constrained")  # fmt: skip
    stop, add = sns.color_palette("colorblind")[3], sns.color_palette("colorblind")[2]
    for (row, w), (column, policy) in product(enumerate(sharing), enumerate(policies)):
        axes, part = places[row][column], table[(table["w"] == w) & (table["policy"] == policy)]
        grid = part.pivot(index="Δ", columns="b", values="add")
        axes.imshow(grid.to_numpy(float), origin="lower", aspect="auto", cmap=ListedColormap([stop, add]), vmin=0, vmax=1)
        axes.set_xticks(range(len(grid.columns)), grid.columns, fontsize=8, rotation=90)
        axes.set_yticks(range(len(grid.index)), grid.index, fontsize=8)
        axes.grid(False)
        if not row:
            axes.set_title(policy)
        if not column:
            axes.set_ylabel(f"w = {w}\nΔ, chunks")
        if row == len(sharing) - 1:
            axes.set_xlabel("b, requests")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (add, stop)]
    figure.legend(handles, ["ADD", "STOP"], loc="outside right upper", frameon=False)
    figure.suptitle(title, fontsize="medium", weight="bold")
    return figure


def curves_figure(panels: Mapping[str, pd.DataFrame]):
    """Throughput over virtual time, one panel each; the line is the median over the seeds, the band their range."""
    figure, places = plt.subplots(1, len(panels), figsize=(5.4 * len(panels) + 1.6, 4.2), squeeze=False, layout="constrained")
    for axes, (title, curves) in zip(places[0], panels.items()):
        last = axes is places[0][-1]
        sns.lineplot(
            curves, x="second", y="throughput", hue="policy", style="policy", estimator="median", errorbar=("pi", 100), ax=axes, legend=last
        )
        axes.set(title=title, xlabel="virtual seconds", ylabel="decode throughput, tok/s")
        axes.set_ylim(bottom=0)
    sns.move_legend(places[0][-1], "upper left", bbox_to_anchor=(1, 1), title=None, frameon=False)
    return figure


def training_figure(networks: Mapping[str, Network]):
    """Mean reward of the episodes over the decisions trained for."""
    figure, axes = plt.subplots()
    for name, network in networks.items():
        axes.plot(*zip(*network.trained["curve"]), marker="o", ms=4, label=name)
    axes.axhline(0, color="0.2", lw=1)
    axes.set(title="Training in the environment", xlabel="decisions", ylabel="reward of an episode, batches' time saved")
    axes.set_yscale("symlog", linthresh=1)
    axes.legend(frameon=False)
    return figure


# -- with which result -------------------------------------------------------------------------------------------------


def compare_on(world: World, policies: Mapping[str, Callable[[], Policy]], workloads: int, seed: int) -> pd.DataFrame:
    """Every policy on ``workloads`` drawn workloads: throughput and the mean seconds that a request waited and was passed
    over, each over never stopping's on the same requests."""
    rng, rows = np.random.default_rng(seed), []
    for number in tqdm(range(workloads), desc="workloads", unit="workload"):
        traffic = draw_traffic(rng, world)
        for name, make in {"never stop": NeverStop, **policies}.items():
            run = Formation(world.steps, traffic, make(), seed + number, world.kv_tokens)
            rate = run.run()
            rows.append({"workload": number, "policy": name, "throughput": rate, "wait": run.waited / traffic.requests,
                         "past turn": run.passed_over / traffic.requests})  # fmt: skip
    return pd.DataFrame(rows)


def over_never_stop(table: pd.DataFrame) -> pd.DataFrame:
    """For every policy: its throughput over never stopping's on the same workload (geometric mean with its 95 % bootstrap
    interval over the workloads, least, greatest), and seconds waited and past one's turn, mean."""
    rates = table.pivot(index="workload", columns="policy", values="throughput")
    draws = np.random.default_rng(0).integers(0, len(rates), (4000, len(rates)))
    told = []
    for name in table["policy"].unique():
        logs = np.log((rates[name] / rates["never stop"]).to_numpy())
        low, high = np.percentile(logs[draws].mean(axis=1), [2.5, 97.5])
        part = table[table["policy"] == name]
        told.append({"policy": name, "over never stop": np.exp(logs.mean()), "low": np.exp(low), "high": np.exp(high),
                     "worst": np.exp(logs.min()), "best": np.exp(logs.max()), "mean wait, s": part["wait"].mean(),
                     "mean past turn, s": part["past turn"].mean()})  # fmt: skip
    return pd.DataFrame(told).set_index("policy")


def told(world: World) -> dict[str, str]:
    """Where the numbers of this file come from, for the rows and figures of a study."""
    return {"backend": "sim", "device": world.steps.device.name, "engine": "Feather's tree and former alone, no vLLM"}
