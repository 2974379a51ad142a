"""Synthetic workloads: requests with a shared prefix each, drawn from a seed."""

from collections.abc import Sequence

import numpy as np

from lab.workloads.arrivals import arrivals
from lab.workloads.workload import FIRST_TOKEN, VOCABULARY, Prompt, Workload


def make_prefixes(count: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """``count`` random prefixes of ``tokens`` token ids each; the same for the same seed."""
    return _tokens(np.random.default_rng(seed), (count, tokens))


def make_prefix_tree(children: Sequence[int], tokens: Sequence[int], seed: int = 0) -> list[list[int]]:
    """The prefixes of a tree with ``len(children)`` levels, one for each leaf, siblings side by side: every node of level
    i - 1 has ``children[i]`` nodes under it, each with ``tokens[i]`` tokens of its own. ``[8], [8000]`` are eight unrelated
    prefixes; ``[2, 4], [4000, 4000]`` are eight of the same length that share their first half with three others.

    Raises ValueError where the two do not name equally many levels, or a level has no node or no token."""
    if len(children) != len(tokens) or not children or min(*children, *tokens) < 1:
        raise ValueError(f"a tree needs a positive number of children and of tokens for each level, not {children} and {tokens}")
    rng = np.random.default_rng(seed)
    leaves: list[list[int]] = [[]]
    for count, length in zip(children, tokens):
        leaves = [leaf + own for leaf in leaves for own in _tokens(rng, (count, length))]
    return leaves


def grouped(
    prefixes: list[list[int]],
    sizes: list[int],
    seed: int,
    suffix_tokens: int = 20,
    decode_tokens: int | tuple[int, int] = 32,
    requests_per_s: float | None = None,
    shuffled: bool = True,
    variation: float = 1.0,
) -> Workload:
    """``sizes[g]`` requests on ``prefixes[g]``, each with a random suffix of its own, arriving in an order shuffled by
    ``seed``: all at once, or at a mean rate, as a Poisson process or in bursts (``arrivals``). ``decode_tokens`` as (low, high)
    draws uniformly, both included.

    Raises ValueError for a size, a suffix, decode tokens or a rate that cannot be."""
    low, high = decode_tokens if isinstance(decode_tokens, (tuple, list)) else (decode_tokens, decode_tokens)
    if len(sizes) > len(prefixes) or min(sizes, default=0) < 0:
        raise ValueError(f"sizes={list(sizes)} must not be negative, and at most one for each of the {len(prefixes)} prefixes")
    if suffix_tokens < 0 or not 1 <= low <= high:
        raise ValueError(
            f"suffix_tokens={suffix_tokens} must not be negative, and decode_tokens={decode_tokens} be at least 1, as (low, high) in this order"
        )
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    if shuffled:
        rng.shuffle(groups)
    suffixes = _tokens(rng, (len(groups), suffix_tokens))
    lengths = rng.integers(low, high + 1, len(groups))
    times = arrivals(rng, len(groups), requests_per_s, variation)
    return Workload(
        [
            Prompt(prefixes[group] + suffix, int(group), int(length), float(time))
            for group, suffix, length, time in zip(groups, suffixes, lengths, times)
        ]
    )


def even_sizes(requests: int, groups: int) -> list[int]:
    """``requests`` over ``groups`` as evenly as they go. Raises ValueError for a negative number of requests or no group."""
    if requests < 0 or groups < 1:
        raise ValueError(f"{requests} requests over {groups} groups: there must be at least one group and no fewer than 0 requests")
    return [requests // groups + (group < requests % groups) for group in range(groups)]


def unshared(requests: int, prompt_tokens: int, seed: int, decode_tokens: int = 32) -> Workload:
    """Prompts with nothing in common, on an empty prefix cache."""
    rng = np.random.default_rng(seed)
    prompts = _tokens(rng, (requests, prompt_tokens))
    return Workload([Prompt(tokens, group, decode_tokens) for group, tokens in enumerate(prompts)], warm=False)


def _tokens(rng: np.random.Generator, shape: tuple[int, int]) -> list[list[int]]:
    return rng.integers(FIRST_TOKEN, VOCABULARY, shape).tolist()
