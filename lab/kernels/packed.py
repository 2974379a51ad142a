"""Attention to shared prefixes, each read once for many rows: the rows' queries are packed into one matrix.

With one group of all rows this is the prefix half of cascade attention (Ye et al. 2024, "Cascade Inference", FlashInfer); with
a group for every prefix it is what prefix-packing kernels do. The other half, each row's own tokens, is ``paged_kernel``;
``merge`` joins the two.
"""

import triton
import triton.language as tl

from lab.kernels.sweep import sweep


@triton.jit
def packed_kernel(queries, keys, values, table, members, starts, counts, lasts, outputs, sums, table_width, scale, rows,
                  KV_HEADS: tl.constexpr, PER_KV: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
                  QUERIES: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """Pack p holds the rows members[starts[p]] … members[starts[p] + counts[p] − 1], which share their first lasts[p] tokens;
    at most QUERIES ÷ PER_KV of them. Writes its parts as ``paged_kernel`` does."""
    split, head, pack = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, count, last = tl.load(starts + pack), tl.load(counts + pack), tl.load(lasts + pack)
    share = tl.cdiv(tl.cdiv(last, SPLITS), TILE) * TILE
    low = split * share
    high = tl.minimum(low + share, last)
    ranks = tl.arange(0, QUERIES)
    real = ranks // PER_KV < count
    dims = tl.arange(0, SIZE)
    row = tl.load(members + start + ranks // PER_KV, mask=real, other=0)
    heads = row * KV_HEADS * PER_KV + head * PER_KV + ranks % PER_KV
    query = tl.load(queries + heads[:, None] * SIZE + dims[None, :], mask=real[:, None], other=0.0)
    leader = tl.load(members + start).to(tl.int64)  # any member's block table names the shared blocks
    output, lse = sweep(query, keys, values, table + leader * table_width, low, high, head, scale,
                        KV_HEADS, SIZE, BLOCK, QUERIES, TILE, WIDEN)  # fmt: skip
    part = split.to(tl.int64) * rows * KV_HEADS * PER_KV + heads
    tl.store(outputs + part[:, None] * SIZE + dims[None, :], output, mask=real[:, None])
    tl.store(sums + part, lse, mask=real)
