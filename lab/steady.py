"""The steady part of a run, and how sure its throughput is."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from lab.engines.run import Run

_POINTS = 100  # of the series that the rule looks at, in batches of five
_BATCHES = 10


class Steady(NamedTuple):
    """A run without its beginning and its end."""

    run: Run
    begin: float
    """seconds into the whole run"""
    throughput: float
    half_width: float
    """of the 95 % interval of ``throughput``; the same unit"""
    transient: float
    """throughput until ``begin``; that of the steady part where there was no transient"""

    def metrics(self) -> dict[str, tuple[float, str]]:
        """Those of the steady part, and what tells how it was cut."""
        told = {
            "begin": (self.begin, "s"),
            "throughput, half width": (self.half_width, "tok/s"),
            "throughput, transient": (self.transient, "tok/s"),
        }
        return self.run.metrics() | told


def begin(series: np.ndarray) -> int:
    """How many of a series' points belong to its transient: those without which the standard error of the mean is least, at most half of
    them (MSER-5: White, Cobb and Spratt, "A comparison of five steady-state truncation heuristics for simulation", WSC 2000, where the series is
    of means of five observations)."""
    left = len(series) - np.arange(len(series) // 2 + 1)
    errors = [series[len(series) - count :].var() / count for count in left]
    return int(np.argmin(errors))


def steady(run: Run) -> Steady:
    """The part of a closed loop that is neither transient nor drained: from where MSER-5 says to where the last request was sent. The interval
    is that of ten batch means (Law, Simulation Modeling and Analysis, ch. 9.5.3). Raises ValueError where nothing ran until then."""
    end = run.closed_until or run.seconds
    inside = run.token_times[run.token_times <= end]
    if len(inside) < _POINTS:
        raise ValueError(
            f"a steady state needs at least {_POINTS} tokens before the last request is sent, and there were {len(inside)}: send more requests"
        )
    counts, _ = np.histogram(inside, bins=_POINTS, range=(0, end))
    first = begin(counts.reshape(-1, 5).mean(1)) * 5 * end / _POINTS
    part = run.window(first, end)
    means, _ = np.histogram(part.token_times, bins=_BATCHES, range=(first, end))
    rates = means / (end - first) * _BATCHES
    half = stats.t.ppf(0.975, _BATCHES - 1) * rates.std(ddof=1) / np.sqrt(_BATCHES)
    transient = float((inside <= first).sum() / first) if first else float(rates.mean())
    return Steady(part, first, float(rates.mean()), float(half), transient)
