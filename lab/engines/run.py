"""What one run of a workload tells, whichever engine it ran on."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Step:
    """What one engine step was given to do."""

    groups: dict[str, int]
    """request id → prefix group, of every request in the step"""
    decode_rows: int
    prefill_tokens: int
    queue_seconds: float
    """time spent inside the waiting queue since the step before: arrivals, ordering, decisions"""
    preempted: int = 0
    """running requests sent back to wait for want of KV cache"""
    evicted: int = 0
    """blocks whose cached content was given up for new content"""
    stopped: bool = False
    """requests were left waiting although more could have run"""


@dataclass
class Run:
    """What happened in one run of a workload. Times in seconds; one entry per engine step, or per request."""

    seconds: float
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    step_seconds: np.ndarray
    decode_rows: np.ndarray
    prefill_tokens: np.ndarray
    groups: np.ndarray
    """distinct prefix groups in the step"""
    neighbours: np.ndarray
    """share of adjacent rows in the model runner's batch, as the kernel sees it, that are of one group"""
    queue_seconds: np.ndarray
    """time inside the waiting queue: arrivals, ordering, decisions"""
    first_token: np.ndarray
    """per request: from arrival to its first token"""
    between_tokens: np.ndarray
    """every gap between two tokens of one request"""
    cascade: np.ndarray
    """per step: the cascade kernel ran"""
    preemptions: int = 0
    evictions: int = 0
    """of cached blocks"""
    stopped_steps: int = 0
    """that left requests waiting although more could have run"""
    step_tokens: np.ndarray | None = None
    """output tokens per engine step, where a row may give several (accepted drafts); None: a decoding row gives one"""

    def metrics(self) -> dict[str, tuple[float, str]]:
        """Metric → (value, unit). "Decode" metrics are over the steps that carry no prefill."""
        decode = self.prefill_tokens == 0
        found = {
            "throughput": (self.output_tokens / self.seconds, "tok/s"),
            "wall time": (self.seconds, "s"),
            "queue time per step": (self.queue_seconds.mean() * 1e3, "ms"),
            "queue share": (self.queue_seconds.sum() / self.step_seconds.sum(), "share of engine step time"),
            "prefix hits": (self.cached_tokens / self.prompt_tokens, "share of prompt tokens"),
            "preemptions": (self.preemptions, "requests"),
            "evictions": (self.evictions, "cached blocks"),
            "stopped": (self.stopped_steps / len(self.step_seconds), "share of steps"),
            "cascade steps": (self.cascade.mean(), "share of steps"),
            "time to first token, median": (np.median(self.first_token), "s"),
            "time to first token, p99": (np.percentile(self.first_token, 99), "s"),
        }
        if len(self.between_tokens):
            found["time between tokens, median"] = (np.median(self.between_tokens) * 1e3, "ms")
            found["time between tokens, p99"] = (np.percentile(self.between_tokens, 99) * 1e3, "ms")
        if decode.any():
            tokens = self.decode_rows if self.step_tokens is None else self.step_tokens
            found["decode throughput"] = (tokens[decode].sum() / self.step_seconds[decode].sum(), "tok/s")
            found["decode step"] = (np.median(self.step_seconds[decode]) * 1e3, "ms")
            found["mean batch"] = (self.decode_rows[decode].mean(), "requests")
            found["groups per batch"] = (self.groups[decode].mean(), "groups")
            found["like neighbours"] = (np.nanmean(self.neighbours[decode]), "share of adjacent rows")
        return {name: (float(value), unit) for name, (value, unit) in found.items()}


def joined(runs: list[Run]) -> Run:
    """Runs one after the other as if they were one."""
    kind, fields = type(runs[0]), {}
    for name in kind.__dataclass_fields__:
        values = [getattr(run, name) for run in runs]
        if values[0] is not None:
            fields[name] = np.concatenate(values) if isinstance(values[0], np.ndarray) else sum(values)
    return kind(**fields)


def like_neighbours(rows: list[str], groups: dict[str, int]) -> float:
    """Share of adjacent rows that are of one prefix group."""
    order = [groups[id_] for id_ in rows if id_ in groups]
    if len(order) < 2:
        return float("nan")
    return sum(one == other for one, other in zip(order, order[1:])) / (len(order) - 1)
