"""What happens when the workload changes in mid-run: throughput before and after, and how long a policy takes to adapt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from tqdm import tqdm

from lab.engines.arms import ARMS, Arm
from lab.figures.timelines import over_time
from lab.studies.stopping import CLIENTS
from lab.studies.study import Study
from lab.workloads import Workload, even_sizes, grouped, make_prefixes

ADAPTS = "Feather"  # the default policy, which is told nothing
TOOK = "within 5 % after, s"
NAMES = (ADAPTS, "Feather (never stop)", "oracle (stop)")


@dataclass(frozen=True)
class Shift:
    """Few long prefixes and many short ones, and when the one becomes the other."""

    few: Sequence[int]
    """prefix groups, tokens of a prefix"""
    many: Sequence[int]
    requests: Sequence[int]
    """how many before and after the shift"""
    decode_tokens: int
    window: float
    """seconds over which throughput is told"""

    @property
    def both_ways(self) -> dict[str, tuple[Sequence[int], Sequence[int]]]:
        return {"few prefixes, then many": (self.few, self.many), "many prefixes, then few": (self.many, self.few)}


def measure(study: Study, change: Shift, seeds: int) -> dict[str, pd.DataFrame]:
    """``timelines`` of both ways under the arms of ``NAMES``."""
    arms = [ARMS[name] for name in NAMES]
    return {
        name: timelines(
            study.engine, study, name, before, after, change.requests, change.decode_tokens, arms, change.window, range(1, seeds + 1)
        )
        for name, (before, after) in change.both_ways.items()
    }


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


def recoveries(times: dict[str, pd.DataFrame], arm: str = ADAPTS) -> pd.DataFrame:
    """For each shift and seed: the better of the other policies by its mean throughput after the shift, the arm's own (tok/s), and
    how long after the shift (s) the arm's mean of all that follows is within 5 % of the other's (infinite: never)."""
    rows = []
    for name, table in times.items():
        for seed, runs in table.groupby("seed"):
            means = runs[runs["phase"] == "after"].groupby("policy")["throughput"].mean()
            best = means.drop(arm).idxmax()
            rows.append({"shift": name, "seed": seed, "better of the others": best, "its mean after the shift, tok/s": means[best],
                         f"{arm}, tok/s": means[arm], TOOK: recovered(runs[runs["policy"] == arm], means[best])})  # fmt: skip
    return pd.DataFrame(rows)


def means(times: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean throughput (tok/s) over the windows of each phase: a row a shift and phase, a column a policy."""
    table = pd.concat(part.assign(shift=name) for name, part in times.items())
    found = table.groupby(["shift", "phase", "policy"], sort=False)["throughput"].mean().unstack("policy")[list(NAMES)]
    return found.reindex(pd.MultiIndex.from_product([times, ("before", "after")], names=["shift", "phase"])).dropna(how="all")


def _over_the_others(times: dict[str, pd.DataFrame]) -> pd.Series:
    """For each shift, what the default gives after it over what the better of the other policies gives."""
    after = means(times).xs("after", level="phase")
    return after[ADAPTS] / after.drop(columns=ADAPTS).max(axis=1)


def figure(study: Study, times: dict[str, pd.DataFrame], change: Shift) -> None:
    """Throughput over time, one panel for each way."""
    over = _over_the_others(times)
    seeds = times[next(iter(times))]["seed"].nunique()
    study.figure(
        over_time(times, "seconds", "seconds since the shift (modelled)", "throughput, tok/s", stacked=True, mark=0),
        "shift",
        f"After the shift the default gives from {over.min():.2f} to {over.max():.2f} times what the better of the others does",
        f"{change.few[0]} prefixes of {change.few[1]} tokens and {change.many[0]} of {change.many[1]}, batch {study.engine.max_batch}, "
        f"{change.decode_tokens} decode tokens, closed loop · windows of {change.window:g} s · "
        + ("one run each" if seeds == 1 else f"medians and ranges of {seeds} seeds"),
        "Throughput before and after the workload changes, for the default policy, for never stopping, and for an oracle that is told the groups and stops.",
    )


def found_in_words(times: dict[str, pd.DataFrame], adapted: pd.DataFrame) -> str:
    """Which side each workload lies on and how long the default took, in Markdown; ``adapted`` from ``recoveries``."""
    lines = ["Modelled:", ""]
    for name, part in means(times).groupby(level="shift", sort=False):
        after = part.xs("after", level="phase").iloc[0]
        rule = after["oracle (stop)"] / after["Feather (never stop)"]
        took = adapted.loc[adapted["shift"] == name, TOOK]
        done = took[np.isfinite(took)]
        lines.append(
            f"* **{name}**: after the shift, stopping with known groups gives {rule:.2f}× never stopping. The default gives "
            f"{_over_the_others(times)[name]:.2f}× the better of the two, mean over all that follows. "
            + (f"It stays within 5 % of it from {done.median():.0f} s on (median)" if len(done) else "It never stays within 5 % of it")
            + (f", in {len(done)} of {len(took)} runs." if len(done) else f", in {len(took)} run{'s' * (len(took) > 1)}.")
        )
    return "\n".join(lines)
