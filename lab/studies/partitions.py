"""M2: is a small homogeneous batch faster than a large mixed one? The same requests, cut into more and more batches."""

import random
from collections.abc import Sequence

import pandas as pd

from lab.engines import Engine
from lab.engines.arms import ARMS
from lab.engines.run import joined
from lab.stats import Ratio
from lab.studies import words
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
    """Measured cuts of ``requests`` requests on ``prefix_groups`` prefixes into ``batches`` batches, one after the other.

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
        cascade: Sequence[bool],
        repeats: int,
    ):
        if batches[0] != 1 or prefix_groups not in batches or prefix_groups < 2:
            raise ValueError(
                f"batches={list(batches)} must begin with 1 and have one for each of the {prefix_groups} prefixes, two at least"
            )
        self.study, self.groups, self.requests, self.cascade = study, prefix_groups, requests, cascade
        self.shapes = shapes(batches, requests)
        self.mixed, self.homogeneous = self.shapes[0], shape(prefix_groups, requests)
        self.longest = max(decode_tokens)
        prefixes = make_prefixes(prefix_groups, prefix_tokens)
        study.engine.warm(prefixes)
        self.runs = study.measure(partitions(study.engine, prefixes, requests, batches, decode_tokens), repeats, cascade=cascade)
        self._check()

    def _check(self) -> None:
        for row in self.table[self.table["metric"] == "groups per batch"].itertuples():
            if row.batches in (self.mixed, self.homogeneous) and (row.value > 1) is not (row.batches == self.mixed):
                raise RuntimeError(f"{row.batches} ran as {row.value:g} groups a batch")

    @property
    def table(self) -> pd.DataFrame:
        """The rows under the first choice of cascade attention."""
        return self.runs[self.runs["cascade"] == self.cascade[0]]

    def over_mixed(self, cut: str, length: int, cascade: bool | None = None) -> Ratio:
        """Throughput of a cut over that of the one mixed batch, at a decode length."""
        table = self.runs[self.runs["cascade"] == (self.cascade[0] if cascade is None else cascade)]
        return compare(table, "throughput", *({"batches": batches, "decode tokens": length} for batches in (cut, self.mixed)))

    def ratios(self) -> pd.DataFrame:
        """``over_mixed`` of each cut at each decode length, as text."""
        lengths = sorted(self.table["decode tokens"].unique())
        told = {f"{length} decode tokens": [str(self.over_mixed(cut, length)) for cut in self.shapes[1:]] for length in lengths}
        return pd.DataFrame(told, index=pd.Index(self.shapes[1:], name=f"throughput over {self.mixed}"))

    def steps(self) -> tuple[float, float]:
        """Milliseconds of a decode step of the mixed batch, and of one step of each homogeneous batch together: the same tokens."""
        at = self.table[(self.table["metric"] == "decode step") & (self.table["decode tokens"] == self.longest)]
        mixed, homogeneous = (at[at["batches"] == cut]["value"].median() for cut in (self.mixed, self.homogeneous))
        return mixed, self.groups * homogeneous

    def finding(self) -> str:
        """What the figure shows, in a sentence."""
        won = self.over_mixed(self.homogeneous, self.longest)
        return (
            f"{self.groups} homogeneous batches of {self.requests // self.groups} are {words.speed(won)} as one mixed batch of {self.requests}, "
            f"at {self.longest} decode tokens"
        )

    def claim(self) -> str:
        """M2: the homogeneous batches against the mixed one, at the longest decode."""
        mixed, homogeneous = self.steps()
        kernels = "" if self.study.engine.backend == "cpu" else "".join(
            f" With cascade attention {'on' if on else 'off'}: {self.over_mixed(self.homogeneous, self.longest, on)}." for on in self.cascade
        )  # fmt: skip
        return self.study.claim(
            "M2",
            self.over_mixed(self.homogeneous, self.longest),
            f"{self.homogeneous} homogeneous against {self.mixed} mixed at {self.longest} decode tokens. One mixed step takes {mixed:.0f} ms and does "
            f"{self.groups} homogeneous steps' worth of tokens; {self.groups} homogeneous steps take {homogeneous:.0f} ms." + kernels,
        )

    def found(self) -> str:
        """What was found, as Markdown."""
        lengths = sorted(int(length) for length in self.table["decode tokens"].unique())
        won = {length: self.over_mixed(self.homogeneous, length) for length in lengths}
        finest = self.shapes[-1]
        mixed, homogeneous = self.steps()
        less, more = sorted((mixed, homogeneous))
        return words.bullets([
            f"**{self.homogeneous} homogeneous against {self.mixed} mixed**: " + "; ".join(f"{ratio} at {length} decode tokens" for length, ratio in won.items()) + ".",
            f"**Cut further, into {finest}**: {self.over_mixed(finest, self.longest)} at {self.longest} decode tokens." if finest != self.homogeneous else "",
            f"**Why**: one mixed step takes {mixed:.1f} ms; the same tokens take {homogeneous:.1f} ms in {self.groups} homogeneous steps. "
            f"The {'mixed step' if mixed > homogeneous else 'homogeneous steps together'} cost {more / less:.2f} times as much.",
            "**Length**: the homogeneous batches gain more in long decodes than in short ones."
            if won[lengths[-1]].median > won[lengths[0]].median * (1 + words.NOISE) else
            "**Length**: longer decodes do not help the homogeneous batches here." if len(lengths) > 1 else "",
        ])  # fmt: skip
