"""What a server gets in steady state: requests without end on shared prefixes, from so many clients or at a rate."""

from dataclasses import dataclass, replace

import numpy as np

from lab.workloads.arrivals import arrivals
from lab.workloads.synthetic import make_prefixes
from lab.workloads.workload import FIRST_TOKEN, VOCABULARY, Prompt, Workload

# Output lengths over their mean at every twentieth of their distribution, and at 99 %: the 12 031 requests of Mooncake's conversation trace
# (FAST 2025, FAST25-release/traces/conversation_trace.jsonl). Between two of them lengths are taken as uniform.
_MOONCAKE_AT = (*np.arange(20) / 20, 0.99, 1.0)
_MOONCAKE = (0.003, 0.029, 0.070, 0.134, 0.292, 0.455, 0.622, 0.747, 0.849, 0.940, 1.022, 1.095, 1.165, 1.235, 1.305, 1.378, 1.471, 1.585,
             1.742, 2.037, 3.269, 5.837)  # fmt: skip
_SIGMA = 1.0  # of the logarithm of a heavy-tailed length: 1 % of the answers are above 6.2 times the mean

SHAPES = ("equal", "uniform", "mooncake", "heavy")
"""of decode lengths: all the mean; from half to one and a half times the mean; as in Mooncake's conversations; lognormal, with a longer tail"""


@dataclass(frozen=True)
class Loop:
    """A workload that goes on for as long as it is run. Raises ValueError for a number or a shape that cannot be."""

    groups: int = 8
    prefix_tokens: int = 8000
    clients: int | None = 64
    """closed loop: each sends its next request when its last is answered; None: an open loop at ``requests_per_s``"""
    decode: str = "uniform"
    """shape of the decode lengths (``SHAPES``)"""
    mean_decode: int = 32
    """tokens"""
    zipf: float = 0.0
    """a request is of the k-th group with a probability that falls as k to the minus this; 0: all groups are equally likely"""
    requests_per_s: float | None = None
    """of an open loop; Poisson arrivals"""
    suffix_tokens: int = 20

    def __post_init__(self) -> None:
        if self.decode not in SHAPES:
            raise ValueError(f"decode={self.decode!r} must be one of: {', '.join(SHAPES)}")
        if (self.clients is None) == (self.requests_per_s is None):
            raise ValueError(
                f"clients={self.clients}, requests_per_s={self.requests_per_s}: name one of the two, for a closed or an open loop"
            )
        for name in ("groups", "prefix_tokens", "mean_decode"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def name(self) -> str:
        sent = f"{self.clients} clients" if self.clients else f"{self.requests_per_s:.3g} requests a second"
        groups = f"{self.groups} × {self.prefix_tokens}" + (f" (Zipf {self.zipf:g})" if self.zipf else "")
        return f"{groups}, {sent}, decode {self.lengths}"

    @property
    def lengths(self) -> str:
        """The decode lengths in words."""
        if self.decode == "equal":
            return f"{self.mean_decode}"
        if self.decode == "uniform":
            return f"{self._bounds[0]}–{self._bounds[1]}"
        return f"{self.decode}, mean {self.mean_decode}"

    def prefixes(self) -> list[list[int]]:
        return make_prefixes(self.groups, self.prefix_tokens)

    def at(self, requests_per_s: float) -> "Loop":
        """The same requests in an open loop."""
        return replace(self, clients=None, requests_per_s=requests_per_s)

    def workload(self, requests: int, seed: int, suffixes: int | None = None) -> Workload:
        """The first ``requests`` of it: groups, lengths and times by ``seed``, and suffixes by a seed of their own, by default the same. Two runs that are
        to have the same requests take different suffixes nevertheless, so that the later one does not find those of the earlier in the prefix cache. A
        longer beginning with the same seed is not the same requests and more."""
        rng = np.random.default_rng(seed)
        share = np.arange(1.0, self.groups + 1) ** -self.zipf
        # Equally likely groups come equally often.
        groups = (
            rng.choice(self.groups, requests, p=share / share.sum()) if self.zipf else rng.permutation(np.arange(requests) % self.groups)
        )
        lengths = self.draw(requests, rng)
        times = arrivals(rng, requests, self.requests_per_s)
        drawn = np.random.default_rng([1, seed if suffixes is None else suffixes])
        own = drawn.integers(FIRST_TOKEN, VOCABULARY, (requests, self.suffix_tokens)).tolist()
        prefixes = self.prefixes()
        prompts = [
            Prompt(prefixes[group] + suffix, int(group), int(length), float(time))
            for group, suffix, length, time in zip(groups, own, lengths, times)
        ]
        return Workload(prompts, clients=self.clients)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Decode lengths, in tokens."""
        if self.decode == "equal":
            return np.full(count, self.mean_decode)
        if self.decode == "uniform":
            low, high = self._bounds
            return rng.integers(low, high + 1, count)
        if self.decode == "mooncake":
            drawn = np.interp(rng.random(count), _MOONCAKE_AT, _MOONCAKE)
        else:
            drawn = rng.lognormal(-(_SIGMA**2) / 2, _SIGMA, count)
        return np.maximum(1, np.round(self.mean_decode * drawn)).astype(int)

    @property
    def _bounds(self) -> tuple[int, int]:
        half = self.mean_decode // 2
        return self.mean_decode - half, self.mean_decode + half
