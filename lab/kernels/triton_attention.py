"""The Triton kernels behind one call: plain paged decode, cascade, and packed per prefix.

Runs on a CUDA GPU, or on a CPU in Triton's interpreter where TRITON_INTERPRET=1 stood in the environment before this was imported.
"""

import math
from collections.abc import Callable

import torch
import triton

from lab.kernels.batch import Batch
from lab.kernels.merge import merge_kernel
from lab.kernels.packed import packed_kernel
from lab.kernels.packing import fetched_tokens, packs
from lab.kernels.paged import paged_kernel
from lab.kernels.pool import Pool

_PROGRAMS_PER_PROCESSOR = 4  # with fewer, splits make up for them; more of them only add parts to merge
_LEAST_TILES = 4  # per split


def launch_options(pool: Pool, queries: int) -> dict:
    """Compile-time sizes for so many queries to a program: tiles small enough that two stages of keys and values fit into
    99 KiB of shared memory, what an Ada GPU has (CUDA C programming guide, compute capability 8.9)."""
    tile = 64 if pool.keys.element_size() == 2 else 16
    return {
        "KV_HEADS": pool.heads.kv, "PER_KV": pool.heads.per_kv, "SIZE": pool.heads.size, "BLOCK": pool.block_size,
        "QUERIES": queries, "TILE": tile, "WIDEN": pool.device == "cpu", "num_warps": 4, "num_stages": 2,
    }  # fmt: skip


class TritonAttention:
    """Attention over a pool, prepared per batch and then called with queries only."""

    def __init__(self, pool: Pool):
        self.pool = pool
        # 64 queries to a pack in bfloat16; float32, which the matrix units do not take, would spill its registers.
        self.pack_rows = max(1, (64 if pool.keys.element_size() == 2 else 16) // pool.heads.per_kv)
        on_gpu = pool.device != "cpu"
        self.processors = torch.cuda.get_device_properties(pool.device).multi_processor_count if on_gpu else 1

    def implementation(self, kernel: str) -> str:
        return f"Triton {triton.__version__}" + (", interpreted" if self.pool.device == "cpu" else "")

    def fetched_tokens(self, batch: Batch, kernel: str) -> int:
        return fetched_tokens(batch, kernel, self.pack_rows)

    def prepare(self, kernel: str, batch: Batch, table: torch.Tensor, splits: int | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function queries → output, both [rows, query heads, head size]. All that depends on the batch alone is done
        here, as an engine does it once for all its layers; the function reuses its buffers, output included."""
        pool, rows = self.pool, len(batch.groups)
        heads, size = pool.heads.query, pool.heads.size
        chosen = packs(batch, kernel, self.pack_rows)
        scale = size**-0.5 * math.log2(math.e)
        table = table.to(pool.device)
        lasts = self._numbers(batch.lengths)
        firsts = self._numbers([batch.prefix_tokens if chosen else 0] * rows)
        own = 1 if chosen else splits or self._splits(rows, max(batch.lengths))
        shared = (splits or self._splits(len(chosen), batch.prefix_tokens)) if chosen else 0
        outputs = torch.empty((shared + own, rows, heads, size), dtype=torch.float32, device=pool.device)
        sums = torch.empty(outputs.shape[:-1], dtype=torch.float32, device=pool.device)
        merged = torch.empty((rows, heads, size), dtype=pool.dtype, device=pool.device)
        per_row = launch_options(pool, max(16, triton.next_power_of_2(pool.heads.per_kv)))
        per_pack = launch_options(pool, max(16, triton.next_power_of_2(self.pack_rows * pool.heads.per_kv)))
        padded = triton.next_power_of_2(shared + own)
        members = self._numbers([row for pack in chosen for row in pack.rows])
        counts = self._numbers([len(pack.rows) for pack in chosen])
        starts = (counts.cumsum(0) - counts).to(torch.int32)
        ends = self._numbers([pack.tokens for pack in chosen])

        def attend(queries: torch.Tensor) -> torch.Tensor:
            if chosen:
                packed_kernel[(shared, pool.heads.kv, len(chosen))](
                    queries, pool.keys, pool.values, table, members, starts, counts, ends, outputs, sums,
                    table.shape[1], scale, rows, SPLITS=shared, **per_pack,
                )  # fmt: skip
            paged_kernel[(own, pool.heads.kv, rows)](
                queries, pool.keys, pool.values, table, firsts, lasts, outputs[shared:], sums[shared:],
                table.shape[1], scale, rows, SPLITS=own, **per_row,
            )  # fmt: skip
            merge_kernel[(rows * heads,)](outputs, sums, merged, rows * heads, PARTS=shared + own, PADDED=padded, SIZE=size, num_warps=1)
            return merged

        return attend

    def _numbers(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.pool.device)

    def _splits(self, rows: int, tokens: int) -> int:
        wanted = -(-_PROGRAMS_PER_PROCESSOR * self.processors // (rows * self.pool.heads.kv))
        return max(1, min(wanted, tokens // (_LEAST_TILES * launch_options(self.pool, 16)["TILE"])))
