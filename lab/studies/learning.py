"""What learned policies do: how fast, what, and with which result, on the modelled device."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from feather.options import Options
from feather.policies import POLICIES, NeverStop, Policy
from lab.engines.arms import of_policy
from lab.figures import decisions as drawn
from lab.figures.timelines import over_time as curves_over_time
from lab.model.formation import Formation, Traffic
from lab.policies import Bandit, BatchState, Network, Stopping, StrictStop, Threshold, dotted
from lab.stats import Ratio, median_of, ratio
from lab.studies.study import Study
from lab.train.env import World, draw_traffic, make_world
from lab.train.training import Training, train

BATCHES, LOSSES, SHARING = (1, 2, 4, 8, 16, 32, 64, 100, 150, 200, 300, 400), (1, 2, 4, 6, 8, 9, 12, 16), (0, 8, 100)
"""that the maps ask about: requests; chunks; requests"""
CHUNK = Options.chunk_size
WINDOW = 10.0  # seconds
NEAR = 0.95  # of the throughput in the end
KERNELS = ("cascade", "paged")
BASE = "Feather (never stop)"
DEFAULT, ALONE, SHIPPED = "Feather", "Feather (bandit alone)", "Feather (SB3)"
NARROW, WIDE, FAIR = "narrow", "wide", "narrow, latency and unfairness"


def rules(network: Network) -> dict[str, Callable[[], Policy]]:
    """The policies that are compared, by the names of their arms, each made anew for every run, since some learn. As in all of this file,
    no request is served out of turn for having waited long, and chunks have 512 tokens."""
    alone = {BASE: "never_stop", ALONE: dotted(Bandit)}
    alone |= {f"Feather ({name})": dotted(rule) for name, rule in (("strict stop", StrictStop), ("threshold", Threshold))}
    alone |= {of_policy(name).name: name for name in POLICIES if name not in (*alone.values(), Options().policy)}
    made = {label: Options(policy=name).make_policy for label, name in alone.items()}
    return {**made, DEFAULT: Options().make_policy, SHIPPED: lambda: network}


def worlds(device: str) -> dict[str, World]:
    """The device with cascade attention, where a batch of one prefix pays, and with paged attention, where it does not."""
    return {kernel: make_world(device, kernel) for kernel in KERNELS}


def shipped() -> Network:
    """The network that is kept with the artifact."""
    return Network.read("rtx-6000-ada-cascade")


def trained_on(network: Network) -> pd.DataFrame:
    """What a network says of its training."""
    return pd.Series({name: value for name, value in network.trained.items() if name != "curve"}, name="the shipped network").to_frame()


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


def in_the_end(curves: pd.DataFrame, base: str = BASE) -> dict[str, Ratio]:
    """Policy → throughput of the last third over that of ``base``, paired by seed."""
    last = curves[curves["second"] > curves["second"].max() * 2 / 3].groupby(["policy", "seed"], sort=False)["throughput"].mean().unstack()
    return {name: ratio(last.loc[name], last.loc[base]) for name in last.index}


class Convergence(NamedTuple):
    """Both kernels' curves and what follows from them: kernel → policy → number."""

    traffic: Traffic
    curves: dict[str, pd.DataFrame]
    first: dict[str, dict[str, Ratio]]
    """seconds until it ``reached`` where it ends"""
    stays: dict[str, dict[str, Ratio]]
    """seconds until it has ``converged``"""
    end: dict[str, dict[str, Ratio]]
    """throughput of the last third over never stopping's"""


def converge(
    study: Study, worlds: Mapping[str, World], traffic: Traffic, policies: Mapping[str, Callable], seconds: float, seeds: int
) -> Convergence:
    """Run every policy on every kernel, from a start without experience, and keep the numbers as rows of the study."""
    curves = {kernel: convergence(world, traffic, policies, seconds, seeds) for kernel, world in worlds.items()}
    found = Convergence(
        traffic,
        curves,
        first={kernel: times(table, reached) for kernel, table in curves.items()},
        stays={kernel: times(table) for kernel, table in curves.items()},
        end={kernel: in_the_end(table) for kernel, table in curves.items()},
    )
    for kernel, name in product(curves, policies):
        told = {"kernel": kernel, "groups": traffic.groups, "prefix tokens": traffic.prefix_tokens, "decode tokens": list(traffic.decode),
                "max batch": traffic.max_batch}  # fmt: skip
        study.row(name, told, "time to converge", found.stays[kernel][name].median, "s", 0)
        study.row(name, told, "throughput in the end over never stop", found.end[kernel][name].median, "×", 0)
    study.rows()
    return found


def convergence_figure(study: Study, found: Convergence) -> None:
    """Throughput over virtual time, one panel each kernel."""
    traffic, kernels = found.traffic, list(found.curves)
    seeds = found.curves[kernels[0]]["seed"].nunique()
    ends = " and ".join(f"{found.end[kernel][DEFAULT].median:.2f}× never stopping with {kernel} attention" for kernel in kernels)
    study.figure(
        curves_over_time(
            {f"{kernel} attention": table for kernel, table in found.curves.items()},
            "second",
            "virtual seconds",
            "decode throughput, tok/s",
        ),
        "e12_convergence",
        f"The default ends at {ends}",
        f"{traffic.groups} groups of {traffic.prefix_tokens} tokens, batch {traffic.max_batch}, {traffic.in_system} requests in the system, closed loop, from a start "
        f"without experience · windows of {WINDOW:g} s · medians and ranges of {seeds} seeds",
        "Decode throughput over virtual time. The network was trained beforehand, with cascade attention.",
    )


def convergence_table(found: Convergence) -> pd.DataFrame:
    """Seconds and throughput in the end, medians over the seeds with their intervals, a row a policy."""
    columns = {"reached after, s": found.first, "converged after, s": found.stays, "in the end, × never stop": found.end}
    return pd.DataFrame({
        (f"{kernel} attention", what): {name: f"{one.median:.2f} [{one.low:.2f}, {one.high:.2f}]" for name, one in numbers[kernel].items()}
        for kernel in found.curves for what, numbers in columns.items()
    })  # fmt: skip


def claim(study: Study, found: Convergence) -> str:
    """E12: seconds until the bandit stays where it ends, with cascade attention."""

    def told(kernel: str, name: str) -> str:
        return f"{found.stays[kernel][name].median:.0f} s and {found.end[kernel][name].median:.2f}× never stopping"

    return study.claim(
        "E12",
        found.stays["cascade"][ALONE],
        "Virtual seconds until the bandit stays within 5 % of where it ends; it first gets there after "
        f"{found.first['cascade'][ALONE].median:.0f} s and ends at {found.end['cascade'][ALONE].median:.2f}× never stopping. The planner: "
        f"{told('cascade', DEFAULT)}. Without cascade attention: {told('paged', DEFAULT)} the planner, {told('paged', ALONE)} the bandit.",
    )


# -- what was learned --------------------------------------------------------------------------------------------------


def experienced(policy: Policy, world: World, workloads: int, seed: int) -> Policy:
    """The policy after so many drawn workloads, one after the other."""
    rng = np.random.default_rng(seed)
    for number in tqdm(range(workloads), desc="experience", unit="workload"):
        Formation(world.steps, draw_traffic(rng, world), policy, seed + number, world.kv_tokens).run()
    return policy


def decisions(policies: Mapping[str, Stopping], batches: Sequence[int], losses: Sequence[int], sharing: Sequence[int], waiting: int,
              ) -> pd.DataFrame:  # fmt: skip
    """Each policy's answer (``add``) over b × Δ × w, with columns of these names and policy."""
    states = [BatchState(b, loss, w, max(w + 1, waiting)) for w, loss, b in product(sharing, losses, batches)]
    return pd.DataFrame([
        {"policy": name, "b": state.batch_size, "Δ": state.tip_loss, "w": state.sharing, "add": policy.decide(state)}
        for name, policy in policies.items() for state in states
    ])  # fmt: skip


def learned_figure(study: Study, policies: Mapping[str, Callable[[], Policy]], bandit: Policy, batch: int, workloads: int) -> pd.DataFrame:
    """Maps of the threshold, of a ``bandit`` that has been through ``workloads``, and of the shipped network; returns the share of ADD by w."""
    asked = {"Feather (threshold)": policies["Feather (threshold)"](), ALONE: bandit, SHIPPED: policies[SHIPPED]()}
    table = decisions(asked, BATCHES, LOSSES, SHARING, waiting=batch)
    adds = table.groupby("policy", sort=False)["add"].mean()
    study.figure(
        drawn.maps(table),
        "what_was_learned",
        "Share of contexts in which each adds: "
        + ", ".join(f"{name.removeprefix('Feather ').strip('()')} {share:.0%}" for name, share in adds.items()),
        f"ADD or STOP over batch size b, loss of shared prefix Δ (chunks of {CHUNK} tokens) and waiting requests w that share it · the bandit after "
        f"{workloads} drawn workloads · cascade attention",
        "The authors' threshold stops at any loss here from a batch of 4 on, since one chunk of 512 tokens is more than it allows.",
    )
    return table.groupby(["policy", "w"], sort=False)["add"].mean().unstack()


def contexts(bandit: Bandit) -> pd.DataFrame:
    """The contexts that a bandit has met, as it keeps them (bits of b, Δ and w), with the throughput that it expects of ADD and STOP."""
    return pd.DataFrame(
        [(*context, outcome[True].throughput, outcome[False].throughput) for context, outcome in sorted(bandit.table.items())],
        columns=["b, bits", "Δ, bits", "w, bits", "ADD, tok/s", "STOP, tok/s"],
    )


def what_was_met(world: World, found: Convergence, bandit: Bandit, seconds: float) -> str:
    """How few contexts the bandit meets, in Markdown."""
    alone = over_time(world, found.traffic, Bandit, 0, seconds)[1].table
    tried = sum(outcome[True].steps > 0 for outcome in alone.values())
    met = contexts(bandit)
    both = met[(met["ADD, tok/s"] > 0) & (met["STOP, tok/s"] > 0)]
    better = (both["ADD, tok/s"] > both["STOP, tok/s"]).sum()
    return (
        f"In the workload of E12 a bandit met {len(alone)} contexts and added in {tried} of them. In the drawn workloads it met {len(met)} and tried both answers "
        f"in {len(both)}; in {better} of those it found ADD the better one."
    )


# -- with which result -------------------------------------------------------------------------------------------------


def compare_on(world: World, policies: Mapping[str, Callable[[], Policy]], workloads: int, seed: int) -> pd.DataFrame:
    """Every policy on ``workloads`` drawn workloads: throughput and the mean seconds that a request waited and was passed
    over, each over never stopping's on the same requests."""
    rng, rows = np.random.default_rng(seed), []
    for number in tqdm(range(workloads), desc="workloads", unit="workload"):
        traffic = draw_traffic(rng, world)
        for name, make in {BASE: NeverStop, **policies}.items():
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
        logs = np.log((rates[name] / rates[BASE]).to_numpy())
        low, high = np.percentile(logs[draws].mean(axis=1), [2.5, 97.5])
        part = table[table["policy"] == name]
        told.append({"policy": name, "over never stop": np.exp(logs.mean()), "low": np.exp(low), "high": np.exp(high),
                     "worst": np.exp(logs.min()), "best": np.exp(logs.max()), "mean wait, s": part["wait"].mean(),
                     "mean past turn, s": part["past turn"].mean()})  # fmt: skip
    return pd.DataFrame(told).set_index("policy")


def trainings(device: str, steps: int, tried_on: int) -> dict[str, Network]:
    """The same training, with the same number of decisions: on the paper's three numbers, on all that is known, and on the three numbers with a
    reward that also counts waiting and being passed over."""
    chosen = {NARROW: {}, WIDE: {"wide": True}, FAIR: {"latency_weight": 0.5, "unfairness_weight": 0.5}}
    return {name: train(Training(device, steps=steps, seed=1, **options), tried_on=tried_on) for name, options in chosen.items()}


def training_figure(study: Study, trained: Mapping[str, Network]) -> None:
    """Mean reward over the decisions trained for, the shipped network's beside those trained here."""
    networks = {"shipped": shipped(), **trained}
    curves = {name: network.trained["curve"] for name, network in networks.items()}
    last = {name: curve[-1] for name, curve in curves.items()}
    study.figure(
        drawn.training(curves),
        "training",
        "Mean reward at the end of training: " + ", ".join(f"{name} {curve[1]:.1f}" for name, curve in last.items()),
        f"Shipped: {last['shipped'][0]} decisions; here: {last[NARROW][0]} · one training each · drawn workloads, cascade attention",
        "Reward: batches' time saved against full mixed batches. One curve's reward also pays for waiting, so it lies lower.",
    )


def compared(
    study: Study, world: World, policies: Mapping[str, Callable], trained: Mapping[str, Network], workloads: int, steps: int
) -> pd.DataFrame:
    """All policies and networks on drawn workloads, as ``over_never_stop``; kept as rows of the study."""
    networks = {name: (lambda network=network: network) for name, network in trained.items()}
    found = over_never_stop(compare_on(world, {**policies, **networks}, workloads, seed=20_000))
    for name, row in found.iterrows():
        told = {"workloads": workloads, "train steps": steps if name in trained else None}
        study.row(name, told, "throughput over never stop", row["over never stop"], "×", 0)
    study.rows()
    return found


def found_in_words(found: Convergence, results: pd.DataFrame, workloads: int, steps: int) -> str:
    """How fast, and with which result, in Markdown."""
    at = results["over never stop"]

    def told(name: str) -> str:
        row = results.loc[name]
        return f"{row['over never stop']:.2f}× [{row['low']:.2f}, {row['high']:.2f}], from {row['worst']:.2f}× to {row['best']:.2f}×"

    best = at.drop(BASE).idxmax()
    gain = "more than never stopping" if results.loc[best, "low"] > 1 else "not clearly more than never stopping"
    return f"""Modelled:

* **How fast.** With cascade attention the default stays within 5 % of where it ends after {found.stays["cascade"][DEFAULT].median:.0f} virtual seconds, the bandit alone
  after {found.stays["cascade"][ALONE].median:.0f}; never stopping, which learns nothing, takes {found.stays["cascade"][BASE].median:.0f}, the queue's own settling.
* **Where it ends.** The default at {found.end["cascade"][DEFAULT].median:.2f}× never stopping with cascade attention and at {found.end["paged"][DEFAULT].median:.2f}× without;
  the bandit alone at {found.end["cascade"][ALONE].median:.2f}× and {found.end["paged"][ALONE].median:.2f}×.
* **On {workloads} drawn workloads**, over never stopping, geometric means with 95 % intervals, and the worst and the best workload: threshold {told("Feather (threshold)")};
  bandit without experience {told(ALONE)}; default {told(DEFAULT)}; shipped network {told(SHIPPED)}. The best on average, {best}, gives {gain}.
* **Wide or narrow.** After {steps} decisions of training: narrow {told(NARROW)}; wide {told(WIDE)}. With weights on waiting and on being passed over {at[FAIR]:.2f}×; a
  request is then passed over for {results.loc[FAIR, "mean past turn, s"]:.2f} s on average, against {results.loc[NARROW, "mean past turn, s"]:.2f} s without."""


def told(world: World) -> dict[str, str]:
    """Where the numbers of this file come from, for the rows and figures of a study."""
    return {"backend": "sim", "device": world.steps.device.name, "engine": "Feather's tree and former alone, no vLLM"}
