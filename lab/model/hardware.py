"""Devices as data: one set of constants each, for every figure, and where each constant comes from.

What vouches for them: rates of memory and of matrix products are the data sheets', and are what clock, width and number of units multiply
to (``tests/test_sim.py`` does the multiplication; for A100 and H100 they are also those of PyTorch's own table,
``torch._inductor.analysis.device_info``). Everything else stands as it is remembered of the document named as its source, and was not
rechecked against it: sizes of the last-level caches (but for the RTX 6000 Ada's, which the paper's authors give), their bytes per clock,
the shares that kernels reach, the query tile. Check those before a modelled number is quoted.

Nothing here was chosen to make a figure agree: what a real kernel loses against these rates shows as residual
(``benchmarks.sim_validation``). Sizes of memories are binary, as the chips are, also where a data sheet writes GB and MB.
"""

from dataclasses import dataclass, field

GB, TB, TFLOP = 1e9, 1e12, 1e12
GIB, MIB = 2**30, 2**20

MEMORY_SHARE = 0.92
"""of a device's memory that an engine uses (``gpu_memory_utilization``; vLLM 0.31's default)"""


@dataclass(frozen=True)
class Device:
    """Raises ValueError for a constant that is negative, not a number, or 0 where it divides."""

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
    """rows of queries that one pass over keys and values serves"""
    pads: bool = True
    """whether a pass with fewer rows of queries computes as many as ``query_tile`` all the same"""
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

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__.keys() - {"name", "pads", "heads_at_once", "overlaps", "sources"}:
            value, may_be_none = getattr(self, name), name in ("cache_bytes", "step_seconds", "row_seconds")
            if not (value > 0 or may_be_none and value == 0):
                raise ValueError(f"{self.name}: {name}={value} must be {'0 or ' if may_be_none else ''}above 0")


_MICROBENCHMARK = (
    "L2 read throughput of {} in Luo et al., arXiv 2402.13499 (bytes per clock; not rechecked), at the clock that flop_rate is told for"
)
_SHARED_SOURCES = {
    "gemm_share": "Dao, FlashAttention-2 (arXiv 2307.08691), section 1: optimised GEMMs reach 80–90 % of the peak; the middle",
    "concurrent_rows": "one thread block a multiprocessor: its number of multiprocessors, from the data sheet",
    "query_tile": "FlashAttention's tile of query rows in its split-KV (decode) kernel at head dimension 128 (not rechecked)",
    "pads": "tensor cores multiply whole tiles",
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
    memory_bytes=48 * GIB,
    memory_rate=960 * GB,
    cache_bytes=96 * MIB,
    cache_rate=1708 * 2.505e9,
    flop_rate=364.25 * TFLOP,
    gemm_share=0.85,
    attention_share=0.73,
    concurrent_rows=142,
    query_tile=64,
    sources=_flash_attention_2(
        memory_bytes="NVIDIA RTX 6000 Ada data sheet: 48 GB, 24 chips of 2 GiB",
        memory_rate="NVIDIA RTX 6000 Ada data sheet: 960 GB/s = 384 bits × 20 Gbit/s",
        cache_bytes="96 MB, as the paper's authors give it for their card (NVIDIA Ada architecture white paper: the full AD102)",
        cache_rate=_MICROBENCHMARK.format("the RTX 4090 (same L2 slices, 1708)") + ", 2.505 GHz",
        flop_rate="NVIDIA RTX 6000 Ada data sheet: 1457 TFLOPS in FP8 with sparsity, a quarter of it dense in bfloat16 = 142 multiprocessors × 1024 FLOP a clock × 2.505 GHz",
    ),
)
A100 = Device(
    "A100-80GB",
    memory_bytes=80 * GIB,
    memory_rate=2039 * GB,
    cache_bytes=40 * MIB,
    cache_rate=2008 * 1.41e9,
    flop_rate=312 * TFLOP,
    gemm_share=0.85,
    attention_share=0.73,
    concurrent_rows=108,
    query_tile=64,
    sources=_flash_attention_2(
        memory_bytes="NVIDIA A100 data sheet (SXM): 80 GB, 5 stacks of 16 GiB",
        memory_rate="NVIDIA A100 data sheet (SXM): 2039 GB/s = 5120 bits × 3.186 Gbit/s",
        cache_bytes="NVIDIA A100 white paper: 40 MB of L2 (not rechecked)",
        cache_rate=_MICROBENCHMARK.format("the A100 (2008)") + ", 1.41 GHz",
        flop_rate="NVIDIA A100 data sheet: 312 TFLOPS dense in bfloat16 = 108 multiprocessors × 2048 FLOP a clock × 1.41 GHz",
    ),
)
H100 = Device(
    "H100",
    memory_bytes=80 * GIB,
    memory_rate=3.35 * TB,
    cache_bytes=50 * MIB,
    cache_rate=3942 * 1.83e9,
    flop_rate=989.4 * TFLOP,
    gemm_share=0.85,
    attention_share=0.75,
    concurrent_rows=132,
    query_tile=64,
    sources=_flash_attention_3(
        memory_bytes="NVIDIA H100 data sheet (SXM): 80 GB, 5 stacks of 16 GiB",
        memory_rate="NVIDIA H100 data sheet (SXM): 3.35 TB/s = 5120 bits × 5.23 Gbit/s",
        cache_bytes="NVIDIA H100 white paper: 50 MB of L2 (not rechecked)",
        cache_rate=_MICROBENCHMARK.format("the H100 (PCIe, 3942)") + ", 1.83 GHz",
        flop_rate="NVIDIA H100 data sheet (SXM): 1979 TFLOPS in bfloat16 with sparsity, half of it dense = 132 multiprocessors × 4096 FLOP a clock × 1.83 GHz",
    ),
)
H200 = Device(
    "H200",
    memory_bytes=141 * GIB,
    memory_rate=4.8 * TB,
    cache_bytes=60 * MIB,
    cache_rate=3942 * 1.83e9,
    flop_rate=989.4 * TFLOP,
    gemm_share=0.85,
    attention_share=0.75,
    concurrent_rows=132,
    query_tile=64,
    sources=_flash_attention_3(
        memory_bytes="NVIDIA H200 data sheet (SXM): 141 GB, taken as binary like the others (not rechecked)",
        memory_rate="NVIDIA H200 data sheet (SXM): 4.8 TB/s = 6144 bits × 6.25 Gbit/s",
        cache_bytes="60 MB, as CUDA reports it (not rechecked)",
        cache_rate="as the H100, whose chip it has",
        flop_rate="NVIDIA H200 data sheet (SXM): as the H100",
    ),
)
DEVICES = {"rtx-6000-ada": RTX_6000_ADA, "a100": A100, "h100": H100, "h200": H200}
