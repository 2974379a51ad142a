"""The same scheduler inside SGLang, and inside vLLM beside it: on the modelled device all that differs is whose scheduling code runs, and,
where a study asks for it, the attention kernel (E1, E5, E9)."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from feather.sglang import missing
from lab import figures
from lab.engines.arms import MAIN, SGLANG_ARMS, Arm
from lab.stats import Ratio
from lab.studies import comparing, scale, words
from lab.studies.comparing import over
from lab.studies.evaluation import over_chunk_sizes
from lab.studies.study import Condition, Study, compare
from lab.studies.words import times, told
from lab.workloads import make_prefixes

ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}
ORDER, RULE, LPM, DFS = "Feather (never stop)", "Feather (threshold, patient)", "LPM, no cut-off", "DFS-weight"
UNEQUAL, EQUAL, CASCADE = "unequal", "equal", "cascade"
"""the full queue's cases: decode lengths under the paged kernel; equal ones under the cascade kernel"""


def arms() -> dict[str, Sequence[Arm]]:
    """What is compared inside each engine that is here."""
    found = {"vllm": MAIN}
    if not missing():
        found["sglang"] = [SGLANG_ARMS[name] for name in ("FCFS", "LPM", LPM, DFS, ORDER, RULE)]
    return found


def compared(figure: str, vary: str, values: Sequence, among: Sequence[str] | None = None, **fixed) -> list[Condition]:
    """``scale.sweep`` of all arms, or of those named in ``among``, inside each engine that is here."""
    return [
        condition
        for inside, chosen in arms().items()
        for condition in scale.sweep(
            figure, vary, values, [arm for arm in chosen if among is None or arm.name in among], inside=inside, **fixed
        )
    ]


# -- the runs ----------------------------------------------------------------------------------------------------------


def stream(study: Study, rates: Sequence[float], repeats: int, **setting) -> pd.DataFrame:
    """Rows of requests that arrive as a Poisson process at each rate, in requests a second, under the paged kernel."""
    table = study.measure(compared("E1", "requests_per_s", rates, kernel="paged", **setting), repeats)
    return table.assign(case=table["inside"].map(ENGINES)).sort_values(["requests_per_s", "inside"], ascending=[True, False], kind="stable")


def full_queue(study: Study, unequal: Sequence[int], equal: int, repeats: int, **setting) -> pd.DataFrame:
    """Rows of requests that are all there at the start: decode lengths drawn between the two of ``unequal`` under the paged kernel with every
    arm; all of length ``equal`` under the paged and under the cascade kernel with the arms that both engines have."""
    drawn = study.measure(compared("E5, E9", "decode_tokens", [tuple(unequal)], kernel="paged", **setting), repeats)
    alike = [arm.name for arm in MAIN]
    same = study.measure(compared("E9, equal lengths", "kernel", ["paged", "cascade"], alike, decode_tokens=equal, **setting), repeats)
    kinds = same["kernel"].map({"paged": EQUAL, "cascade": CASCADE})
    table = pd.concat([drawn.assign(lengths=UNEQUAL), same.assign(lengths=kinds)], ignore_index=True)
    return table.assign(case=table["inside"].map(ENGINES) + ", " + table["lengths"])


def chunks(study: Study, sizes: Sequence[int], repeats: int, **setting) -> pd.DataFrame:
    """Rows of ``chunk_sizes``. Raises ValueError unless the sizes hold 512, which the others are compared with, and another."""
    if not {512} < set(sizes):
        raise ValueError(f"chunk_sizes={list(sizes)} must hold 512, which the others are compared with, and another")
    return study.measure(chunk_sizes(sizes, **setting), repeats)


def chunk_sizes(
    sizes: Sequence[int], requests: int, decode_tokens: tuple[int, int], batch: int, groups: int, prefix_tokens: int
) -> list[Condition]:
    """Feather (never stop) inside SGLang with chunks of each size. Its CPU time is the one that it takes here and now, since the cost
    table holds chunks of 64 and 512 as one kind: runs differ a little from one to the next."""
    from lab.engines.modelled import ModelledEngine

    engine, prefixes = ModelledEngine(max_batch=batch, engine="sglang", scheduling="measured"), make_prefixes(groups, prefix_tokens)
    engine.warm(prefixes)
    conditions = over_chunk_sizes(engine, prefixes, list(sizes), requests, decode_tokens)
    return [replace(condition, engine=engine) for condition in conditions]


# -- the figures -------------------------------------------------------------------------------------------------------


def draw_stream(study: Study, table: pd.DataFrame) -> None:
    """Each policy over the same engine's FCFS at the highest rate."""
    rate = max(table["requests_per_s"])
    table = table[table["requests_per_s"] == rate]
    finding = f"In a stream, the threshold rule over FCFS: {told(over(table, RULE, inside='sglang'))} inside SGLang, {told(over(table, RULE, inside='vllm'))} inside vLLM"
    study.figure(
        figures.ratio_bars_beside(table, comparing.BESIDE_AS_RATIOS, "FCFS", "case"),
        "e1_inside_sglang",
        finding,
        f"{_setting(table)}, {rate:g} requests a second, over the same engine's FCFS; {figures.spread(comparing.repeats(table))}",
        "Throughput and p99 time to first token over the same engine's FCFS in a stream of requests (E1). LPM and DFS-weight are SGLang's.",
        rows=table,
    )


def draw_costs(study: Study, table: pd.DataFrame) -> None:
    """What ordering the queue costs the CPU in each step inside SGLang."""
    data = table[(table["inside"] == "sglang") & (table["lengths"] == UNEQUAL)]
    ratio = over(data, LPM, ORDER, "queue time per step")
    study.figure(
        figures.bars(data[data["policy"] != "FCFS"], "queue time per step", "ms of CPU per engine step, mean"),
        "e5_inside_sglang",
        f"Ordering the queue by LPM without its cut-off costs {ratio.median:.2g} times what Feather does in a step",
        f"Inside SGLang, {_setting(data)}; CPU time from the recorded cost table",
        "CPU time that an engine step spends on ordering the queue inside SGLang (E5), mean over all steps. Logarithmic.",
    )


def draw_queue(study: Study, table: pd.DataFrame) -> None:
    """Each policy over the same engine's FCFS in each case of the full queue."""
    kinds = {kind: over(table, RULE, inside="sglang", lengths=kind) for kind in (EQUAL, CASCADE)}
    low, high = comparing.settings(table[table["lengths"] == UNEQUAL], "decode_tokens")[0]
    (equal,) = comparing.settings(table[table["lengths"] == EQUAL], "decode_tokens")
    requests, batch, groups, tokens = comparing.settings(table, "requests", "batch", "groups", "prefix_tokens")
    data = table.sort_values(
        ["lengths", "inside"], key=lambda names: names.map([UNEQUAL, EQUAL, CASCADE, "vllm", "sglang"].index), kind="stable"
    )
    study.figure(
        figures.ratio_bars_beside(data, comparing.BESIDE_AS_RATIOS, "FCFS", "case", width=6.6),
        "e9_inside_sglang",
        f"Inside SGLang the threshold rule over FCFS: {told(kinds[EQUAL])} with the paged kernel, {told(kinds[CASCADE])} with a cascade kernel",
        f"{requests} requests, all there at the start, batch {batch}, {groups} groups of {tokens} tokens; unequal: {low}–{high} decode tokens, paged "
        f"attention; equal: {equal}; cascade: the same under vLLM's kernel, which SGLang does not have; {figures.spread(comparing.repeats(table))}",
        "Throughput and p99 time to first token over the same engine's FCFS, a full queue (E9), by decode lengths and kernel. With equal lengths FCFS "
        "and Feather only.",
        rows=table,
        kernel=False,
    )  # fmt: skip


# -- what they say -----------------------------------------------------------------------------------------------------


def verdicts(study: Study, streamed: pd.DataFrame, queued: pd.DataFrame, sizes: pd.DataFrame) -> None:
    """E1 by the threshold rule in a stream at the highest rate; E5 by LPM's CPU time over Feather's; E9 by the worst size of chunks."""
    rate = max(streamed["requests_per_s"])

    def at(policy: str, inside: str = "sglang") -> str:
        return times(over(streamed, policy, inside=inside, requests_per_s=rate))

    print(study.claim(
        "E1", over(streamed, RULE, inside="sglang", requests_per_s=rate),
        f"Inside SGLang, plain paged kernel, {rate:g} requests a second: the threshold rule over SGLang's FCFS; never stop: {at(ORDER)}, LPM: {at('LPM')}, "
        f"without its cut-off: {at(LPM)}, DFS-weight: {at(DFS)}. Inside vLLM with that kernel: {at(RULE, 'vllm')}.",
    ))  # fmt: skip
    drawn = queued[(queued["inside"] == "sglang") & (queued["lengths"] == UNEQUAL)]
    requests, tokens = comparing.settings(drawn, "requests", "prefix_tokens")
    costs = {policy: over(drawn, policy, ORDER, "queue time per step").median for policy in ("LPM", LPM, DFS)}
    shares = queue_shares(queued)
    print(study.claim(
        "E5", over(drawn, LPM, ORDER, "queue time per step"),
        f"Inside SGLang, CPU time per step: LPM without its cut-off over Feather (never stop), a full queue of {requests} prompts of {tokens} tokens; DFS-weight: "
        f"{costs[DFS]:.0f}×; LPM as it is: {costs['LPM']:.1f}×. Of the engine's step time that is {100 * shares[LPM]:.1f} %, {100 * shares[DFS]:.1f} % and "
        f"{100 * shares['LPM']:.1f} %, and Feather's {100 * shares[ORDER]:.2f} %.",
        parts={"less than 1 % of the engine step": bool(shares[ORDER] < 0.01)},
    ))  # fmt: skip
    _, worst = worst_chunk(sizes)
    lower = {policy: over(drawn, policy, ORDER) for policy in (RULE, LPM, DFS)}
    ruled = {(inside, kind): over(queued, RULE, ORDER, inside=inside, lengths=kind) for inside in ENGINES for kind in (EQUAL, CASCADE)}
    print(study.claim(
        "E9", worst,
        f"Inside SGLang. The number is the worst chunk size of {sorted(map(int, sizes['chunk_size'].unique()))}, against 512, its CPU time measured here. Over Feather "
        f"(never stop): the threshold rule {times(lower[RULE])}, LPM on SGLang's radix tree without cut-off {times(lower[LPM])}, DFS-weight {times(lower[DFS])}. "
        f"With equal decode lengths the threshold rule over never stop: {times(ruled['sglang', EQUAL])} inside SGLang, and with cascade attention "
        f"{times(ruled['sglang', CASCADE])} inside SGLang, {times(ruled['vllm', CASCADE])} inside vLLM.",
        parts={
            "radix tree lower": all(lower[policy].median < 1 for policy in (LPM, DFS)),
            "no stopping lower": bool(lower[RULE].median > 1),
            "chunk size flat (within 5 %)": bool(worst.median > 0.95),
        },
    ))  # fmt: skip


def found(streamed: pd.DataFrame, queued: pd.DataFrame, sizes: pd.DataFrame) -> str:
    """What was found, as Markdown."""
    rate = max(streamed["requests_per_s"])
    drawn = queued[queued["lengths"] == UNEQUAL]
    costs = {policy: over(drawn, policy, ORDER, "queue time per step", inside="sglang").median for policy in ("LPM", LPM, DFS)}
    shares = queue_shares(queued)
    size, worst = worst_chunk(sizes)

    def both(table: pd.DataFrame, policy: str, **where) -> str:
        ratios = {name: over(table, policy, inside=inside, **where) for inside, name in ENGINES.items()}
        return " and ".join(f"{told(ratio)} inside {name}" for name, ratio in ratios.items())

    return words.bullets([
        f"**A stream**, {rate:g} requests a second: order alone over FCFS {both(streamed, ORDER, requests_per_s=rate)}; the threshold rule "
        f"{both(streamed, RULE, requests_per_s=rate)}. LPM without its cut-off: {told(over(streamed, LPM, inside='sglang', requests_per_s=rate))}.",
        f"**The queue's cost.** In a step LPM without its cut-off costs {costs[LPM]:.2g} times what Feather costs, DFS-weight {costs[DFS]:.2g} times, LPM as it is "
        f"{costs['LPM']:.1f} times: {100 * shares[LPM]:.1f} %, {100 * shares[DFS]:.1f} % and {100 * shares['LPM']:.1f} % of the engine's step time, against {100 * shares[ORDER]:.2f} %.",
        f"**A full queue, unequal lengths, paged kernel.** Order alone over FCFS: {both(drawn, ORDER)}. DFS-weight, which orders likewise: "
        f"{told(over(drawn, DFS, inside='sglang'))}.",
        f"**The kernel.** With equal lengths the threshold rule over FCFS: {both(queued, RULE, lengths=EQUAL)} under the paged kernel, "
        f"{both(queued, RULE, lengths=CASCADE)} under the cascade kernel.",
        f"**Chunk size.** The worst is {words.count(size, 'token')}: {told(worst)} over chunks of 512.",
        words.TRANSIENT,
    ])  # fmt: skip


def queue_shares(queued: pd.DataFrame) -> pd.Series:
    """Policy → share of the engine's step time that ordering the queue takes inside SGLang, unequal lengths."""
    data = queued[(queued["metric"] == "queue share") & (queued["inside"] == "sglang") & (queued["lengths"] == UNEQUAL)]
    return data.groupby("policy")["value"].median()


def worst_chunk(sizes: pd.DataFrame) -> tuple[int, Ratio]:
    """The size of chunks with the least throughput, and that over the throughput of 512."""
    ratios = {
        size: compare(sizes, "throughput", of={"chunk_size": size}, to={"chunk_size": 512})
        for size in sorted(sizes["chunk_size"].unique())
        if size != 512
    }
    worst = min(ratios, key=lambda size: ratios[size].median)
    return worst, ratios[worst]


def _setting(table: pd.DataFrame) -> str:
    requests, batch, groups, tokens = comparing.settings(table, "requests", "batch", "groups", "prefix_tokens")
    decode = comparing.settings(table, "decode_tokens")[0]
    lengths = f"{decode[0]}–{decode[1]}" if isinstance(decode, list) else decode
    return f"{requests} requests, batch {batch}, {groups} groups of {tokens} tokens, {lengths} decode tokens"
