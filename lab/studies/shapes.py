"""The paper's claims about the shape of a curve (M3 to M6), each as parts that hold or do not. Parts go by medians."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from lab.stats import Ratio
from lab.studies.study import compare


class Shape(NamedTuple):
    """What ``Study.claim`` takes: a ratio that stands for the curve, what it and its neighbours are, and the claim's parts."""

    ours: Ratio
    told: str
    parts: dict[str, bool]

    def more(self, text: str) -> "Shape":
        """The same, with more to tell."""
        return self._replace(told=self.told + text)


def over_groups(table: pd.DataFrame, groups: Sequence[int], cached: float, until: float | None = None) -> Shape:
    """M3: throughput falls from one prefix group to two, stays, and collapses beyond ``until`` groups: by default beyond ``cached``, the
    prefixes that the KV cache holds. What the counts cannot show does not hold. Raises ValueError where ``groups`` has no count from 2
    to there."""
    until = until or cached
    flat_counts = [count for count in groups if 2 <= count <= until]
    if not flat_counts:
        raise ValueError(f"groups={list(groups)} must have a count from 2 to {until:g}")
    few, many = flat_counts[0], flat_counts[-1]

    def ratio(of: int, to: int) -> Ratio:
        return compare(table, "throughput", of={"groups": of}, to={"groups": to})

    drop, flat, collapse = ratio(groups[0], groups[1]), ratio(few, many), ratio(many, groups[-1])
    told = (
        f"Throughput at {groups[0]} group over {groups[1]}; {few} over {many}: {flat.median:.2f}×; {many} over {groups[-1]}: {collapse.median:.2f}×. "
        f"The KV cache holds {cached:.1f} such prefixes, beyond which they are evicted."
    )
    parts = {
        "drop of more than 10 %": drop.median > 1.1,
        "then flat within 10 %": few < many and abs(flat.median - 1) < 0.1,
        "then less than half": collapse.median > 2,
    }
    return Shape(drop, told, parts)


def over_shared(table: pd.DataFrame) -> Shape:
    """M4: throughput rises smoothly with the share of the prefix that requests have in common."""
    rising = _medians(table, "throughput", "shared")
    steps = rising.diff().dropna()
    least, most = rising.index[0], rising.index[-1]
    told = (
        f"Throughput at share {most:g} over {least:g}. The last step, to {most:g}, makes {steps.iloc[-1] / steps.sum():.0%} of the rise: what is "
        "not shared is prefilled by each request and takes KV cache of its own."
    )
    return Shape(
        compare(table, "throughput", of={"shared": most}, to={"shared": least}), told,
        {"rises from each share to the next": rising.is_monotonic_increasing, "smoothly (no step is most of the rise)": steps.max() < steps.sum() / 2},
    )  # fmt: skip


def over_batches(table: pd.DataFrame, mixed: int) -> Shape:
    """M5: decode throughput saturates before the largest batch; that of one prefix later and higher than that of ``mixed``."""
    reached = {count: _medians(table[table["groups"] == count], "decode throughput", "batch") for count in (1, mixed)}
    before, largest = reached[1].index[-2:]
    gain = {
        count: compare(table, "decode throughput", of={"groups": count, "batch": largest}, to={"groups": count, "batch": before})
        for count in (1, mixed)
    }
    saturated = {count: (curve >= 0.95 * curve.max()).idxmax() for count, curve in reached.items()}
    higher = reached[1].max() / reached[mixed].max()
    told = (
        f"Homogeneous, batch {largest} over {before}; over {mixed} groups: {gain[mixed].median:.2f}×. Within 5 % of its best from batch {saturated[1]} on, over "
        f"{mixed} groups from {saturated[mixed]} on; the best is {higher:.2f} times as high."
    )
    parts = {
        "saturates before the maximum": max(saturated.values()) < largest,
        "homogeneous later": saturated[1] > saturated[mixed],
        "homogeneous higher": higher > 1,
    }
    return Shape(gain[1], told, parts)


def over_levels(table: pd.DataFrame) -> Shape:
    """M6: decode throughput does not depend on the number of levels of the prefix tree."""
    levels = sorted(table["levels"].unique())

    def ratio(of: int, to: int) -> Ratio:
        return compare(table, "decode throughput", of={"levels": of}, to={"levels": to})

    first, later = ratio(levels[0], levels[1]), ratio(levels[1], levels[-1])
    told = f"{levels[1]} levels over {levels[-1]}; {levels[0]} level over {levels[1]}: {first.median:.2f}×."
    return Shape(
        later, told, {"the same within 10 % from 2 levels on": abs(later.median - 1) < 0.1, "and at 1": abs(first.median - 1) < 0.1}
    )


def _medians(table: pd.DataFrame, metric: str, by: str) -> pd.Series:
    return table[table["metric"] == metric].groupby(by)["value"].median()
