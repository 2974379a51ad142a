"""A decode batch as the attention kernel sees it: which prefix every row reads, and in which order the rows stand."""

import random
from dataclasses import dataclass

ORDERS = ("grouped", "round-robin", "shuffled")


@dataclass(frozen=True)
class Heads:
    """The attention heads of a model: query heads, key-value heads, and the size of each."""

    query: int
    kv: int
    size: int

    @property
    def per_kv(self) -> int:
        return self.query // self.kv

    def token_bytes(self, element_bytes: int) -> int:
        """Bytes of keys and values that one token takes in one layer."""
        return 2 * self.kv * self.size * element_bytes


# From the models' published configurations; tiny-llama is lab.llm's.
HEADS = {"tiny-llama": Heads(8, 8, 64), "llama-3-8b": Heads(32, 8, 128), "longchat-13b": Heads(40, 40, 128)}


@dataclass(frozen=True)
class Batch:
    """``prefix_tokens`` shared by the rows of one group, and then tokens of each row's own."""

    groups: tuple[int, ...]
    """per row, the number of its prefix"""
    prefix_tokens: int
    suffix_tokens: tuple[int, ...]
    """per row"""

    @property
    def lengths(self) -> list[int]:
        return [self.prefix_tokens + suffix for suffix in self.suffix_tokens]

    def swept_tokens(self) -> int:
        """Tokens that a kernel reads which takes every row for itself."""
        return sum(self.lengths)

    def unique_tokens(self) -> int:
        """Tokens that have to be read at least once."""
        return len(set(self.groups)) * self.prefix_tokens + sum(self.suffix_tokens)


def even(requests: int, groups: int, order: str, prefix_tokens: int, suffix_tokens: int, seed: int = 0) -> Batch:
    """``requests`` rows on ``groups`` prefixes, as many on each as divides evenly. Raises ValueError for an unknown order
    and for more groups than requests."""
    if not 1 <= groups <= requests:
        raise ValueError(f"{groups} groups need between 1 and {requests} requests a group: there are {requests} requests")
    return _ordered([row * groups // requests for row in range(requests)], order, prefix_tokens, suffix_tokens, seed)


def divergent(requests: int, second: int, order: str, prefix_tokens: int, suffix_tokens: int, seed: int = 0) -> Batch:
    """``requests`` rows, ``second`` of them on a second prefix. Raises ValueError where there are not so many."""
    if not 0 <= second < requests:
        raise ValueError(f"{second} divergent requests of {requests}: must be at least 0 and fewer than all")
    return _ordered([0] * (requests - second) + [1] * second, order, prefix_tokens, suffix_tokens, seed)


def _ordered(grouped: list[int], order: str, prefix_tokens: int, suffix_tokens: int, seed: int) -> Batch:
    if order not in ORDERS:
        raise ValueError(f"order {order!r} is not one of: {', '.join(ORDERS)}")
    groups = grouped
    if order == "shuffled":
        groups = random.Random(seed).sample(grouped, len(grouped))
    elif order == "round-robin":
        # Each group's rows evenly over the batch: for groups of one size that is 0 1 2 … 0 1 2 ….
        counts = {group: grouped.count(group) for group in set(grouped)}
        places = [((index - grouped.index(group) + 0.5) / counts[group], group) for index, group in enumerate(grouped)]
        groups = [group for _, group in sorted(places)]
    return Batch(tuple(groups), prefix_tokens, (suffix_tokens,) * len(groups))


def batch_of(row) -> Batch:
    """The batch behind a row of the table, made again from its parameters."""
    second = row["divergent"]
    make, part = (even, row["groups"]) if second is None or second != second else (divergent, second)
    order = "grouped" if row["order"] == "any" else row["order"]
    return make(int(row["requests"]), int(part), order, int(row["prefix tokens"]), int(row["own tokens"]))
