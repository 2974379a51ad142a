"""Ratios of interleaved runs: the median over the repeats with a bootstrap interval."""

from typing import NamedTuple

import numpy as np


class Ratio(NamedTuple):
    """A ratio or another number over repeats: its median and the 95 % bootstrap interval of that median."""

    median: float
    low: float
    high: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median:.2f}× [{self.low:.2f}, {self.high:.2f}], n = {self.repeats}"


def ratio(numerator, denominator, resamples: int = 10_000) -> Ratio:
    """Ratio of two arms that were run in the same repeats, one value each per repeat, in the same order, as ``median_of``
    the paired ratios. Raises ValueError for arms of different length or without a repeat."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    if numerator.shape != denominator.shape or not numerator.size:
        raise ValueError(f"paired ratios need equally many repeats of both arms: {numerator.size} and {denominator.size}")
    return median_of(numerator / denominator, resamples)


def median_of(values, resamples: int = 10_000) -> Ratio:
    """Median over repeats with its 95 % percentile-bootstrap interval (Efron & Tibshirani 1993, ch. 13), from a fixed
    seed."""
    values = np.asarray(values, float)
    draws = np.random.default_rng(0).integers(0, values.size, (resamples, values.size))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(values)), float(low), float(high), values.size)


BETWEEN_RUNS = 1.96 * 0.049
"""half the 95 % interval of a run, relative to its value, by how runs of one cell differ on a shared machine: ``spread`` of the runs in the recorded
``benchmarks.steady``, twice what a run's own batch means say (a test computes it from the record)"""


def spread(cells) -> float:
    """Relative standard deviation of runs of one cell, pooled over cells: ``cells`` are lists of positive values, one a run. Raises ValueError where no
    cell has two."""
    logs = [np.log(values) for values in cells if len(values) > 1]
    if not logs:
        raise ValueError("no cell has two runs, so nothing says how far runs differ")
    return float(np.sqrt(sum(np.square(log - log.mean()).sum() for log in logs) / sum(len(log) - 1 for log in logs)))


def widened(found: Ratio, numerator, denominator, between: float = 0.0) -> Ratio:
    """A ratio whose interval also covers what each run says of itself: halves of the 95 % intervals of both arms, relative to their values, one a
    repeat, and never less than ``between``; by them or by how repeats differ, whichever is wider, so that a single run is not taken for certain."""
    numerator, denominator = np.maximum(numerator, between), np.maximum(denominator, between)
    share = float(np.sqrt((np.square(numerator) + np.square(denominator)).sum()) / found.repeats)
    low, high = found.median * max(1 - share, 0.0), found.median * (1 + share)
    return found._replace(low=min(found.low, low), high=max(found.high, high))


def batch_means(times, amounts, start: float, end: float, batches: int = 10) -> tuple[float, float]:
    """Rate of a steady process, and half its 95 % interval, by the method of batch means (Law & Kelton): ``amounts`` that fell at ``times``
    between ``start`` and ``end`` (seconds), over ``batches`` equal stretches that are taken for independent. Raises ValueError for fewer than two."""
    if batches < 2:
        raise ValueError(f"batches={batches} must be at least 2")
    sums, _ = np.histogram(times, bins=np.linspace(start, end, batches + 1), weights=amounts)
    rates = sums / ((end - start) / batches)
    return float(rates.mean()), float(_t_975(batches - 1) * rates.std(ddof=1) / batches**0.5)


def _t_975(freedom: int) -> float:
    """97.5 % point of Student's t, by the Cornish-Fisher expansion around the normal's (Abramowitz & Stegun 26.7.5); 0.5 % off at 4."""
    z, n = 1.959964, freedom
    return (
        z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
