"""When requests arrive."""

import numpy as np


def arrivals(rng: np.random.Generator, requests: int, requests_per_s: float | None, variation: float = 1.0) -> np.ndarray:
    """Seconds at which ``requests`` requests arrive: all at 0 without a rate, else a renewal process of that mean rate
    whose gaps are gamma-distributed with coefficient of variation ``variation``. 1 is a Poisson process, above it arrivals
    come in bursts (the gamma model of burstiness as in BurstGPT, arXiv 2401.17644), below it they are evener.

    Raises ValueError for a rate or a variation that is not positive."""
    if requests_per_s is None:
        return np.zeros(requests)
    if not requests_per_s > 0 or not variation > 0:
        raise ValueError(f"arrivals need a positive rate and variation, not {requests_per_s} a second and {variation}")
    shape = variation**-2
    return np.cumsum(rng.gamma(shape, 1 / (requests_per_s * shape), requests))


def at_rate(times: list[float], requests_per_s: float) -> tuple[list[float], float]:
    """Recorded times from 0 on, slowed or sped up so that their mean rate is ``requests_per_s``, and the factor by which
    time passes faster. What the trace says of bursts and lulls stays. Raises ValueError for a rate that is not positive."""
    if not requests_per_s > 0:
        raise ValueError(f"requests_per_s={requests_per_s} must be positive")
    span = times[-1] - times[0] if times else 0.0
    faster = span * requests_per_s / (len(times) - 1) if span else 1.0
    return [(time - times[0]) / faster for time in times], faster
