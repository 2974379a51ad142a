"""E9: which part of Feather does the work? Tree, order and stopping in steady state, the chunk size on a queue that drains, each held against what is
left without it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from feather.turns import USUAL_WAIT
from lab import figures
from lab.figures.ratios import ratio_panels
from lab.instrument import Cell, Effort
from lab.stats import Ratio
from lab.studies import comparing, loops, sustained, words
from lab.studies.evaluation import over_chunk_sizes, over_groups
from lab.studies.study import Condition, Study, compare
from lab.workloads import Loop, make_prefixes

CLIENTS = 2  # in closed loop, for each row of the batch
ORDER, STOPPING, BOTH = "Feather (never stop)", "arrival order, strict stop", "Feather (strict stop)"
APART = ("FCFS", ORDER, STOPPING, BOTH)
"""Order and stopping, each alone and both together."""
RADIX = ("LPM", "DFS-weight")
RULE = "Feather (threshold)"
CHUNK = 512  # tokens of a chunk, the default
DECIDERS = ("FCFS", "Feather", ORDER, RULE, "Feather (bandit alone)", "oracle (stop)", "oracle (order)", *RADIX)

CASES = {
    "uniform lengths": {},
    "equal lengths": {"decode": "equal"},
    "lengths as in Mooncake": {"decode": "mooncake"},
    "heavy-tailed lengths": {"decode": "heavy"},
    "Zipf groups": {"zipf": 1.0},
    "1 client a row": {"clients": 1},
    "4 clients a row": {"clients": 4},
    "8 clients a row": {"clients": 8},
}
"""what differs from uniform lengths, groups that are equally likely and ``CLIENTS`` clients for each row"""


@dataclass(frozen=True)
class Sizes:
    """Of the two experiments, which run on the same prefixes."""

    prefix_groups: int
    prefix_tokens: int
    queue_requests: int
    queue_batch: int
    queue_decode: int
    """tokens of each answer in the queue that drains"""
    loop_batch: int
    mean_decode: int
    """tokens in the closed loop; uniform: from half to one and a half times that"""

    @property
    def largest_batch(self) -> int:
        return max(self.queue_batch, self.loop_batch)

    def loop(self, case: str) -> Loop:
        """Raises ValueError for a case that there is not."""
        if case not in CASES:
            raise ValueError(f"cases: {case!r} must be one of: {', '.join(CASES)}")
        differs = dict(CASES[case])
        clients = differs.pop("clients", CLIENTS) * self.loop_batch
        return replace(Loop(self.prefix_groups, self.prefix_tokens, clients, mean_decode=self.mean_decode), **differs)

    @property
    def told(self) -> str:
        return f"{self.prefix_groups} prefixes of {self.prefix_tokens} tokens"

    @property
    def queue(self) -> str:
        return f"{self.told}, {self.queue_requests} requests there at the start, batch {self.queue_batch}, {self.queue_decode} decode tokens, a queue that drains"

    def closed(self, case: str) -> str:
        loop = self.loop(case)
        return f"Steady state, {self.told}, {loop.clients} clients, batch {self.loop_batch}, decode {loop.lengths} tokens"


# -- tree, chunk size and the authors' rule, on a queue that drains ----------------------------------------------------


def drain(study: Study, sizes: Sizes, chunk_sizes: Sequence[int], kernel: str, repeats: int) -> pd.DataFrame:
    """A full queue under the tree with chunks of each size, under the threshold rule, and under the radix tree's policies. Raises ValueError where the
    default chunk is not among the sizes, RuntimeError where the prefix cache was not warm."""
    if CHUNK not in chunk_sizes:
        raise ValueError(f"chunk_sizes={list(chunk_sizes)} must contain {CHUNK}, which the others are held against")
    study.engine.use_batch(sizes.queue_batch)
    prefixes = make_prefixes(sizes.prefix_groups, sizes.prefix_tokens)
    study.engine.warm(prefixes)
    conditions: list[Condition] = over_chunk_sizes(study.engine, prefixes, chunk_sizes, sizes.queue_requests, sizes.queue_decode)
    conditions += over_groups(
        study.engine, prefixes, [len(prefixes)], sizes.queue_requests, sizes.queue_decode, arms=["FCFS", RULE, *RADIX]
    )
    table = study.measure(conditions, repeats, kernels=[kernel])
    if (hits := table[table["metric"] == "prefix hits"]["value"].min()) <= 0.9:
        raise RuntimeError(f"only {hits:.0%} of a run's prompt tokens were found in the prefix cache, which was to be warm")
    return table


def over_the_tree(runs: pd.DataFrame) -> dict[str, Ratio]:
    """The threshold rule, the radix tree's policies and FCFS over never stopping with the default chunk, in the queue that drains."""
    return {
        name: compare(runs, "throughput", of={"policy": name}, to={"policy": ORDER, "chunk_size": CHUNK}) for name in (RULE, *RADIX, "FCFS")
    }


def over_the_default_chunk(runs: pd.DataFrame) -> dict[int, Ratio]:
    """Chunk size → throughput over that with the default chunk, up to the paper's 1024 tokens."""
    own = runs[runs["policy"] == ORDER]
    found = sorted(int(size) for size in own["chunk_size"].unique() if size <= 1024)
    return {size: compare(own, "throughput", of={"chunk_size": size}, to={"chunk_size": CHUNK}) for size in found}


def chunk_figures(study: Study, table: pd.DataFrame, sizes: Sizes) -> None:
    """Throughput, p99 time to first token and time inside the queue over the chunk size."""
    own = table[table["policy"] == ORDER].astype({"chunk_size": int})
    size, worst = min(over_the_default_chunk(table).items(), key=lambda item: item[1].median)
    spent = own[own["metric"] == "queue time per step"].groupby("chunk_size")["value"].median()
    few = spent.index.min()
    study.figure(
        figures.lines_beside(
            own, comparing.BESIDE | {"queue time per step": "inside the queue, ms per step"}, "chunk_size", None, "tokens per chunk"
        ),
        "e9_chunk_size",
        f"The worst chunk size from 1 to 1024 gives {worst.median:.2f}× the throughput of {CHUNK} tokens; a step spends {spent[few]:.2f} ms in the queue "
        f"with chunks of {few}, {spent[CHUNK]:.2f} ms with {CHUNK}",
        f"{ORDER} · {sizes.queue} · {figures.spread(comparing.repeats(own))}",
        "Throughput, p99 time to first token, and time that a step spends inside Feather's queue (arrivals, hashing, decisions) against the tree's chunk "
        "size (E9).",
        rows=own,
    )


# -- order, stopping and who decides, in steady state ------------------------------------------------------------------


def steady(study: Study, sizes: Sizes, cases: Sequence[str], kernels: Sequence[str], effort: Effort) -> pd.DataFrame:
    """Order and stopping, each alone, both and neither, in a closed loop for each of ``cases`` (``CASES``; the column "case"). In the first of them also
    those that decide when to stop, both oracles and the radix tree's policies, and under the other kernels order, stopping and the threshold rule.

    Raises ValueError for no case, RuntimeError where a batch that stops strictly held more than one group in the first, although nobody was overdue."""
    if not cases:
        raise ValueError("there is no case to measure: the list of cases is empty")
    study.engine.use_batch(sizes.loop_batch)
    found = []
    for place, case in enumerate(cases):
        first = place == 0
        arms = dict.fromkeys(kernels, (*APART, RULE)) if first else {}
        arms |= {kernels[0]: dict.fromkeys((*APART, *DECIDERS)) if first else APART}
        cells = [Cell(arm, kernel, study.engine.sorted_rows, sizes.loop(case)) for kernel in kernels for arm in arms.get(kernel, ())]
        found.append(loops.take(study, cells, effort, seed=1 + place).assign(case=case))
    study.engine.use_kernel(kernels[0], study.engine.sorted_rows)
    _check_strict(found[0])
    rows = pd.concat(found, ignore_index=True)
    return rows.sort_values("kernel", key=lambda names: names.map(list(kernels).index), kind="stable", ignore_index=True)


def _check_strict(rows: pd.DataFrame) -> None:
    strict = rows[rows["policy"].isin([STOPPING, BOTH]) & rows["metric"].isin(["groups per batch", "longest wait"])]
    told = strict.pivot_table(index=["policy", "kernel", "repeat"], columns="metric", values="value").reindex(
        columns=["groups per batch", "longest wait"]
    )
    wrong = told[(told["groups per batch"] >= 1.5) & (told["longest wait"] < USUAL_WAIT)]  # whoever is overdue joins any batch
    if len(wrong):
        raise RuntimeError(f"batches that stop strictly held {wrong['groups per batch'].max():.1f} groups on average, not one")


def apart(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of order and stopping, each alone, both and neither."""
    return runs[runs["policy"].isin(APART)]


def deciders(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of those that decide when to stop, and beside them the oracles and the radix tree's policies: in the first case, under the first kernel."""
    rows = comparing.judged(runs)
    return rows[(rows["case"] == rows["case"].iloc[0]) & rows["policy"].isin(DECIDERS)]


def _over_order(table: pd.DataFrame, policy: str) -> Ratio:
    return comparing.over(table, policy, ORDER)


def apart_figures(study: Study, runs: pd.DataFrame, sizes: Sizes) -> None:
    """Order, stopping and both over FCFS in each case, under the first kernel; then the first case under each kernel."""
    table, case = comparing.judged(apart(runs)), runs["case"].iloc[0]
    parts = {"order alone": ORDER, "stopping alone": STOPPING, "both": BOTH}
    told = "; ".join(
        f"{part} {words.listed(words.times(comparing.over(table, name, case=one)) for one in table['case'].unique())}"
        for part, name in parts.items()
    )
    study.figure(
        figures.ratio_bars_beside(table, comparing.BESIDE_AS_RATIOS, "FCFS", "case", 2.0 + 1.5 * table["case"].nunique()),
        "e9_order_and_stopping",
        f"Over FCFS, by case: {told}",
        f"{sizes.closed(case)}, where nothing else is said · {figures.spread(comparing.repeats(table))}",
        "Throughput and p99 time to first token over first come, first served's of the tree's order without stopping, of stopping without the order, and of "
        "both (E9), in steady state.",
        rows=table,
    )
    comparing.draw_kernels(
        study,
        apart(runs)[apart(runs)["case"] == case],
        ORDER,
        "e9_kernels",
        sizes.closed(case),
        "Throughput and p99 time to first token in steady state under each attention kernel: order, stopping, both and neither (E9).",
    )


def composition(table: pd.DataFrame) -> pd.DataFrame:
    """What the batches looked like: medians by kernel, case and policy."""
    chosen = table[table["metric"].isin(["throughput", comparing.P99, *comparing.BATCHES, "stopped", "longest wait"])]
    return chosen.pivot_table(index=["kernel", "case", "policy"], columns="metric", values="value", aggfunc="median")


def _oracle(table: pd.DataFrame) -> str:
    """The oracle that gives more."""
    medians = table[table["metric"] == "throughput"].groupby("policy")["value"].median()
    return max(("oracle (stop)", "oracle (order)"), key=lambda name: medians[name])


def deciders_figure(study: Study, runs: pd.DataFrame, sizes: Sizes) -> None:
    """Every decider over FCFS, and what it costs in waiting."""
    table = deciders(runs)
    panels = {"throughput": "throughput over FCFS", comparing.P99: "p99 time to first token over FCFS"}
    ratios = pd.concat([figures.ratio_table(table, metric, "FCFS", "case").assign(panel=label) for metric, label in panels.items()])
    best = _oracle(table)
    at = {name: comparing.over(table, name).median for name in ("Feather", ORDER, best)}
    study.figure(
        ratio_panels(ratios, "panel", "ratio to FCFS"),
        "e9_policies",
        f"Over FCFS: the default {at['Feather']:.2f}×, never stopping {at[ORDER]:.2f}×, the better oracle, {best}, {at[best]:.2f}×",
        f"{sizes.closed(table['case'].iloc[0])} · {figures.spread(comparing.repeats(table))}",
        "Throughput and p99 time to first token over first come, first served's of the stopping policies, of the two oracles, which are told the groups, and "
        "of the radix tree's orders, in steady state.",
        rows=table,
    )


def claim(study: Study, drained: pd.DataFrame, runs: pd.DataFrame) -> str:
    """E9: the worst chunk size, in the queue that drains, and the claim's parts; tree and stopping are judged in steady state."""
    table, flat, before = deciders(runs), over_the_default_chunk(drained), over_the_tree(drained)
    worst = min(flat.values(), key=lambda found: found.median)
    over = {name: _over_order(table, name) for name in (RULE, *RADIX)}
    (first, _), *others = comparing.by_kernel(runs[runs["case"] == runs["case"].iloc[0]], lambda part: _over_order(part, RULE)).items()
    radix = max((over[name] for name in RADIX), key=lambda found: found.median)  # the better of the radix tree's orders
    waits = comparing.over(table, RULE, ORDER, comparing.P99)
    return study.claim(
        "E9", worst,
        f"The number is the worst chunk size from 1 to 1024 against {CHUNK}, in a queue that drains. Over Feather (never stop), in steady state: threshold rule "
        f"{words.times(over[RULE])} (p99 time to first token {words.times(waits)}), LPM on a radix tree {words.times(over['LPM'])}, DFS-weight "
        f"{words.times(over['DFS-weight'])}; in a queue that drains {words.times(before[RULE])}, {words.times(before['LPM'])} and "
        f"{words.times(before['DFS-weight'])}. Every prefix is cached and equally long here, so that LPM has nothing to order by. This is under the {first} kernel"
        + "".join(f"; the threshold rule in steady state under the {kernel} kernel: {words.times(rule)}" for kernel, rule in others) + ".",
        parts={
            "radix tree lower": radix.high < 1,
            "no stopping lower": over[RULE].low > 1,
            "chunk size flat (within 5 %)": worst.low > 0.95,
        },
    )  # fmt: skip


def found_in_words(drained: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Part by part, in Markdown; in steady state and under the first kernel, where nothing else is said."""
    flat, before, decided, first = over_the_default_chunk(drained), over_the_tree(drained), deciders(runs), runs["case"].iloc[0]
    size, worst = min(flat.items(), key=lambda item: item[1].median)
    lines = []
    for case, part in comparing.judged(apart(runs)).groupby("case", sort=False):
        order, alone = (comparing.over(part, name) for name in (ORDER, STOPPING))
        more = _over_order(part, BOTH)
        waits = {name: comparing.over(part, name, metric=comparing.P99) for name in (ORDER, BOTH)}
        lines.append(
            f"**Order and stopping, {case}.** Over FCFS the order alone gives {_times(order)}, stopping alone {_times(alone)}. Strict stopping on top of "
            f"the order {_effect(more)}: {_times(more)} over the order alone. p99 time to first token over FCFS's: order {words.times(waits[ORDER])}, "
            f"both {words.times(waits[BOTH])}."
        )
    for kernel in runs["kernel"].unique()[1:]:
        part = comparing.under(runs, kernel)
        order, alone, both = (comparing.over(part, name) for name in (ORDER, STOPPING, BOTH))
        lines.append(
            f"**Under the {kernel} kernel**, {first}: order alone {_times(order)}, stopping alone {_times(alone)}, both {_times(both)} over FCFS."
        )
    best = _oracle(decided)
    default, oracle = (comparing.over(decided, "Feather", name) for name in (ORDER, best))
    radix, rule = {name: _over_order(decided, name) for name in RADIX}, _over_order(decided, RULE)
    fcfs = compare(drained, "throughput", of={"policy": ORDER, "chunk_size": CHUNK}, to={"policy": "FCFS"})
    lines += [
        f"**Who decides.** The default gives {_times(default)} over never stopping and {_times(oracle)} over the better oracle, {best}. The threshold rule "
        f"{_effect(rule)}: {_times(rule)} over never stopping.",
        f"**Tree.** LPM on a radix tree gives {_times(radix['LPM'])} over the hash tree's order, DFS-weight {_times(radix['DFS-weight'])}.",
        f"**Chunk size**, in a queue that drains. The worst, {size} tokens, gives {_times(worst)} over {CHUNK} tokens.",
        sustained.drained(comparing.over(decided, ORDER), fcfs, ORDER, f"batch {int(drained['max batch'].iloc[0])}")
        + f" There the threshold rule gives {words.times(before[RULE])} over never stopping.",
    ]
    told = f"In steady state {figures.spread(comparing.repeats(decided))}, in the queue that drains {figures.spread(worst.repeats)}"
    return f"{words.bullets(lines)}\n\n{told}; under the {runs['kernel'].iloc[0]} kernel, where none is named."


def _times(found: Ratio) -> str:
    return f"{found.median:.2f}× [{found.low:.2f}, {found.high:.2f}]"


def _effect(change: Ratio) -> str:
    return "gains" if change.low > 1 else "loses" if change.high < 1 else "makes no difference that shows"
