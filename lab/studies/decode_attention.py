"""Locality at the kernel: paged decode attention over batches that differ only in who shares what, and in which row order.

Before every timed call a copy larger than the last-level cache is timed: it empties the cache of what the call before left
there, as the other layers of a model do, and it is the bandwidth that the call is held against.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from lab import machine
from lab.kernels.batch import HEADS, Batch, divergent, even
from lab.kernels.pool import Pool
from lab.studies.study import Condition, frame

STUDY = "10_decode_attention"
SUFFIX = 32  # tokens of each row's own
_ROTATIONS = 4
_COPY_OVER_CACHE = 4


@dataclass(frozen=True)
class Sizes:
    """How large the batches of one backend and model are."""

    requests: int
    prefix_tokens: int
    groups: tuple[int, ...]
    divergent: tuple[int, ...]


# The paper's (500 requests on prefixes of 10 000 tokens) on a GPU; on a CPU what two cores sweep in tens of
# milliseconds, with keys and values well above the last-level cache.
SIZES = {
    "gpu": {
        "llama-3-8b": Sizes(500, 10_000, (1, 2, 5, 10, 20, 50, 100), (1, 5, 25, 100, 250)),
        "longchat-13b": Sizes(500, 10_000, (1, 2, 5, 10, 20, 50, 100), (1, 5, 25, 100, 250)),
    },
    "cpu": {
        "tiny-llama": Sizes(32, 8_000, (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16)),
        "llama-3-8b": Sizes(16, 8_000, (1, 2, 4, 8), (1, 4, 8)),
        "longchat-13b": Sizes(16, 4_000, (1, 2, 4, 8), (1, 4, 8)),
    },
}


@dataclass(frozen=True)
class Timing:
    """One call and the copy before it, both in seconds."""

    seconds: float
    copy_seconds: float
    copied_bytes: int

    def metrics(self) -> dict[str, tuple[float, str]]:
        return {
            "attention time": (self.seconds * 1e3, "ms"),
            "copy bandwidth": (self.copied_bytes / self.copy_seconds / 1e9, "GB/s"),
        }


class Bench:
    """One layer's pool on a device and the kernels over it. Raises ValueError for a backend or heads that are not there,
    MemoryError where the pool does not fit."""

    def __init__(self, backend: str, heads: str, sizes: Sizes, dtype: str = "bfloat16"):
        self.backend, _ = machine.choose_backend(backend)
        if heads not in HEADS:
            raise ValueError(f"heads {heads!r} are not one of: {', '.join(HEADS)}")
        self.heads, self.sizes, self.dtype = heads, sizes, dtype
        device, block_size = ("cuda", 16) if self.backend == "gpu" else ("cpu", 32)
        if sizes.prefix_tokens < 8 * block_size:
            raise ValueError(f"prefix_tokens={sizes.prefix_tokens} must be at least {8 * block_size}: the fit also takes an eighth of it")
        prefixes = max(2, *sizes.groups)
        tokens = prefixes * sizes.prefix_tokens + sizes.requests * -(-SUFFIX // block_size) * block_size
        needed = tokens * HEADS[heads].token_bytes(getattr(torch, dtype).itemsize) * (1 if self.backend == "gpu" else 2)
        free = torch.cuda.mem_get_info()[0] if self.backend == "gpu" else machine.memory_gib()[1] * 2**30
        if needed > 0.8 * free:
            raise MemoryError(
                f"keys and values of {prefixes} prefixes of {sizes.prefix_tokens} tokens with the heads of {heads} take "
                f"{needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: take fewer groups or shorter prefixes"
            )
        self.pool = Pool(HEADS[heads], getattr(torch, dtype), device, block_size, prefixes, sizes.prefix_tokens, sizes.requests, SUFFIX)
        if self.backend == "gpu":
            from lab.kernels.triton_attention import TritonAttention as Attention
        else:
            from lab.kernels.cpu_attention import CpuAttention as Attention
        self.attention = Attention(self.pool)
        self.cache_bytes = last_level_cache(self.backend)
        elements = max(_COPY_OVER_CACHE * self.cache_bytes, 2**30 if self.backend == "gpu" else 0) // 4
        self._from = torch.empty(elements, dtype=torch.float32, device=device).normal_()
        self._to = torch.empty_like(self._from).normal_()
        self._copy = lambda: self._to.copy_(self._from)

    def condition(self, kernel: str, batch: Batch, curve: str, **labels) -> Condition:
        """Something for ``Study.measure``: the seed of a run turns the batch's prefixes to another place of the pool."""
        rotations = min(_ROTATIONS, max(1, self.pool.prefixes // (max(batch.groups) + 1)))
        calls: dict[int, Callable] = {}

        def run(seed: int) -> Timing:
            rotation = seed % rotations
            if rotation not in calls:
                calls[rotation] = self._captured(self.call(kernel, batch, rotation))
            copy_seconds, seconds = self._timed(self._copy, calls[rotation])
            return Timing(seconds, copy_seconds, 2 * self._from.nbytes)

        parameters = {
            "heads": self.heads, "requests": len(batch.groups), "prefix tokens": batch.prefix_tokens, "own tokens": SUFFIX,
            "groups": len(set(batch.groups)), "divergent": None, "order": "any", **labels, "curve": curve,
            "implementation": self.attention.implementation(kernel), "dtype": self.dtype,
            "block size": self.pool.block_size, "cache bytes": self.cache_bytes,
            "asked bytes": self.attention.fetched_tokens(batch, kernel) * self.pool.token_bytes,
            "unique bytes": batch.unique_tokens() * self.pool.token_bytes,
        }  # fmt: skip
        return Condition(kernel, parameters, run)

    def call(self, kernel: str, batch: Batch, rotation: int = 0) -> Callable[[], torch.Tensor]:
        """A function of no arguments that attends once; it has run once when this returns, so that all is compiled."""
        attend = self.attention.prepare(kernel, batch, self.pool.table(batch, rotation))
        queries = self.pool.queries(len(batch.groups), rotation)
        attend(queries)
        return lambda: attend(queries)

    def _captured(self, call: Callable) -> Callable:
        """On a GPU the launches as one CUDA graph, as an engine replays its decode step: short kernels would else wait for
        Python."""
        if self.backend == "cpu":
            return call
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def _timed(self, *calls: Callable) -> list[float]:
        """Seconds that each of the calls takes, one after the other."""
        if self.backend == "cpu":
            marks = [time.perf_counter()]
            for call in calls:
                call()
                marks.append(time.perf_counter())
            return [end - start for start, end in zip(marks, marks[1:])]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
        events[0].record()
        for call, event in zip(calls, events[1:]):
            call()
            event.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in zip(events, events[1:])]


def last_level_cache(backend: str) -> int:
    """Bytes, as the driver or the kernel tells them. Raises ValueError where it tells nothing."""
    if backend == "gpu":
        return torch.cuda.get_device_properties(0).L2_cache_size
    sizes = machine.cache_sizes()
    if not sizes:
        raise ValueError("this machine's kernel tells no cache sizes (/sys/devices/system/cpu/cpu0/cache): nothing to measure against")
    return int(sizes[max(sizes)].rstrip("K")) * 1024


def conditions(bench: Bench) -> Iterator[Condition]:
    """Homogeneity, order, cascade and packing, each as a curve, and the points that only the fit needs."""
    sizes = bench.sizes
    requests, tokens = sizes.requests, sizes.prefix_tokens
    for groups in sizes.groups:
        yield from _grouped(bench, "groups", requests, groups, tokens, _orders(groups, requests))
        yield bench.condition("packed", even(requests, groups, "grouped", tokens, SUFFIX), "groups", groups=groups)
    yield bench.condition("cascade", even(requests, 1, "grouped", tokens, SUFFIX), "groups", groups=1)
    for second in sizes.divergent:
        for order in ("shuffled", "grouped"):
            batch = divergent(requests, second, order, tokens, SUFFIX)
            yield bench.condition("paged", batch, "divergent", divergent=second, order=order)
        yield bench.condition("packed", divergent(requests, second, "grouped", tokens, SUFFIX), "divergent", divergent=second)
    # Fewer requests and shorter prefixes tell a request's own cost from that of its bytes.
    for fewer, shorter in ((1, 8), (1, 2), (2, 1), (4, 1), (4, 4)):
        length = tokens // shorter // bench.pool.block_size * bench.pool.block_size
        for groups in {1, min(8, requests // fewer, max(sizes.groups))}:
            yield from _grouped(bench, "fit", requests // fewer, groups, length, _orders(groups, requests // fewer)[:2])


def _grouped(bench: Bench, curve: str, requests: int, groups: int, tokens: int, orders: tuple[str, ...]) -> Iterator[Condition]:
    for order in orders:
        yield bench.condition("paged", even(requests, groups, order, tokens, SUFFIX), curve, groups=groups, order=order)


def _orders(groups: int, requests: int) -> tuple[str, ...]:
    """With one prefix for all, or one for each, there is only one order."""
    return ("grouped", "round-robin", "shuffled") if 1 < groups < requests else ("grouped",)


def recorded() -> pd.DataFrame:
    """Rows of this study that were measured on other devices and kept in the repository; empty where there are none."""
    files = sorted((Path(__file__).parents[2] / "data" / "recorded").glob("*/decode_attention*.csv.gz"))
    return frame([row for file in files for row in pd.read_csv(file).to_dict("records")])
