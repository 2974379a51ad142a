"""Claims about the shape of a curve: parts that hold or do not, and a ratio that stands for the curve."""

from dataclasses import dataclass

import pandas as pd

from lab.stats import Ratio
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

    def claim(self, study: Study, claim_id: str, more: str = "") -> str:
        """``Study.claim``, and under which kernel, where the engine has a choice."""
        engine = study.engine
        kernel = "" if engine.backend == "cpu" else f" Cascade attention {'on' if engine.cascade else 'off'}."
        return study.claim(claim_id, self.ours, self.told + more + kernel, self.parts)

    def found(self, name: str) -> str:
        """The finding and the claim's parts, for a list in Markdown."""
        held = sum(self.parts.values())
        parts = "; ".join(f"{part}: {'yes' if holds else 'no'}" for part, holds in self.parts.items())
        return f"**{name}** {self.finding}. Of the paper's shape {held} of {len(self.parts)} parts hold ({parts})."


def medians(table: pd.DataFrame, metric: str, by: str) -> pd.Series:
    """A curve: value of ``by`` → median over the repeats, in ascending order."""
    return table[table["metric"] == metric].groupby(by)["value"].median()
