"""Where a gain comes from: the same workloads on the modelled device with its mechanisms switched on one at a time.

Four things can make a scheduler that looks at prefixes faster than one that does not:

* **locality**: rows with the same prefix find its keys and values in the last-level cache;
* **cascade**: vLLM's kernel of up to early 2026, which runs only where all rows share a prefix;
* **memory**: fewer distinct prefixes in the KV cache at once, so larger batches and fewer evictions and preemptions;
* **prefill**: fewer prompt tokens computed, since what would have been evicted is still cached.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd
from tqdm import tqdm

from lab import figures
from lab.engines.arms import ARMS, MAIN
from lab.engines.modelled import ModelledEngine
from lab.engines.run import Run
from lab.model.hardware import RTX_6000_ADA
from lab.stats import ratio
from lab.studies.study import Study, check_repeats
from lab.workloads import Workload, even_sizes, grouped, make_prefixes

MECHANISMS = ("locality", "cascade", "memory", "prefill")
WORLDS = {
    "none of them": (),
    **{f"{mechanism} only": (mechanism,) for mechanism in MECHANISMS if mechanism != "prefill"},
    "memory and prefill": ("memory", "prefill"),  # nothing is computed twice unless memory runs out
    "all but cascade": ("locality", "memory", "prefill"),
    "all": MECHANISMS,
}

TOLD = {"device": "RTX 6000 Ada", "engine": "vLLM's scheduler on a virtual clock"}
"""for the study, whose engines differ by world"""

BASES = {"M1": "one divergent", "E1": "FCFS", "E3": "FCFS", "E6": "FCFS"}


def world(mechanisms: tuple[str, ...], model: str, max_batch: int) -> ModelledEngine:
    """An engine in which only these mechanisms are at work. Without locality every row reads its context from DRAM; without
    memory the KV cache is ten times the device's memory; without prefill a prompt costs one token."""
    unknown = set(mechanisms) - set(MECHANISMS)
    if unknown:
        raise ValueError(f"mechanism {min(unknown)!r} is not one of: {', '.join(MECHANISMS)}")
    chosen = RTX_6000_ADA
    if "locality" not in mechanisms:
        chosen = replace(chosen, cache_bytes=0.0, concurrent_rows=1)
    if "memory" not in mechanisms:
        chosen = replace(chosen, memory_bytes=10 * chosen.memory_bytes)
    return ModelledEngine(model, max_batch, device=chosen, kernel="cascade" if "cascade" in mechanisms else "paged",
                     free_prefill="prefill" not in mechanisms)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Two runs whose throughputs a claim holds against each other."""

    claim: str
    text: str
    paper: float
    model: str
    groups: int
    prefix_tokens: int
    requests: int
    batch: int
    decode_tokens: int

    def run(self, engine: ModelledEngine, seed: int) -> dict[str, Run]:
        """The runs, the slow one first; for M1 the decode throughput of one batch counts, otherwise that of the whole
        workload."""
        prefixes = make_prefixes(self.groups, self.prefix_tokens)
        engine.warm(prefixes)
        if self.claim == "M1":
            one, two = self._workload(prefixes, [self.requests], seed), self._workload(prefixes, [self.requests - 1, 1], seed)
            return {"one divergent": engine.run(two, ARMS["FCFS"]), "homogeneous": engine.run(one, ARMS["FCFS"])}
        workload = self._workload(prefixes, even_sizes(self.requests, self.groups), seed)
        return {arm.name: engine.run(workload, arm) for arm in MAIN}

    def _workload(self, prefixes, sizes: list[int], seed: int) -> Workload:
        return grouped(prefixes, sizes, seed, decode_tokens=self.decode_tokens)


def comparisons(requests: int = 1000, batch: int = 500, claims: Sequence[str] = tuple(BASES)) -> list[Comparison]:
    """The paper's four largest factors in its own settings; what it leaves open (number of requests, and for E3 and E6 the
    groups) is chosen by us and said in the text. All requests are there at the start, for E1, too, which in the paper is a sweep
    of the rate (notebook 21). Raises ValueError for a claim that is none of the four, or none at all."""
    if not claims or set(claims) - set(BASES):
        raise ValueError(f"claims={list(claims)} must be some of: {', '.join(BASES)}")
    four = [
        Comparison("M1", f"one batch, 1 of {batch} divergent", 2, "llama-3-8b", 2, 10_000, batch, batch, 100),
        Comparison("E1", "5 groups of 5K, all requests there at the start", 4, "llama-3-8b", 5, 5000, requests, batch, 200),
        Comparison("E3", "50 groups of 10K", 10, "llama-3-8b", 50, 10_000, requests, batch, 100),
        Comparison("E6", "LongChat-13B, 5 groups of 5K", 22, "longchat-13b", 5, 5000, requests, batch, 100),
    ]
    return [one for one in four if one.claim in claims]


def explain(compared: list[Comparison], repeats: int, study: Study, seed: int = 1) -> pd.DataFrame:
    """Run every comparison in every world on ``repeats`` seeds, at least one. Returns tidy rows, which the study keeps too."""
    check_repeats(repeats)
    first = study.kept
    with tqdm(total=len(compared) * len(WORLDS) * repeats, desc=study.name, unit="comparison") as bar:
        for comparison in compared:
            for name, mechanisms in WORLDS.items():
                engine = world(mechanisms, comparison.model, comparison.batch)
                for repeat in range(repeats):
                    for policy, run in comparison.run(engine, seed + repeat).items():
                        told = {"claim": comparison.claim, "world": name, **asdict(comparison)}
                        for metric, (value, unit) in run.metrics().items():
                            study.row(policy, told, metric, value, unit, repeat, seed + repeat, engine)
                    bar.update()
    return study.rows(first)


def ratios(runs: pd.DataFrame) -> pd.DataFrame:
    """Claim, world, the better of the policies over the base in it, and its ratio: median, low, high."""
    found = []
    for (claim, name), part in runs.groupby(["claim", "world"], sort=False):
        metric = "decode throughput" if claim == "M1" else "throughput"
        values = part[part["metric"] == metric].pivot(index="repeat", columns="policy", values="value")
        base = BASES[claim]
        over = {policy: ratio(values[policy], values[base]) for policy in values if policy != base}
        best = max(over, key=lambda policy: over[policy].median)
        found.append({"claim": claim, "world": name, "policy": best, **over[best]._asdict()})
    return pd.DataFrame(found)


def what_happened(runs: pd.DataFrame) -> pd.DataFrame:
    """Medians of what explains the ratios, for the world with everything and the one without cascade."""
    wanted = ["throughput", "mean batch", "groups per batch", "prefix hits", "evictions", "preemptions", "cascade steps"]
    part = runs[runs["metric"].isin(wanted) & runs["world"].isin(["all", "all but cascade"])]
    return part.pivot_table(index=["claim", "world", "policy"], columns="metric", values="value", aggfunc="median", sort=False)[wanted]


def settings(compared: list[Comparison]) -> pd.DataFrame:
    """What is compared, a row each."""
    return pd.DataFrame(compared).drop(columns="text").rename(columns={"paper": "paper, ×"}).set_index("claim")


def by_world(found: pd.DataFrame) -> pd.DataFrame:
    """The ratios as a table: a row a world, a column a claim."""
    return found.pivot(index="world", columns="claim", values="median").reindex(list(WORLDS))


def figure(study: Study, runs: pd.DataFrame, found: pd.DataFrame, compared: list[Comparison]) -> None:
    """Bars for every claim and world, and the paper's factors beside them."""
    whole, left = (found.loc[found["world"] == name, "median"] for name in ("all", "all but cascade"))
    study.figure(
        figures.worlds(found, {one.claim: one.paper for one in compared}, ylabel="ratio of throughputs"),
        "where_the_gain_comes_from",
        f"Modelled gains {_spread(whole)} with all mechanisms, {_spread(left)} without cascade attention",
        "M1: homogeneous over one divergent request, decode throughput; the others: the better of Feather (never stop) and (threshold, patient) "
        f"over FCFS, a queue that drains · {figures.spread(found['repeats'].max())} · dashed: the paper · cascade attention where it is named, "
        "else paged",
        "The paper's four largest factors on the modelled RTX 6000 Ada with the mechanisms behind them switched on one at a time.",
        rows=runs,
    )


def _spread(values: pd.Series) -> str:
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return f"of {low}×" if low == high else f"from {low} to {high}×"


def found_in_words(found: pd.DataFrame, compared: list[Comparison]) -> str:
    """The result in Markdown, every number of it from the ratios ``found``."""
    at = {(row.claim, row.world): row.median for row in found.itertuples()}
    lines = ["Modelled, by claim:", ""]
    for one in compared:
        whole, left = at[one.claim, "all"], at[one.claim, "all but cascade"]
        alone = {name: at[one.claim, name] for name in WORLDS if name not in ("none of them", "all", "all but cascade")}
        first = max(alone, key=alone.get)
        lines.append(
            f"* **{one.claim}** ({one.text}; the paper: {one.paper:g}×): {whole:.2f}× with all mechanisms, **{left:.2f}× without cascade**. "
            + (
                f"The strongest mechanism alone is {first.removesuffix(' only')}: {alone[first]:.2f}×."
                if alone[first] > 1.05
                else "No mechanism alone gives more than 5 %."
            )
        )
    return "\n".join(lines)
