"""In which order vLLM keeps keys and values on this machine: tried with its own operator, never guessed."""

from typing import Any

import torch
from vllm import _custom_ops as ops

PLAIN, PAIRED = "plain", "paired"


def in_order(layout: str, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, [..., block size, head size], in the order in which a layout keeps them, flat over the last two axes.

    ``PLAIN``: keys [head size, block size], values [block size, head size]. ``PAIRED``, for AMX: keys [block size / 16, head size / 2, 16, 2], values
    [head size / 16, block size / 2, 16, 2]: of keys two neighbours in the head are the last axis, of values two in the block."""
    if layout == PLAIN:
        return keys.transpose(-2, -1).flatten(-2), values.flatten(-2)
    return (
        keys.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 16)).transpose(-3, -2).flatten(-4),
        values.unflatten(-1, (-1, 16)).unflatten(-3, (-1, 2)).movedim(-2, -4).transpose(-2, -1).flatten(-4),
    )


def layout_of(heads: int, head_size: int, block_size: int, dtype: torch.dtype, isa: str, **told: Any) -> str | None:
    """The layout of a cache of so many heads of keys and values; None for another than these two.

    Args:
        isa: vLLM's name for the way it computes on this machine.
        told: what its operator wants besides.
    """
    keys, values = (torch.randn(2, heads, block_size, head_size).to(dtype) for _ in range(2))
    cache = torch.zeros(2, heads, 2 * block_size, head_size, dtype=dtype)
    kept_keys, kept_values = cache.chunk(2, dim=2)
    by_token = [each.transpose(1, 2).flatten(0, 1) for each in (keys, values)]
    ops.cpu_attn_reshape_and_cache(by_token[0], by_token[1], kept_keys, kept_values, torch.arange(2 * block_size), isa, **told)
    kept = (kept_keys.flatten(-2), kept_values.flatten(-2))
    return next((one for one in (PLAIN, PAIRED) if all(map(torch.equal, in_order(one, keys, values), kept))), None)
