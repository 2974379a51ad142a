"""How long one engine step takes, from first principles.

A step multiplies its tokens by every weight once, and every row attends over its context. Attention is made of *passes*:
one pass reads a stretch of keys and values for up to ``query_tile`` rows of queries. How many passes there are, and how
much of what they read comes from DRAM, is what tells the kernels apart:

* ``"paged"``: every row makes its own passes over its whole context. What rows share is read from DRAM once as long as it
  stays in the last-level cache until the next row asks for it.
* ``"cascade"``: vLLM's kernel up to 0.31. The prefix that *all* rows share is read once for all of them; the rest is paged.
  One row without that prefix, and everything is paged.
* ``"packed"``: every shared stretch is read once for all rows that share it (PAT, prefix-packed attention).

Lengths are in tokens, times in seconds.
"""

from collections.abc import Hashable, Sequence
from math import ceil, exp, log2
from typing import NamedTuple, Protocol

import numpy as np

from feather.options import KERNELS
from lab.model.hardware import Device


class Shape(Protocol):
    """What of a model decides the time of a step (``lab.llm.Model`` has it)."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def kv_bytes_per_token(self) -> int: ...
    @property
    def body_bytes(self) -> int: ...
    @property
    def head_bytes(self) -> int: ...


class StepTime(NamedTuple):
    """Seconds of a step and what they are made of; bytes and FLOP of the whole step, all layers."""

    seconds: float
    linear_seconds: float
    attention_seconds: float
    host_seconds: float
    weight_bytes: float
    """read from DRAM"""
    kv_dram_bytes: float
    """keys and values read from DRAM"""
    kv_cache_bytes: float
    """keys and values that the cores read, from the last-level cache or through it"""
    linear_flop: float
    attention_flop: float
    """as the kernel computes them, so of the padded queries where it pads"""
    cascade: bool
    """the kernel computed a shared prefix once"""

    @property
    def dram_bytes(self) -> float:
        return self.weight_bytes + self.kv_dram_bytes


class Batch:
    """The rows of a step, in the order the kernel has them, and what prefixes they share.

    Args:
        contexts: tokens each row attends to, the new ones included.
        members: for each row the index of its path; None: row i has path i.
        paths: stretches of tokens from the root on, each as (key, tokens): two rows share a stretch if their paths hold the
            same key. What a row's context has beyond its path is its own.
        new: tokens of each row that are computed in this step; None: one each, all rows decode.

    Raises ValueError where the lengths do not match, or a path is longer than the context of a row on it.
    """

    def __init__(
        self,
        contexts: Sequence[int] | np.ndarray,
        members: Sequence[int] | np.ndarray | None,
        paths: Sequence[Sequence[tuple[Hashable, int]]],
        new: Sequence[int] | np.ndarray | None = None,
    ):
        self.contexts = np.asarray(contexts, np.int64)
        self.rows = len(self.contexts)
        self.members = np.arange(self.rows) if members is None else np.asarray(members, np.int64)
        self.new = None if new is None else np.asarray(new, np.int64)
        if len(self.members) != self.rows or (self.new is not None and len(self.new) != self.rows):
            raise ValueError(
                f"{self.rows} contexts, {len(self.members)} members, {self.rows if new is None else len(new)} new: must be equally many"
            )
        keys = {key: place for place, key in enumerate(dict.fromkeys(key for path in paths for key, _ in path))}
        self.stretches = np.zeros(len(keys))  # tokens of each
        self.on_path = np.zeros((len(paths), len(keys)), bool)
        for place, path in enumerate(paths):
            for key, tokens in path:
                self.stretches[keys[key]] = tokens
                self.on_path[place, keys[key]] = True
        self.path_tokens = self.on_path @ self.stretches
        private = self.contexts - self.path_tokens[self.members] if self.rows else self.contexts
        if self.rows and private.min() < 0:
            row = int(private.argmin())
            raise ValueError(
                f"row {row} has a context of {self.contexts[row]} tokens on a path of {self.path_tokens[self.members[row]]:.0f}"
            )
        # May be set to more after further decoding, which costs next to nothing: the locality is worked out anew only once
        # it has grown by a twentieth.
        self.private_tokens = float(private.sum())
        self.sharing = self.on_path.T @ np.bincount(self.members, minlength=len(paths))  # rows through each stretch
        self._sweeps: dict = {}

    @property
    def common_tokens(self) -> float:
        """Tokens of the prefix that all rows share."""
        return float(self.stretches[self.sharing == self.rows].sum())


class Sweep(NamedTuple):
    """Attention over a batch, counted in tokens of KV."""

    shared_cache: float
    """of shared stretches, read by the cores; each pass counts"""
    shared_dram: float
    """of shared stretches, read from DRAM"""
    private_passes: float
    """mean passes over a token of a row's own"""
    shared_queries: float
    """rows of queries × tokens of shared stretches, as computed"""
    private_queries: float
    """mean rows of queries that a token of a row's own is computed for"""
    cascade: bool


class StepModel:
    """The time of steps of one model on one device with one attention kernel. Raises ValueError for an unknown kernel."""

    def __init__(self, device: Device, model: Shape, kernel: str = "paged"):
        if kernel not in KERNELS:
            raise ValueError(f"attention kernel {kernel!r} is not one of: {', '.join(KERNELS)}")
        self.device, self.model, self.kernel = device, model, kernel
        self._queries_per_kv = model.heads // model.kv_heads
        layer_bytes = model.kv_bytes_per_token / model.layers
        self.cache_tokens = device.cache_bytes / (layer_bytes if device.heads_at_once else layer_bytes / model.kv_heads)
        """tokens whose KV the last-level cache holds at once, in the kernel's own loop order"""

    def time(self, batch: Batch, host_seconds: float = 0.0) -> StepTime:
        """``host_seconds`` is scheduling time; it is hidden where the device overlaps, up to the time of the step."""
        device, model = self.device, self.model
        tokens = batch.rows if batch.new is None else int(batch.new.sum())
        sweep = self._sweep(batch)
        cache_tokens = sweep.shared_cache + sweep.private_passes * batch.private_tokens
        dram_bytes = (sweep.shared_dram + batch.private_tokens) * model.kv_bytes_per_token
        cache_bytes = cache_tokens * model.kv_bytes_per_token
        computed = sweep.shared_queries + sweep.private_queries * batch.private_tokens
        attention_flop = 4 * model.layers * model.kv_heads * model.head_dim * computed
        linear_flop = tokens * model.body_bytes + batch.rows * model.head_bytes  # 2 FLOP and 2 bytes a parameter
        weight_bytes = model.body_bytes + model.head_bytes
        linear = self._together(linear_flop / (device.flop_rate * device.gemm_share), weight_bytes / device.memory_rate)
        attention = self._together(
            attention_flop / (device.flop_rate * device.attention_share),
            cache_bytes / device.cache_rate,
            dram_bytes / device.memory_rate,
        )
        host = device.step_seconds + device.row_seconds * batch.rows
        busy = linear + attention
        seconds = max(busy + host, host_seconds) if device.overlaps else busy + host + host_seconds
        return StepTime(seconds, linear, attention, host + host_seconds, weight_bytes, dram_bytes, cache_bytes,
                        linear_flop, attention_flop, sweep.cascade)  # fmt: skip

    def _together(self, *seconds: float) -> float:
        return max(seconds) if self.device.overlaps else sum(seconds)

    # -- attention ---------------------------------------------------------------------------------------------------

    def _sweep(self, batch: Batch) -> Sweep:
        private = batch.private_tokens / max(batch.rows, 1)
        key = self, int(16 * log2(private + 1))
        if key not in batch._sweeps:
            batch._sweeps[key] = self._make_sweep(batch, private)
        return batch._sweeps[key]

    def _make_sweep(self, batch: Batch, private: float) -> Sweep:
        passes, causal = self._passes_per_row(batch)
        packed = np.zeros(len(batch.stretches), bool)  # stretches that one pass reads for all rows on them
        if self.kernel == "packed":
            packed = batch.sharing > 1
        elif self.kernel == "cascade" and self._cascade_runs(batch):
            packed = batch.sharing == batch.rows
        new = np.ones(batch.rows) if batch.new is None else batch.new
        queries = new * self._queries_per_kv
        tile = self.device.query_tile
        cache = dram = computed = 0.0
        if packed.any():
            sharing = batch.on_path.T @ np.bincount(batch.members, queries, minlength=len(batch.on_path))
            read = (batch.stretches * np.ceil(sharing / tile))[packed].sum()
            cache += read
            dram += batch.stretches[packed].sum()
            computed += read * tile if self.device.pads else (batch.stretches * sharing)[packed].sum()
        alone = np.where(packed, 0.0, batch.stretches)
        per_row = passes * tile if self.device.pads else queries * causal
        if alone.any():
            cache += self._through(batch, passes) @ alone
            dram += self._from_dram(batch, alone, private)
            computed += self._through(batch, per_row) @ alone
        weights = batch.contexts - batch.path_tokens[batch.members]
        own_passes, own_queries = np.average((passes, per_row), axis=1, weights=weights) if weights.any() else (1.0, self._queries_per_kv)
        return Sweep(float(cache), float(dram), float(own_passes), float(computed), float(own_queries),
                     bool(packed.any()))  # fmt: skip

    @staticmethod
    def _through(batch: Batch, per_row: np.ndarray) -> np.ndarray:
        """For each stretch, the sum of ``per_row`` over the rows on it."""
        return np.bincount(batch.members, per_row, minlength=len(batch.on_path)) @ batch.on_path

    def _passes_per_row(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Passes of each row over its context, and the share of its context that its new tokens see on average: many new
        tokens see all but half of themselves (causal mask)."""
        if batch.new is None:
            return np.full(batch.rows, float(ceil(self._queries_per_kv / self.device.query_tile))), np.ones(batch.rows)
        tiles = np.ceil(batch.new * self._queries_per_kv / self.device.query_tile)
        causal = np.where(batch.new > 1, 1 - batch.new / (2 * batch.contexts), 1.0)
        return tiles * causal, causal

    def _cascade_runs(self, batch: Batch) -> bool:
        """vLLM's rule (``use_cascade_attention`` in its FlashAttention backend, 0.31): 256 common tokens, 8 rows, and,
        where grouped queries would let plain decode spread over the device, fewer waves of tiles of 128 than that."""
        common = batch.common_tokens
        if common < 256 or batch.rows < 8:
            return False
        if self._queries_per_kv == 1 or batch.new is not None:
            return True
        blocks, tiles = self.device.concurrent_rows, ceil(common / 128)
        cascade = ceil(self.model.heads * ceil(batch.rows / 128) / blocks) * tiles
        plain = ceil(batch.rows * self.model.kv_heads * ceil(self._queries_per_kv / 128) * tiles / blocks)
        return cascade < plain

    def _from_dram(self, batch: Batch, stretches: np.ndarray, private: float) -> float:
        """Tokens of shared stretches that come from DRAM when rows pass in waves of ``concurrent_rows``: rows of a wave
        read a stretch together, and a later wave finds as much of it as ``still_cached`` says."""
        wave_rows = self.device.concurrent_rows
        waves = ceil(batch.rows / wave_rows)
        on = np.zeros((waves, len(batch.on_path)), bool)
        on[np.arange(batch.rows) // wave_rows, batch.members] = True
        present = on @ batch.on_path
        total, last = 0.0, np.full(len(stretches), -1)
        for wave in range(waves):
            here = present[wave]
            seen = last >= 0
            # Tokens of all stretches used since each wave: what has passed through the cache when it is asked for again.
            since = np.bincount(last[seen], stretches[seen], minlength=waves)[::-1].cumsum()[::-1]
            for used in np.unique(last[here & seen]):
                hit = still_cached(since[used], private * wave_rows * (wave - used), self.cache_tokens)
                total += (1 - hit) * stretches[here & (last == used)].sum()
            total += stretches[here & ~seen].sum()
            last[here] = wave
        return total


def still_cached(shared: float, private: float, capacity: float) -> float:
    """Share of a stretch that is still cached when it is asked for again, after ``shared`` tokens of stretches that are
    used again and again and ``private`` tokens that are not.

    Random replacement: a line survives one miss with probability 1 − 1/capacity, so after m misses with exp(−m/capacity);
    of the shared tokens only those that were not cached themselves miss. The fixed point of hit = exp(−((1 − hit) · shared
    + private) / capacity), as in Gelenbe, "A unified approach to the evaluation of a class of replacement algorithms"
    (IEEE Trans. Computers, 1973). Real caches lie between it and least-recently-used, whose hits drop to none at once.
    """
    if capacity <= 0:
        return 0.0
    if private <= 0 and shared <= capacity:
        return 1.0
    hit = 0.0
    for _ in range(60):
        better = exp(-((1 - hit) * shared + private) / capacity)
        if better - hit < 1e-4:
            break
        hit = better
    return hit
