"""SGLang's own ``SchedulePolicy`` over its own radix cache, from its published package, on a machine without a GPU. In 0.5.9 that cache is
written in Python, in 0.5.23 in Rust."""

from array import array
from functools import cache
from typing import Any

from feather.sglang import VERSIONS, check_version
from lab.engines.sglang_stubs import stub

__all__ = ["POLICIES", "Peer", "load", "queues"]

_OLD = VERSIONS[0]
POLICIES = {"lpm": "LPM", "dfs-weight": "DFS-weight", "hrrn": "HRRN", "shortest-prefill-first": "shortest prefill first", "fcfs": "FCFS"}
"""SGLang's policies that look at prefixes, by their names in figures, and FCFS, which in 0.5.23 matches every waiting request too"""


def queues() -> list[str]:
    """Those of ``POLICIES`` that the installed SGLang has and that look at prefixes."""
    return ["lpm", "dfs-weight"] if check_version() == _OLD else list(POLICIES)


class Peer:
    """A waiting queue under one of SGLang's policies, as its scheduler keeps it.

    Args:
        policy: one of ``queues()``.
        cut_off: keep SGLang's rule that LPM and HRRN fall back to first-come-first-served above 128 waiting requests.
    """

    def __init__(self, policy: str, cut_off: bool):
        self._sglang = load()
        self.cache = self._sglang.make_cache()
        self.policy = self._sglang.SchedulePolicy(policy, self.cache, False, False, False)
        if not cut_off:
            self.policy._determine_active_policy = lambda waiting: self.policy.policy
        self.waiting: list = []
        self._computed = 0
        self._tells_computed = check_version() != _OLD

    def cached(self, tokens: list[int]) -> None:
        """The KV of these tokens is in the cache."""
        self._sglang.insert(self.cache, tokens)
        self._computed += len(tokens)

    def arrive(self, request_id: str, tokens: list[int]) -> None:
        self.waiting.append(self._sglang.make_request(request_id, tokens))
        self.waiting[-1].arrival_processed_tokens = self._computed

    def schedule(self) -> None:
        """The call that SGLang makes in every step: order the whole waiting queue."""
        told = {"processed_tokens": self._computed} if self._tells_computed else {}
        self.policy.calc_priority(self.waiting, **told)


class _Sglang059:
    def __init__(self) -> None:
        stub()
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.managers.schedule_policy import SchedulePolicy
        from sglang.srt.mem_cache.radix_cache import InsertParams, RadixCache, RadixKey
        from sglang.srt.sampling.sampling_params import SamplingParams

        self.SchedulePolicy, self.make_cache = SchedulePolicy, RadixCache.create_simulated
        self.insert = lambda cache, tokens: cache.insert(InsertParams(key=RadixKey(token_ids=tokens)))
        self.make_request = lambda id_, tokens: Req(id_, "", tokens, SamplingParams())


class _Sglang0523:
    def __init__(self) -> None:
        from lab.engines import sglang_today

        # isort: split
        import torch
        from sglang.srt.managers.schedule_policy import SchedulePolicy
        from sglang.srt.mem_cache.base_prefix_cache import InsertParams
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.radix_cache import RadixKey
        from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
        from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

        scheduler = sglang_today.started()
        pools = scheduler.req_to_token_pool, scheduler.token_to_kv_pool_allocator

        def insert(cache: Any, tokens: list[int]) -> None:
            # The slots are of no pool: nothing is computed, and nothing evicted.
            cache.insert(InsertParams(key=RadixKey(token_ids=array("q", tokens)), value=torch.arange(len(tokens), dtype=torch.int64)))

        self.SchedulePolicy, self.insert, self.make_request = SchedulePolicy, insert, sglang_today.make_request
        self.make_cache = lambda: UnifiedRadixCache(CacheInitParams(False, *pools, 1, tree_components=(ComponentType.FULL,)))


@cache
def load() -> Any:
    """What the installed SGLang makes a queue of. Raises ImportError with the mend where the package is missing or of another version."""
    return _Sglang059() if check_version() == _OLD else _Sglang0523()
