"""Modelled replicas with a virtual clock behind any router rule, Feather's own included: the same code that routes real requests.

A replica has rows, a KV cache with whole prefixes in it (least recently used goes first), and a waiting queue: in order of arrival, or
Feather's own ``BatchFormer``. A step takes ``fixed + per_row × rows + per_group × groups + per_token × prefilled tokens`` seconds.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np

from feather.options import Options
from feather.ray.placement import Placement
from feather.request import Request
from lab.routing.load import Answered, Prefixes

_FEATHER = {"policy": "never_stop", "saturated_after": 0.0}  # clients in closed loop: no queue is a burst (docs/serving-vllm.md)


@dataclass(frozen=True)
class Law:
    """Seconds of an engine step."""

    fixed: float = 0.002
    per_row: float = 0.0012
    per_group: float = 0.003
    per_token: float = 0.00025

    def seconds(self, rows: int, groups: int, prefilled: int) -> float:
        return self.fixed + self.per_row * rows + self.per_group * groups + self.per_token * prefilled


@dataclass
class _Job:
    id: int
    group: int
    path: Sequence[Any]
    decode_tokens: int
    sent: float
    left: int = 0
    first: float = 0.0


class Replica:
    """One engine. ``kv_tokens`` hold prefixes and what the rows have of their own."""

    def __init__(self, law: Law, rows: int, kv_tokens: int, prefixes: Prefixes, feather: bool, clock: Callable[[], float]):
        self.law, self.rows, self.kv_tokens, self.prefixes = law, rows, kv_tokens, prefixes
        self.jobs: dict[int, _Job] = {}
        self.running: dict[int, _Job] = {}
        self.owed: dict[int, int] = {}  # group → jobs
        self.cached: OrderedDict[int, int] = OrderedDict()  # group → rows that use it
        self.free = kv_tokens
        self.steps = self.hits = self.admitted = self.groups = 0
        self._former = Options(**_FEATHER).make_former(max_batch=rows, clock=clock) if feather else None
        self._waiting: deque[_Job] = deque()

    def add(self, job: _Job) -> None:
        self.jobs[job.id] = job
        self.owed[job.group] = self.owed.get(job.group, 0) + 1
        if self._former:
            self._former.insert(Request(job.id, job.path))
        else:
            self._waiting.append(job)

    def step(self) -> float:
        """Admits what fits and runs a step. Returns its seconds; 0: there is nothing to do."""
        prefilled = 0
        if self._former:
            self._former.new_step()
        while len(self.running) < self.rows and (job := self._next()) is not None:
            new = self._admit(job)
            if new is None:
                break
            prefilled += new
        if not self.running:
            return 0.0
        groups = len({job.group for job in self.running.values()})
        self.steps += 1
        self.groups += groups
        if self._former:
            self._former.formed()
        return self.law.seconds(len(self.running), groups, prefilled)

    def finish(self, now: float) -> list[_Job]:
        """The step is over: every row has a token more. Returns the jobs that are done."""
        done = []
        for job in self.running.values():
            job.first = job.first or now
            job.left -= 1
            if not job.left:
                done.append(job)
        for job in done:
            del self.running[job.id], self.jobs[job.id]
            self.cached[job.group] -= 1
            self.owed[job.group] -= 1
            self.free += self.prefixes.own_tokens(job.decode_tokens)
            if self._former:
                self._former.finish(job.id)
        return done

    def report(self, number: int) -> dict[str, Any]:
        """As ``feather.ray.statistics``."""
        relatives: dict[Any, int] = {}
        for job in self.jobs.values():
            for chunk in job.path:
                relatives[chunk] = relatives.get(chunk, 0) + 1
        running = len(self.running)
        prefixes = [(chunk, shared) for chunk, shared in relatives.items() if shared > 1]
        return {"report": number, "running": running, "waiting": len(self.jobs) - running, "prefixes": prefixes,
                "chunks": self.kv_tokens // self.prefixes.chunk_size}  # fmt: skip

    def _next(self) -> _Job | None:
        if self._former:
            id_ = self._former.next()
            return None if id_ is None else self.jobs[id_]
        return self._waiting[0] if self._waiting else None

    def _admit(self, job: _Job) -> int | None:
        """Tokens to prefill; None where there is no room."""
        own = self.prefixes.own_tokens(job.decode_tokens)
        new = 0 if job.group in self.cached else self.prefixes.tokens
        while self.free < own + new:
            unused = next((group for group, users in self.cached.items() if not users and group != job.group), None)
            if unused is None:
                return None
            del self.cached[unused]
            self.free += self.prefixes.tokens
        self.free -= own + new
        self.cached[job.group] = self.cached.get(job.group, 0) + 1
        self.cached.move_to_end(job.group)
        self.admitted += 1
        self.hits += not new
        job.left = job.decode_tokens
        self.running[job.id] = job
        if self._former:
            self._former.add_to_batch(job.id)
        else:
            self._waiting.popleft()
        return new + self.prefixes.suffix_tokens


@dataclass
class Fleet:
    """Replicas behind a rule, and clients in closed loop."""

    rule: Any
    prefixes: Prefixes
    replicas: int
    rows: int
    kv_tokens: int
    clients: int
    feather: bool = True
    law: Law = field(default_factory=Law)
    report_every: float = 1.0
    seed: int = 0

    def look(self, replica: int, path: Sequence[Any]) -> tuple[int, bool]:
        """For an oracle: how many requests a replica has, and whether it holds this prefix or will."""
        engine, group = self.engines[replica], path[0][0]
        return len(engine.jobs), group in engine.cached or engine.owed.get(group, 0) > 0

    def run(self, seconds: float) -> Answered:
        """So many virtual seconds, from an empty fleet on."""
        self.now = 0.0
        clock = lambda: self.now  # noqa: E731
        if isinstance(self.rule, Placement):
            self.rule.clock = clock
        self.engines = [Replica(self.law, self.rows, self.kv_tokens, self.prefixes, self.feather, clock) for _ in range(self.replicas)]
        self.everyone = range(self.replicas)
        self.rule.update(self.everyone)
        draw, numbers, events, ticket = self.prefixes.draw(self.seed), count(), [], count()
        busy = [False] * self.replicas
        answered = Answered()

        def start(index: int) -> None:
            if not busy[index] and (taken := self.engines[index].step()):
                busy[index] = True
                heappush(events, (self.now + taken, next(ticket), index))

        def send() -> int:
            group, decode_tokens = next(draw)
            job = _Job(next(numbers), group, self.prefixes.path(group), decode_tokens, self.now)
            place = self.rule.choose(job.path, self.everyone)
            if place is None:
                raise RuntimeError("the rule has no choice, although every replica reports")
            self.rule.place(job.id, job.path, place)
            self.engines[place].add(job)
            return place

        for index in range(self.replicas):  # everybody reports before the first request and from then on
            self.rule.report(index, self.engines[index].report(0))
            heappush(events, (self.report_every * (1 + index / self.replicas), next(ticket), -1 - index))
        for _ in range(self.clients):
            send()
        for index in range(self.replicas):
            start(index)
        while events:
            self.now, _, index = heappop(events)
            if self.now > seconds:
                break
            if index < 0:
                index = -1 - index
                self.rule.report(index, self.engines[index].report(next(ticket)))
                heappush(events, (self.now + self.report_every, next(ticket), -1 - index))
                continue
            busy[index] = False
            touched = {index}
            for job in self.engines[index].finish(self.now):
                self.rule.done(job.id)
                answered.add(job.sent, job.first, self.now, job.decode_tokens)
                touched.add(send())
            for place in touched:
                start(place)
        answered.seconds = seconds
        answered.hits = float(np.mean([engine.hits / max(1, engine.admitted) for engine in self.engines]))
        answered.groups = float(np.mean([engine.groups / max(1, engine.steps) for engine in self.engines]))
        return answered
