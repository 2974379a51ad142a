"""What the measured curve says of a device: effective bandwidths of memory and last-level cache, and a request's own cost.

The model has one step: the bytes that plain paged attention asks for come from memory or from the last-level cache, and

    time = per call + requests × per request + memory bytes ÷ memory bandwidth + cache bytes ÷ cache bandwidth.

Which bytes come from memory follows from the block table alone. ``in_flight`` neighbouring rows are swept together and fetch a
prefix that they share once; a prefix is found in the cache again if it and all that was touched since fit into it together (least
recently used). The four costs are fitted, non-negative, to the relative errors; ``in_flight`` is the power of two that leaves least.
"""

from dataclasses import replace
from math import isfinite
from typing import NamedTuple

import numpy as np
import pandas as pd

from lab.kernels.batch import Batch, batch_of
from lab.model.hardware import Device

CONDITION = ["heads", "curve", "requests", "prefix tokens", "own tokens", "groups", "divergent", "order", "cache bytes", "asked bytes"]


class Fit(NamedTuple):
    """Bandwidths in GB/s (infinite where the fit finds no cost), costs in µs."""

    memory_gb_s: float
    cache_gb_s: float
    per_request_us: float
    per_call_us: float
    in_flight: int
    """neighbouring rows that are swept together"""
    mape: float
    """mean |fitted ÷ measured − 1| over the points"""
    held_out_mape: float
    """the same, every point predicted by a fit to all others"""
    points: pd.DataFrame
    """one row a condition: measured and fitted, ms; memory and cache, GB; residual, fitted ÷ measured − 1"""

    def summary(self) -> dict[str, float]:
        return {name: round(float(value), 4) for name, value in self._asdict().items() if name != "points"}


def memory_tokens(batch: Batch, in_flight: int, cache_tokens: float) -> int:
    """Tokens of a batch that come from memory, by the model above."""
    found = sum(batch.suffix_tokens)
    recent: list[int] = []  # prefixes, the last used at the end
    for start in range(0, len(batch.groups), in_flight):
        window = list(dict.fromkeys(batch.groups[start : start + in_flight]))
        for group in window:
            depth = len(recent) - recent.index(group) if group in recent else None
            # Swept together, the window's other prefixes pass through the cache at the same time.
            if depth is None or max(depth, len(window)) * batch.prefix_tokens > cache_tokens:
                found += batch.prefix_tokens
        recent = [group for group in recent if group not in window] + window
    return found


def fit(table: pd.DataFrame) -> Fit:
    """Fit the rows of ``Study.measure`` of one device and one kind of heads, of the plain paged kernel (others are ignored).
    Raises ValueError for rows of several kinds or devices, and for fewer than eight conditions."""
    chosen = table[(table["metric"] == "attention time") & (table["policy"] == "paged")]
    for column in ("heads", "device", "dtype"):
        if chosen[column].nunique() != 1:
            raise ValueError(f"one fit is of one {column}; these rows have: {', '.join(map(str, chosen[column].unique())) or 'none'}")
    points = chosen.groupby(CONDITION, dropna=False)["value"].median().rename("measured").reset_index()
    if len(points) < 8:
        raise ValueError(f"{len(points)} conditions are too few for four costs; measure eight or more")
    batches = [batch_of(row) for row in points.to_dict("records")]
    token_bytes = points["asked bytes"] / [batch.swept_tokens() for batch in batches]
    best = None
    for in_flight in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        if in_flight > points["requests"].max():
            break
        memory = np.array([
            memory_tokens(batch, in_flight, cache / size) for batch, cache, size in zip(batches, points["cache bytes"], token_bytes)
        ]) * token_bytes / 1e9  # fmt: skip
        costs, error = _costs(_terms(points, memory), points["measured"])
        if best is None or error < best[0]:
            best = (error, in_flight, memory, costs)
    _, in_flight, memory, costs = best
    terms = _terms(points, memory)
    fitted = terms @ costs
    held_out = [terms[i] @ _costs(np.delete(terms, i, 0), points["measured"].drop(i))[0] for i in range(len(points))]
    measured = points["measured"].to_numpy()
    points = points.assign(fitted=fitted, memory=memory, cache=points["asked bytes"] / 1e9 - memory, residual=fitted / measured - 1)
    per_call, per_request, per_memory, per_cache = costs
    return Fit(
        1e3 / per_memory if per_memory else np.inf, 1e3 / per_cache if per_cache else np.inf, per_request * 1e3, per_call * 1e3,
        in_flight, float(points["residual"].abs().mean()), float(np.mean(np.abs(held_out / measured - 1))), points,
    )  # fmt: skip


def calibrate(device: Device, found: Fit) -> Device:
    """A modelled device with what was measured on the real one in place of its constants, for ``ModelledEngine(device=…)``:
    bandwidths and the rows that are swept together. A bandwidth that the fit could not find stays as it was."""
    rates = {"memory_rate": found.memory_gb_s * 1e9, "cache_rate": found.cache_gb_s * 1e9}
    told = dict.fromkeys((*rates, "concurrent_rows"), "fitted to benchmarks.decode_attention on this device")
    rates = {name: rate for name, rate in rates.items() if isfinite(rate)}
    return replace(device, concurrent_rows=found.in_flight, sources={**device.sources, **told}, **rates)


def _terms(points: pd.DataFrame, memory: np.ndarray) -> np.ndarray:
    """What the four costs are multiplied with: call, requests, GB from memory, GB from cache."""
    return np.column_stack([np.ones(len(points)), points["requests"], memory, points["asked bytes"] / 1e9 - memory])


def _costs(terms: np.ndarray, measured: pd.Series) -> tuple[np.ndarray, float]:
    """Non-negative costs in ms and the root of the sum of squared relative errors (Lawson & Hanson 1974, ch. 23)."""
    from scipy.optimize import nnls

    return nnls(terms / measured.to_numpy()[:, None], np.ones(len(measured)))
