"""E9: which part of Feather does the work? Tree, chunk size, order and stopping, each held against what is left without it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from lab import figures
from lab.engines.arms import APART, ARMS, Arm
from lab.figures.ratios import ratio_panels
from lab.stats import Ratio
from lab.studies import comparing
from lab.studies.evaluation import over_chunk_sizes, over_groups
from lab.studies.study import Condition, Study, compare
from lab.workloads import even_sizes, grouped, make_prefixes

CLIENTS = 2  # in closed loop, for each row of the batch
ORDER, STOPPING, BOTH = "Feather (never stop)", "arrival order, strict stop", "Feather (strict stop)"
RADIX = ("LPM", "DFS-weight")
RULE = "Feather (threshold)"
CHUNK = 512  # tokens of a chunk, the default
DECIDERS = ("FCFS", "Feather", ORDER, RULE, "Feather (bandit alone)", "oracle (stop)", "oracle (order)")


@dataclass(frozen=True)
class Sizes:
    """Of the two experiments. Both run on the same prefixes and have requests of ``decode_tokens``."""

    prefix_groups: int
    prefix_tokens: int
    decode_tokens: int
    mixed_decode_tokens: tuple[int, int]
    """of the closed loop with unequal lengths: drawn evenly from the one to the other"""
    queue_requests: int
    queue_batch: int
    loop_requests: int
    loop_batch: int

    @property
    def largest_batch(self) -> int:
        return max(self.queue_batch, self.loop_batch)

    @property
    def lengths(self) -> dict[str, int | tuple[int, int]]:
        low, high = self.mixed_decode_tokens
        return {f"{self.decode_tokens} tokens each": self.decode_tokens, f"{low} to {high} tokens": (low, high)}

    @property
    def told(self) -> str:
        return f"{self.prefix_groups} prefixes of {self.prefix_tokens} tokens"

    @property
    def queue(self) -> str:
        return f"{self.told}, {self.queue_requests} requests there at the start, batch {self.queue_batch}, {self.decode_tokens} decode tokens, a queue that drains"

    @property
    def loop(self) -> str:
        return (
            f"{self.told}, {self.loop_requests} requests from {CLIENTS * self.loop_batch} clients in closed loop, batch {self.loop_batch}"
        )


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


# -- tree, chunk size and the authors' rule, on a queue that drains ----------------------------------------------------


def drain(study: Study, sizes: Sizes, chunk_sizes: Sequence[int], kernels: Sequence[str], repeats: int) -> pd.DataFrame:
    """A full queue under the tree with chunks of each size, under the threshold rule, and under the radix tree's policies, with the first attention
    kernel; the tree with the default chunk and the threshold rule under the others, too. Raises ValueError where the default chunk is not among
    the sizes, RuntimeError where the prefix cache was not warm."""
    if CHUNK not in chunk_sizes:
        raise ValueError(f"chunk_sizes={list(chunk_sizes)} must contain {CHUNK}, which the others are held against")
    study.engine.use_batch(sizes.queue_batch)
    prefixes = make_prefixes(sizes.prefix_groups, sizes.prefix_tokens)
    study.engine.warm(prefixes)
    conditions = over_chunk_sizes(study.engine, prefixes, chunk_sizes, sizes.queue_requests, sizes.decode_tokens)
    conditions += over_groups(study.engine, prefixes, [len(prefixes)], sizes.queue_requests, sizes.decode_tokens, arms=[RULE, *RADIX])

    def is_judged(one: Condition) -> bool:
        return one.policy == RULE or one.policy == ORDER and one.parameters["chunk_size"] == CHUNK

    table = study.measure(conditions, repeats, kernels=kernels, beside=is_judged)
    if (hits := table[table["metric"] == "prefix hits"]["value"].min()) <= 0.9:
        raise RuntimeError(f"only {hits:.0%} of a run's prompt tokens were found in the prefix cache, which was to be warm")
    return table


def over_the_tree(runs: pd.DataFrame) -> dict[str, Ratio]:
    """The threshold rule and the radix tree's policies over never stopping with the default chunk, under the first kernel."""
    table = comparing.judged(runs)
    return {name: _over_order(table, name) for name in (RULE, *RADIX)}


def _over_order(table: pd.DataFrame, policy: str) -> Ratio:
    return compare(table, "throughput", of={"policy": policy}, to={"policy": ORDER, "chunk_size": CHUNK})


def over_the_default_chunk(runs: pd.DataFrame) -> dict[int, Ratio]:
    """Chunk size → throughput over that with the default chunk, up to the paper's 1024 tokens, under the first kernel."""
    own = comparing.judged(runs[runs["policy"] == ORDER])
    found = sorted(int(size) for size in own["chunk_size"].unique() if size <= 1024)
    return {size: compare(own, "throughput", of={"chunk_size": size}, to={"chunk_size": CHUNK}) for size in found}


def chunk_figures(study: Study, table: pd.DataFrame, sizes: Sizes) -> None:
    """Throughput, and time inside the queue, over the chunk size."""
    own = comparing.judged(table[table["policy"] == ORDER]).astype({"chunk_size": int})
    repeats = own["repeat"].nunique()
    size, worst = min(over_the_default_chunk(table).items(), key=lambda item: item[1].median)
    setting = f"{ORDER} · {sizes.queue} · {figures.spread(repeats)}"
    study.figure(
        figures.lines(own, "throughput", x="chunk_size", hue=None, xlabel="tokens per chunk", ylabel="throughput, tok/s"),
        "e9_chunk_size",
        f"The worst chunk size from 1 to 1024 gives {worst.median:.2f}× the throughput of {CHUNK} tokens",
        setting,
        "Throughput against the tree's chunk size (E9).",
    )
    spent = own[own["metric"] == "queue time per step"].groupby("chunk_size")["value"].median()
    study.figure(
        figures.lines(
            own, "queue time per step", x="chunk_size", hue=None, xlabel="tokens per chunk", ylabel="inside the queue, ms per step"
        ),
        "e9_queue_time",
        f"A step spends {spent[spent.index.min()]:.2f} ms in the queue with chunks of {spent.index.min()}, {spent[CHUNK]:.2f} ms with chunks of {CHUNK} tokens",
        setting,
        "Time that an engine step spends inside Feather's queue (arrivals, hashing, decisions) against the chunk size.",
    )


def claim(study: Study, table: pd.DataFrame) -> str:
    """E9: the worst chunk size, and the claim's parts."""
    over, flat = over_the_tree(table), over_the_default_chunk(table)
    worst = min(flat.values(), key=lambda found: found.median)
    (first, _), *others = comparing.by_kernel(table, lambda part: _over_order(part, RULE)).items()
    radix = max((over[name] for name in RADIX), key=lambda found: found.median)  # the better of the radix tree's orders
    return study.claim(
        "E9", worst,
        f"The number is the worst chunk size from 1 to 1024 against {CHUNK}. Over Feather (never stop): threshold rule {over[RULE].median:.2f}×, "
        f"LPM on a radix tree {over['LPM'].median:.2f}×, DFS-weight {over['DFS-weight'].median:.2f}×. Every prefix is cached and equally long here, so "
        f"that LPM has nothing to order by. This is under the {first} kernel"
        + "".join(f"; the threshold rule under the {kernel} kernel: {rule.median:.2f}×" for kernel, rule in others) + ".",
        parts={
            "radix tree lower": radix.high < 1,
            "no stopping lower": over[RULE].low > 1,
            "chunk size flat (within 5 %)": worst.low > 0.95,
        },
    )  # fmt: skip


# -- order and stopping, in closed loop --------------------------------------------------------------------------------


def apart(study: Study, sizes: Sizes, kernels: Sequence[str], repeats: int) -> pd.DataFrame:
    """Order and stopping, each alone, both and neither, with equal and unequal lengths under the first attention kernel, and with unequal ones
    under the others, too; the column "case" tells which lengths. Raises RuntimeError where a batch that stops strictly held more than one group."""
    *equal, (case, unequal) = sizes.lengths.items()
    tables = [_closed(study, sizes, name, decode, APART, kernels[:1], repeats) for name, decode in equal]
    table = pd.concat([*tables, _closed(study, sizes, case, unequal, APART, kernels, repeats)], ignore_index=True)
    groups = table[(table["metric"] == "groups per batch") & table["policy"].isin([STOPPING, BOTH])]
    if (most := groups["value"].max()) >= 1.5:
        raise RuntimeError(f"batches that stop strictly held {most:.1f} groups on average, not one")
    return table


def deciders(study: Study, sizes: Sizes, kernels: Sequence[str], repeats: int) -> pd.DataFrame:
    """The policies that decide when to stop, and both oracles, with unequal lengths under the first kernel."""
    case, decode = list(sizes.lengths.items())[-1]
    return _closed(study, sizes, case, decode, [ARMS[name] for name in DECIDERS], kernels[:1], repeats, decides=True)


def _closed(
    study: Study, sizes: Sizes, case: str, decode: int | tuple[int, int], arms: Sequence[Arm], kernels: Sequence[str], repeats: int, **told
) -> pd.DataFrame:
    study.engine.use_batch(sizes.loop_batch)
    prefixes = make_prefixes(sizes.prefix_groups, sizes.prefix_tokens)
    study.engine.warm(prefixes)
    conditions = in_closed_loop(study.engine, prefixes, sizes.loop_requests, decode, arms, **told)
    return study.measure(conditions, repeats, kernels=kernels).assign(case=case)


def over_fcfs(table: pd.DataFrame) -> pd.DataFrame:
    """Throughput of every policy over FCFS's, by case."""
    return figures.ratio_table(table, "throughput", base="FCFS", by="case")


def apart_figure(study: Study, table: pd.DataFrame, sizes: Sizes) -> None:
    """Order, stopping and both over FCFS, a panel for each case, under the first kernel; then unequal lengths under each kernel."""
    ratios = over_fcfs(comparing.judged(table))
    at = ratios.set_index(["policy", "case"])["median"]
    parts = {"order alone": ORDER, "stopping alone": STOPPING, "both": BOTH}
    told = "; ".join(f"{part} {' and '.join(f'{at[name, case]:.2f}×' for case in sizes.lengths)}" for part, name in parts.items())
    study.figure(
        ratio_panels(ratios, "case", "throughput over FCFS"),
        "e9_order_and_stopping",
        f"Over FCFS: {told}",
        f"{sizes.loop} · panels: decode tokens · {figures.spread(ratios['repeats'].max())}",
        "Throughput over first come, first served of the tree's order without stopping, of stopping without the order, and of both (E9).",
    )
    case = list(sizes.lengths)[-1]
    comparing.draw_kernels(
        study,
        table[table["case"] == case],
        ORDER,
        "e9_kernels",
        f"{sizes.loop}, {case}",
        "Throughput and p99 time to first token in a closed loop under each attention kernel: order, stopping, both and neither (E9).",
    )


def composition(table: pd.DataFrame) -> pd.DataFrame:
    """What the batches looked like: medians by kernel, case and policy."""
    chosen = table[table["metric"].isin(["mean batch", "groups per batch", "like neighbours", "stopped", "time to first token, p99"])]
    return chosen.pivot_table(index=["kernel", "case", "policy"], columns="metric", values="value", aggfunc="median")


def _oracle(table: pd.DataFrame) -> str:
    """The oracle that gives more."""
    medians = table[table["metric"] == "throughput"].groupby("policy")["value"].median()
    return max(("oracle (stop)", "oracle (order)"), key=lambda name: medians[name])


def deciders_figure(study: Study, table: pd.DataFrame, sizes: Sizes) -> None:
    """Every decider over FCFS."""
    ratios = over_fcfs(table)
    at, best = ratios.set_index("policy")["median"], _oracle(table)
    study.figure(
        ratio_panels(ratios, "case", "throughput over FCFS"),
        "e9_policies",
        f"Over FCFS: the default {at['Feather']:.2f}×, never stopping {at[ORDER]:.2f}×, the better oracle, {best}, {at[best]:.2f}×",
        f"{sizes.loop}, {ratios['case'].iloc[0]} · {figures.spread(ratios['repeats'].max())}",
        "Throughput over first come, first served of the stopping policies and of the two oracles, which are told the groups.",
    )


def found_in_words(drained: pd.DataFrame, parted: pd.DataFrame, decided: pd.DataFrame) -> str:
    """Part by part, in Markdown."""
    over, flat = over_the_tree(drained), over_the_default_chunk(drained)
    size, worst = min(flat.items(), key=lambda item: item[1].median)
    lines = []
    for case, part in comparing.judged(parted).groupby("case", sort=False):
        order = compare(part, "throughput", of={"policy": ORDER}, to={"policy": "FCFS"})
        alone = compare(part, "throughput", of={"policy": STOPPING}, to={"policy": "FCFS"})
        more = compare(part, "throughput", of={"policy": BOTH}, to={"policy": ORDER})
        lines.append(
            f"* **Order and stopping, {case}.** Over FCFS the order alone gives {_times(order)}, stopping alone {_times(alone)}. Strict stopping on top of "
            f"the order {_effect(more)}: {_times(more)} over the order alone."
        )
    for kernel in parted["kernel"].unique()[1:]:
        part = comparing.under(parted, kernel)
        order, alone, both = (compare(part, "throughput", of={"policy": name}, to={"policy": "FCFS"}) for name in (ORDER, STOPPING, BOTH))
        lines.append(
            f"* **Under the {kernel} kernel**, {case}: order alone {_times(order)}, stopping alone {_times(alone)}, both {_times(both)} over FCFS."
        )
    best = _oracle(decided)
    default, oracle = (compare(decided, "throughput", of={"policy": "Feather"}, to={"policy": name}) for name in (ORDER, best))
    lines += [
        f"* **Who decides.** The default gives {_times(default)} over never stopping and {_times(oracle)} over the better oracle, {best}.",
        f"* **Tree.** In the queue that drains, LPM on a radix tree gives {_times(over['LPM'])} over the hash tree's order, DFS-weight "
        f"{_times(over['DFS-weight'])}. There the threshold rule {_effect(over[RULE])}: {_times(over[RULE])} over never stopping.",
        f"* **Chunk size.** The worst, {size} tokens, gives {_times(worst)} over {CHUNK} tokens.",
        "",
        f"Medians of {worst.repeats} interleaved runs with 95 % intervals; under the {parted['kernel'].iloc[0]} kernel, where none is named.",
    ]
    return "\n".join(lines)


def _times(found: Ratio) -> str:
    return f"{found.median:.2f}× [{found.low:.2f}, {found.high:.2f}]"


def _effect(change: Ratio) -> str:
    return "gains" if change.low > 1 else "loses" if change.high < 1 else "makes no difference that shows"
