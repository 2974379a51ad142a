"""What one run of a workload tells, whichever engine it ran on."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

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


def per(what: str) -> Any:
    """A field of a run with one entry per step, token, request or gap between two tokens of a request."""
    return field(metadata={"per": what})


@dataclass
class Run:
    """What happened in one run of a workload. Seconds; moments are counted from the beginning of the run."""

    seconds: float
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    step_times: np.ndarray = per("step")
    """when each step ended"""
    step_seconds: np.ndarray = per("step")
    decode_rows: np.ndarray = per("step")
    prefill_tokens: np.ndarray = per("step")
    step_tokens: np.ndarray = per("step")
    """output tokens; a decoding row gives several where drafts are accepted"""
    groups: np.ndarray = per("step")
    """distinct prefix groups in the step"""
    neighbours: np.ndarray = per("step")
    """share of adjacent rows, as the kernel sees them, that are of one group"""
    queue_seconds: np.ndarray = per("step")
    """time inside the waiting queue: arrivals, ordering, decisions"""
    cascade: np.ndarray = per("step")
    """whether the kernel computed a shared prefix once"""
    stopped: np.ndarray = per("step")
    """whether requests were left waiting although more could have run"""
    token_times: np.ndarray = per("token")
    """when each output token came"""
    first_times: np.ndarray = per("request")
    """when its first token came"""
    first_token: np.ndarray = per("request")
    """from arrival to its first token"""
    gap_times: np.ndarray = per("gap")
    """when it ended"""
    between_tokens: np.ndarray = per("gap")
    closed_until: float = 0.0
    """when the last request was sent: from then on the queue drains. The end of a run that was broken off"""
    left_times: np.ndarray = field(default_factory=lambda: np.empty(0))
    """when those arrived who had no token yet when the run was broken off"""
    waiting: np.ndarray = field(default_factory=lambda: np.empty(0))
    """of a window: how long those had waited by its end who had no token yet"""
    preemptions: int = 0
    evictions: int = 0
    """of cached blocks"""

    def window(self, begin: float, end: float) -> "Run":
        """What happened after ``begin`` and until ``end``: steps, tokens and gaps by when they ended, requests by their first token, and those who still waited at
        its end. Nobody knows when prefixes were found or blocks evicted, so those counts stay the whole run's."""
        chosen = {}
        for what, times in (("step", self.step_times), ("token", self.token_times), ("request", self.first_times), ("gap", self.gap_times)):
            inside = (times > begin) & (times <= end)
            chosen |= {
                declared.name: getattr(self, declared.name)[inside] for declared in fields(self) if declared.metadata.get("per") == what
            }
        arrived = self.first_times - self.first_token
        waiting = end - np.concatenate([arrived[(self.first_times > end) & (arrived <= end)], self.left_times[self.left_times <= end]])
        return replace(self, **chosen, output_tokens=len(chosen["token_times"]), seconds=end - begin, waiting=waiting)

    @property
    def first_token_p99(self) -> float:
        """99th percentile of the time to first token, seconds. Who still waits and has done so for longer counts with what they have waited: it will not
        be less, and without them starving somebody would look like serving everybody soon. nan where nobody got a first token."""
        if not len(self.first_token):
            return float("nan")
        longer = self.waiting[self.waiting > np.percentile(self.first_token, 99)]
        return float(np.percentile(np.concatenate([self.first_token, longer]), 99))

    def metrics(self) -> dict[str, tuple[float, str]]:
        """Metric → (value, unit). "Decode" metrics are over the steps that carry no prefill. Times to first token of a part in which nobody got
        one are nan."""
        decode = self.prefill_tokens == 0
        first = self.first_token if len(self.first_token) else np.array([np.nan])
        found = {
            "throughput": (self.output_tokens / self.seconds, "tok/s"),
            "wall time": (self.seconds, "s"),
            "queue time per step": (self.queue_seconds.mean() * 1e3, "ms"),
            "queue share": (self.queue_seconds.sum() / self.step_seconds.sum(), "share of engine step time"),
            "prefix hits": (self.cached_tokens / self.prompt_tokens if self.prompt_tokens else np.nan, "share of prompt tokens"),
            "preemptions": (self.preemptions, "requests"),
            "evictions": (self.evictions, "cached blocks"),
            "stopped": (self.stopped.mean(), "share of steps"),
            "cascade steps": (self.cascade.mean(), "share of steps"),
            "time to first token, median": (np.median(first), "s"),
            "time to first token, p99": (self.first_token_p99, "s"),
        }
        if len(self.between_tokens):
            found["time between tokens, median"] = (np.median(self.between_tokens) * 1e3, "ms")
            found["time between tokens, p99"] = (np.percentile(self.between_tokens, 99) * 1e3, "ms")
        if decode.any():
            found["decode throughput"] = (self.step_tokens[decode].sum() / self.step_seconds[decode].sum(), "tok/s")
            if (tokens := self.step_tokens[decode].sum()) > (rows := self.decode_rows[decode].sum()):  # accepted drafts
                found["tokens per row"] = (tokens / rows, "tokens in a step")
            found["decode step"] = (np.median(self.step_seconds[decode]) * 1e3, "ms")
            found["mean batch"] = (self.decode_rows[decode].mean(), "requests")
            found["groups per batch"] = (self.groups[decode].mean(), "groups")
            found["like neighbours"] = (np.nanmean(self.neighbours[decode]), "share of adjacent rows")
        return {name: (float(value), unit) for name, (value, unit) in found.items()}


Enough = Callable[[list[float]], bool]
"""Told of a run after each step when every token so far came; True breaks it off: nothing more is sent, and what is unfinished is dropped."""


def moments(produced: dict[str, list[float]], arrived: dict[str, float]) -> dict[str, np.ndarray]:
    """The fields of a run about tokens, requests and gaps, from when each request's tokens came and when it arrived."""
    begun = {id_: moments for id_, moments in produced.items() if moments}
    times = [np.array(moments) for moments in begun.values()]
    first = np.array([moments[0] for moments in times])
    return {
        "left_times": np.array([arrived[id_] for id_ in produced if id_ not in begun]),
        "token_times": np.sort(np.concatenate(times)),
        "first_times": first,
        "first_token": first - [arrived[id_] for id_ in begun],
        "gap_times": np.concatenate([moments[1:] for moments in times]),
        "between_tokens": np.concatenate([np.diff(moments) for moments in times]),
    }


def joined(runs: list[Run]) -> Run:
    """Runs one after the other as if they were one."""
    kind, found = type(runs[0]), {}
    begun = np.cumsum([0.0] + [run.seconds for run in runs[:-1]])
    for declared in fields(kind):
        values = [getattr(run, declared.name) for run in runs]
        if declared.name.endswith("_times"):
            values = [value + begin for value, begin in zip(values, begun)]
        found[declared.name] = np.concatenate(values) if isinstance(values[0], np.ndarray) else sum(values)
    return kind(**found)


def like_neighbours(rows: list[str], groups: dict[str, int]) -> float:
    """Share of adjacent rows that are of one prefix group."""
    order = [groups[id_] for id_ in rows if id_ in groups]
    if len(order) < 2:
        return float("nan")
    return sum(one == other for one, other in zip(order, order[1:])) / (len(order) - 1)
