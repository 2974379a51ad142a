"""What is asked of several replicas, and what came of it: prefixes with their frequencies, clients in closed loop, answers with their times."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lab.stats import batch_means

CHUNK = 512


@dataclass(frozen=True)
class Prefixes:
    """``count`` prefixes of ``tokens`` tokens: asked for evenly, or by Zipf's law (the k-th ∝ 1 ÷ k^``zipf``). ``count`` = 0: nothing is
    shared, and each request has as many tokens of its own."""

    count: int
    tokens: int
    zipf: float = 0.0
    suffix_tokens: int = 20
    decode_tokens: tuple[int, int] = (16, 48)
    chunk_size: int = CHUNK

    @property
    def weights(self) -> np.ndarray:
        """Share of each prefix."""
        weights = np.arange(1, self.count + 1) ** -self.zipf
        return weights / weights.sum()

    def draw(self, seed: int) -> Iterator[tuple[int, int]]:
        """(group, decode tokens) for ever; where nothing is shared each is a group of its own."""
        rng, low, high, number = np.random.default_rng(seed), *self.decode_tokens, 0
        while True:
            groups = rng.choice(self.count, 256, p=self.weights) if self.count else range(number, number + 256)
            number += 256
            yield from zip(map(int, groups), map(int, rng.integers(low, high + 1, 256)))

    def path(self, group: int) -> Sequence[tuple[int, int]]:
        """Stands for the hashes of its chunks."""
        return tuple((group, chunk) for chunk in range(self.tokens // self.chunk_size))

    def own_tokens(self, decode_tokens: int) -> int:
        return self.suffix_tokens + decode_tokens


@dataclass
class Answered:
    """The answers of a run; times in seconds since its start."""

    sent: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0
    hits: float = float("nan")
    """share of admitted requests whose prefix was cached"""
    groups: float = float("nan")
    """mean groups in a step"""

    def add(self, sent: float, first: float, done: float, tokens: int) -> None:
        self.sent.append(sent)
        self.first.append(first)
        self.done.append(done)
        self.tokens.append(tokens)

    def steady(self, discard: float, batches: int = 10) -> dict[str, tuple[float, str]]:
        """Metric → (value, unit) after the first ``discard`` share of the run: throughput with half its 95 % interval from batch means, and
        waits of the requests answered since."""
        begin = discard * self.seconds
        rate, half = batch_means(self.done, self.tokens, begin, self.seconds, batches)
        late = np.array(self.done) >= begin
        waits = (np.array(self.first) - np.array(self.sent))[late]
        nan = float("nan")
        return {
            "throughput": (rate, "tok/s"),
            "throughput, half interval": (half, "tok/s"),
            "time to first token, median": (float(np.median(waits)) if late.any() else nan, "s"),
            "time to first token, p99": (float(np.percentile(waits, 99)) if late.any() else nan, "s"),
            "prefix hits": (self.hits, "share of requests"),
            "groups per batch": (self.groups, "groups"),
            "answers": (float(late.sum()), "requests"),
        }
