"""What stopping does, told apart from what the order of admission does; and what happens when the workload changes."""

from collections.abc import Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from tqdm import tqdm

from lab import figures
from lab.engines.arms import Arm
from lab.studies.study import Condition, Study
from lab.workloads import Workload, even_sizes, grouped, make_prefixes

CLIENTS = 2  # in closed loop, for each row of the batch


def in_closed_loop(engine, prefixes: list, requests: int, decode_tokens, arms: Sequence[Arm], **told) -> list[Condition]:
    """``requests`` over the prefixes from clients in closed loop, under each arm, on a warm prefix cache. ``told`` goes into
    the parameters of the rows."""
    clients = CLIENTS * engine.max_batch
    parameters = {"groups": len(prefixes), "requests": requests, "prefix tokens": len(prefixes[0]), "decode tokens": decode_tokens,
                  "clients": clients, **told}  # fmt: skip

    def condition(arm: Arm) -> Condition:
        def run(seed: int):
            workload = grouped(prefixes, even_sizes(requests, len(prefixes)), seed, decode_tokens=decode_tokens)
            return engine.run(replace(workload, clients=clients), arm)

        return Condition(arm.name, parameters, run)

    return [condition(arm) for arm in arms]


def shift(before: Sequence[int], after: Sequence[int], requests: Sequence[int], decode_tokens, clients: int, seed: int = 1):
    """Clients in closed loop that first ask about one set of prefixes and then about another.

    Args:
        before, after: (prefix groups, tokens of a prefix).
        requests: how many in each of the two.

    Returns:
        (prefixes, workload); the groups of the second part are numbered on from those of the first.
    """
    prefixes, prompts = [], []
    for part, ((groups, tokens), count) in enumerate(zip((before, after), requests)):
        own = make_prefixes(groups, tokens, seed=seed + part)
        workload = grouped(own, even_sizes(count, groups), seed + part, decode_tokens=decode_tokens)
        prompts += [replace(prompt, group=prompt.group + len(prefixes)) for prompt in workload.prompts]
        prefixes += own
    return prefixes, Workload(prompts, clients=clients)


def timelines(engine, study: Study, name: str, before: Sequence[int], after: Sequence[int], requests: Sequence[int], decode_tokens,
              arms: Sequence[Arm], window: float, seeds: Sequence[int]) -> pd.DataFrame:  # fmt: skip
    """Throughput by windows of ``window`` seconds through a ``shift``, counted both ways from the first step that holds a request
    of the second part.

    Columns: policy, seed, phase ("before", "after"), seconds (middle of the window; negative before), throughput (tok/s). Windows that
    are not full are left out; rows of the study are kept, too.
    """
    rows = []
    for seed, arm in tqdm([(seed, arm) for seed in seeds for arm in arms], desc=name, unit="run"):
        prefixes, workload = shift(before, after, requests, decode_tokens, CLIENTS * engine.max_batch, seed)
        engine.warm(prefixes)
        run = engine.run(workload, arm)
        later = np.array([max(step.groups.values()) >= before[0] for step in engine.scheduler.steps])
        begin = int(np.argmax(later))
        ends = np.cumsum(run.step_seconds)
        tokens = np.cumsum(run.decode_rows)
        zero = ends[begin - 1]
        for edge in np.arange(-window * (zero // window), ends[-1] - zero - window, window):
            gained = np.interp([edge + zero, edge + zero + window], ends, tokens)
            middle = edge + window / 2
            rows.append({"policy": arm.name, "seed": seed, "phase": "after" if middle > 0 else "before", "seconds": middle,
                         "throughput": np.diff(gained)[0] / window})  # fmt: skip
            study.row(arm.name, {"shift": name, "window": window, "seconds": float(middle)}, "throughput in window", rows[-1]["throughput"], "tok/s",
                      seed - min(seeds), seed)  # fmt: skip
    study.rows()
    return pd.DataFrame(rows)


def recovered(times: pd.DataFrame, target: float, share: float = 0.95) -> float:
    """Seconds after the shift from which on the throughput is ``share`` of ``target``, as the mean of all that follows;
    infinite if it never is. ``times``: rows of ``timelines`` of one policy and seed."""
    after = times[times["phase"] == "after"].sort_values("seconds")
    values, middles = after["throughput"].to_numpy(), after["seconds"].to_numpy()
    rest = np.cumsum(values[::-1])[::-1] / np.arange(len(values), 0, -1)
    good = np.flatnonzero(rest >= share * target)
    return float(middles[good[0]] - middles[0]) if len(good) else float("inf")


def recoveries(times: dict[str, pd.DataFrame], arm: str) -> pd.DataFrame:
    """For each shift and seed: the better of the other policies by its mean throughput after the shift, the arm's own (tok/s), and
    how long after the shift (s) the arm's mean of all that follows is within 5 % of the other's."""
    rows = []
    for name, table in times.items():
        for seed, runs in table.groupby("seed"):
            means = runs[runs["phase"] == "after"].groupby("policy")["throughput"].mean()
            best = means.drop(arm).idxmax()
            rows.append({"shift": name, "seed": seed, "better of the others": best, "its mean after the shift, tok/s": means[best],
                         f"{arm}, tok/s": means[arm], f"{arm} within 5 % after, s": recovered(runs[runs["policy"] == arm], means[best])})  # fmt: skip
    return pd.DataFrame(rows)


def shift_figure(times: dict[str, pd.DataFrame], title: str):
    """One panel for each shift."""
    figure, panels = plt.subplots(len(times), 1, figsize=(8, 3.2 * len(times)), sharex=False, layout="constrained")
    for axes, (name, table) in zip(np.atleast_1d(panels), times.items()):
        sns.lineplot(
            table,
            x="seconds",
            y="throughput",
            hue="policy",
            errorbar=("pi", 100),
            hue_order=figures.in_order(table["policy"]),
            palette=figures.colours(),
            ax=axes,
        )
        axes.axvline(0, color="0.4", linestyle="--", linewidth=1)
        axes.set(title=name, xlabel="seconds since the shift", ylabel="tok/s")
        axes.set_ylim(bottom=0)
    figure.suptitle(title)
    return figure
