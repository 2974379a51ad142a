"""Synthetic workloads: requests with a shared prefix each, drawn from a seed."""

import numpy as np

from feather.workloads.workload import VOCABULARY, Prompt, Workload


def make_prefixes(count: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """``count`` random prefixes of ``tokens`` token ids each; the same for the same seed."""
    return _tokens(np.random.default_rng(seed), (count, tokens))


def grouped(
    prefixes: list[list[int]],
    sizes: list[int],
    seed: int,
    suffix_tokens: int = 20,
    decode_tokens: int | tuple[int, int] = 32,
    requests_per_s: float | None = None,
    shuffled: bool = True,
) -> Workload:
    """``sizes[g]`` requests on ``prefixes[g]``, each with a random suffix of its own, arriving in an order shuffled by
    ``seed``: all at once, or as a Poisson process. ``decode_tokens`` as (low, high) draws uniformly, both included."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    if shuffled:
        rng.shuffle(groups)
    suffixes = _tokens(rng, (len(groups), suffix_tokens))
    low, high = decode_tokens if isinstance(decode_tokens, (tuple, list)) else (decode_tokens, decode_tokens)
    lengths = rng.integers(low, high + 1, len(groups))
    gaps = rng.exponential(1 / requests_per_s, len(groups)) if requests_per_s else np.zeros(len(groups))
    return Workload(
        [
            Prompt(prefixes[group] + suffix, int(group), int(length), float(arrival))
            for group, suffix, length, arrival in zip(groups, suffixes, lengths, np.cumsum(gaps))
        ]
    )


def even_sizes(requests: int, groups: int) -> list[int]:
    """``requests`` over ``groups`` as evenly as they go."""
    return [requests // groups + (group < requests % groups) for group in range(groups)]


def unshared(requests: int, prompt_tokens: int, seed: int, decode_tokens: int = 32) -> Workload:
    """Prompts with nothing in common, on an empty prefix cache."""
    rng = np.random.default_rng(seed)
    prompts = _tokens(rng, (requests, prompt_tokens))
    return Workload([Prompt(tokens, group, decode_tokens) for group, tokens in enumerate(prompts)], warm=False)


def _tokens(rng: np.random.Generator, shape: tuple[int, int]) -> list[list[int]]:
    return rng.integers(10, VOCABULARY, shape).tolist()  # the first few ids are special tokens by convention
