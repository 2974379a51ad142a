"""Paged decode attention: every row for itself, its tokens split over several programs.

This is the kernel that knows nothing of sharing: rows on one prefix read the same blocks, each on its own, and whether that costs
memory bandwidth is up to the caches.
"""

import triton
import triton.language as tl

from lab.kernels.sweep import sweep


@triton.jit
def paged_kernel(queries, keys, values, table, firsts, lasts, outputs, sums, table_width, scale, rows,
                 KV_HEADS: tl.constexpr, PER_KV: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
                 QUERIES: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """Row r attends to its tokens firsts[r] … lasts[r] − 1. Writes one part per split: ``outputs`` [splits, rows, query heads,
    size] and ``sums`` [splits, rows, query heads], both float32."""
    # Splits and heads of a row start together and rows in their order, as in FlashAttention's split-KV grid.
    split, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, last = tl.load(firsts + row), tl.load(lasts + row)
    share = tl.cdiv(tl.cdiv(last - first, SPLITS), TILE) * TILE
    low = first + split * share
    high = tl.minimum(low + share, last)
    ranks = tl.arange(0, QUERIES)  # padded: the matrix units take 16 rows at least
    real = ranks < PER_KV
    dims = tl.arange(0, SIZE)
    heads = head * PER_KV + ranks
    places = (row * KV_HEADS * PER_KV + heads)[:, None] * SIZE + dims[None, :]
    query = tl.load(queries + places, mask=real[:, None], other=0.0)
    output, lse = sweep(query, keys, values, table + row.to(tl.int64) * table_width, low, high, head, scale,
                        KV_HEADS, SIZE, BLOCK, QUERIES, TILE, WIDEN)  # fmt: skip
    part = (split * rows + row).to(tl.int64) * KV_HEADS * PER_KV + heads
    tl.store(outputs + part[:, None] * SIZE + dims[None, :], output, mask=real[:, None])
    tl.store(sums + part, lse, mask=real)
