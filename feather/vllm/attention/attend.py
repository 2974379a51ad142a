"""Carries out a plan on one layer's cache."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from feather.vllm.attention import kernel, threads
from feather.vllm.attention.plan import Plan


class Attend:
    """The compiled kernel with the room it works in, for all layers of one shape. Compiles when made, which takes seconds, and raises OSError
    where there are no threads to run it on.

    Args:
        query_heads, kv_heads, head_size, block_size: of the layers.
        dtype: of queries, cache and output: bfloat16 or float32.
        scale: of the scores before the softmax.
        paired: whether the cache is as AMX wants it (``layout.PAIRED``).
    """

    def __init__(
        self, query_heads: int, kv_heads: int, head_size: int, block_size: int, dtype: torch.dtype, scale: float, paired: bool = False
    ):
        threads.openmp()
        self._attend, self._merge = kernel.compiled(head_size, block_size, str(dtype).removeprefix("torch."), paired)
        self._heads, self._head_size = query_heads, head_size
        self._call = np.zeros(kernel.CALL, dtype=np.int64)
        self._scale = np.array([scale * math.log2(math.e)])
        self._call[kernel.SCALE] = self._scale.ctypes.data
        self._call[kernel.KV_HEADS], self._call[kernel.GROUP] = kv_heads, query_heads // kv_heads
        self._call[kernel.ROOM_SIZE] = kernel.room_size(head_size, block_size)
        self._kept: Sequence[object] = ()  # what the call's addresses point to
        self._threads = 0
        self._room = self._partial = self._softmax = torch.empty(0)

    def use(self, plan: Plan) -> None:
        """The plan of the calls to come."""
        call, places = self._call, len(plan.tokens) * self._heads
        for name, array in (
            (kernel.TASK_LIST, plan.tasks),
            (kernel.TOKENS, plan.tokens),
            (kernel.VISIBLE, plan.visible),
            (kernel.BLOCKS, plan.blocks),
            (kernel.MERGED, plan.merged),
            (kernel.STARTS, plan.starts),
            (kernel.PARTS, plan.parts),
        ):
            call[name] = array.ctypes.data
        self._kept = (plan,)
        call[kernel.TASKS], call[kernel.TOKEN_COUNT] = len(plan.tasks), len(plan.tokens)
        call[kernel.BLOCK_COUNT], call[kernel.MERGES] = len(plan.blocks), len(plan.merged)
        if len(self._softmax) < places * 2:
            self._partial, self._softmax = torch.empty(places * self._head_size), torch.empty(places * 2)
            call[kernel.PARTIAL], call[kernel.SOFTMAX] = self._partial.data_ptr(), self._softmax.data_ptr()
        count = self._threads = torch.get_num_threads()  # there is room for so many
        if len(self._room) < count * int(call[kernel.ROOM_SIZE]):
            self._room = torch.empty(count * int(call[kernel.ROOM_SIZE]))
            call[kernel.ROOM] = self._room.data_ptr()

    def __call__(self, query: torch.Tensor, cache: torch.Tensor, output: torch.Tensor) -> None:
        """Fills in the output of the plan's tokens. ``query`` and ``output`` are [tokens, query heads, head size], ``cache`` is
        [blocks, kv heads, block size, 2 × head size], as vLLM holds it; heads contiguous, and the cache."""
        call = self._call
        call[kernel.UNIT] = call[kernel.MERGE] = call[kernel.THREAD] = 0
        if query.stride()[1:] != (self._head_size, 1):
            query = query.contiguous()
        for tensor, place in ((query, kernel.QUERY), (output, kernel.OUTPUT)):
            call[place : place + 3] = tensor.data_ptr(), tensor.stride(0), (len(tensor) - 1) * tensor.stride(0) + tensor[0].numel()
        call[kernel.CACHE], call[kernel.CACHE_SIZE] = cache.data_ptr(), cache.numel()
        call[kernel.BLOCK_STRIDE], call[kernel.HEAD_STRIDE] = cache.stride(0), cache.stride(1)
        threads.run(self._attend.address, call.ctypes.data, self._threads)
        threads.run(self._merge.address, call.ctypes.data, self._threads)
