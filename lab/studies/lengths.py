"""Lengths: how the gain depends on the length of the shared prefix (E2) and of the answers (E4), in steady state and in a full queue."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from lab import figures
from lab.engines.arms import named
from lab.instrument import Effort
from lab.stats import Ratio
from lab.studies import comparing, sustained, words
from lab.studies.comparing import over
from lab.studies.scale import check_axes, measured, sweep
from lab.studies.study import Study
from lab.studies.words import listed, times, told, trend
from lab.workloads import Loop

PREFIX, DECODE, ANSWERS = "prefix_tokens", "decode_tokens", "answers"

# -- in steady state ---------------------------------------------------------------------------------------------------


def steady_prefixes(
    study: Study, lengths: Sequence[int], loop: Loop, arms: Sequence[str], kernels: Sequence[str], effort: Effort
) -> pd.DataFrame:
    """Rows of a closed loop for each length of the shared prefix, in tokens, under each arm and the first attention kernel; for the longest under
    the others, too. Raises ValueError for lengths that are not in ascending order."""
    check_axes(1, prefix_lengths=lengths)
    points = {length: replace(loop, prefix_tokens=length) for length in lengths}
    return sustained.sweep(study, points, PREFIX, arms, kernels, effort)


def steady_answers(
    study: Study, lengths: Sequence[int], loop: Loop, arms: Sequence[str], kernels: Sequence[str], effort: Effort
) -> pd.DataFrame:
    """The same for each mean number of decode tokens; they are distributed as ``loop`` says."""
    check_axes(1, decode_lengths=lengths)
    points = {length: replace(loop, mean_decode=length) for length in lengths}
    return sustained.sweep(study, points, DECODE, arms, kernels, effort, seed=20)


def steady_shapes(study: Study, shapes: Sequence[str], loop: Loop, arms: Sequence[str], kernel: str, effort: Effort) -> pd.DataFrame:
    """The same for each distribution of the decode tokens (``lab.workloads.loops.SHAPES``) around the mean of ``loop``."""
    return sustained.sweep(study, {shape: replace(loop, decode=shape) for shape in shapes}, ANSWERS, arms, [kernel], effort, seed=40)


def draw_steady(study: Study, prefixes: pd.DataFrame, answers: pd.DataFrame, shapes: pd.DataFrame, judged: str) -> None:
    """Throughput and p99 time to first token: against prefix and decode length, by the distribution of answers, and under each kernel."""
    what = "Throughput and p99 time to first token"
    sustained.draw(
        study, prefixes, PREFIX, "prefix tokens", "e2_steady", f"{what} against the length of the shared prefix (E2), in steady state."
    )
    sustained.draw(
        study,
        answers,
        DECODE,
        "decode tokens on average",
        "e4_steady",
        f"{what} against the mean number of decode tokens (E4), in steady state.",
    )
    sustained.draw(
        study, shapes, ANSWERS, "answers", "e4_shapes", f"{what}, over FCFS's, by the distribution of decode lengths (E4), in steady state."
    )
    for table, vary, label, claim in ((prefixes, PREFIX, "prefix tokens", "E2"), (answers, DECODE, "decode tokens on average", "E4")):
        caption = f"{what} under each attention kernel at the most {vary.replace('_', ' ')} ({claim}), in steady state."
        sustained.draw_kernels(study, table, vary, label, judged, f"{claim.lower()}_kernels", caption)


# -- a full queue ------------------------------------------------------------------------------------------------------


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


def draw_answers(study: Study, runs: pd.DataFrame, judged: str) -> None:
    table = comparing.judged(runs)
    longest = max(table[DECODE])
    second, ratio = second_best(table, judged, longest)
    finding = f"{judged} at {longest} decode tokens: {told(over(table, judged, decode_tokens=longest))} over FCFS"
    if second != "FCFS":
        finding += f", {told(ratio)} over the second best, {second}"
    _draw(study, table, DECODE, "decode tokens", "e4_decode_length", finding, "the number of decode tokens (E4)")


def second_best(table: pd.DataFrame, judged: str, length: int) -> tuple[str, Ratio]:
    """The best of the schedulers that are not Feather's, and the throughput of ``judged`` over its."""
    rivals = [policy for policy in table["policy"].unique() if not policy.startswith("Feather")]
    found = {policy: over(table, judged, policy, decode_tokens=length) for policy in rivals}
    second = min(found, key=lambda policy: found[policy].median)
    return second, found[second]


def verdicts(study: Study, prefixes: pd.DataFrame, answers: pd.DataFrame, judged: str) -> None:
    """E2 at the longest prefix over FCFS, E4 at the longest answers over the second best, both in steady state by the policy ``judged`` under the first
    kernel."""
    all_prefixes, all_answers = prefixes, answers
    prefixes, answers = comparing.judged(prefixes), comparing.judged(answers)
    *shorter, longest = sorted(prefixes[PREFIX].unique())
    print(
        study.claim(
            "E2",
            over(prefixes, judged, prefix_tokens=longest),
            f"Steady state. {judged} at {longest} tokens; never stop: {times(over(prefixes, 'Feather (never stop)', prefix_tokens=longest))}; "
            + ", ".join(f"at {length} tokens: {times(over(prefixes, judged, prefix_tokens=length))}" for length in shorter)
            + f". p99 time to first token over FCFS's: {times(over(prefixes, judged, metric=comparing.P99, prefix_tokens=longest))}."
            + comparing.kernels(all_prefixes, lambda part: over(part, judged, prefix_tokens=longest)),
        )
    )
    longest = max(answers[DECODE])
    second, ratio = second_best(answers, judged, longest)
    others = [policy for policy in figures.in_order(answers["policy"]) if policy not in (judged, second)]
    reason = f"Steady state. {judged} at {longest} decode tokens on average over the second best, {second}; over " + ", ".join(
        f"{policy} {times(over(answers, judged, policy, decode_tokens=longest))}" for policy in others
    )
    if second == "FCFS" and not set(others) & {"LPM", "DFS-weight"}:
        reason += "; the paper's second best is a scheduler of SGLang's, which notebook 25 models"
    kernels = comparing.kernels(all_answers, lambda part: second_best(part, judged, longest)[1])
    waits = over(answers, judged, second, comparing.P99, decode_tokens=longest)
    print(study.claim("E4", ratio, f"{reason}. p99 time to first token over the second best's: {times(waits)}.{kernels}"))


def found(
    prefixes: pd.DataFrame, answers: pd.DataFrame, shapes: pd.DataFrame, drained: tuple[pd.DataFrame, pd.DataFrame], judged: str
) -> str:
    """What was found, as Markdown; in steady state and under the first kernel, where nothing else is said. ``drained``: the same two sweeps over a
    full queue."""
    by_kernel = [
        comparing.found_by_kernel(runs, f"{max(runs[vary])} {vary.replace('_', ' ')}", **{vary: max(runs[vary])})
        for runs, vary in ((prefixes, PREFIX), (answers, DECODE))
    ]
    prefixes, answers = comparing.judged(prefixes), comparing.judged(answers)
    longest, prefix = max(answers[DECODE]), max(prefixes[PREFIX])
    second, ratio = second_best(answers, judged, longest)
    full_queue = over(comparing.judged(drained[0]), judged, prefix_tokens=max(drained[0][PREFIX]))
    return words.bullets([
        _found("Prefix.", prefixes, judged, PREFIX, "prefix tokens"),
        by_kernel[0],
        _found("Answers.", answers, judged, DECODE, "decode tokens on average"),
        by_kernel[1],
        f"**The second best** at {longest} decode tokens is {second}; {judged} over it: {told(ratio)}.",
        "**How answers are distributed**, at the same mean: " + "; ".join(_of_shape(shapes, shape) for shape in shapes[ANSWERS].unique()) + ".",
        sustained.drained(over(prefixes, judged, prefix_tokens=prefix), full_queue, judged, f"{max(drained[0][PREFIX])} prefix tokens"),
    ])  # fmt: skip


def _of_shape(shapes: pd.DataFrame, shape: str) -> str:
    policy, _, ratio = comparing.best(shapes[shapes[ANSWERS] == shape], ANSWERS)
    return f"{shape}, the most over FCFS is {told(ratio)} ({policy}), p99 time to first token {times(over(shapes, policy, metric=comparing.P99, answers=shape))}"


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


def _draw(study: Study, table: pd.DataFrame, vary: str, xlabel: str, name: str, finding: str, against: str) -> None:
    study.figure(
        figures.lines_beside(table, comparing.BESIDE, vary, "policy", xlabel),
        name,
        finding,
        f"{_setting(table)}; {figures.spread(comparing.repeats(table))}",
        f"Throughput and p99 time to first token against {against}, a full queue.",
    )
