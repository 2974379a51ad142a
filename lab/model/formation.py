"""Batch formation without an engine: the real tree and former over a queue of made-up requests, timed by the step model.

A hundred times as fast as vLLM's scheduler on a virtual clock (``engine``), and less: every prefix is in the prefix cache and
stays there, memory never runs out, and prefill is left out, since each request's own few tokens have to be prefilled once whoever
decides. What is left is what a stopping policy decides about: who decodes together, and how long that takes.
"""

from collections import Counter, deque
from dataclasses import dataclass
from itertools import count

import numpy as np

from feather.former import make_former
from feather.options import Options
from feather.policies import Policy
from feather.request import Request
from lab.model.rows import Rows
from lab.model.steptime import Batch, StepModel

_STRIDE = 16  # steps between two looks at the queue while nobody comes or leaves: time alone changes little
PATIENT = Options(policy="never_stop", max_wait=float("inf"), saturated_after=0.0)


@dataclass(frozen=True)
class Traffic:
    """A queue of requests on a few shared prefixes. Lengths in tokens."""

    groups: int = 4
    prefix_tokens: int = 4096
    root_tokens: int = 0
    """the beginning of the prefix that all groups have in common, such as a system prompt"""
    suffix_tokens: int = 20
    """of a request's own"""
    decode: tuple[int, int] = (64, 64)
    """drawn evenly between both, both included"""
    max_batch: int = 64
    requests: int = 256
    in_system: int = 128
    """requests that wait or run at any time, until the last has come: whenever one is done the next one comes"""

    @property
    def kv_tokens(self) -> int:
        """What the prefixes and a full batch at its longest take of the KV cache."""
        prefixes = self.root_tokens + self.groups * (self.prefix_tokens - self.root_tokens)
        return prefixes + self.max_batch * (self.suffix_tokens + self.decode[1])


class Formation:
    """One run of a policy over a queue. ``advance`` until ``done``; the same seed makes the same requests.

    Args:
        steps: the device, the model and the attention kernel.
        traffic: what waits.
        policy: who decides; asked and told as in an engine.
        seed: of the requests' groups, drawn evenly, and their decode lengths.
        kv_tokens: tokens that the KV cache holds, for ``BatchState.kv_use``.
        options: of the scheduler; its policy is not looked at. By default without a limit on waiting: where that limit strikes,
            it decides, and no policy.
    """

    def __init__(self, steps: StepModel, traffic: Traffic, policy: Policy, seed: int, kv_tokens: float = float("inf"),
                 options: Options = PATIENT):  # fmt: skip
        self.steps, self.traffic, self.kv_tokens = steps, traffic, kv_tokens
        self.former = make_former(policy, options.order, options.max_wait, options.saturated_after, traffic.max_batch,
                                  lambda: self.now, lambda: self.kv_use)  # fmt: skip
        self.now = 0.0
        self.tokens = 0
        self.starts: list[float] = []
        """when each request started that has, in order"""
        self.waited = 0.0
        """seconds that those waited, together"""
        self.passed_over = 0.0
        """seconds of it past their turns, had they gone first come, first served"""
        self.log: list[tuple[float, int, float, int]] = []
        """when, rows, seconds a step, steps; in order"""
        self._paths, self._stretches = _paths(traffic, options.chunk_size)
        rng = np.random.default_rng(seed)
        groups = rng.integers(0, traffic.groups, traffic.requests)
        decode = rng.integers(traffic.decode[0], traffic.decode[1] + 1, traffic.requests)
        self._pending = deque(zip(count(), groups.tolist(), decode.tolist()))
        self._waiting: dict[int, tuple[int, int, float]] = {}  # id → group, tokens to decode, arrival
        self._running: dict[int, list[int]] = {}  # id → group, tokens to go, tokens of context
        self._private_chunks = max(0, (traffic.prefix_tokens + traffic.suffix_tokens) // options.chunk_size - len(self._paths[0]))
        self._rows_of: Counter[int] = Counter()  # groups that run
        self._waiting_of: Counter[int] = Counter()
        self._own_tokens = 0  # of those who run, beside their prefixes
        self._rows = Rows()
        self._batch: Batch | None = None
        self._arrive()

    @property
    def done(self) -> bool:
        return not self._running and not self._waiting

    @property
    def kv_use(self) -> float:
        """Share of the KV cache in use: the prefixes that run, each once, and what the requests have of their own."""
        shared = self.traffic.prefix_tokens * len(self._rows_of)
        return min(1.0, (shared + self._own_tokens) / self.kv_tokens)

    def by_group(self) -> tuple[list[int], list[int]]:
        """How many requests of each group run, and how many wait."""
        groups = range(self.traffic.groups)
        return [self._rows_of[group] for group in groups], [self._waiting_of[group] for group in groups]

    def advance(self) -> None:
        """Admit as the policy decides, then decode until somebody has finished, or for a few steps."""
        self.admit()
        self.decode()

    def admit(self) -> None:
        """What the policy raises ends it, and it goes on from there when called again."""
        while len(self._running) < self.traffic.max_batch and (id_ := self.former.next()) is not None:
            self.former.add_to_batch(id_)
            group, tokens, came = self._waiting.pop(id_)
            self._waiting_of[group] -= 1
            self._running[id_] = [group, tokens, self.traffic.prefix_tokens + self.traffic.suffix_tokens]
            self._rows_of[group] += 1
            self._own_tokens += self.traffic.suffix_tokens
            self.starts.append(self.now)
            self.waited += self.now - came
            if id_ < len(self.starts):
                self.passed_over += self.now - self.starts[id_]
            self._batch = None

    def decode(self) -> None:
        rows, steps = len(self._running), min(_STRIDE, min(request[1] for request in self._running.values()))
        formed = self.former.formed()
        batch = self._form_batch()
        batch.private_tokens += rows * steps / 2  # as in the middle of these steps
        seconds = self.steps.time(batch).seconds
        batch.private_tokens += rows * steps / 2
        self.log.append((self.now, rows, seconds, steps))
        self.now += steps * seconds
        self.tokens += steps * rows
        self._own_tokens += steps * rows
        for left in range(steps, 0, -1):
            self.former.ran(formed, rows, seconds, 0)
            if left > 1:
                self.former.new_step()
        for id_, request in list(self._running.items()):
            request[1] -= steps
            request[2] += steps
            if not request[1]:
                self._leave(id_)
                self.former.finish(id_)
                self._batch = None
        self._arrive()
        self.former.new_step()

    def run(self) -> float:
        """To the end. Returns the throughput, tok/s."""
        while not self.done:
            self.advance()
        return self.tokens / self.now

    def full_batch_throughput(self) -> float:
        """tok/s of a full batch drawn evenly from all groups, half-way through its decoding: roughly what never stopping
        gives."""
        traffic = self.traffic
        rows = min(traffic.max_batch, traffic.in_system)
        context = traffic.prefix_tokens + traffic.suffix_tokens + sum(traffic.decode) // 4
        members = np.arange(rows) * traffic.groups // rows
        return rows / self.steps.time(Batch(np.full(rows, context), members, self._stretches)).seconds

    def _arrive(self) -> None:
        while self._pending and len(self._waiting) + len(self._running) < self.traffic.in_system:
            id_, group, tokens = self._pending.popleft()
            self._waiting[id_] = group, tokens, self.now
            self._waiting_of[group] += 1
            own = [(id_, chunk) for chunk in range(self._private_chunks)]
            self.former.insert(Request(id_, self._paths[group] + own))

    def _leave(self, id_: int) -> None:
        group, _, context = self._running.pop(id_)
        self._own_tokens -= context - self.traffic.prefix_tokens
        self._rows_of[group] -= 1
        if not self._rows_of[group]:
            del self._rows_of[group]

    def _form_batch(self) -> Batch:
        if self._batch is None:
            self._rows.update(self._running)
            ordered = [self._running[id_] for id_ in self._rows.ids]
            present = {group: place for place, group in enumerate(dict.fromkeys(group for group, _, _ in ordered))}
            self._batch = Batch([context for _, _, context in ordered], [present[group] for group, _, _ in ordered],
                                [self._stretches[group] for group in present])  # fmt: skip
        return self._batch


def _paths(traffic: Traffic, chunk_size: int) -> tuple[list, list]:
    """For each group: the chunks of its prefix as the tree sees them, and its stretches as the step model does."""
    chunks, root = traffic.prefix_tokens // chunk_size, traffic.root_tokens // chunk_size
    rest = traffic.prefix_tokens - traffic.root_tokens
    paths, stretches = [], []
    for group in range(traffic.groups):
        paths.append([("root", depth) if depth < root else (f"group {group}", depth) for depth in range(chunks)])
        stretches.append([("root", traffic.root_tokens)] * (traffic.root_tokens > 0) + [(group, rest)] * (rest > 0))
    return paths, stretches
