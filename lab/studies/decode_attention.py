"""What a batch's prefix mix costs the attention kernel itself: paged decode attention over batches that differ only in who shares what, and in which row order.

Before every timed call a copy larger than the last-level cache is timed: it empties the cache of what the call before left
there, as the other layers of a model do, and it is the bandwidth that the call is held against.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lab import figures, machine
from lab.figures import attention as drawn
from lab.kernels.batch import HEADS, Batch, divergent, even
from lab.kernels.pool import Pool
from lab.model import calibration
from lab.model.bandwidth import Fit, calibrate, fit
from lab.stats import Ratio
from lab.studies.study import Condition, Study, compare, frame, read

STUDY = "31_attention_kernel"
SUFFIX = 32  # tokens of each row's own
_ROTATIONS = 4
_COPY_OVER_CACHE = 2  # and as much again is written: four times the cache passes through it


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

    def __init__(self, backend: str, heads: str, sizes: Sizes, dtype: str | None = None):
        self.backend, _ = machine.choose_backend(backend)
        dtype = dtype or machine.dtype(self.backend)
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
        self._from = torch.ones(elements, dtype=torch.float32, device=device)
        self._to = torch.ones_like(self._from)
        self._copy = lambda: self._to.copy_(self._from)

    def rates(self, repeats: int = 7, side: int = 2048) -> dict[str, float]:
        """Floating-point operations a second that this device reaches in one large product of matrices, in float32 and in the pool's type."""
        found = {}
        for dtype in dict.fromkeys((torch.float32, self.pool.dtype)):
            left, right = (torch.randn(side, side, device=self.pool.device, dtype=torch.float32).to(dtype) for _ in range(2))
            taken = [self._timed(lambda: torch.matmul(left, right))[0] for _ in range(repeats + 2)][2:]
            found[str(dtype).removeprefix("torch.")] = 2 * side**3 / float(np.median(taken))
        return found

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
            "FLOP": 4 * batch.swept_tokens() * self.pool.heads.query * self.pool.heads.size,
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

        def replay(keep=call) -> None:  # the graph reads buffers that only the call holds: without it they are freed while in use
            graph.replay()

        return replay

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
    return frame([row for file in files for row in read(file).to_dict("records")])


# -- the notebook ------------------------------------------------------------------------------------------------------


def begin(backend: str, out: str) -> Study:
    """The study on a backend, or on the one there is ("auto"); no engine runs. Raises ValueError for a backend that cannot run here."""
    figures.style()
    return Study(STUDY, None, out, machine.choose_backend(backend)[0])


@dataclass
class Measured:
    """The tables of each kind of heads, here and recorded on other devices, and what they say."""

    backend: str
    tables: dict[str, pd.DataFrame]
    kept: dict[str, pd.DataFrame]
    """measured elsewhere and kept in the repository, by "heads, recorded: device" """
    rates: dict[str, dict[str, float]]
    """of each kind of heads, ``Bench.rates``"""
    told: list[str]
    """a line for each kind of heads: implementation, sizes, copy bandwidth"""

    def mixed(self, heads: str) -> int:
        """The number of groups that stands for a mixed batch: 8 where it was measured, or else 10, or else the largest."""
        counts = set(self._grouped(heads).query("order == 'round-robin'")["groups"])
        return next((count for count in (8, 10) if count in counts), max(counts))

    def over(self, heads: str, of: dict, to: dict) -> Ratio:
        """Ratio of attention times between two conditions of the curve over groups, each as column → value."""
        return compare(self._grouped(heads), "attention time", of={"policy": "paged", **of}, to={"policy": "paged", **to})

    def _grouped(self, heads: str) -> pd.DataFrame:
        return self.tables[heads][self.tables[heads]["curve"] == "groups"]

    @cached_property
    def fits(self) -> dict[str, Fit]:
        return {name: fit(table) for name, table in (self.tables | self.kept).items()}


def measure(study: Study, heads: list[str], sizes: dict, repeats: int) -> Measured:
    """All conditions for each kind of heads (empty: the backend's first two), with ``sizes`` in place of the backend's own where given."""
    backend = study.provenance["backend"]
    tables, rates, told = {}, {}, []
    for name in heads or list(SIZES[backend])[:2]:
        bench = Bench(backend, name, replace(SIZES[backend][name], **sizes.get(name, {})))
        tables[name] = study.measure(list(conditions(bench)), repeats)
        rates[name] = bench.rates()
        for dtype, rate in rates[name].items():
            study.row("product", {"heads": name, "dtype": dtype}, "multiplication rate", rate / 1e9, "GFLOP/s", 0)
        told.append(
            f"{name}: {bench.attention.implementation('paged')}, last-level cache {bench.cache_bytes / 2**20:.0f} MiB, "
            f"one prefix {bench.sizes.prefix_tokens * bench.pool.token_bytes / 2**20:.1f} MiB, "
            f"copy {figures.of_metric(tables[name], 'copy bandwidth')['value'].median():.0f} GB/s read and written"
        )
    rows = recorded()
    kept = {f"{name}, recorded: {device}": part for (device, name), part in rows.groupby(["device", "heads"])} if len(rows) else {}
    return Measured(backend, tables, kept, rates, told)


def locality_figures(study: Study, found: Measured) -> None:
    """Time over who shares what and over the row order, a figure for each kind of heads."""
    for name, table in found.tables.items():
        shape, groups = table[table["curve"] == "groups"].iloc[0], found.mixed(name)
        turns = found.over(name, {"groups": groups, "order": "round-robin"}, {"groups": groups, "order": "grouped"})
        mixed = found.over(name, {"groups": groups, "order": "grouped"}, {"groups": 1})
        study.figure(
            drawn.locality(table, name),
            f"attention_locality_{name}",
            f"{groups} groups take {mixed.median:.2f}× as long as one; in round-robin rows {turns.median:.2f}× that",
            f"One layer's paged decode attention, {shape['requests']} rows on prefixes of {shape['prefix tokens']} tokens, heads of {name} · "
            f"{figures.spread(turns.repeats)}",
            "Time over the number of prefix groups and over the rows on a second prefix, in three row orders. The bounds are what the machine's copy "
            "bandwidth allows if every row, or every prefix once, is fetched from memory.",
        )


def kernels_figure(study: Study, found: Measured) -> None:
    """Row orders, cascade and packing side by side."""
    here = machine.device(found.backend)
    shown = {f"{name}\n{here}": (table, found.mixed(name)) for name, table in found.tables.items()}
    for name, table in found.kept.items():
        table = table[table["curve"] == "groups"]
        shown[name.replace(", recorded", "\nrecorded", 1)] = (table, 8 if 8 in set(table["groups"]) else 10)
    name = next(iter(found.tables))
    groups = found.mixed(name)
    packed = found.over(name, {"groups": groups, "order": "grouped"}, {"policy": "packed", "groups": groups})
    study.figure(
        drawn.kernels(shown),
        "attention_kernels",
        f"Packed attention is {packed.median:.2f}× as fast as paged on {groups} groups in grouped rows ({name})",
        f"One layer's decode attention; speed relative to one group under paged attention · {figures.spread(packed.repeats)}",
        "Speed of one layer's decode attention by row order and kernel.",
    )


def against_limit(found: Measured, heads: str, kernel: str, groups: int) -> float:
    """Time of a kernel on grouped rows over the least this device needs: every byte from memory once at the speed of a copy, or the
    multiplications in float32, whichever takes longer."""
    table = found.tables[heads]
    rows = table.query("curve == 'groups' and policy == @kernel and groups == @groups and order in ('grouped', 'any')")
    copy = figures.of_metric(table, "copy bandwidth")["value"].median() * 1e9
    least = max(rows["unique bytes"].iloc[0] / copy, rows["FLOP"].iloc[0] / found.rates[heads]["float32"])
    return float(figures.of_metric(rows, "attention time")["value"].median()) / 1e3 / least


def roofline_figure(study: Study, found: Measured) -> None:
    """Where each kernel stands against what memory and multiplications allow, a figure for each kind of heads."""
    for name, table in found.tables.items():
        groups = found.mixed(name)
        study.figure(
            drawn.roofline(table, name, found.rates[name], groups),
            f"attention_roofline_{name}",
            f"On one prefix the packed kernel takes {against_limit(found, name, 'packed', 1):.1f}× the least time this device needs, the paged one "
            f"{against_limit(found, name, 'paged', 1):.1f}×",
            f"One layer's decode attention, heads of {name}, one group and {groups} groups in grouped rows · {figures.spread(table['repeat'].nunique())}",
            "Rate of multiplications over how many of them a kernel makes with each byte that it asks for. The slope is the bandwidth of a copy, the flat lines "
            "what one large product of matrices reaches. A point above the slope is served by the caches.",
        )


def fit_figure(study: Study, found: Measured) -> None:
    """Measured against fitted times; the fits of this machine are kept as rows of the study."""
    units = {"memory_gb_s": "GB/s", "cache_gb_s": "GB/s", "per_request_us": "µs", "per_call_us": "µs", "in_flight": "rows"}
    for name in found.tables:
        for metric, value in found.fits[name].summary().items():
            study.row("fit", {"heads": name}, metric, value, units.get(metric, "share"), 0)
    worst = max(found.fits.values(), key=lambda one: one.held_out_mape)
    study.figure(
        drawn.fits(found.fits),
        "attention_fit",
        f"Four costs explain the times with a mean error of at most {max(one.mape for one in found.fits.values()):.0%}, {worst.held_out_mape:.0%} held out",
        f"One layer's paged decode attention, each point a batch · medians of {next(iter(found.tables.values()))['repeat'].nunique()} runs",
        "Measured against fitted time of every batch under plain paged attention; held out: every point predicted from all the others.",
    )


def fit_table(found: Measured) -> pd.DataFrame:
    """The fitted costs and the fit's mean relative errors, a row for each kind of heads."""
    return pd.DataFrame({name: one.summary() for name, one in found.fits.items()}).T


def misfits(found: Measured, count: int = 4) -> pd.DataFrame:
    """The batches that each fit gets most wrong."""
    columns = ["curve", "requests", "prefix tokens", "groups", "order", "measured", "fitted", "residual"]
    worst = {
        name: one.points.reindex(one.points["residual"].abs().sort_values(ascending=False).index).head(count)[columns]
        for name, one in found.fits.items()
    }
    return pd.concat(worst, names=["heads"]).droplevel(1)


def devices(found: Measured) -> pd.DataFrame:
    """The constants of the modelled CPU as fitted to whole engine steps, and with those of the kernel; empty on a GPU, whose modelled constants
    come from data sheets."""
    if found.backend != "cpu":
        return pd.DataFrame()
    cpu = calibration.this_cpu(pd.read_csv(calibration.STEPS))
    return pd.DataFrame([
        {"heads": name, "device": told, "memory, GB/s": device.memory_rate / 1e9, "last-level cache, GB/s": device.cache_rate / 1e9,
         "rows swept together": device.concurrent_rows}
        for name in found.tables
        for told, device in (("as fitted to engine steps", cpu), ("with the kernel's constants", calibrate(cpu, found.fits[name])))
    ])  # fmt: skip


def found_in_words(found: Measured) -> str:
    """Mix, order and kernels in Markdown, for each kind of heads measured here."""
    lines = []
    for name, table in found.tables.items():
        groups, fitted = found.mixed(name), found.fits[name]
        mixed = found.over(name, {"groups": groups, "order": "grouped"}, {"groups": 1})
        turns = found.over(name, {"groups": groups, "order": "round-robin"}, {"groups": groups, "order": "grouped"})
        packed = found.over(name, {"groups": groups, "order": "grouped"}, {"policy": "packed", "groups": groups})
        cascade = found.over(name, {"groups": 1}, {"policy": "cascade"})
        copy = figures.of_metric(table, "copy bandwidth")["value"].median()
        lines += [
            f"* **{name}, mix and order.** {groups} groups in grouped rows take {mixed} as long as one group; in round-robin rows {turns} as long as grouped. Whatever lies "
            "between two orders is how often a prefix is fetched again, since rows, tokens and work are the same.",
            f"* **{name}, kernels.** Cascade is {cascade} as fast as paged attention on one group, packed {packed} as fast on {groups} groups.",
            f"* **{name}, limit.** On one group packed attention takes {against_limit(found, name, 'packed', 1):.1f} times as long as this device must, by reading the prefix "
            f"once and by the multiplications in float32; paged attention {against_limit(found, name, 'paged', 1):.1f} times. On {groups} groups: "
            f"{against_limit(found, name, 'packed', groups):.1f} and {against_limit(found, name, 'paged', groups):.1f}.",
            f"* **{name}, bandwidth.** The fit finds {fitted.memory_gb_s:.0f} GB/s from memory, where a copy reads and writes {copy:.0f} GB/s together, "
            f"and {fitted.cache_gb_s:.0f} GB/s from the last-level cache.",
        ]
    return "\n".join(lines)
