"""The inner loop of both kernels: queries of one key-value head against a range of paged tokens, with an online softmax.

Algorithm: FlashAttention's (Dao et al. 2022, arXiv 2205.14135), with the base-2 exponential; keys and values are found through a
block table (Kwon et al. 2023, arXiv 2309.06180).
"""

import triton
import triton.language as tl


@triton.jit
def sweep(query, keys, values, blocks, low, high, head, scale,
          KV_HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, TILE: tl.constexpr,
          WIDEN: tl.constexpr):  # fmt: skip
    """query [QUERIES, SIZE] over the tokens low … high − 1 of the row whose block table starts at ``blocks``. Returns the
    normalised output [QUERIES, SIZE] and the base-2 log-sum-exp [QUERIES], 0 and −∞ for an empty range. ``scale`` holds
    the factor log2(e). ``WIDEN`` multiplies bfloat16 as float32, which is what the matrix units' products and sums are
    anyway: Triton's interpreter cannot multiply bfloat16."""
    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    output = tl.zeros([QUERIES, SIZE], tl.float32)
    dims = tl.arange(0, SIZE)
    for start in range(low, high, TILE):
        tokens = start + tl.arange(0, TILE)
        inside = tokens < high
        block = tl.load(blocks + tokens // BLOCK, mask=inside, other=0).to(tl.int64)
        places = ((block * BLOCK + tokens % BLOCK) * KV_HEADS + head) * SIZE
        key = tl.load(keys + places[None, :] + dims[:, None], mask=inside[None, :], other=0.0)
        if WIDEN:
            query, key = query.to(tl.float32), key.to(tl.float32)
        # "ieee": float32 stays float32, not TF32; bfloat16 is not concerned.
        scores = tl.dot(query, key, input_precision="ieee") * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        value = tl.load(values + places[:, None] + dims[None, :], mask=inside[:, None], other=0.0)
        weights = weights.to(value.dtype)
        if WIDEN:
            weights, value = weights.to(tl.float32), value.to(tl.float32)
        output = output * shrink[:, None] + tl.dot(weights, value, input_precision="ieee")
        peak = new_peak
    some = total > 0
    output = tl.where(some[:, None], output / tl.where(some, total, 1.0)[:, None], 0.0)
    return output, tl.where(some, peak + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
