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
    study: Study, lengths: Sequence[int], arms: Sequence[str], cascade: Sequence[bool], repeats: int, **setting
) -> pd.DataFrame:
    """Rows of a full queue for each length of the shared prefix, in tokens, under each arm; ``setting`` as in ``scale.Setting``. Raises
    ValueError for lengths that are not in ascending order."""
    check_axes(1, prefix_lengths=lengths)
    return measured(study, sweep("E2", PREFIX, lengths, named(*arms), study.engine, **setting), cascade, repeats)


def over_answers(
    study: Study, lengths: Sequence[int], arms: Sequence[str], cascade: Sequence[bool], repeats: int, **setting
) -> pd.DataFrame:
    """The same for each number of decode tokens."""
    check_axes(1, decode_lengths=lengths)
    return measured(study, sweep("E4", DECODE, lengths, named(*arms), study.engine, **setting), cascade, repeats)


def draw_prefixes(study: Study, table: pd.DataFrame, judged: str) -> None:
    ratios = _ratios(table, judged, PREFIX)
    (few, first), *_, (many, last) = ratios.items() if len(ratios) > 1 else list(ratios.items()) * 2
    finding = f"{judged} over FCFS: {told(first)} at {few} prefix tokens, {told(last)} at {many}"
    _draw(study, table, PREFIX, "prefix tokens", "e2_prefix_length", finding, "the length of the shared prefix (E2)")


def draw_answers(study: Study, table: pd.DataFrame, judged: str) -> None:
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
    """E2 at the longest prefix over FCFS, E4 at the longest answers over the second best, both by the policy ``judged``."""
    kernel = comparing.kernel(study.engine)
    *shorter, longest = sorted(prefixes[PREFIX].unique())
    print(
        study.claim(
            "E2",
            over(prefixes, judged, prefix_tokens=longest),
            f"{judged} at {longest} tokens; never stop: {times(over(prefixes, 'Feather (never stop)', prefix_tokens=longest))}; "
            + ", ".join(f"at {length} tokens: {times(over(prefixes, judged, prefix_tokens=length))}" for length in shorter)
            + f". p99 time to first token over FCFS's: {times(over(prefixes, judged, metric=comparing.P99, prefix_tokens=longest))}."
            + kernel,
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
    print(study.claim("E4", ratio, f"{reason}.{kernel}"))


def found(prefixes: pd.DataFrame, answers: pd.DataFrame, judged: str) -> str:
    """What was found, as Markdown."""
    longest = max(answers[DECODE])
    second, ratio = second_best(answers, judged, longest)
    return words.bullets([
        _found("Prefix.", prefixes, judged, PREFIX, "prefix tokens"),
        _found("Answers.", answers, judged, DECODE, "decode tokens"),
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


def _draw(study: Study, table: pd.DataFrame, vary: str, xlabel: str, name: str, finding: str, against: str) -> None:
    requests, groups, batch = comparing.settings(table, "requests", "groups", "batch")
    fixed = f"{table[DECODE].iloc[0]} decode tokens" if vary == PREFIX else f"prefixes of {table[PREFIX].iloc[0]} tokens"
    study.figure(
        figures.lines_beside(table, comparing.BESIDE, vary, "policy", xlabel),
        name,
        finding,
        f"{requests} requests, all there at the start, batch {batch}, {groups} groups, {fixed}; {figures.spread(comparing.repeats(table))}",
        f"Throughput and p99 time to first token against {against}, a full queue.",
    )
