"""The steady part of a run, and how sure its throughput is."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from lab.engines.run import Run

LEAST_TOKENS = 100
"""points of the series that the rule looks at, in batches of five: an estimate needs as many tokens"""
_BATCHES = 10
_WITHIN = 0.05  # of the steady rate: then a policy has settled

_OF_THE_TRANSIENT = ("throughput", "mean batch", "groups per batch", "stopped", "time to first token, p99")


class Estimate(NamedTuple):
    """Of a throughput, in tok/s."""

    begin: float
    """seconds into the run where its steady part begins"""
    mean: float
    half_width: float
    """of the 95 % interval"""


class Steady(NamedTuple):
    """A run without its beginning and its end."""

    run: Run
    whole: Run
    begin: float
    """seconds into the whole run"""
    throughput: float
    half_width: float
    """of the 95 % interval of ``throughput``; the same unit"""
    transient: float
    """throughput until ``begin``; that of the steady part where there was no transient"""
    settled: float
    """seconds after which throughput stayed within 5 % of ``throughput``"""

    @property
    def longest_wait(self) -> float:
        """Seconds to its first token of whoever waited longest, those included who were still waiting at the end; nan where there was nobody."""
        return float(max([*self.run.first_token, *self.run.waiting], default=np.nan))

    def metrics(self) -> dict[str, tuple[float, str]]:
        """Those of the steady part, and what tells how it was cut."""
        told = {
            "begin": (self.begin, "s"),
            "throughput, half width": (self.half_width, "tok/s"),
            "throughput, transient": (self.transient, "tok/s"),
            "settled after": (self.settled, "s"),
            "longest wait": (self.longest_wait, "s"),
        }
        return self.run.metrics() | told

    def transient_metrics(self) -> dict[str, tuple[float, str]]:
        """Those of the part before the steady one, each named so; none where there was no transient."""
        part = self.whole.window(0, self.begin)
        if not len(part.step_seconds) or not len(part.first_token):
            return {}
        metrics = part.metrics()
        return {f"transient: {name}": metrics[name] for name in _OF_THE_TRANSIENT if name in metrics}


def begin(series: np.ndarray) -> int:
    """How many of a series' points belong to its transient: those without which the standard error of the mean is least, at most half of
    them (MSER-5: White, Cobb and Spratt, "A comparison of five steady-state truncation heuristics for simulation", WSC 2000, where the series is
    of means of five observations)."""
    left = len(series) - np.arange(len(series) // 2 + 1)
    errors = [series[len(series) - count :].var() / count for count in left]
    return int(np.argmin(errors))


def estimate(token_times: np.ndarray, end: float, learned: float = 0.0) -> Estimate:
    """Throughput of the steady part until ``end``, from when tokens came, in ascending order; what came before ``learned`` is cut in any case. The interval is that of ten batch means (Law,
    Simulation Modeling and Analysis, ch. 9.5.3), widened where one batch tells of the next: by what a first-order autoregressive process of
    their correlation asks for, as ASAP3 does (Steiger et al., "ASAP3: a batch means procedure for steady-state simulation analysis", ACM TOMACS 2005)."""
    counts, _ = np.histogram(token_times, bins=LEAST_TOKENS, range=(learned, end))
    first = learned + begin(counts.reshape(-1, 5).mean(1)) * 5 * (end - learned) / LEAST_TOKENS
    means, _ = np.histogram(token_times, bins=_BATCHES, range=(first, end))
    rates = means / (end - first) * _BATCHES
    half = stats.t.ppf(0.975, _BATCHES - 1) * rates.std(ddof=1) / np.sqrt(_BATCHES) * _widened(rates)
    return Estimate(float(first), float(rates.mean()), float(half))


def _widened(rates: np.ndarray) -> float:
    off = rates - rates.mean()
    if not off.any():
        return 1.0
    correlation = float(np.clip((off[1:] * off[:-1]).sum() / (off**2).sum(), 0, 0.8))
    return float(np.sqrt((1 + correlation) / (1 - correlation)))


def steady(run: Run, learned: float = 0.0) -> Steady:
    """The part of a run that is neither transient nor drained: from where MSER-5 says, and not before ``learned`` seconds, to where the last request was sent, or
    the run was broken off. Raises ValueError where nothing ran until then."""
    end = run.closed_until or run.seconds
    inside = run.token_times[run.token_times <= end]
    if (inside > learned).sum() < LEAST_TOKENS:
        raise ValueError(
            f"a steady state needs at least {LEAST_TOKENS} tokens before the last request is sent{f' and after {learned:g} s' if learned else ''}, "
            f"and there were {(inside > learned).sum()}: send more requests"
        )
    first, mean, half = estimate(inside, end, learned)
    part = run.window(first, end)
    transient = float((inside <= first).sum() / first) if first else mean
    return Steady(part, run, first, mean, half, transient, settled(inside, first, end, mean))


def settled(token_times: np.ndarray, begin: float, end: float, mean: float) -> float:
    """Seconds after which throughput in a sliding window, a twentieth of the run, stayed within 5 % of ``mean``; or within three standard deviations of
    such windows in the steady part, where that is more, since no window of a steady run is exactly like the next."""
    window = end / 20
    starts = np.arange(0, end - window, window / 4)
    rates = (np.searchsorted(token_times, starts + window) - np.searchsorted(token_times, starts)) / window
    band = max(_WITHIN * mean, 3 * rates[starts >= begin].std())
    outside = np.flatnonzero(np.abs(rates - mean) > band)
    return float(starts[outside[-1]] + window) if len(outside) else 0.0


def pooled(runs: Sequence[Steady]) -> tuple[float, float]:
    """Mean throughput over several runs, and half the width of its 95 % interval: from what each says of itself or from how they differ (two: half of
    what lies between them), whichever is wider, so that neither a correlation within runs nor a drift between them is missed."""
    means = np.array([run.throughput for run in runs])
    within = np.sqrt((np.array([run.half_width for run in runs]) ** 2).sum()) / len(runs)
    between = stats.t.ppf(0.975, len(runs) - 1) * means.std(ddof=1) / np.sqrt(len(runs)) if len(runs) > 2 else np.ptp(means) / 2
    return float(means.mean()), float(max(within, between))


class Watch:
    """Breaks a run off (``lab.engines.run.Enough``) once its throughput is known well enough, or it has run for ``limit`` seconds on the engine's clock.

    Args:
        tokens: that the steady part must have had at least.
        target: half the width of the interval, as a share of the throughput.
        limit: seconds; of fewer tokens than an estimate needs the run goes on.
        tell: called with each estimate on the way.
        least: tokens of a whole run, without which it goes on beyond the limit, too.
        learned: seconds that do not count, neither for the throughput nor for the limit.
    """

    def __init__(
        self,
        tokens: int,
        target: float,
        limit: float,
        tell: Callable[[float, Estimate], None] | None = None,
        least: int = LEAST_TOKENS,
        learned: float = 0.0,
    ):
        self._tokens, self._target, self._limit, self._tell, self._least = tokens, target, learned + limit, tell, max(least, LEAST_TOKENS)
        self._learned = learned
        self._next = max(LEAST_TOKENS, tokens // 4)
        self._before = False  # whether the last estimate was good enough: two in a row are asked for, since one may be so by chance

    def __call__(self, token_times: list[float]) -> bool:
        if not token_times:
            return False
        now = token_times[-1]
        if now >= self._limit and len(token_times) > self._least:
            return True
        if len(token_times) < self._next or now <= self._learned:
            return False
        self._next = int(1.05 * len(token_times)) + 1
        found = estimate(np.array(token_times), now, self._learned)
        if self._tell:
            self._tell(now, found)
        before, self._before = (
            self._before,
            found.half_width <= self._target * found.mean and found.mean * (now - found.begin) >= self._tokens,
        )
        return before and self._before
