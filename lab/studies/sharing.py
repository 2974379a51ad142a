"""M3, M4, M6: how throughput depends on how much is shared, among how many groups, in how many levels."""

from collections.abc import Callable, Sequence

import pandas as pd

from lab import figures
from lab.claims import NOISE
from lab.engines import Engine
from lab.stats import Ratio
from lab.studies import comparing, words
from lab.studies.scale import check_axes, sweep
from lab.studies.shapes import Shape, medians, under_kernels
from lab.studies.study import Study, compare


class Curves:
    """The three curves, measured under vLLM's own queue: what is the same in all of them. Under the attention kernels after the first only
    what they can change is measured: M3 as long as the KV cache holds the prefixes, and M6."""

    def __init__(self, study: Study, batch: int, decode_tokens: int, kernels: Sequence[str]):
        self._study, self._batch, self._decode_tokens, self._kernels = study, batch, decode_tokens, kernels

    def over_groups(
        self, groups: Sequence[int], prefix_tokens: int, requests: int, repeats: int, until: float | None = None
    ) -> tuple[pd.DataFrame, Shape]:
        """M3: rows and shape over the number of prefix groups; ``until`` as in the function of this name."""
        cached = prefixes_cached(self._study.engine, prefix_tokens, self._batch, self._decode_tokens)
        table = self._measure(
            "M3", "groups", groups, repeats, lambda count: count <= max(cached, groups[1]), prefix_tokens=prefix_tokens, requests=requests
        )
        return table, under_kernels(table, lambda part: over_groups(part, sorted(part["groups"].unique()), cached, until), parts=False)

    def over_shared(self, shared: Sequence[float], prefix_tokens: int, requests: int, repeats: int) -> tuple[pd.DataFrame, Shape]:
        """M4: rows and shape over the share of the prefix that the requests of one group have in common."""
        table = self._measure("M4", "shared", shared, repeats, lambda _: False, groups=1, prefix_tokens=prefix_tokens, requests=requests)
        return table, under_kernels(table, over_shared)

    def over_levels(self, levels: Sequence[int], prefix_tokens: int, requests: int, repeats: int) -> tuple[pd.DataFrame, Shape]:
        """M6: rows and shape over the number of levels of the prefix tree, whatever their number ``prefix_tokens`` deep."""
        table = self._measure("M6", "levels", levels, repeats, lambda _: True, groups=1, prefix_tokens=prefix_tokens, requests=requests)
        return table, under_kernels(table, lambda part: over_levels(part, part["kernel"].iloc[0] == "cascade"))

    def _measure(self, figure: str, vary: str, values: Sequence, repeats: int, beside: Callable, **fixed) -> pd.DataFrame:
        """``beside``: the values that are measured under the other kernels, too."""
        check_axes(2, **{vary: values})
        conditions = sweep(figure, vary, values, engine=self._study.engine, batch=self._batch, decode_tokens=self._decode_tokens, **fixed)
        return self._study.measure(conditions, repeats, kernels=self._kernels, beside=lambda one: beside(one.parameters[vary]))


def draw(table: pd.DataFrame, metric: str, vary: str, xlabel: str):
    """A curve for each attention kernel."""
    kernels = list(table["kernel"].unique())
    several = {"hue": "kernel", "order": kernels} if len(kernels) > 1 else {"hue": None}
    return figures.lines(table, metric, vary, xlabel=xlabel, ylabel=f"{metric}, tok/s", **several)


def prefixes_cached(engine: Engine, prefix_tokens: int, batch: int, decode_tokens: int, suffix_tokens: int = 20) -> float:
    """Prefixes that the KV cache holds beside what ``batch`` running requests hold of their own, each in a block that is partly empty."""
    own = batch * (suffix_tokens + decode_tokens + engine.block_size)
    return max(0.0, engine.kv_tokens - own) / prefix_tokens


def over_groups(table: pd.DataFrame, groups: Sequence[int], cached: float, until: float | None = None) -> Shape:
    """M3: throughput falls from one prefix group to two, stays, and collapses beyond ``until`` groups: by default beyond ``cached``, the
    prefixes that the KV cache holds. What the counts cannot show does not hold. Raises ValueError where ``groups`` has no count from 2
    to there."""
    until = until or cached
    flat_counts = [count for count in groups if 2 <= count <= until]
    if not flat_counts:
        raise ValueError(f"groups={list(groups)} must have a count from 2 to {until:g}")
    few, many, last = flat_counts[0], flat_counts[-1], groups[-1]

    def ratio(of: int, to: int) -> Ratio:
        return compare(table, "throughput", of={"groups": of}, to={"groups": to})

    drop, flat, collapse = ratio(groups[0], groups[1]), ratio(few, many), ratio(many, last)
    told = (
        f"Throughput at {groups[0]} group over {groups[1]}; {few} over {many}: {flat.median:.2f}×"
        + (f"; {many} over {last}: {collapse.median:.2f}×. " if many < last else f"; none of more than {until:g} groups was run. ")
        + f"The KV cache holds {cached:.1f} such prefixes beside the running requests; more are evicted."
    )
    parts = {
        "drop of more than 10 %": drop.median > 1.1,
        "then flat within 10 %": few < many and abs(flat.median - 1) < 0.1,
        "then less than half": collapse.median > 2,
    }
    steps = [f"{words.change(ratio(groups[1], groups[0]))} from {groups[0]} prefix group to {groups[1]}"]
    if few < many:
        steps.append(f"{words.change(ratio(many, few))} from {few} to {many}")
    if many < last:
        steps.append(
            f"{words.change(ratio(last, many))} from {many} to {last}" + (", more than the KV cache holds" if last > cached else "")
        )
    return Shape(drop, told, parts, "Throughput: " + ", ".join(steps))


def over_shared(table: pd.DataFrame) -> Shape:
    """M4: throughput rises smoothly with the share of the prefix that requests have in common."""
    rising = medians(table, "throughput", "shared")
    steps = rising.diff().dropna()
    least, most = rising.index[0], rising.index[-1]
    whole = compare(table, "throughput", of={"shared": most}, to={"shared": least})
    parts = {
        "rises from each share to the next": bool(rising.is_monotonic_increasing),
        "smoothly (no step is most of the rise)": bool(steps.max() < steps.sum() / 2),
    }
    told = f"Throughput at share {most:g} over {least:g}."
    finding = f"With {100 * most:.0f} % of the prefix shared the engine is {words.speed(whole)} as with {100 * least:.0f} %"
    if steps.sum() > 0:
        last = steps.iloc[-1] / steps.sum()
        told += f" The last step, to {most:g}, makes {100 * last:.0f} % of the rise: what is not shared is prefilled by each request and takes KV cache of its own."
        finding += f"; the last step makes {100 * last:.0f} % of the rise"
    return Shape(whole, told, parts, finding)


def over_levels(table: pd.DataFrame, cascade: bool = False) -> Shape:
    """M6: decode throughput does not depend on the number of levels of the prefix tree. ``cascade``: whether that is the kernel."""
    levels = sorted(int(count) for count in table["levels"].unique())

    def ratio(of: int, to: int) -> Ratio:
        return compare(table, "decode throughput", of={"levels": of}, to={"levels": to})

    first, later = ratio(levels[0], levels[1]), ratio(levels[1], levels[-1])
    told = f"{levels[1]} levels over {levels[-1]}; {levels[0]} level over {levels[1]}: {first.median:.2f}×."
    if cascade:
        told += f" The cascade kernel covers only what all requests share, of {levels[-1]} levels the first."
    parts = {
        f"the same within {100 * NOISE:.0f} % from 2 levels on": abs(later.median - 1) <= NOISE,
        "and at 1": abs(first.median - 1) <= NOISE,
    }
    finding = (
        f"{'No difference above the noise' if all(parts.values()) else 'Decode throughput'}: {words.change(ratio(levels[1], levels[0]))} from "
        f"{levels[0]} level of the prefix tree to {levels[1]}, {words.change(ratio(levels[-1], levels[1]))} from there to {levels[-1]}"
    )
    return Shape(later, told, parts, finding)


def found(over_groups: Shape, over_shared: Shape, over_levels: Shape, m3: pd.DataFrame) -> str:
    """What was found, as Markdown. ``m3``: the rows over the number of groups."""
    hits = medians(comparing.judged(m3), "prefix hits", "groups")
    return words.bullets([
        over_groups.found("Groups (M3)."),
        f"**The prefix cache** gives {100 * hits.iloc[0]:.0f} % of the prompt tokens at {hits.index[0]} group and {100 * hits.iloc[-1]:.0f} % at {hits.index[-1]}: "
        + ("what is not found is prefilled again." if hits.iloc[-1] < 0.9 * hits.iloc[0]
           else "no prefix had to be prefilled again, so the KV cache is not what made any difference."),
        over_shared.found("Share (M4)."),
        over_levels.found("Levels (M6)."),
    ])  # fmt: skip
