"""M2: is a small homogeneous batch faster than a large mixed one? The same requests, cut into more and more batches."""

import random
from collections.abc import Sequence

import pandas as pd

from lab import figures
from lab.engines import Engine
from lab.engines.arms import ARMS
from lab.engines.run import joined
from lab.stats import Ratio
from lab.studies import comparing, words
from lab.studies.study import Condition, Study, compare
from lab.workloads import Workload, even_sizes, grouped, make_prefixes

_FCFS = ARMS["FCFS"]


def partitions(engine: Engine, prefixes: list, requests: int, batches: Sequence[int], decode_tokens: Sequence[int]) -> list[Condition]:
    """The same requests as one mixed batch, as several of fewer prefixes, or as homogeneous ones, one batch after
    the other; for several decode lengths."""

    def condition(count: int, length: int) -> Condition:
        def run(seed: int):
            whole = grouped(prefixes, even_sizes(requests, len(prefixes)), seed, decode_tokens=length, shuffled=False)
            size = requests // count
            parts = [whole.prompts[start : start + size] for start in range(0, requests, size)]
            return joined([engine.run(Workload(_shuffled(part, seed)), _FCFS) for part in parts])

        groups = max(1, len(prefixes) // count)
        parameters = {
            "batches": shape(count, requests),
            "groups": groups,
            "requests": requests,
            "prefix tokens": len(prefixes[0]),
            "decode tokens": length,
        }
        return Condition(_FCFS.name, parameters, run)

    return [condition(count, length) for length in decode_tokens for count in batches]


def _shuffled(prompts: list, seed: int) -> list:
    return random.Random(seed).sample(prompts, len(prompts))


def shape(count: int, requests: int) -> str:
    """How a cut is called: batches × size."""
    return f"{count} × {requests // count}"


def shapes(batches: Sequence[int], requests: int) -> list[str]:
    return [shape(count, requests) for count in batches]


class Cuts:
    """Measured cuts of ``requests`` requests on ``prefix_groups`` prefixes into ``batches`` batches, one after the other, under each attention
    kernel. Sentences and the verdict are about the first kernel, where none is named.

    Raises ValueError where there is no cut into one mixed batch, or none into a homogeneous batch for each prefix; RuntimeError where a
    batch was composed otherwise than asked."""

    def __init__(
        self,
        study: Study,
        prefix_tokens: int,
        prefix_groups: int,
        requests: int,
        batches: Sequence[int],
        decode_tokens: Sequence[int],
        kernels: Sequence[str],
        repeats: int,
    ):
        if batches[0] != 1 or prefix_groups not in batches or prefix_groups < 2:
            raise ValueError(
                f"batches={list(batches)} must begin with 1 and have one for each of the {prefix_groups} prefixes, two at least"
            )
        self.study, self.groups, self.requests = study, prefix_groups, requests
        self.shapes = shapes(batches, requests)
        self.mixed, self.homogeneous = self.shapes[0], shape(prefix_groups, requests)
        self.longest = max(decode_tokens)
        prefixes = make_prefixes(prefix_groups, prefix_tokens)
        study.engine.warm(prefixes)
        self.runs = study.measure(partitions(study.engine, prefixes, requests, batches, decode_tokens), repeats, kernels=kernels)
        self._check()

    def _check(self) -> None:
        for row in self.runs[self.runs["metric"] == "groups per batch"].itertuples():
            if row.batches in (self.mixed, self.homogeneous) and (row.value > 1) is not (row.batches == self.mixed):
                raise RuntimeError(f"{row.batches} ran as {row.value:g} groups a batch")

    @property
    def table(self) -> pd.DataFrame:
        """The rows under the first kernel."""
        return comparing.judged(self.runs)

    @property
    def kernels(self) -> list[str]:
        return list(self.runs["kernel"].unique())

    def over_mixed(self, cut: str, length: int, kernel: str | None = None) -> Ratio:
        """Throughput of a cut over that of the one mixed batch, at a decode length."""
        table = comparing.under(self.runs, kernel or self.kernels[0])
        return compare(table, "throughput", *({"batches": batches, "decode tokens": length} for batches in (cut, self.mixed)))

    def ratios(self) -> pd.DataFrame:
        """``over_mixed`` of each cut at each decode length under each kernel, as text."""
        lengths = sorted(self.table["decode tokens"].unique())
        rows = [(kernel, cut) for kernel in self.kernels for cut in self.shapes[1:]]
        told = {f"{length} decode tokens": [str(self.over_mixed(cut, length, kernel)) for kernel, cut in rows] for length in lengths}
        return pd.DataFrame(told, index=pd.MultiIndex.from_tuples(rows, names=["kernel", f"throughput over {self.mixed}"]))

    def steps(self, kernel: str | None = None) -> tuple[float, float]:
        """Milliseconds of a decode step of the mixed batch, and of one step of each homogeneous batch together: the same tokens."""
        table = comparing.under(self.runs, kernel or self.kernels[0])
        at = table[(table["metric"] == "decode step") & (table["decode tokens"] == self.longest)]
        mixed, homogeneous = (at[at["batches"] == cut]["value"].median() for cut in (self.mixed, self.homogeneous))
        return mixed, self.groups * homogeneous

    def finding(self) -> str:
        """What the figure shows, in a sentence."""
        won = self.over_mixed(self.homogeneous, self.longest)
        return (
            f"{self.groups} homogeneous batches of {self.requests // self.groups} are {words.speed(won)} as one mixed batch of {self.requests}, "
            f"at {self.longest} decode tokens"
        )

    def draw(self) -> None:
        """Throughput against the decode length, a panel a kernel, a curve a cut."""
        (tokens,) = comparing.settings(self.runs, "prefix tokens")
        self.study.figure(
            figures.lines_by_kernel(
                self.runs, "throughput", "decode tokens", "batches", "decode tokens per request", "throughput, tok/s", self.shapes
            ),
            "m2_batch_size",
            self.finding() + comparing.where(self.runs),
            f"{self.requests} requests on {self.groups} prefixes of {tokens} tokens, cut into batches × size, {self.homogeneous} being homogeneous; "
            f"one batch after the other, each run to its end · {figures.spread(comparing.repeats(self.runs))}",
            "The same requests served as one mixed batch or as several smaller ones with fewer prefixes each (M2).",
            rows=self.runs,
        )

    def claim(self) -> str:
        """M2: the homogeneous batches against the mixed one, at the longest decode."""
        mixed, homogeneous = self.steps()
        return self.study.claim(
            "M2",
            self.over_mixed(self.homogeneous, self.longest),
            f"{self.homogeneous} homogeneous against {self.mixed} mixed at {self.longest} decode tokens. One mixed step takes {mixed:.0f} ms and does "
            f"{self.groups} homogeneous steps' worth of tokens; {self.groups} homogeneous steps take {homogeneous:.0f} ms."
            + comparing.kernels(self.runs, lambda table: self.over_mixed(self.homogeneous, self.longest, table["kernel"].iloc[0])),
        )

    def found(self) -> str:
        """What was found, as Markdown."""
        lengths = sorted(int(length) for length in self.table["decode tokens"].unique())
        won = {length: self.over_mixed(self.homogeneous, length) for length in lengths}
        finest = self.shapes[-1]
        return words.bullets([
            f"**{self.homogeneous} homogeneous against {self.mixed} mixed**: " + "; ".join(f"{ratio} at {length} decode tokens" for length, ratio in won.items()) + ".",
            f"**Cut further, into {finest}**: {self.over_mixed(finest, self.longest)} at {self.longest} decode tokens." if finest != self.homogeneous else "",
            *(self._why(kernel) for kernel in self.kernels),
            "**Length**: the homogeneous batches gain more in long decodes than in short ones."
            if won[lengths[-1]].median > won[lengths[0]].median * (1 + words.NOISE) else
            "**Length**: longer decodes do not help the homogeneous batches here." if len(lengths) > 1 else "",
        ])  # fmt: skip

    def _why(self, kernel: str) -> str:
        mixed, homogeneous = self.steps(kernel)
        less, more = sorted((mixed, homogeneous))
        return (
            f"**Under the {kernel} kernel** the homogeneous batches are {words.speed(self.over_mixed(self.homogeneous, self.longest, kernel))}: one mixed "
            f"step takes {mixed:.1f} ms, {self.groups} homogeneous steps for the same tokens {homogeneous:.1f} ms. "
            f"The {'mixed step' if mixed > homogeneous else 'homogeneous steps together'} cost {more / less:.2f} times as much."
        )
