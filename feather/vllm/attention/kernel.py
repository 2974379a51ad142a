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
_LOWEST = np.float32(-1e30)  # a maximum before the first key: finite, so that no difference of two is NaN
_FAST = {"fastmath": True, "error_model": "numpy", "nogil": True, "boundscheck": False}


def room_size(head_size: int, block_size: int) -> int:
    """Numbers that a thread needs room for."""
    tile = max(1, TILE // block_size) * block_size
    return 2 * head_size * tile + 3 * tile + 2 * (QUERIES + 1) * (head_size + 1)


def _exp2_coefficients(degree: int = 6) -> list[np.float32]:
    """Of the polynomial that interpolates 2^x on [−1, 0] at Chebyshev's points; degree 6 is exact to float32's 1e−7."""
    fitted = np.polynomial.chebyshev.Chebyshev.interpolate(np.exp2, degree, domain=[-1, 0]).convert(kind=np.polynomial.Polynomial)
    return [np.float32(coefficient) for coefficient in fitted.coef]


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
def compiled(head_size: int, block_size: int, element: str) -> tuple[Any, Any]:
    """The kernel for one shape of cache and one type of its elements ("bfloat16" or "float32"): two C functions, ``attend`` and ``merge``,
    each to be run on every thread of a pool with the address of the arguments (``call.Call``). Compiling takes seconds."""
    D, B = head_size, block_size
    T = max(1, TILE // B) * B
    per_tile = T // B
    bfloat16 = element == "bfloat16"
    number = np.uint16 if bfloat16 else np.float32
    zero, one, least, lowest = np.float32(0), np.float32(1), np.float32(-126), _LOWEST
    c0, c1, c2, c3, c4, c5, c6 = _exp2_coefficients()
    jit = numba.njit(**_FAST)

    if bfloat16:

        @jit
        def widen(source, start, floats, bits, place, count):
            for i in range(count):
                bits[place + i] = np.uint32(source[start + i]) << np.uint32(16)

        @jit
        def narrow(floats, bits, start, target, place):
            for d in range(D):  # to the nearest, halves to even
                word = bits[start + d]
                target[place + d] = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)

    else:

        @jit
        def widen(source, start, floats, bits, place, count):
            for i in range(count):
                floats[place + i] = source[start + i]

        @jit
        def narrow(floats, bits, start, target, place):
            for d in range(D):
                target[place + d] = floats[start + d]

    @jit
    def score(queries, place, keys, first, second):
        """Of two queries with all keys of the tile, so that each key is read once for both."""
        for j in range(T):
            first[j] = zero
            second[j] = zero
        for d in range(0, D, 8):
            at, other, row = place + d, place + D + d, d * T
            a0, a1, a2, a3 = queries[at], queries[at + 1], queries[at + 2], queries[at + 3]
            a4, a5, a6, a7 = queries[at + 4], queries[at + 5], queries[at + 6], queries[at + 7]
            b0, b1, b2, b3 = queries[other], queries[other + 1], queries[other + 2], queries[other + 3]
            b4, b5, b6, b7 = queries[other + 4], queries[other + 5], queries[other + 6], queries[other + 7]
            for j in range(T):
                k0, k1, k2, k3 = keys[row + j], keys[row + T + j], keys[row + 2 * T + j], keys[row + 3 * T + j]
                k4, k5, k6, k7 = keys[row + 4 * T + j], keys[row + 5 * T + j], keys[row + 6 * T + j], keys[row + 7 * T + j]
                first[j] += a0 * k0 + a1 * k1 + a2 * k2 + a3 * k3 + a4 * k4 + a5 * k5 + a6 * k6 + a7 * k7
                second[j] += b0 * k0 + b1 * k1 + b2 * k2 + b3 * k3 + b4 * k4 + b5 * k5 + b6 * k6 + b7 * k7

    @jit
    def accumulate(first, second, values, sums, place):
        """Adds the tile's values, weighted, to the sums of two queries, which stand one after the other."""
        for j in range(0, T, 8):
            a0, a1, a2, a3 = first[j], first[j + 1], first[j + 2], first[j + 3]
            a4, a5, a6, a7 = first[j + 4], first[j + 5], first[j + 6], first[j + 7]
            b0, b1, b2, b3 = second[j], second[j + 1], second[j + 2], second[j + 3]
            b4, b5, b6, b7 = second[j + 4], second[j + 5], second[j + 6], second[j + 7]
            row, other = j * D, place + D
            for d in range(D):
                v0, v1, v2, v3 = values[row + d], values[row + D + d], values[row + 2 * D + d], values[row + 3 * D + d]
                v4, v5, v6, v7 = values[row + 4 * D + d], values[row + 5 * D + d], values[row + 6 * D + d], values[row + 7 * D + d]
                sums[place + d] += a0 * v0 + a1 * v1 + a2 * v2 + a3 * v3 + a4 * v4 + a5 * v5 + a6 * v6 + a7 * v7
                sums[other + d] += b0 * v0 + b1 * v1 + b2 * v2 + b3 * v3 + b4 * v4 + b5 * v5 + b6 * v6 + b7 * v7

    @jit
    def power(x):
        """2^x for x ≤ 0, as the polynomial's value and the power of two, in bits of a float, that it is to be multiplied by."""
        x = max(x, least)
        whole = np.int32(x)  # towards zero: what is left is from −1 to 0
        x -= np.float32(whole)
        return c0 + x * (c1 + x * (c2 + x * (c3 + x * (c4 + x * (c5 + x * c6))))), (whole + np.int32(127)) << np.int32(23)

    @jit
    def soften(weights, visible, high, total, sums, place, powers, power_bits):
        """Scores become weights relative to the highest so far. Returns that and the sum of all weights so far; what was summed before is
        brought to the same scale."""
        for j in range(visible, T):
            weights[j] = lowest
        top = high
        for j in range(T):
            top = max(top, weights[j])
        for j in range(T):
            weights[j], power_bits[j] = power(weights[j] - top)
        for j in range(T):
            weights[j] *= powers[j]
        for j in range(visible, T):
            weights[j] = zero
        if top > high:
            value, power_bits[0] = power(high - top)
            shrink = value * powers[0]
            total *= shrink
            for d in range(D):
                sums[place + d] *= shrink
        for j in range(T):
            total += weights[j]
        return top, total

    @jit
    def attend_task(task, head, call, query, cache, blocks, tokens, visible, partial, softmax, room, room_bits, room_signed, scale):
        first_token, count, first_block, block_count = task[0], task[1], task[2], task[3]
        kv_heads, group = call[KV_HEADS], call[GROUP]
        queries_in_task = count * group
        # This thread's room: a tile of keys, one of values, weights and powers of two, then queries and their sums, maxima and totals.
        keys, values = room[: D * T], room[D * T : 2 * D * T]
        key_bits, value_bits = room_bits[: D * T], room_bits[D * T : 2 * D * T]
        at = 2 * D * T
        first, second = room[at : at + T], room[at + T : at + 2 * T]
        powers, power_bits = room[at + 2 * T : at + 3 * T], room_signed[at + 2 * T : at + 3 * T]
        at += 3 * T
        padded = queries_in_task + (queries_in_task & 1)
        queries, query_bits = room[at : at + padded * D], room_bits[at : at + padded * D]
        at += padded * D
        sums = room[at : at + padded * D]
        at += padded * D
        highs, totals = room[at : at + padded], room[at + padded : at + 2 * padded]

        for index in range(count):
            for member in range(group):
                place = (index * group + member) * D
                widen(query, tokens[first_token + index] * call[QUERY_STRIDE] + (head * group + member) * D, queries, query_bits, place, D)
        for i in range(queries_in_task * D):
            queries[i] *= scale
        for i in range(queries_in_task * D, padded * D):
            queries[i] = zero
        for i in range(padded * D):
            sums[i] = zero
        for i in range(padded):
            highs[i], totals[i] = lowest, zero

        for block in range(0, block_count, per_tile):
            loaded = min(per_tile, block_count - block)
            for i in range(loaded):
                start = blocks[first_block + block + i] * call[BLOCK_STRIDE] + head * call[HEAD_STRIDE]
                for d in range(D):  # a block's keys lie transposed, [D, B], its values plain, [B, D]
                    widen(cache, start + d * B, keys, key_bits, d * T + i * B, B)
                widen(cache, start + D * B, values, value_bits, i * B * D, B * D)
            for i in range(loaded * B * D, T * D):  # weighed with 0 below; but what is there may be no number
                values[i] = zero
            begun = block * B
            for i in range(0, queries_in_task, 2):
                score(queries, i * D, keys, first, second)
                seen = min(max(visible[first_token + i // group] - begun, 0), loaded * B)
                highs[i], totals[i] = soften(first, seen, highs[i], totals[i], sums, i * D, powers, power_bits)
                if i + 1 < queries_in_task:
                    seen = min(max(visible[first_token + (i + 1) // group] - begun, 0), loaded * B)
                    highs[i + 1], totals[i + 1] = soften(second, seen, highs[i + 1], totals[i + 1], sums, (i + 1) * D, powers, power_bits)
                accumulate(first, second, values, sums, i * D)

        for index in range(count):
            for member in range(group):
                i = index * group + member
                row = (first_token + index) * kv_heads * group + head * group + member
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
        start = _pointer(call[ROOM] + thread * size * 4)
        room, room_bits, room_signed = carray(start, size, np.float32), carray(start, size, np.uint32), carray(start, size, np.int32)
        unit = _take(call[UNIT:])
        while unit < units:
            attend_task(tasks[unit // heads], unit % heads, call, query, cache, blocks, tokens, visible, partial, softmax, room, room_bits,
                        room_signed, scale)  # fmt: skip
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
