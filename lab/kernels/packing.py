"""Which rows are packed together, and how far they share."""

from collections import defaultdict
from typing import NamedTuple

from feather.options import KERNELS
from lab.kernels.batch import Batch


class Pack(NamedTuple):
    """Rows that share their first ``tokens`` tokens."""

    rows: list[int]
    tokens: int


def packs(batch: Batch, kernel: str, most_rows: int) -> list[Pack]:
    """The packs of at most ``most_rows`` rows that a kernel makes of a batch: none (``paged``), those of all rows together
    (``cascade``), or those of each prefix (``packed``). Raises ValueError where cascade finds no prefix common to all."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel {kernel!r} is not one of: {', '.join(KERNELS)}")
    if kernel == "cascade" and len(set(batch.groups)) > 1:
        raise ValueError(f"cascade needs one prefix that all rows share; this batch is on {len(set(batch.groups))}")
    if kernel == "paged":
        return []
    members = defaultdict(list)
    for row, group in enumerate(batch.groups):
        members[group].append(row)
    return [Pack(rows[at : at + most_rows], batch.prefix_tokens) for rows in members.values() for at in range(0, len(rows), most_rows)]


def fetched_tokens(batch: Batch, kernel: str, most_rows: int) -> int:
    """Tokens that the kernel itself asks for, before any cache."""
    if kernel == "paged":
        return batch.swept_tokens()
    return sum(pack.tokens for pack in packs(batch, kernel, most_rows)) + sum(batch.suffix_tokens)
