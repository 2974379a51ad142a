"""Prefix groups: what scheduling by prefix gains as their number grows, against a kernel that shares prefixes by itself, and what it costs where
nothing is shared (E3, E7, E10)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lab import figures
from lab.stats import Ratio
from lab.studies import comparing, words
from lab.studies.comparing import over
from lab.studies.evaluation import over_groups, without_sharing
from lab.studies.study import Study, compare
from lab.studies.words import count, listed, times, told, trend

_HELD = 0.97  # prompt tokens found in the prefix cache where it holds all prefixes: what is left are the requests' own


def full_queue(
    study: Study,
    prefixes: list,
    groups: Sequence[int],
    requests: int,
    decode_tokens: int | Sequence[int],
    arms: Sequence[str],
    kernels: Sequence[str],
    repeats: int,
) -> pd.DataFrame:
    """Rows of ``requests`` that all are there at the start, over the first n prefixes for each n in ``groups``, under each arm and the first
    attention kernel; over the most prefixes under the other kernels, too. ``decode_tokens``: of all, or two numbers to draw them between.

    Raises RuntimeError where the runs were not what they are called: a cold prefix cache, or a strict batch of several groups."""
    lengths = decode_tokens if isinstance(decode_tokens, int) else tuple(decode_tokens)
    conditions = over_groups(study.engine, prefixes, list(groups), requests, lengths, arms=arms)
    runs = study.measure(conditions, repeats, kernels=kernels, beside=lambda one: one.parameters["groups"] == groups[-1])
    own = study.engine.max_batch * (64 + (lengths if isinstance(lengths, int) else lengths[1]))  # suffixes, answers, half-filled blocks
    fitting = runs[runs["groups"] * len(prefixes[0]) + own <= study.engine.kv_tokens]
    hits = fitting[fitting["metric"] == "prefix hits"]["value"]
    if (hits < 0.9).any():
        raise RuntimeError(
            f"only {hits.min():.0%} of the prompt tokens were in the prefix cache, which holds all prefixes: it was not warm"
        )
    strict = runs[(runs["metric"] == "groups per batch") & (runs["policy"] == "oracle (stop)")]["value"]
    if (strict > 1).any():
        raise RuntimeError(f"batches of oracle (stop) held {strict.max():.2f} groups on average, not 1")
    return runs


def unshared(study: Study, requests: int, prompt_tokens: int, decode_tokens: int, repeats: int) -> pd.DataFrame:
    """Rows of prompts that have nothing in common, on a cold cache, under FCFS and Feather."""
    return study.measure(without_sharing(study.engine, requests, prompt_tokens, decode_tokens), repeats)


def draw_groups(study: Study, runs: pd.DataFrame) -> None:
    """Throughput, and beside it what requests wait, against the number of prefix groups under the first kernel."""
    table = comparing.judged(runs)
    requests, tokens, decode = comparing.settings(table, "requests", "prefix tokens", "decode tokens")
    figure = figures.lines_beside(table, comparing.BESIDE, "groups", "policy", "prefix groups")
    study.figure(
        figure,
        "e3_groups",
        _finding(table),
        f"{requests} requests, all there at the start, batch {study.engine.max_batch}, prefixes of {tokens} tokens, {decode} decode tokens; "
        + figures.spread(comparing.repeats(table)),
        "Throughput and p99 time to first token against the number of prefix groups (E3), a full queue.",
    )


def draw_kernels(study: Study, runs: pd.DataFrame, judged: str) -> None:
    """The most groups under each kernel."""
    most = runs[runs["groups"] == max(runs["groups"])]
    requests, tokens, decode, number = comparing.settings(most, "requests", "prefix tokens", "decode tokens", "groups")
    comparing.draw_kernels(
        study,
        most,
        judged,
        "e3_kernels",
        f"{requests} requests, all there at the start, batch {study.engine.max_batch}, {count(number, 'prefix group')} of {tokens} tokens, {decode} decode tokens",
        f"Throughput and p99 time to first token under each attention kernel at {count(number, 'prefix group')} (E3, E7), a full queue.",
    )


def by_length(runs: pd.DataFrame, unequal: pd.DataFrame) -> pd.DataFrame:
    """The rows with equal and with unequal decode lengths at the number of groups that both have, told apart by the column "case"; of ``runs``
    those under the first kernel."""
    equal = comparing.judged(runs)
    (number,) = unequal["groups"].unique()
    (low, high) = comparing.settings(unequal, "decode tokens")[0]
    (tokens,) = comparing.settings(equal, "decode tokens")
    return pd.concat(
        [
            equal[equal["groups"] == number].assign(case=f"{tokens} decode tokens"),
            unequal.assign(case=f"{low}–{high} decode tokens"),
        ]
    )


def draw_cases(study: Study, cases: pd.DataFrame) -> None:
    """What unequal decode lengths leave of the gain."""
    requests, tokens, number = comparing.settings(cases, "requests", "prefix tokens", "groups")
    equal, unequal = cases["case"].unique()
    policy, _, gained = comparing.best(cases[cases["case"] == equal], "case")
    left = over(cases, policy, case=unequal)
    figure = figures.ratio_bars_beside(cases, comparing.BESIDE_AS_RATIOS, "FCFS", "case")
    study.figure(
        figure,
        "e3_cases",
        f"{policy} over FCFS: {told(gained)} where decode lengths are equal, {told(left)} where they are not",
        f"{requests} requests, all there at the start, batch {study.engine.max_batch}, {count(number, 'prefix group')} of {tokens} tokens; "
        + figures.spread(comparing.repeats(cases)),
        "Throughput and p99 time to first token over FCFS's (E3), a full queue with equal and with unequal decode lengths.",
    )


def against_oracle(runs: pd.DataFrame, mixed: pd.DataFrame) -> pd.DataFrame:
    """Under the first kernel: each policy over FCFS, and over the better of the two oracles, which are told the groups: one stops, one only orders."""
    table = comparing.judged(runs)
    sets = {count(number, "group"): table[table["groups"] == number] for number in sorted(table["groups"].unique())}
    sets |= {f"{count(number, 'group')}, unequal lengths": mixed[mixed["groups"] == number] for number in mixed["groups"].unique()}
    rows = []
    for case, data in sets.items():
        oracle = max(("oracle (stop)", "oracle (order)"), key=lambda name: over(data, name).median)
        rows += [
            {"case": case, "policy": policy, "over FCFS": str(over(data, policy)), "over the better oracle": str(over(data, policy, oracle)),
             "that oracle": oracle} for policy in comparing.candidates(data)
        ]  # fmt: skip
    return pd.DataFrame(rows).set_index(["case", "policy"])


def verdicts(study: Study, runs: pd.DataFrame, unshared: pd.DataFrame, judged: str) -> None:
    """E3 by the policy ``judged``, E7 by it under cascade against FCFS under packed, E10 by Feather's default. Where measured, E3 is judged at the
    largest number of groups, so that noise does not choose it; the model has none, and is judged, as the paper says "up to", at its best."""
    table = comparing.judged(runs)
    most = max(table["groups"])
    where = comparing.best(table, "groups", [judged])[1] if study.engine.backend == "sim" else most

    def at(policy: str, number: int = where) -> Ratio:
        return over(table, policy, groups=number)

    others = [policy for policy in table["policy"].unique() if policy not in ("FCFS", judged)]
    hits = table[(table["metric"] == "prefix hits") & (table["groups"] == where)]["value"].min()
    print(
        study.claim(
            "E3",
            at(judged),
            f"{judged} at {count(where, 'group')}{'' if where == most else f', its best; at {most}: {times(at(judged, most))}'}. There "
            + ", ".join(f"{policy} {times(at(policy))}" for policy in others)
            + f". At least {100 * hits:.1f} % of the prompt tokens were in the prefix cache in every arm"
            + (", so nothing here comes from evictions or prefill, as the paper's gain at 20 to 100 groups may." if hits > 0.99 else
               ": part of the gain is prefixes that need not be prefilled again.")
            + comparing.kernels(runs if where == most else table, lambda part: over(part, judged, groups=where)),
        )
    )  # fmt: skip
    if study.engine.backend != "sim":  # there notebook 32 models it
        _verdict_on_packing(study, runs[runs["groups"] == most], judged)
    requests, tokens = comparing.settings(unshared, "requests", "prompt tokens")
    print(
        study.claim("E10", over(unshared, "Feather"), f"The default policy on {requests} unrelated prompts of {tokens} tokens, cold cache.")
    )


def _verdict_on_packing(study: Study, runs: pd.DataFrame, judged: str) -> None:
    if not {"cascade", "packed"} <= set(runs["kernel"]):
        mend = "It needs the cascade and the packed kernel: on a CPU ./run_all.sh --only E7; on a GPU vLLM has no packed one."
        print(study.not_run("E7", mend))
        return
    packed = {"policy": "FCFS", "kernel": "packed"}
    others = {
        (judged, "packed"): "the same packed",
        ("Feather (never stop)", "packed"): "order alone, packed",
        ("FCFS", "paged"): "FCFS, paged",
    }
    there = set(zip(runs["policy"], runs["kernel"]))
    beside = [
        f"{told} {times(compare(runs, 'throughput', of={'policy': policy, 'kernel': kernel}, to=packed))}"
        for (policy, kernel), told in others.items() if (policy, kernel) in there
    ]  # fmt: skip
    waits = compare(runs, comparing.P99, of={"policy": judged, "kernel": "cascade"}, to=packed)
    ours = compare(runs, "throughput", of={"policy": judged, "kernel": "cascade"}, to=packed)
    reason = (
        f"{judged} under the cascade kernel over FCFS under the packed one, at {count(max(runs['groups']), 'group')}; over the same FCFS: "
        f"{', '.join(beside)}. p99 time to first token: {times(waits)}. Feather's packed kernel stands in for PAT, which runs on GPUs only."
    )
    print(study.claim("E7", ours, reason))


def found(runs: pd.DataFrame, cases: pd.DataFrame, unshared: pd.DataFrame) -> str:
    """What was found, as Markdown; under the first kernel, where none is named."""
    table = comparing.judged(runs)
    numbers = sorted(table["groups"].unique())
    policy, where, _ = comparing.best(table, "groups")
    ratios = [over(table, policy, groups=number) for number in numbers]
    hits = table[table["metric"] == "prefix hits"].groupby(["groups", "policy"])["value"].median()
    held = [number for number in numbers if hits[number].min() > _HELD] or numbers[:1]
    apart = {number: over(table, "oracle (order)", "oracle (stop)", groups=number) for number in held}
    furthest = max(apart, key=lambda number: abs(np.log(apart[number].median)))
    order, stop = (over(table, name, groups=furthest) for name in ("oracle (order)", "oracle (stop)"))
    evicted = [number for number in numbers if number not in held]
    equal, unequal = cases["case"].unique()
    return words.bullets([
        f"**Groups.** From {numbers[0]} to {numbers[-1]} groups, the throughputs of {policy} over FCFS {trend(ratios)}: {listed(map(times, ratios))}. "
        f"At {count(where, 'group')}, its best, its p99 time to first token is {times(over(table, policy, metric=comparing.P99, groups=where))} FCFS's.",
        f"**Evictions.** At {listed(map(str, evicted))} groups the KV cache does not hold what is asked for: part of a gain there is prefill that was not "
        f"repeated. At {where} groups {100 * hits[where, policy]:.0f} % of the prompt tokens came from the cache, under FCFS {100 * hits[where, 'FCFS']:.0f} %."
        if where in evicted else "",
        f"**Order or stopping.** With the groups given, the two are furthest apart at {count(furthest, 'group')}: order alone gives {told(order)} over FCFS, strictly "
        f"homogeneous batches {told(stop)}" + _worth_more(apart[furthest]),
        comparing.found_by_kernel(runs, count(numbers[-1], "group"), groups=numbers[-1]),
        f"**Unequal lengths.** {policy} over FCFS: {told(over(cases, policy, case=unequal))} with {unequal}, "
        f"{told(over(cases, policy, case=equal))} with {equal}.",
        f"**Nothing shared.** Feather's throughput over FCFS's on prompts that share nothing: {over(unshared, 'Feather')}.",
        words.TRANSIENT,
    ])  # fmt: skip


def _worth_more(apart: Ratio) -> str:
    if not words.differs(apart):
        return ": no difference between the two beyond noise."
    return f": here {'order' if apart.median > 1 else 'stopping'} is worth more."


def _finding(table: pd.DataFrame) -> str:
    few = min(table["groups"])
    policy, where, ratio = comparing.best(table, "groups")
    if not words.gains(ratio):
        return f"No policy gains over FCFS beyond noise: at most {times(ratio)}, {policy} at {count(where, 'prefix group')}"
    more = "" if where == few else f" ({times(over(table, policy, groups=few))} at {few})"
    waits = over(table, policy, metric=comparing.P99, groups=where)
    return f"{policy} gives up to {times(ratio)} FCFS's throughput, at {count(where, 'prefix group')}{more}; p99 time to first token is {times(waits)}"
