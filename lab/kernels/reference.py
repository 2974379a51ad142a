"""Decode attention in float64, one row at a time: what every kernel is held against."""

import torch

from lab.kernels.batch import Batch
from lab.kernels.pool import Pool


def attend(pool: Pool, queries: torch.Tensor, table: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[rows, query heads, head size], float64."""
    keys, values = (part.flatten(0, 1) for part in (pool.keys, pool.values))
    rows = []
    for query, blocks, length in zip(queries.double(), table, batch.lengths):
        places = (blocks.long()[:, None] * pool.block_size + torch.arange(pool.block_size)).flatten()[:length].to(pool.device)
        # Query head h reads key-value head h // per_kv.
        key, value = (part[places].double().repeat_interleave(pool.heads.per_kv, dim=1) for part in (keys, values))
        weights = torch.einsum("hd,lhd->hl", query, key).mul(pool.heads.size**-0.5).softmax(-1)
        rows.append(torch.einsum("hl,lhd->hd", weights, value))
    return torch.stack(rows)


def max_rel_err(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """max |error| ÷ max |reference|; infinite where the kernel gave anything that is no number."""
    error = (found.double() - wanted).abs().max() / wanted.abs().max()
    return float(error) if torch.isfinite(found).all() else float("inf")
