"""Attention of many rows to shared keys: one pass over a prefix serves every row that has it.

vLLM's kernel for CPUs sweeps the keys of every row by itself. Here a *task* is a run of blocks and the tokens (queries) that attend to all of
them: the blocks of a prefix with the tokens of every row that shares it, or a row's own blocks with its own tokens. A tile of keys and
values is read from the paged cache and widened to float32 once, and then used by all of the task's tokens while it is in the first-level cache.
Each task leaves partial results (maximum, sum and weighted values of the softmax, as in FlashAttention, Dao et al. 2022), and ``merge``
joins those of each token.

The cache is read in place: no copy of a prefix is kept, so none can be stale and none takes memory.

Compiled by numba, which vLLM brings. Arrays are flat and come as addresses, because the code runs on threads of PyTorch's pool (``threads``).
"""

from functools import lru_cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from feather.vllm.attention import vectors
from feather.vllm.attention.vectors import LANES

# The places of the arguments in the array whose address the C functions take: counts, strides in elements, and addresses.
(
    UNIT, MERGE, THREAD,  # counters that the threads take their work and their numbers from: 0 before a call
    TASKS, TASK_LIST, TOKENS, TOKEN_COUNT, VISIBLE, BLOCKS, BLOCK_COUNT,  # see ``plan.Plan``
    MERGES, MERGED, STARTS, PARTS,
    KV_HEADS, GROUP, SCALE,  # GROUP: query heads per head of keys and values; SCALE: address of a float64, log₂e included
    QUERY, QUERY_STRIDE, QUERY_SIZE, OUTPUT, OUTPUT_STRIDE, OUTPUT_SIZE,  # [tokens, heads, head size], the stride that of tokens
    CACHE, CACHE_SIZE, BLOCK_STRIDE, HEAD_STRIDE,
    PARTIAL, SOFTMAX,  # float32 [TOKEN_COUNT, heads, head size] and [TOKEN_COUNT, heads, 2]
    ROOM, ROOM_SIZE,  # float32, for each thread
    CALL,
) = range(32)  # fmt: skip

TILE = 128
"""keys that are widened at a time: with 64 values each, 32 KiB, about a first-level cache"""
QUERIES = 128
"""of a task, at most: a token counts once for each query head of a head of keys and values"""
ROWS = 4
"""queries that go through a tile together"""
_LOWEST = np.float32(-1e30)  # a maximum before the first key: finite, so that no difference of two is NaN
_FAST = {"fastmath": True, "error_model": "numpy", "nogil": True, "boundscheck": False}


def tile_keys(block_size: int) -> int:
    """Keys of a tile: whole blocks."""
    return max(1, TILE // block_size) * block_size


def room_size(head_size: int, block_size: int) -> int:
    """Numbers that a thread needs room for."""
    return (2 * head_size + ROWS) * tile_keys(block_size) + 2 * QUERIES * (head_size + 1)


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer, for ``carray``."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def _take(typingctx: Any, counter: Any) -> Any:
    """The counter's value, which is one higher afterwards; atomic, so that each thread gets another."""

    def codegen(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen


@lru_cache
def compiled(head_size: int, block_size: int, element: str, paired: bool = False) -> tuple[Any, Any]:
    """The kernel for one shape of cache, one type of its elements ("bfloat16" or "float32") and one ``layout``: two C functions, ``attend`` and ``merge``,
    each to be run on every thread of a pool with the address of the arguments. Compiling takes seconds."""
    D, B = head_size, block_size
    T = tile_keys(block_size)
    bfloat16 = element == "bfloat16"
    number = np.uint16 if bfloat16 else np.float32
    zero, one, lowest = np.float32(0), np.float32(1), _LOWEST
    jit = numba.njit(**_FAST)
    widen_query, widen_keys, widen_values = (vectors.widen(count, bfloat16) for count in (D, B, B * D))
    split_keys, split_values = (vectors.split(stride) for stride in (T, D))
    score, score_one = vectors.product(ROWS, D, T, adds=False), vectors.product(1, D, T, adds=False)
    add_values, add_values_one = vectors.product(ROWS, T, D, adds=True), vectors.product(1, T, D, adds=True)
    highest, soften = vectors.highest(T), vectors.soften(T)

    if bfloat16:

        @jit
        def narrow(floats, bits, start, target, place):
            for d in range(D):  # to the nearest, halves to even
                word = bits[start + d]
                target[place + d] = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)

    else:

        @jit
        def narrow(floats, bits, start, target, place):
            for d in range(D):
                target[place + d] = floats[start + d]

    if paired:

        @jit
        def load(cache, start, keys, values, i):
            """A block, the ``i``-th of its tile."""
            for j in range(0, B, LANES):
                for d in range(0, D, 2):
                    split_keys(cache, start + j * D + d * LANES, keys, d * T + i * B + j)
            start += D * B
            for d in range(0, D, LANES):
                for j in range(0, B, 2):
                    split_values(cache, start + d * B + j * LANES, values, (i * B + j) * D + d)

    else:

        @jit
        def load(cache, start, keys, values, i):
            """A block, the ``i``-th of its tile."""
            for d in range(D):
                widen_keys(cache, start + d * B, keys, d * T + i * B)
            widen_values(cache, start + D * B, values, i * B * D)

    @jit
    def weigh(weights, place, visible, high, sums, into):
        """A query's scores become weights relative to its highest so far. Returns that, their sum, and the factor by which what was summed
        before shrinks, done for ``sums``."""
        for j in range(visible, T):
            weights[place + j] = lowest
        top = max(high, highest(weights, place))
        total = soften(weights, place, top)
        for j in range(visible, T):  # of which the lowest, where nothing is visible, would else weigh 1
            total -= weights[place + j]
            weights[place + j] = zero
        shrink = np.exp2(high - top)
        if shrink != one:
            for d in range(D):
                sums[into + d] *= shrink
        return top, total, shrink

    @jit
    def attend_task(task, head, call, query, cache, blocks, tokens, visible, partial, softmax, room, scale):
        first_token, count, first_block, block_count = task[0], task[1], task[2], task[3]
        group = call[GROUP]
        size = count * group
        # This thread's room: a tile of keys [D, T] and of values [T, D], weights [ROWS, T], then of each query itself, its sums, maximum, total.
        keys, values, weights = room[: D * T], room[D * T : 2 * D * T], room[2 * D * T : (2 * D + ROWS) * T]
        rest = room[(2 * D + ROWS) * T :]
        queries, sums = rest[: QUERIES * D], rest[QUERIES * D : 2 * QUERIES * D]
        highs, totals = rest[2 * QUERIES * D : 2 * QUERIES * D + QUERIES], rest[2 * QUERIES * D + QUERIES :]
        for index in range(count):
            start = tokens[first_token + index] * call[QUERY_STRIDE] + head * group * D
            for member in range(group):
                widen_query(query, start + member * D, queries, (index * group + member) * D)
        for i in range(size * D):
            queries[i] *= scale
            sums[i] = zero
        for i in range(size):
            highs[i], totals[i] = lowest, zero

        for block in range(0, block_count, T // B):
            loaded = min(T // B, block_count - block)
            for i in range(loaded):
                start = blocks[first_block + block + i] * call[BLOCK_STRIDE] + head * call[HEAD_STRIDE]
                load(cache, start, keys, values, i)
            for i in range(loaded * B * D, T * D):  # weighed with 0 below; but what is there may be no number
                values[i] = zero
            begun, seen = block * B, loaded * B
            i = 0
            while i < size:
                rows = ROWS if size - i >= ROWS else 1
                if rows == 1:
                    score_one(queries, i * D, keys, weights, 0)
                else:
                    score(queries, i * D, keys, weights, 0)
                for row in range(rows):
                    ahead = min(max(visible[first_token + (i + row) // group] - begun, 0), seen)
                    top, total, shrink = weigh(weights, row * T, ahead, highs[i + row], sums, (i + row) * D)
                    highs[i + row], totals[i + row] = top, totals[i + row] * shrink + total
                if rows == 1:
                    add_values_one(weights, 0, values, sums, i * D)
                else:
                    add_values(weights, 0, values, sums, i * D)
                i += rows

        for index in range(count):
            for member in range(group):
                i = index * group + member
                row = ((first_token + index) * call[KV_HEADS] + head) * group + member
                softmax[2 * row], softmax[2 * row + 1] = highs[i], totals[i]
                for d in range(D):
                    partial[row * D + d] = sums[i * D + d]

    @numba.cfunc(types.void(types.CPointer(types.int64)), **_FAST)
    def attend(address):
        call = carray(address, CALL)
        scale = np.float32(carray(_pointer(call[SCALE]), 1, np.float64)[0])
        query = carray(_pointer(call[QUERY]), call[QUERY_SIZE], number)
        cache = carray(_pointer(call[CACHE]), call[CACHE_SIZE], number)
        tasks = carray(_pointer(call[TASK_LIST]), (call[TASKS], 4), np.int64)
        tokens = carray(_pointer(call[TOKENS]), call[TOKEN_COUNT], np.int64)
        visible = carray(_pointer(call[VISIBLE]), call[TOKEN_COUNT], np.int64)
        blocks = carray(_pointer(call[BLOCKS]), call[BLOCK_COUNT], np.int64)
        heads, units = call[KV_HEADS], call[TASKS] * call[KV_HEADS]
        partial = carray(_pointer(call[PARTIAL]), call[TOKEN_COUNT] * heads * call[GROUP] * D, np.float32)
        softmax = carray(_pointer(call[SOFTMAX]), call[TOKEN_COUNT] * heads * call[GROUP] * 2, np.float32)
        thread, size = _take(call[THREAD:]), call[ROOM_SIZE]
        room = carray(_pointer(call[ROOM] + thread * size * 4), size, np.float32)
        unit = _take(call[UNIT:])
        while unit < units:
            attend_task(tasks[unit // heads], unit % heads, call, query, cache, blocks, tokens, visible, partial, softmax, room, scale)
            unit = _take(call[UNIT:])

    @numba.cfunc(types.void(types.CPointer(types.int64)), **_FAST)
    def merge(address):
        call = carray(address, CALL)
        count, heads = call[MERGES], call[KV_HEADS] * call[GROUP]
        rows = call[TOKEN_COUNT] * heads
        output = carray(_pointer(call[OUTPUT]), call[OUTPUT_SIZE], number)
        partial = carray(_pointer(call[PARTIAL]), rows * D, np.float32)
        partial_bits = carray(_pointer(call[PARTIAL]), rows * D, np.uint32)
        softmax = carray(_pointer(call[SOFTMAX]), rows * 2, np.float32)
        merged = carray(_pointer(call[MERGED]), count, np.int64)
        starts = carray(_pointer(call[STARTS]), count + 1, np.int64)
        parts = carray(_pointer(call[PARTS]), call[TOKEN_COUNT], np.int64)
        unit = _take(call[MERGE:])
        while unit < count:
            for head in range(heads):
                top = lowest
                for i in range(starts[unit], starts[unit + 1]):
                    top = max(top, softmax[2 * (parts[i] * heads + head)])
                total = zero
                into = (parts[starts[unit]] * heads + head) * D  # the first part's sums take those of all
                for i in range(starts[unit], starts[unit + 1]):
                    row = parts[i] * heads + head
                    share = np.exp2(softmax[2 * row] - top)
                    total += share * softmax[2 * row + 1]
                    if row * D == into:
                        for d in range(D):
                            partial[into + d] *= share
                    else:
                        for d in range(D):
                            partial[into + d] += share * partial[row * D + d]
                share = one / total
                for d in range(D):
                    partial[into + d] *= share
                narrow(partial, partial_bits, into, output, merged[unit] * call[OUTPUT_STRIDE] + head * D)
            unit = _take(call[MERGE:])

    return attend, merge
