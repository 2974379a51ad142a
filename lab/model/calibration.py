"""This machine's CPU as a modelled device: its constants fitted to measured engine steps, and tried on others.

``data/calibration/cpu_steps.csv`` (written by ``python -m benchmarks.cpu_steps --write``) holds the steps. Which of them are
fitted and which held out is part of the measurement's plan, below: the held-out ones have other group counts, prefix lengths
and batch sizes.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from lab.llm import TINY_LLAMA
from lab.model.hardware import Device
from lab.model.steptime import Batch, StepModel
from lab.workloads import even_sizes, grouped, make_prefixes

STEPS = Path(__file__).resolve().parents[2] / "data" / "calibration" / "cpu_steps.csv"
SUFFIX, DECODE = 20, 10  # tokens


class Point(NamedTuple):
    """One batch to measure. ``groups`` 0: a single cold prompt, whose prefill is timed."""

    held_out: bool
    batch: int
    groups: int
    prefix_tokens: int
    rows: str


def plan() -> list[Point]:
    """20 + 3 points to fit, 42 + 2 held out."""
    points = []
    for held_out, batches, groups, lengths, cold in (
        (False, (8, 32), (1, 2, 8), (2000, 8000), (500, 2000, 8000)),
        (True, (16, 48), (1, 3, 4, 6), (1000, 4000, 12_000), (1000, 4000)),
    ):
        for batch, count, length in product(batches, groups, lengths):
            points += [Point(held_out, batch, count, length, rows) for rows in ("shuffled", "side by side")[: 1 + (count > 1)]]
        points += [Point(held_out, 1, 0, length, "cold") for length in cold]
    return points


def batch_of(point: Point, seed: int) -> Batch:
    """The rows of a measured step, as the engine had them: in order of arrival, since all were admitted to an empty batch;
    their contexts as in the middle of the decoding."""
    if not point.groups:
        return Batch([point.prefix_tokens], None, [()], new=[point.prefix_tokens])
    order = [prompt.group for prompt in workload_of(point, seed).prompts]
    contexts = np.full(point.batch, point.prefix_tokens + SUFFIX + DECODE / 2)
    return Batch(contexts, order, [[(group, point.prefix_tokens)] for group in range(point.groups)])


def workload_of(point: Point, seed: int):
    prefixes = make_prefixes(point.groups, point.prefix_tokens)
    return grouped(prefixes, even_sizes(point.batch, point.groups), seed, SUFFIX, DECODE, shuffled=point.rows == "shuffled")


# What the kernel's source would tell, tried on the fitted points: the order of its loops as (all heads of a row before the next
# row, share of the last-level cache that one sweep has: with a head to each of two cores, half), and its tile of query rows.
LOOPS = {"row by row": (True, 1.0), "head by head": (False, 1.0), "head by head, one to a core": (False, 0.5)}
TILES = (1, 8, 16, 32, 64)


def this_cpu(rows: pd.DataFrame) -> Device:
    """A device whose rates are fitted to the rows that are not held out: seconds per step, per row, per byte of keys and
    values read, per byte from DRAM (weights, and keys and values), per FLOP of the linear layers and of attention: a
    non-negative least-squares fit of
    the *relative* error, for the loop order and query tile that fit best. Cores hide little latency, so times add up, and compute no
    query that nobody asked for. The size of the last-level cache is the one that the system tells."""
    fitted = rows[~rows["held_out"]]
    devices = [_fit(fitted, loops, tile) for loops, tile in product(LOOPS.values(), TILES)]
    return min(devices, key=lambda device: predicted(device, fitted)["error"].abs().mean())


def _fit(rows: pd.DataFrame, loops: tuple[bool, float], tile: int) -> Device:
    heads_at_once, share = loops
    sources = {
        "memory_bytes": "not modelled", "cache_bytes": "L3 as the system tells it", "flop_rate": "1 FLOP/s: the shares are the rates",
        "concurrent_rows": "a head or a row to a core", "overlaps": "additive", "pads": "scalar and vector code computes what is asked for",
    } | dict.fromkeys(("memory_rate", "cache_rate", "gemm_share", "attention_share", "step_seconds", "row_seconds", "heads_at_once", "query_tile"), "fitted")  # fmt: skip
    unit = Device(
        rows["device"].iloc[0], memory_bytes=np.inf, memory_rate=1.0, cache_bytes=share * float(rows["l3_bytes"].iloc[0]),
        cache_rate=1.0, flop_rate=1.0, gemm_share=1.0, attention_share=1.0, concurrent_rows=1 if share < 1 else 2,
        query_tile=tile, pads=False, heads_at_once=heads_at_once, overlaps=False, sources=sources,
    )  # fmt: skip
    model = StepModel(unit, TINY_LLAMA)
    features = np.array([_features(model, batch_of(*_point(row))) for row in rows.itertuples()])
    taken = rows["step_ms"].to_numpy() / 1e3
    step, row, *per_unit = nnls(features / taken[:, None], np.ones(len(taken)))[0]
    cache, dram, linear, attention = (1 / cost if cost else np.inf for cost in per_unit)
    return replace(unit, step_seconds=step, row_seconds=row, cache_rate=cache, memory_rate=dram, gemm_share=linear,
                   attention_share=attention)  # fmt: skip


def _features(model: StepModel, batch: Batch) -> list[float]:
    time = model.time(batch)
    return [1.0, batch.rows, time.kv_cache_bytes, time.dram_bytes, time.linear_flop, time.attention_flop]


def _point(row) -> tuple[Point, int]:
    return Point(row.held_out, row.batch, row.groups, row.prefix_tokens, row.rows), row.seed


def predicted(device: Device, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, one per point (median over the repeats), with the modelled time and its relative error."""
    model = StepModel(device, TINY_LLAMA)
    told = rows.assign(model_ms=[model.time(batch_of(*_point(row))).seconds * 1e3 for row in rows.itertuples()])
    keys = ["held_out", "batch", "groups", "prefix_tokens", "rows"]
    table = told.groupby(keys, as_index=False)[["step_ms", "model_ms"]].median()
    return table.assign(error=table["model_ms"] / table["step_ms"] - 1)
