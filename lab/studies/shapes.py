"""Claims about the shape of a curve: parts that hold or do not, and a ratio that stands for the curve."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from lab.stats import Ratio
from lab.studies import comparing
from lab.studies.study import Study


@dataclass(frozen=True)
class Shape:
    """A measured curve, held against the shape that a claim names. Parts go by medians."""

    ours: Ratio
    """stands for the curve in the table of claims"""
    told: str
    """what that ratio and its neighbours are"""
    parts: dict[str, bool]
    """what the claim says of the curve, and whether it holds"""
    finding: str
    """what the figure shows, in a sentence without a full stop"""
    kernels: str = ""
    """under which attention kernel it was measured, and what the shape is under others: a sentence, or none"""

    @property
    def held(self) -> str:
        return f"{sum(self.parts.values())} of {len(self.parts)} parts"

    def claim(self, study: Study, claim_id: str) -> str:
        return study.claim(claim_id, self.ours, f"{self.told} {self.kernels}".strip(), self.parts)

    def found(self, name: str) -> str:
        """The finding and the claim's parts, for a list in Markdown."""
        parts = "; ".join(f"{part}: {'yes' if holds else 'no'}" for part, holds in self.parts.items())
        return f"**{name}** {self.finding}. Of the paper's shape {self.held} hold ({parts}). {self.kernels}".strip()


def under_kernels(runs: pd.DataFrame, shape_of: Callable[[pd.DataFrame], Shape], parts: bool = True) -> Shape:
    """The shape of the rows under the first attention kernel; what it is under the others stands beside it in words: its ratio and, where all
    ``parts`` of the claim were measured there, how many hold."""
    first, *others = runs["kernel"].unique()
    shapes = {kernel: shape_of(comparing.under(runs, kernel)) for kernel in (first, *others)}
    told = [
        f"under the {kernel} kernel the ratio is {shapes[kernel].ours.median:.2f}×" + (f", and {shapes[kernel].held} hold" if parts else "")
        for kernel in others
    ]
    return replace(shapes[first], kernels="; ".join([f"This is under the {first} kernel", *told]) + ".")


def medians(table: pd.DataFrame, metric: str, by: str) -> pd.Series:
    """A curve: value of ``by`` → median over the repeats, in ascending order."""
    return table[table["metric"] == metric].groupby(by)["value"].median()
