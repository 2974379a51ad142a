"""What comes: which prefixes how often, how long their requests run, and how deep they share. Learned while serving."""

import math
from collections import Counter, deque
from collections.abc import Hashable
from typing import Any

from feather.cht import ChunkedHashTree
from feather.cost import Load
from feather.rehearsal import Scene

_PREFIXES = 64  # told apart in a scene; rarer ones count as shared with nobody
_UNKNOWN = tuple(range(20, 200, 12))  # steps that requests run for, before any has ended
_RARE = 0.02  # share of the arrivals, up to which prefixes besides the most frequent one do not matter
_HORIZON = 30.0  # seconds of serving, after which an arrival has faded to 1/e in the rate
_ADMITTED = 100  # requests, over which their prompts are averaged, or up to twice as many
_LOOK = 64  # arrivals, after which it is looked at anew whether they vary
_LAST = 64  # arrivals that a recount goes by
_MISSES = 0.1  # share of the arrivals, more than is expected to be missing there, from which on all is counted anew
_SURPRISES = 4.0  # and standard deviations
_SHOWS = 0.05  # share of the KV cache in use, from which on it shows how much that holds
_LATEST = 400  # arrivals, or four queues' worth, over which prefixes are counted


class Traffic:
    """Counts of what has come of late, and the ``Scene`` that they make.

    Args:
        chunk_size: tokens of a chunk of the tree.
    """

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.common = 0.0
        """mean depth that all prefixes have in common, chunks"""
        self._arrivals: dict[Hashable, float] = {}  # by prefix, faded
        self._came = 0.0
        self._last: deque[tuple[Hashable, bool]] = deque(maxlen=_LAST)  # prefixes of the latest, and whether others had them
        self._depth = self._length = 0.0  # means: of a prefix, of a path
        self._prefix_of: dict[Hashable, Hashable] = {}  # of the requests that wait or run
        self._lifetimes: dict[Hashable, deque[int]] = {}  # by prefix: steps that its latest requests ran for
        self._latest: deque[int] = deque()  # the same of any prefix
        self._batches = 0  # requests of one prefix in two of its batches: those that end last in each are the longest
        self._prompt_tokens = self._admitted = 0.0  # computed, and requests that they were computed for
        self._apart = False  # whether the two leave out prefixes that were computed again
        self._capacity, self._fullest = math.inf, _SHOWS  # chunks that the KV cache holds, and its share in use that this is known from
        self._recent = self._seconds = 0.0  # arrivals and seconds of serving, faded
        self._seen = 0  # arrivals in all
        self.recounts = 0
        """how often what has come was counted anew"""
        self.varied = False
        """whether several prefixes come, each again and again: otherwise all ways to form batches are one"""

    @property
    def offered(self) -> float:
        """Tokens per second that the requests of late ask for; 0 before any has ended."""
        if not (self._seconds and self._latest):
            return 0.0
        return self._recent / self._seconds * sum(self._latest) / len(self._latest)

    @property
    def knows_lifetimes(self) -> bool:
        return bool(self._latest)

    def _varies(self) -> bool:
        often = sorted(count for count in self._arrivals.values() if count >= 2)
        return len(often) > 1 and sum(often[:-1]) > _RARE * self._came

    def arrived(self, tree: ChunkedHashTree, request_id: Hashable) -> None:
        branch, mark = tree.branch_of(request_id), tree.mark_of(request_id)
        # A prefix shows with its second request; its first one was taken to share with nobody.
        self._arrivals[mark] = self._arrivals.get(mark, float(mark != request_id)) + 1
        self._came += 1
        self._recent += 1
        self._last.append((mark, mark != request_id))
        self._seen += 1
        self._prefix_of[request_id] = mark
        if self._came > max(_LATEST, 4 * len(tree.waiting)):
            self._came /= 2
            self._arrivals = {mark: count / 2 for mark, count in self._arrivals.items() if count > 0.5}
            self._lifetimes = {mark: each for mark, each in self._lifetimes.items() if mark in self._arrivals}
        if self._seen <= _LOOK or self._seen % _LOOK == 0:
            if self._outdated():
                self.recount(tree)
            self.varied = self._varies()
        step = 1 / min(100, self._came)
        self._depth += step * (branch.depth - self._depth)
        self._length += step * (tree.length_of(request_id) - self._length)

    def finished(self, request_id: Hashable, steps: int) -> None:
        mark = self._prefix_of.pop(request_id, None)
        if steps > 0:
            _append(self._latest, steps, max(128, self._batches))
        if steps > 0 and mark in self._arrivals:
            _append(self._lifetimes.setdefault(mark, deque()), steps, max(32, self._batches))

    def _outdated(self) -> bool:
        """Whether far more is missing among the last few than rare prefixes explain."""
        latest, surplus, variance = {mark for mark, _ in self._last}, 0.0, 0.0
        for mark, count in self._arrivals.items():
            share = count / self._came if count >= 2 else 0.0
            missing = (1 - share) ** len(self._last)  # with this probability
            surplus += share * ((mark not in latest) - missing)
            variance += share**2 * missing * (1 - missing)
        return surplus > max(_MISSES, _SURPRISES * math.sqrt(variance))

    def recount(self, tree: ChunkedHashTree) -> None:
        """Take the last few, and those that wait, for all that has come: who asks next once somebody is served may send many of one prefix in a row."""
        waiting = ((mark := tree.mark_of(request_id), mark != request_id) for request_id in tree.waiting)
        counts = Counter((*self._last, *waiting))
        self._arrivals = {mark: float(count + shared) for (mark, shared), count in counts.items()}
        self._came = float(counts.total())
        self.recounts += 1

    def passed(self, seconds: float) -> None:
        """So many seconds of serving have passed."""
        keep = math.exp(-seconds / _HORIZON)
        self._recent, self._seconds = keep * self._recent, keep * self._seconds + seconds

    def admitted(self, count: int, prefill_tokens: int) -> None:
        """So many requests began in a step that computed so many prompt tokens, some of which may be of requests that began before. Where prefixes are
        long and may be evicted, only those steps count in which it would show that one was computed again: what that costs, a rehearsal finds itself."""
        own, branch = 2 * (self._length - self._depth) + 1, self._depth - self.common
        if self._capacity < math.inf and own <= branch / 2:
            if 0 < count * own <= branch / 2 and prefill_tokens <= count * own * self.chunk_size:
                if not self._apart:
                    self._prompt_tokens, self._admitted, self._apart = 0.0, 0.0, True
            elif self._apart:
                return
        self._prompt_tokens += prefill_tokens
        self._admitted += count
        if self._admitted > 2 * _ADMITTED:
            self._prompt_tokens, self._admitted = self._prompt_tokens / 2, self._admitted / 2

    def holds(self, load: Load, kv_use: float) -> None:
        """A batch takes this share of the KV cache. The fuller that is, the less do parts of chunks matter, which the tree leaves out."""
        if kv_use > self._fullest:
            tokens = load.decoded + (load.rows * min(self._per_request, self.chunk_size) if self._apart else 0)
            self._capacity, self._fullest = (load.distinct + tokens / self.chunk_size) / kv_use, kv_use

    def scene(self, tree: ChunkedHashTree, max_batch: float, max_wait: float) -> Scene:
        """As it is now; whoever plays order of arrival through finds its ``fair_wait``."""
        often = [mark for mark, count in self._arrivals.items() if count >= 2]
        often = sorted(often, key=self._arrivals.__getitem__, reverse=True)[:_PREFIXES]
        shares = tuple(self._arrivals[mark] / self._came for mark in often)
        others = tuple(self._latest) or _UNKNOWN
        lifetimes = tuple(tuple(self._lifetimes.get(mark, ())) or others for mark in often)
        requests = len(tree.active) + len(tree.waiting)
        self._batches = 4 * requests // max(4, len(shares))
        return Scene(
            int(min(max_batch, requests)), requests, shares, lifetimes, others,
            min(self.common, self._depth), self._depth, self._length, self._per_request, math.inf, max_wait, self._capacity, self.chunk_size,
        )  # fmt: skip

    @property
    def _per_request(self) -> float:
        """Prompt tokens."""
        return self._prompt_tokens / max(1.0, self._admitted)

    def learned(self) -> dict[str, Any]:
        """What outlives the server: other prefixes may come to the next."""
        return {"lifetimes": list(self._latest), "prompt_tokens": self._per_request}

    def restore(self, learned: dict[str, Any]) -> None:
        """Raises ValueError, KeyError or TypeError for what ``learned`` has not made; nothing is changed then."""
        lifetimes, prompt_tokens = [int(steps) for steps in learned["lifetimes"]], float(learned["prompt_tokens"])
        if min(lifetimes, default=1) < 1 or not 0 <= prompt_tokens < math.inf:
            raise ValueError("its requests ran for less than a step, or had fewer than no prompt tokens")
        self._latest.extend(lifetimes)
        self._prompt_tokens, self._admitted = _ADMITTED * prompt_tokens, float(_ADMITTED)


def _append(latest: deque[int], one: int, most: int) -> None:
    latest.append(one)
    while len(latest) > most:
        latest.popleft()
