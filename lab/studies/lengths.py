"""Lengths: how the gain depends on the length of the shared prefix (E2) and of the answers (E4)."""

from collections.abc import Sequence

import pandas as pd

from lab import figures
from lab.engines.arms import named
from lab.stats import Ratio
from lab.studies import comparing, words
from lab.studies.comparing import over
from lab.studies.scale import check_axes, measured, sweep
from lab.studies.study import Study
from lab.studies.words import listed, times, told, trend

PREFIX, DECODE = "prefix_tokens", "decode_tokens"


def over_prefixes(
    study: Study, lengths: Sequence[int], arms: Sequence[str], kernels: Sequence[str], repeats: int, **setting
) -> pd.DataFrame:
    """Rows of a full queue for each length of the shared prefix, in tokens, under each arm and the first attention kernel; for the longest under
    the others, too. ``setting`` as in ``scale.Setting``. Raises ValueError for lengths that are not in ascending order."""
    check_axes(1, prefix_lengths=lengths)
    return measured(study, sweep("E2", PREFIX, lengths, named(*arms), study.engine, **setting), PREFIX, kernels, repeats)


def over_answers(
    study: Study, lengths: Sequence[int], arms: Sequence[str], kernels: Sequence[str], repeats: int, **setting
) -> pd.DataFrame:
    """The same for each number of decode tokens."""
    check_axes(1, decode_lengths=lengths)
    return measured(study, sweep("E4", DECODE, lengths, named(*arms), study.engine, **setting), DECODE, kernels, repeats)


def draw_prefixes(study: Study, runs: pd.DataFrame, judged: str) -> None:
    table = comparing.judged(runs)
    ratios = _ratios(table, judged, PREFIX)
    (few, first), *_, (many, last) = ratios.items() if len(ratios) > 1 else list(ratios.items()) * 2
    finding = f"{judged} over FCFS: {told(first)} at {few} prefix tokens, {told(last)} at {many}"
    _draw(study, table, PREFIX, "prefix tokens", "e2_prefix_length", finding, "the length of the shared prefix (E2)")
    _draw_kernels(study, runs, PREFIX, judged, "e2_kernels", "at the longest prefix (E2)")


def draw_answers(study: Study, runs: pd.DataFrame, judged: str) -> None:
    table = comparing.judged(runs)
    longest = max(table[DECODE])
    second, ratio = second_best(table, judged, longest)
    finding = f"{judged} at {longest} decode tokens: {told(over(table, judged, decode_tokens=longest))} over FCFS"
    if second != "FCFS":
        finding += f", {told(ratio)} over the second best, {second}"
    _draw(study, table, DECODE, "decode tokens", "e4_decode_length", finding, "the number of decode tokens (E4)")
    _draw_kernels(study, runs, DECODE, judged, "e4_kernels", "at the most decode tokens (E4)")


def second_best(table: pd.DataFrame, judged: str, length: int) -> tuple[str, Ratio]:
    """The best of the schedulers that are not Feather's, and the throughput of ``judged`` over its."""
    rivals = [policy for policy in table["policy"].unique() if not policy.startswith("Feather")]
    found = {policy: over(table, judged, policy, decode_tokens=length) for policy in rivals}
    second = min(found, key=lambda policy: found[policy].median)
    return second, found[second]


def verdicts(study: Study, prefixes: pd.DataFrame, answers: pd.DataFrame, judged: str) -> None:
    """E2 at the longest prefix over FCFS, E4 at the longest answers over the second best, both by the policy ``judged`` under the first kernel."""
    all_prefixes, all_answers = prefixes, answers
    prefixes, answers = comparing.judged(prefixes), comparing.judged(answers)
    *shorter, longest = sorted(prefixes[PREFIX].unique())
    print(
        study.claim(
            "E2",
            over(prefixes, judged, prefix_tokens=longest),
            f"{judged} at {longest} tokens; never stop: {times(over(prefixes, 'Feather (never stop)', prefix_tokens=longest))}; "
            + ", ".join(f"at {length} tokens: {times(over(prefixes, judged, prefix_tokens=length))}" for length in shorter)
            + f". p99 time to first token over FCFS's: {times(over(prefixes, judged, metric=comparing.P99, prefix_tokens=longest))}."
            + comparing.kernels(all_prefixes, lambda part: over(part, judged, prefix_tokens=longest)),
        )
    )
    longest = max(answers[DECODE])
    second, ratio = second_best(answers, judged, longest)
    others = [policy for policy in figures.in_order(answers["policy"]) if policy not in (judged, second)]
    reason = f"{judged} at {longest} decode tokens over the second best, {second}; over " + ", ".join(
        f"{policy} {times(over(answers, judged, policy, decode_tokens=longest))}" for policy in others
    )
    if second == "FCFS" and not set(others) & {"LPM", "DFS-weight"}:
        reason += "; the paper's second best is a scheduler of SGLang's, which notebook 25 models"
    kernels = comparing.kernels(all_answers, lambda part: second_best(part, judged, longest)[1])
    print(study.claim("E4", ratio, f"{reason}.{kernels}"))


def found(prefixes: pd.DataFrame, answers: pd.DataFrame, judged: str) -> str:
    """What was found, as Markdown; under the first kernel, where none is named."""
    by_kernel = [
        comparing.found_by_kernel(runs, f"{max(runs[vary])} {vary.replace('_', ' ')}", **{vary: max(runs[vary])})
        for runs, vary in ((prefixes, PREFIX), (answers, DECODE))
    ]
    prefixes, answers = comparing.judged(prefixes), comparing.judged(answers)
    longest = max(answers[DECODE])
    second, ratio = second_best(answers, judged, longest)
    return words.bullets([
        _found("Prefix.", prefixes, judged, PREFIX, "prefix tokens"),
        by_kernel[0],
        _found("Answers.", answers, judged, DECODE, "decode tokens"),
        by_kernel[1],
        f"**The second best** at {longest} decode tokens is {second}; {judged} over it: {told(ratio)}.",
        words.TRANSIENT,
    ])  # fmt: skip


def _found(heading: str, table: pd.DataFrame, judged: str, vary: str, of: str) -> str:
    ratios = _ratios(table, judged, vary)
    longest = max(ratios)
    waits = over(table, judged, metric=comparing.P99, **{vary: longest})
    return (
        f"**{heading}** The throughputs of {judged} over FCFS {trend(ratios.values())}: "
        + listed(f"{told(ratio)} at {length}" for length, ratio in ratios.items())
        + f" {of}. At {longest} its p99 time to first token is {times(waits)} FCFS's."
    )


def _ratios(table: pd.DataFrame, policy: str, vary: str) -> dict[int, Ratio]:
    return {length: over(table, policy, **{vary: length}) for length in sorted(table[vary].unique())}


def _setting(table: pd.DataFrame) -> str:
    """What all the rows have in common."""
    requests, groups, batch = comparing.settings(table, "requests", "groups", "batch")
    fixed = {DECODE: "{} decode tokens", PREFIX: "prefixes of {} tokens"}
    told = [text.format(table[name].iloc[0]) for name, text in fixed.items() if table[name].nunique() == 1]
    return f"{requests} requests, all there at the start, batch {batch}, {groups} groups, {', '.join(told)}"


def _draw_kernels(study: Study, runs: pd.DataFrame, vary: str, judged: str, name: str, at: str) -> None:
    runs = runs[runs[vary] == max(runs[vary])]
    caption = f"Throughput and p99 time to first token under each attention kernel {at}, a full queue."
    comparing.draw_kernels(study, runs, judged, name, _setting(runs), caption)


def _draw(study: Study, table: pd.DataFrame, vary: str, xlabel: str, name: str, finding: str, against: str) -> None:
    study.figure(
        figures.lines_beside(table, comparing.BESIDE, vary, "policy", xlabel),
        name,
        finding,
        f"{_setting(table)}; {figures.spread(comparing.repeats(table))}",
        f"Throughput and p99 time to first token against {against}, a full queue.",
    )
