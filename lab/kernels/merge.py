"""Parts of one softmax over different tokens, joined by their log-sum-exp."""

import triton
import triton.language as tl


@triton.jit
def merge_kernel(outputs, sums, merged, entries, PARTS: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr):
    """One program per entry (row and query head): ``outputs`` [parts, entries, SIZE] and ``sums`` [parts, entries] (base-2
    log-sum-exp), float32, into ``merged`` [entries, SIZE]. One part at least must be of some token."""
    entry = tl.program_id(0).to(tl.int64)
    parts, dims = tl.arange(0, PADDED), tl.arange(0, SIZE)
    real = parts < PARTS
    places = parts * entries + entry
    lse = tl.load(sums + places, mask=real, other=float("-inf"))
    weights = tl.exp2(lse - tl.max(lse, 0))
    output = tl.load(outputs + places[:, None] * SIZE + dims[None, :], mask=real[:, None], other=0.0)
    joined = tl.sum(output * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(merged + entry * SIZE + dims, joined.to(merged.dtype.element_ty))
