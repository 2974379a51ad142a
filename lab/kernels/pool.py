"""Keys and values of one layer in a paged pool, and the block tables of batches over it."""

import torch

from lab.kernels.batch import Batch, Heads


class Pool:
    """``keys`` and ``values``: [blocks, block size, kv heads, head size], as vLLM lays them out on CUDA, random normal.

    The pool holds ``prefixes`` prefixes of up to ``prefix_tokens`` tokens and a suffix of up to ``suffix_tokens`` for each of
    ``rows`` rows, on physical blocks in random order, as an engine's pool is after some time of use. Raises ValueError
    unless the prefix fills whole blocks: vLLM shares only those.
    """

    def __init__(self, heads: Heads, dtype: torch.dtype, device: str, block_size: int, prefixes: int, prefix_tokens: int,
                 rows: int, suffix_tokens: int, seed: int = 0):  # fmt: skip
        if prefix_tokens % block_size:
            raise ValueError(f"a prefix of {prefix_tokens} tokens does not fill whole blocks of {block_size}")
        self.heads, self.dtype, self.device, self.block_size = heads, dtype, device, block_size
        self.prefixes, self.prefix_tokens, self.rows, self.suffix_tokens = prefixes, prefix_tokens, rows, suffix_tokens
        self._per_prefix = prefix_tokens // block_size
        self._per_suffix = -(-suffix_tokens // block_size)
        blocks = prefixes * self._per_prefix + rows * self._per_suffix
        torch.manual_seed(seed)
        self._order = torch.randperm(blocks, dtype=torch.int32)
        shape = (blocks, block_size, heads.kv, heads.size)
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=device).normal_() for _ in range(2))

    @property
    def token_bytes(self) -> int:
        return self.heads.token_bytes(self.keys.element_size())

    def queries(self, rows: int, seed: int) -> torch.Tensor:
        """Random queries: [rows, query heads, head size]."""
        torch.manual_seed(seed)
        return torch.empty((rows, self.heads.query, self.heads.size), dtype=self.dtype, device=self.device).normal_()

    def table(self, batch: Batch, rotation: int = 0) -> torch.Tensor:
        """Block table [rows, blocks], int32, on the CPU. Each ``rotation`` puts the batch's prefixes at other places of the pool, as
        far as it holds more of them. Raises ValueError for a batch that does not fit."""
        if batch.prefix_tokens > self.prefix_tokens or batch.prefix_tokens % self.block_size:
            raise ValueError(
                f"a prefix of {batch.prefix_tokens} tokens: the pool takes whole blocks of {self.block_size} up to {self.prefix_tokens}"
            )
        groups = max(batch.groups) + 1
        if groups > self.prefixes or len(batch.groups) > self.rows or max(batch.suffix_tokens) > self.suffix_tokens:
            raise ValueError(
                f"{len(batch.groups)} rows on {groups} prefixes with up to {max(batch.suffix_tokens)} own tokens do not fit a pool "
                f"of {self.rows} rows, {self.prefixes} prefixes and {self.suffix_tokens} own tokens"
            )
        starts = (torch.tensor(batch.groups) + rotation * groups) % self.prefixes * self._per_prefix
        prefix = starts[:, None] + torch.arange(batch.prefix_tokens // self.block_size)
        own = self.prefixes * self._per_prefix + torch.arange(len(batch.groups) * self._per_suffix)
        return self._order[torch.cat([prefix, own.view(len(batch.groups), -1)], dim=1)]
