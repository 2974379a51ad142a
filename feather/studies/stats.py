"""Ratios of interleaved runs: the median over the repeats with a bootstrap interval."""

from typing import NamedTuple

import numpy as np


class Ratio(NamedTuple):
    """A ratio over paired repeats: its median and the 95 % bootstrap interval of that median."""

    median: float
    low: float
    high: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median:.2f}× [{self.low:.2f}, {self.high:.2f}], n = {self.repeats}"


def ratio(numerator, denominator, resamples: int = 10_000) -> Ratio:
    """Ratio of two arms that were run in the same repeats, one value each per repeat, in the same order.

    The interval is the percentile bootstrap of the median of the paired ratios (Efron & Tibshirani 1993, ch. 13), from
    a fixed seed. Raises ValueError for arms of different length or without a repeat.
    """
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    if numerator.shape != denominator.shape or not numerator.size:
        raise ValueError(f"paired ratios need equally many repeats of both arms: {numerator.size} and {denominator.size}")
    ratios = numerator / denominator
    draws = np.random.default_rng(0).integers(0, ratios.size, (resamples, ratios.size))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high), ratios.size)
