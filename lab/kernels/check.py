"""Every kernel over every kind of batch against the float64 reference, on batches small enough for Triton's interpreter.

As a program, ``python -m lab.kernels.check triton|cpu``: the rows as JSON. Without a GPU "triton" needs TRITON_INTERPRET=1.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from feather.options import KERNELS
from lab.kernels import reference
from lab.kernels.batch import Batch, Heads, divergent, even
from lab.kernels.pool import Pool

# Head size and query heads per key-value head are the models'; two key-value heads stand for all. The last is for CPUs only.
SHAPES = {"llama-3-8b": Heads(8, 2, 128), "longchat-13b": Heads(2, 2, 128), "tiny-llama": Heads(2, 2, 64)}
BOUNDS = {"bfloat16": 2e-2, "float32": 1e-3}
_ROWS, _PREFIX, _OWN = 6, 128, (1, 40, 17, 32, 5, 33)  # unequal lengths, whole blocks and broken ones
_SPLITS = 2


def batches() -> Iterator[tuple[str, str, Batch]]:
    """(variant, kernel, batch)"""
    one, third = even(_ROWS, 1, "grouped", _PREFIX, 1), even(_ROWS, 3, "round-robin", _PREFIX, 1)
    two = divergent(_ROWS, 1, "shuffled", _PREFIX, 1)
    yield "one group", "paged", one
    yield "one divergent", "paged", two
    for order in ("grouped", "round-robin", "shuffled"):
        yield f"three groups, {order}", "paged", even(_ROWS, 3, order, _PREFIX, 1)
    yield "a group for each", "paged", even(_ROWS, _ROWS, "grouped", _PREFIX, 1)
    yield "cascade, one group", "cascade", one
    yield "packed, one divergent", "packed", two
    yield "packed, three groups", "packed", third


def check(implementation: str) -> list[dict]:
    """One row per variant, heads and dtype, with ``max_rel_err`` = max |error| ÷ max |reference| and its bound."""
    on_gpu = implementation == "triton" and torch.cuda.is_available()
    if implementation == "triton":
        from lab.kernels.triton_attention import TritonAttention as Attention
    else:
        from lab.kernels.cpu_attention import CpuAttention as Attention
    rows = []
    for model, heads in SHAPES.items():
        if model == "tiny-llama" and implementation == "triton":
            continue
        for dtype, bound in BOUNDS.items():
            block_size = 16 if implementation == "triton" else 32
            pool = Pool(heads, getattr(torch, dtype), "cuda" if on_gpu else "cpu", block_size, _ROWS, _PREFIX, _ROWS, max(_OWN))
            attention = Attention(pool)
            for variant, kernel, batch in batches():
                batch = replace(batch, suffix_tokens=_OWN)
                table, queries = pool.table(batch, rotation=1), pool.queries(_ROWS, seed=1)
                splits = {"splits": _SPLITS} if implementation == "triton" else {}
                found = attention.prepare(kernel, batch, table, **splits)(queries)
                error = reference.max_rel_err(found, reference.attend(pool, queries, table, batch))
                rows.append({"implementation": attention.implementation(kernel), "variant": variant, "kernel": kernel, "heads": model,
                             "dtype": dtype, "max_rel_err": error, "bound": bound, "ok": error <= bound})  # fmt: skip
    assert {row["kernel"] for row in rows} == set(KERNELS)
    return rows


if __name__ == "__main__":
    print(json.dumps(check(sys.argv[1])))
