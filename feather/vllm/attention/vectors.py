"""The inner loops, in vectors: LLVM's own vector code, since whether it finds vectors in plain loops depends on what surrounds them.

Each function here makes a numba intrinsic for given sizes. Sixteen numbers make a vector: one register with AVX-512, two or four elsewhere, which
LLVM arranges.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_COLUMNS = 4
"""vectors of a product that are computed together, with as many rows: sixteen sums hide the latency of a multiplication"""


def pointer_to(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    """Of the element of an array at a place."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [place])


def _load(builder: Any, pointer: Any, kind: Any = _FLOATS) -> Any:
    loaded = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    loaded.align = 1
    return loaded


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=1)


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """One of LLVM's functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, f"llvm.fma.v{LANES}f32", _FLOATS, a, b, c)


def _all(builder: Any, number: Any) -> Any:
    """A vector of one number."""
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _constant(value: float) -> Any:
    return ir.Constant(_FLOATS, [float(np.float32(value))] * LANES)


def _at(builder: Any, place: Any, offset: int) -> Any:
    return builder.add(place, ir.Constant(place.type, offset))


def widen(count: int, bfloat16: bool) -> Callable:
    """(source, start, target, place): ``count`` elements of the cache, bfloat16 as uint16 or float32, as float32."""

    @intrinsic
    def function(typingctx, source, start, target, place):
        def codegen(context, builder, signature, arguments):
            begin = pointer_to(context, builder, signature.args[0], arguments[0], arguments[1])
            end = pointer_to(context, builder, signature.args[2], arguments[2], arguments[3])
            with cgutils.for_range_slice(
                builder, ir.Constant(arguments[1].type, 0), ir.Constant(arguments[1].type, count), ir.Constant(arguments[1].type, LANES)
            ) as (index, _):
                here = builder.gep(begin, [index])
                if bfloat16:
                    halves = _load(builder, here, ir.VectorType(ir.IntType(16), LANES))
                    bits = builder.shl(builder.zext(halves, _INTS), ir.Constant(_INTS, [16] * LANES))
                    numbers = builder.bitcast(bits, _FLOATS)
                else:
                    numbers = _load(builder, here)
                _store(builder, numbers, builder.gep(end, [index]))
            return context.get_dummy_value()

        return types.none(source, start, target, place), codegen

    return function


def split(stride: int) -> Callable:
    """(source, start, target, place): pairs of bfloat16, as uint16, as float32: the first of each at ``place``, the second ``stride`` further."""

    @intrinsic
    def function(typingctx, source, start, target, place):
        def codegen(context, builder, signature, arguments):
            pairs = _load(builder, pointer_to(context, builder, signature.args[0], arguments[0], arguments[1]), _INTS)
            end = pointer_to(context, builder, signature.args[2], arguments[2], arguments[3])
            first = builder.shl(pairs, ir.Constant(_INTS, [16] * LANES))
            second = builder.and_(pairs, ir.Constant(_INTS, [0xFFFF0000] * LANES))
            _store(builder, builder.bitcast(first, _FLOATS), end)
            _store(builder, builder.bitcast(second, _FLOATS), builder.gep(end, [ir.Constant(arguments[3].type, stride)]))
            return context.get_dummy_value()

        return types.none(source, start, target, place), codegen

    return function


def product(rows: int, depth: int, columns: int, adds: bool) -> Callable:
    """(left, place, right, result, where): the product of [rows, depth] at ``place`` of ``left`` with all of ``right``, [depth, columns], into
    [rows, columns] at ``where`` of ``result``, or (``adds``) added to it. All float32, in rows without gaps."""

    def block(builder, left, right, result, first, width, index):
        """``width`` vectors of columns from ``first`` on."""
        sums = []
        for row in range(rows):
            for vector in range(width):
                start = _load(builder, builder.gep(result, [_at(builder, first, row * columns + vector * LANES)])) if adds else _constant(0)
                sums.append(cgutils.alloca_once_value(builder, start))
                builder.store(start, sums[-1])
        with cgutils.for_range(builder, ir.Constant(index, depth)) as loop:
            line = builder.add(builder.mul(loop.index, ir.Constant(index, columns)), first)
            across = [_load(builder, builder.gep(right, [_at(builder, line, vector * LANES)])) for vector in range(width)]
            for row in range(rows):
                factor = _all(builder, builder.load(builder.gep(left, [_at(builder, loop.index, row * depth)])))
                for vector in range(width):
                    sum_ = sums[row * width + vector]
                    builder.store(_fma(builder, factor, across[vector], builder.load(sum_)), sum_)
        for row in range(rows):
            for vector in range(width):
                target = builder.gep(result, [_at(builder, first, row * columns + vector * LANES)])
                _store(builder, builder.load(sums[row * width + vector]), target)

    @intrinsic
    def function(typingctx, left, place, right, result, where):
        def codegen(context, builder, signature, arguments):
            index = arguments[1].type
            begin = pointer_to(context, builder, signature.args[0], arguments[0], arguments[1])
            matrix = pointer_to(context, builder, signature.args[2], arguments[2], ir.Constant(index, 0))
            result_ = pointer_to(context, builder, signature.args[3], arguments[3], arguments[4])
            wide = LANES * _COLUMNS
            whole = columns // wide * wide
            if whole:
                bounds = (ir.Constant(index, 0), ir.Constant(index, whole), ir.Constant(index, wide))
                with cgutils.for_range_slice(builder, *bounds) as (first, _):
                    block(builder, begin, matrix, result_, first, _COLUMNS, index)
            if columns > whole:
                block(builder, begin, matrix, result_, ir.Constant(index, whole), (columns - whole) // LANES, index)
            return context.get_dummy_value()

        return types.none(left, place, right, result, where), codegen

    return function


def _exp2(builder: Any, x: Any) -> Any:
    """2^x for x ≤ 0, below 2^−126 as that: the polynomial that interpolates 2^x on [−1, 0] at Chebyshev's points, of degree 6, exact to
    float32's 1e−7, times a power of two made of bits."""
    fitted = np.polynomial.chebyshev.Chebyshev.interpolate(np.exp2, 6, domain=[-1, 0]).convert(kind=np.polynomial.Polynomial)
    x = _call(builder, f"llvm.maxnum.v{LANES}f32", _FLOATS, x, _constant(-126))
    whole = builder.fptosi(x, _INTS)  # towards zero
    rest = builder.fsub(x, builder.sitofp(whole, _FLOATS))
    value = _constant(fitted.coef[-1])
    for coefficient in fitted.coef[-2::-1]:
        value = _fma(builder, value, rest, _constant(coefficient))
    power = builder.shl(builder.add(whole, ir.Constant(_INTS, [127] * LANES)), ir.Constant(_INTS, [23] * LANES))
    return builder.fmul(value, builder.bitcast(power, _FLOATS))


def highest(count: int) -> Callable:
    """(numbers, place): the largest of ``count`` numbers."""

    @intrinsic
    def function(typingctx, numbers, place):
        def codegen(context, builder, signature, arguments):
            begin = pointer_to(context, builder, signature.args[0], arguments[0], arguments[1])
            found = _load(builder, begin)
            for start in range(LANES, count, LANES):
                more = _load(builder, builder.gep(begin, [ir.Constant(arguments[1].type, start)]))
                found = _call(builder, f"llvm.maxnum.v{LANES}f32", _FLOATS, found, more)
            return _call(builder, f"llvm.vector.reduce.fmax.v{LANES}f32", _FLOAT, found)

        return types.float32(numbers, place), codegen

    return function


def soften(count: int) -> Callable:
    """(scores, place, high): ``count`` scores become 2^(score − high), for scores not above it. Returns their sum."""

    @intrinsic
    def function(typingctx, scores, place, high):
        def codegen(context, builder, signature, arguments):
            begin = pointer_to(context, builder, signature.args[0], arguments[0], arguments[1])
            top, total = _all(builder, arguments[2]), _constant(0)
            for start in range(0, count, LANES):
                here = builder.gep(begin, [ir.Constant(arguments[1].type, start)])
                weights = _exp2(builder, builder.fsub(_load(builder, here), top))
                _store(builder, weights, here)
                total = builder.fadd(total, weights)
            total = _call(builder, f"llvm.vector.reduce.fadd.v{LANES}f32", _FLOAT, ir.Constant(_FLOAT, -0.0), total)
            return total

        return types.float32(scores, place, types.float32), codegen

    return function
