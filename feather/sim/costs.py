"""What scheduling costs on the host, from a recorded table, so that runs on the virtual clock are identical.

The table (``data/calibration/scheduling_costs.csv``, written by ``python -m benchmarks.scheduling_costs``) holds measured
steps of vLLM's real scheduler under every kind of queue. A step's cost is linear in what it had to do; the coefficients are
a non-negative least-squares fit of the relative error, made anew whenever the table is read.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import nnls

COLUMNS = ["queue", "running", "waiting", "arrived", "admitted", "prompt_tokens", "queue_ms", "engine_ms"]
TABLE = Path(__file__).resolve().parents[2] / "data" / "calibration" / "scheduling_costs.csv"
_NEGLIGIBLE = 1e-4  # seconds: errors below are as good as none


def kind_of(arm) -> str:
    """The row of the table that an arm (``feather.studies.scheduler.Arm``) is charged by."""
    return f"{arm.kind} {arm.options['policy']}" if arm.kind == "radix" else arm.kind


class SchedulingCosts:
    """Seconds of host time per step. Raises FileNotFoundError without a table."""

    def __init__(self, table: Path = TABLE):
        self._engine, self._queue = fitted(table)

    def seconds(self, arm, running: int, waiting: int, arrived: int, admitted: int, prompt_tokens: int) -> tuple[float, float]:
        """(in the waiting queue, in the rest of vLLM's scheduler). Raises ValueError for a kind of queue that the table does
        not hold."""
        if kind_of(arm) not in self._queue:
            raise ValueError(
                f"no scheduling costs of a queue of kind {kind_of(arm)!r}, only of: {', '.join(sorted(self._queue))}; "
                "measure it (python -m benchmarks.scheduling_costs), or use scheduling='free'"
            )
        features = _features(running, waiting, arrived, admitted, prompt_tokens)
        return float(self._queue[kind_of(arm)] @ features), float(self._engine @ features)


@cache
def fitted(table: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Coefficients of the features for vLLM's part, and for each kind of queue."""
    if not table.exists():
        raise FileNotFoundError(f"no scheduling costs in {table}: run python -m benchmarks.scheduling_costs, or use scheduling='free'")
    rows = pd.read_csv(table)
    queues = {kind: _fit(part, part["queue_ms"]) for kind, part in rows.groupby("queue")}
    return _fit(rows, rows["engine_ms"]), queues


def _fit(rows: pd.DataFrame, taken_ms: pd.Series) -> np.ndarray:
    features = np.array([_features(*row) for row in rows[COLUMNS[1:6]].to_numpy()])
    taken = taken_ms.to_numpy() / 1e3
    scale = np.maximum(taken, _NEGLIGIBLE)[:, None]
    return nnls(features / scale, taken / scale[:, 0])[0]


def _features(running: int, waiting: int, arrived: int, admitted: int, prompt_tokens: int) -> np.ndarray:
    counts = np.array([running, waiting, arrived, admitted], float)
    return np.concatenate([[1.0], counts, counts * prompt_tokens])
