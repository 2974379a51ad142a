"""What stopping does, told apart from what the order of admission does; and what happens when the workload changes."""

import numpy as np
import pandas as pd

from feather.studies.engine import Run
from feather.studies.scheduler import ARMS, Arm
from feather.workloads import Workload, even_sizes, grouped, make_prefixes

_STRICT = {"policy": "threshold", "guard": False, "chunk_size": 64, "min_batch": 1, "max_loss": 0, "max_loss_under_load": 0,
           "straggler_share": 0.0}  # fmt: skip

APART = (
    ARMS["FCFS"],
    Arm("tree order, never stop", "feather", {"policy": "never_stop"}),
    Arm("arrival order, stop", "feather", {**_STRICT, "order": "arrival"}),
    Arm("tree order, stop", "feather", _STRICT),
)
"""Order and stopping, each alone and both together; stopping is strict: a batch holds one group, until it is gone."""


def shift(before: tuple[int, int], after: tuple[int, int], requests: tuple[int, int], at: float, decode_tokens, seed: int = 1):
    """A full queue over one set of prefixes from the start, and one over another from ``at`` seconds on.

    Args:
        before, after: (prefix groups, tokens of a prefix).
        requests: in each of the two.
        at: late enough that the first queue is empty under every policy that is compared.

    Returns:
        (prefixes, workload)
    """
    first = make_prefixes(*before, seed=seed)
    then = make_prefixes(*after, seed=seed + 1)
    one = grouped(first, even_sizes(requests[0], before[0]), seed, decode_tokens=decode_tokens)
    other = grouped(then, even_sizes(requests[1], after[0]), seed + 1, decode_tokens=decode_tokens)
    later = [type(prompt)(prompt.tokens, prompt.group + before[0], prompt.decode_tokens, at) for prompt in other.prompts]
    return first + then, Workload(one.prompts + later)


def phases(run: Run, groups_before: int, groups_of: list[set[int]]) -> np.ndarray:
    """For each step, whether it belongs to what came after the shift (True as soon as a step holds one of its groups)."""
    return np.array([any(group >= groups_before for group in groups) for groups in groups_of])


def timeline(run: Run, after: np.ndarray, window: float) -> pd.DataFrame:
    """Throughput by windows of ``window`` seconds of engine time, counted anew from the shift on.

    Columns: phase ("before", "after"), seconds (end of the window), throughput (tok/s). An unfinished last window is left
    out."""
    rows = []
    for phase, chosen in (("before", ~after), ("after", after)):
        ends = np.cumsum(run.step_seconds[chosen])
        tokens = np.cumsum(run.decode_rows[chosen])
        marks = np.arange(window, ends[-1] if len(ends) else 0, window)
        at = np.interp(marks, ends, tokens)
        for mark, gained in zip(marks, np.diff(np.concatenate([[0], at]))):
            rows.append({"phase": phase, "seconds": mark, "throughput": gained / window})
    return pd.DataFrame(rows)


def recovered(times: pd.DataFrame, target: float, share: float = 0.95) -> float:
    """Seconds after the shift from which on the throughput stays at ``share`` of ``target`` on average; infinite if never.

    A single window is noise (a batch begins with prefill), so what counts is the mean of all that follow."""
    after = times[times["phase"] == "after"]
    values, seconds = after["throughput"].to_numpy(), after["seconds"].to_numpy()
    rest = np.cumsum(values[::-1])[::-1] / np.arange(len(values), 0, -1)
    good = np.flatnonzero(rest >= share * target)
    return float(seconds[good[0]] - (seconds[1] - seconds[0] if len(seconds) > 1 else 0)) if len(good) else float("inf")
