"""Request rates: what remains of the gain when requests arrive one by one (E1)."""

from collections.abc import Sequence

import pandas as pd

from lab import figures
from lab.engines.arms import ARMS, named
from lab.stats import Ratio
from lab.studies import comparing, words
from lab.studies.comparing import over
from lab.studies.scale import check_axes, measured, sweep
from lab.studies.study import Study
from lab.studies.sustained import LOAD
from lab.studies.words import listed, times, told

PATIENT, FLOORLESS, BANDIT = "Feather (threshold, patient)", "Feather (threshold, patient, no floor)", "Feather (bandit alone, patient)"
FROM_BACKLOG = ("FCFS", "Feather", PATIENT, FLOORLESS, BANDIT, "oracle (stop)")
ELSEWHERE = ("FCFS", "Feather (never stop)", PATIENT, FLOORLESS, "oracle (stop)")

RATE = "requests_per_s"


def capacity(study: Study, kernels: Sequence[str], repeats: int, **setting) -> float:
    """Requests a second that FCFS serves of a full queue under the first attention kernel: the unit that rates are told in. ``setting`` as in
    ``scale.Setting``."""
    table = measured(study, sweep("E1, capacity", RATE, [0.0], [ARMS["FCFS"]], study.engine, **setting), RATE, kernels[:1], repeats)
    return float(table[table["metric"] == "throughput"]["value"].median() / setting["decode_tokens"])


def arriving(study: Study, rates: Sequence[float], arms: Sequence[str], kernels: Sequence[str], repeats: int, **setting) -> pd.DataFrame:
    """Rows of requests that arrive at an empty engine as a Poisson process, at each rate (in requests a second) under each arm and the first
    attention kernel; at the highest rate under the others, too. Raises ValueError for rates that are not in ascending order."""
    check_axes(1, rates=rates)
    return measured(study, sweep("E1", RATE, rates, named(*arms), study.engine, **setting), RATE, kernels, repeats)


def from_backlog(study: Study, backlogs: Sequence[int], rate: float, repeats: int, **setting) -> pd.DataFrame:
    """Rows of the same stream at one rate, with so many of the requests there at the start."""
    table = study.measure(
        sweep("E1, backlog", "backlog", backlogs, named(*FROM_BACKLOG), study.engine, requests_per_s=rate, **setting), repeats
    )
    return table.assign(case=table["backlog"].map(lambda there: f"{there} at the start")).sort_values("backlog", kind="stable")


def elsewhere(study: Study, device: str, rates: Sequence[float], repeats: int, **setting) -> pd.DataFrame:
    """Rows of ``arriving`` on another modelled device."""
    return study.measure(sweep(f"E1, {device}", RATE, rates, named(*ELSEWHERE), device=device, **setting), repeats)


def draw(study: Study, runs: pd.DataFrame, capacity: float, name: str = "e1_request_rate") -> None:
    """Throughput, and beside it what requests wait, against the rate under the first kernel, with FCFS's capacity as a grey line."""
    table = comparing.judged(runs)
    figure = figures.lines_beside(table, comparing.BESIDE, RATE, "policy", "requests a second")
    for axes in figure.axes:
        axes.axvline(capacity, color="0.75", lw=4, zorder=0)
    setting = f"{_setting(table)}; grey line: what FCFS serves of a full queue; {figures.spread(comparing.repeats(table))}"
    caption = "Throughput and p99 time to first token against the request rate, Poisson arrivals (E1)."
    study.figure(figure, name, _finding(table, capacity), setting, caption)


def draw_elsewhere(study: Study, table: pd.DataFrame, device: str) -> None:
    engine = _engine(device, study)
    figure = figures.lines_beside(table, comparing.BESIDE, RATE, "policy", "requests a second")
    policy, rate, ratio = comparing.best(table, RATE)
    study.figure(
        figure,
        f"e1_{device}",
        f"On the {engine.device_name.split(',')[0]} at most {told(ratio)} over FCFS: {policy} at {rate:g} requests a second",
        f"{_setting(table)}; {figures.spread(comparing.repeats(table))}",
        f"Throughput and p99 time to first token against the request rate, Poisson arrivals (E1), {engine.device_name.split(',')[0]}.",
        engine=engine,
    )


def draw_backlog(study: Study, begun: pd.DataFrame) -> None:
    figure = figures.ratio_bars_beside(begun, comparing.BESIDE_AS_RATIOS, "FCFS", "case")
    few, many = min(begun["backlog"]), max(begun["backlog"])
    rate = begun[RATE].iloc[0]
    study.figure(
        figure,
        "e1_backlog",
        f"The threshold rule over FCFS: {told(over(begun, PATIENT, backlog=few))} with {few} requests there at the start, "
        f"{told(over(begun, PATIENT, backlog=many))} with {many}",
        f"{_setting(begun)}, {rate:g} requests a second after those at the start; {figures.spread(comparing.repeats(begun))}",
        "Throughput and p99 time to first token over FCFS's (E1), by how many requests are there at the start.",
    )


def verdict(study: Study, curve: pd.DataFrame, judged: str, begun: pd.DataFrame | None = None) -> None:
    """E1 by the policy ``judged`` at the highest load of the latency-throughput curve (``sustained.under_load``) under the first kernel."""
    table = comparing.judged(curve)
    *lower, highest = sorted(table[LOAD].unique())
    rows = table[(table["metric"] == "mean batch") & (table["policy"] == "FCFS") & (table[LOAD] == highest)]["value"].median()
    others = [policy for policy in figures.in_order(table["policy"]) if policy not in ("FCFS", judged)]
    reason = (
        f"{judged} at {highest:g} times what FCFS serves in a closed loop, Poisson arrivals, the beginning of each run cut; FCFS fills {rows:.0f} of "
        f"{study.engine.max_batch} rows on average; "
        + "".join(f"{policy} {times(over(table, policy, load=highest))}; " for policy in others)
        + "; ".join(f"at {load:g} times {times(over(table, judged, load=load))}" for load in lower)
        + f". p99 time to first token over FCFS's: {times(over(table, judged, metric=comparing.P99, load=highest))}; above the capacity it grows for "
        "as long as requests arrive."
    )
    if begun is not None:
        few, *some, many = sorted(begun["backlog"].unique())
        reason += (
            " From an empty engine the first batch is mixed, and a mixed batch has no prefix to lose; "
            + ", ".join(f"with {there} there at the start it is {times(over(begun, PATIENT, backlog=there))}" for there in (*some, many))
            + f". From empty, without its floor: {times(over(begun, FLOORLESS, backlog=few))}; the bandit without guard and limit: "
            f"{times(over(begun, BANDIT, backlog=few))}; group ids known, stopping: {times(over(begun, 'oracle (stop)', backlog=few))}; the default, to "
            f"which a queue of that length is a burst, in which it stops nothing: {times(over(begun, 'Feather', backlog=few))}."
        )
    kernels = comparing.kernels(curve, lambda part: over(part, judged, load=highest))
    print(study.claim("E1", over(table, judged, load=highest), reason + kernels))


def verdict_elsewhere(study: Study, table: pd.DataFrame, device: str, judged: str) -> None:
    """E1 once more, on the other device."""
    engine, fastest = _engine(device, study), max(table[RATE])
    others = [policy for policy in figures.in_order(table["policy"]) if policy not in ("FCFS", judged)]
    reason = f"{engine.device_name.split(',')[0]}, {fastest:g} requests a second: {judged}; " + "; ".join(
        f"{policy} {times(over(table, policy, requests_per_s=fastest))}" for policy in others
    )
    print(study.claim("E1", over(table, judged, requests_per_s=fastest), f"{reason}. The paper has no such device.", engine=engine))


def found(runs: pd.DataFrame, capacity: float, judged: str, begun: pd.DataFrame | None = None) -> str:
    """What was found, as Markdown; under the first kernel, where none is named."""
    table = comparing.judged(runs)
    rates = sorted(table[RATE].unique())
    ratios = {rate: over(table, judged, requests_per_s=rate) for rate in rates}
    policy, where, ratio = comparing.best(table, RATE)
    above = [rate for rate in rates if rate > capacity]
    lines = [
        f"**{judged}** over FCFS: " + listed(f"{told(ratios[rate])} at {rate / capacity:.1f} times its capacity" for rate in rates) + ".",
        f"**The most that any policy gains** is {told(ratio)}: {policy} at {where / capacity:.1f} times the capacity, with a p99 time to first token of "
        f"{times(over(table, policy, metric=comparing.P99, requests_per_s=where))} FCFS's.",
    ]
    if begun is not None:
        few, many = min(begun["backlog"]), max(begun["backlog"])
        lines.append(
            f"**What is there at the start.** {PATIENT}, which can keep a batch homogeneous and not make one, over FCFS: "
            f"{told(over(begun, PATIENT, backlog=few))} with {few} requests there and {told(over(begun, PATIENT, backlog=many))} with {many}; without its "
            f"floor {told(over(begun, FLOORLESS, backlog=few))} and {told(over(begun, FLOORLESS, backlog=many))}."
        )
    lines.append(comparing.found_by_kernel(runs, f"{rates[-1] / capacity:.1f} times the capacity", requests_per_s=rates[-1]))
    lines.append(
        "**Transient or steady.** Below the capacity the stream is steady but for its beginning and its end. "
        + (
            f"At {listed(f'{rate / capacity:.1f}' for rate in above)} times the capacity the queue grows for as long as requests arrive and drains "
            "afterwards: a transient. Its waits grow with the number of requests, and its ratios are not those of a server."
            if above
            else "No rate here is above it."
        )
    )
    return words.bullets(lines)


def _finding(table: pd.DataFrame, capacity: float) -> str:
    policy, rate, ratio = comparing.best(table, RATE)
    if not words.gains(ratio):
        return f"When requests arrive one by one no policy gains over FCFS: at most {times(ratio)}, up to {max(table[RATE]) / capacity:.1f} times its capacity"
    waits: Ratio = over(table, policy, metric=comparing.P99, requests_per_s=rate)
    return f"{policy} gives {times(ratio)} FCFS's throughput at {rate / capacity:.1f} times its capacity; p99 time to first token is {times(waits)}"


def _setting(table: pd.DataFrame) -> str:
    requests, groups, tokens, decode, batch = comparing.settings(table, "requests", "groups", "prefix_tokens", "decode_tokens", "batch")
    return f"{requests} requests, Poisson arrivals, batch {batch}, {groups} groups of {tokens} tokens, {decode} decode tokens"


def _engine(device: str, study: Study):
    return sweep("", "groups", [1], device=device, batch=study.engine.max_batch)[0].engine
