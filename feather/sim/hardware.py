"""Devices as data: one set of constants each, for every figure, and where each constant comes from.

The documents named as sources were not at hand when the constants were written down: they are to be checked against them before a
modelled number is quoted. Nothing here was chosen to make a figure agree: rates are data-sheet or published microbenchmark values, and what a real
kernel loses against them shows as residual (``benchmarks.sim_validation``).
"""

from dataclasses import dataclass, field

GB, TB, MB, TFLOP = 1e9, 1e12, 1e6, 1e12


@dataclass(frozen=True)
class Device:
    name: str
    memory_bytes: float
    """device memory, bytes"""
    memory_rate: float
    """from DRAM, bytes/s"""
    cache_bytes: float
    """last-level cache, bytes"""
    cache_rate: float
    """from the last-level cache to the cores, bytes/s"""
    flop_rate: float
    """dense bfloat16 with float32 accumulation, FLOP/s"""
    gemm_share: float
    """share of ``flop_rate`` that a large matrix product reaches"""
    attention_share: float
    """share of ``flop_rate`` that the attention kernel reaches"""
    concurrent_rows: int
    """rows whose attention runs at the same time, in step with each other"""
    query_tile: int
    """rows of queries that one pass over keys and values serves; fewer are padded up to it"""
    heads_at_once: bool = False
    """True: a row's pass covers the keys and values of all heads before the next row's; False: head by head over all rows"""
    overlaps: bool = True
    """True: a kernel takes as long as the slowest of compute, cache and DRAM, and scheduling hides behind the step before
    (async scheduling); False: they add up"""
    step_seconds: float = 0.0
    """what the engine spends on any step beside scheduling and the model, s"""
    row_seconds: float = 0.0
    """the same for each row of it, s"""
    sources: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    """field → where its value comes from"""


_MICROBENCHMARK = "L2 read throughput of {} in Luo et al., arXiv 2402.13499 (bytes per clock), at this card's boost clock"
_SHARED_SOURCES = {
    "gemm_share": "Dao, FlashAttention-2 (arXiv 2307.08691), section 1: optimised GEMMs reach 80–90 % of the peak; the middle",
    "concurrent_rows": "one thread block a multiprocessor: its number of multiprocessors, from the data sheet",
    "query_tile": "FlashAttention's tile of query rows in its split-KV (decode) kernel at head dimension 128",
    "heads_at_once": "FlashAttention's grid: the batch varies faster than the head",
    "overlaps": "roofline: a GPU hides the latency of one resource behind another (Williams et al. 2009)",
    "step_seconds": "none: kernel launches are assumed to hide behind the device (CUDA graphs)",
    "row_seconds": "none: see step_seconds",
}


def _flash_attention_2(**sources: str) -> dict[str, str]:
    attention = "Dao, FlashAttention-2 (arXiv 2307.08691), abstract: up to 73 % of the peak"
    return {**_SHARED_SOURCES, "attention_share": attention, **sources}


def _flash_attention_3(**sources: str) -> dict[str, str]:
    attention = "Shah et al., FlashAttention-3 (arXiv 2407.08608), abstract: up to 75 % of the peak"
    return {**_SHARED_SOURCES, "attention_share": attention, **sources}


RTX_6000_ADA = Device(
    "RTX 6000 Ada",
    memory_bytes=48 * GB,
    memory_rate=960 * GB,
    cache_bytes=96 * MB,
    cache_rate=1708 * 2.505e9,
    flop_rate=364.25 * TFLOP,
    gemm_share=0.85,
    attention_share=0.73,
    concurrent_rows=142,
    query_tile=64,
    sources=_flash_attention_2(
        memory_bytes="NVIDIA RTX 6000 Ada data sheet: 48 GB",
        memory_rate="NVIDIA RTX 6000 Ada data sheet: 960 GB/s",
        cache_bytes="NVIDIA Ada architecture white paper: 96 MB of L2 in the full AD102",
        cache_rate=_MICROBENCHMARK.format("the RTX 4090 (same L2 slices, 1708)") + ", 2.505 GHz",
        flop_rate="NVIDIA RTX 6000 Ada data sheet: 1457 TFLOPS in FP8 with sparsity, a quarter of it dense in bfloat16",
    ),
)
A100 = Device(
    "A100-80GB",
    memory_bytes=80 * GB,
    memory_rate=2039 * GB,
    cache_bytes=40 * MB,
    cache_rate=2008 * 1.41e9,
    flop_rate=312 * TFLOP,
    gemm_share=0.85,
    attention_share=0.73,
    concurrent_rows=108,
    query_tile=64,
    sources=_flash_attention_2(
        memory_bytes="NVIDIA A100 data sheet (SXM): 80 GB",
        memory_rate="NVIDIA A100 data sheet (SXM): 2039 GB/s",
        cache_bytes="NVIDIA A100 white paper: 40 MB of L2",
        cache_rate=_MICROBENCHMARK.format("the A100 (2008)") + ", 1.41 GHz",
        flop_rate="NVIDIA A100 data sheet: 312 TFLOPS dense in bfloat16",
    ),
)
H100 = Device(
    "H100",
    memory_bytes=80 * GB,
    memory_rate=3.35 * TB,
    cache_bytes=50 * MB,
    cache_rate=3942 * 1.98e9,
    flop_rate=989.4 * TFLOP,
    gemm_share=0.85,
    attention_share=0.75,
    concurrent_rows=132,
    query_tile=64,
    sources=_flash_attention_3(
        memory_bytes="NVIDIA H100 data sheet (SXM): 80 GB",
        memory_rate="NVIDIA H100 data sheet (SXM): 3.35 TB/s",
        cache_bytes="NVIDIA H100 white paper: 50 MB of L2",
        cache_rate=_MICROBENCHMARK.format("the H100 (3942)") + ", 1.98 GHz",
        flop_rate="NVIDIA H100 data sheet (SXM): 1979 TFLOPS in bfloat16 with sparsity, half of it dense",
    ),
)
H200 = Device(
    "H200",
    memory_bytes=141 * GB,
    memory_rate=4.8 * TB,
    cache_bytes=50 * MB,
    cache_rate=3942 * 1.98e9,
    flop_rate=989.4 * TFLOP,
    gemm_share=0.85,
    attention_share=0.75,
    concurrent_rows=132,
    query_tile=64,
    sources=_flash_attention_3(
        memory_bytes="NVIDIA H200 data sheet (SXM): 141 GB",
        memory_rate="NVIDIA H200 data sheet (SXM): 4.8 TB/s",
        cache_bytes="as the H100, whose chip it has",
        cache_rate="as the H100, whose chip it has",
        flop_rate="NVIDIA H200 data sheet (SXM): 1979 TFLOPS in bfloat16 with sparsity, half of it dense",
    ),
)
DEVICES = {"rtx-6000-ada": RTX_6000_ADA, "a100": A100, "h100": H100, "h200": H200}
