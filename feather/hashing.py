"""A prompt as its sequence of *cumulative prefix hashes*, one per full chunk of tokens.

If hash i of two requests is equal, their tokens are equal from the start to the end of chunk i. So a shared prefix is a shared
head of the two sequences, and no tokens need to be compared. Tokens of a last, partial chunk do not count.

The hashes only decide which request is scheduled next. Two prompts whose 64-bit hashes collide (probability about n² / 2⁶⁵ among
n distinct chunks) may share a batch that they should not, but each still computes its own result.
"""

from array import array
from collections.abc import Hashable, Iterable, Sequence

import xxhash


def hash_tokens(tokens: Sequence[int], chunk_size: int, keys: Iterable[tuple[int, bytes]] = ()) -> list[int]:
    """Hash token ids (0 … 2³²−1) chunk by chunk with XXH3-64, in one pass.

    ``keys`` are (position, bytes) pairs, in ascending order: whatever makes a prefix besides its token ids (a LoRA adapter, a
    cache salt, the image behind placeholder tokens). Each enters the hash of the chunk that holds its position, and so of
    every later chunk.

    Returns ``len(tokens) // chunk_size`` integers. Raises ValueError for a token id outside the range.
    """
    try:
        data = memoryview(array("I", tokens)).cast("B")
    except (OverflowError, TypeError) as error:
        raise ValueError(f"token ids must be integers from 0 to 2**32 - 1: {error}") from None
    stride = chunk_size * 4
    state = xxhash.xxh3_64()
    hashes = []
    pending = list(keys)
    for start in range(0, len(data) - stride + 1, stride):
        while pending and pending[0][0] * 4 < start + stride:
            position, key = pending.pop(0)
            state.update(b"%d:%d:" % (position, len(key)) + key)
        state.update(data[start : start + stride])
        hashes.append(state.intdigest())
    return hashes


def hash_blocks(block_hashes: Sequence[Hashable], block_size: int, chunk_size: int) -> Sequence[Hashable]:
    """Use an engine's own block hashes, which are cumulative, as chunk hashes: every (chunk / block)-th of them.

    Nothing is hashed again, and whatever the engine mixed into its hashes (adapter, salt, images) is included.
    Raises ValueError if ``chunk_size`` is no multiple of ``block_size`` (both in tokens).
    """
    blocks_per_chunk, rest = divmod(chunk_size, block_size)
    if rest or not blocks_per_chunk:
        raise ValueError(f"chunk size {chunk_size} is no multiple of the block size {block_size}: hash the tokens instead")
    return block_hashes[blocks_per_chunk - 1 :: blocks_per_chunk]
