"""SGLang's own ``SchedulePolicy`` over its own ``RadixCache``, from its published package, on a machine without a GPU."""

from feather.sglang import VERSION, check_version
from lab.engines.sglang_stubs import stub

__all__ = ["VERSION", "Peer", "load"]


class Peer:
    """A waiting queue under one of SGLang's policies, as its scheduler keeps it.

    Args:
        policy: "lpm" or "dfs-weight".
        cut_off: keep SGLang's rule that LPM falls back to first-come-first-served above 128 waiting requests.
    """

    def __init__(self, policy: str, cut_off: bool):
        radix_cache, schedule_batch, schedule_policy, sampling = load()
        self._key, self._insert_params = radix_cache.RadixKey, radix_cache.InsertParams
        self._request, self._sampling = schedule_batch.Req, sampling.SamplingParams
        self.cache = radix_cache.RadixCache.create_simulated()
        self.policy = schedule_policy.SchedulePolicy(policy, self.cache, False, False, False)
        if not cut_off:
            self.policy._determine_active_policy = lambda waiting: self.policy.policy
        self.waiting: list = []

    def cached(self, tokens: list[int]) -> None:
        """The KV of these tokens is in the cache."""
        self.cache.insert(self._insert_params(key=self._key(token_ids=tokens)))

    def arrive(self, request_id: str, tokens: list[int]) -> None:
        self.waiting.append(self._request(request_id, "", tokens, self._sampling()))

    def schedule(self) -> None:
        """The call that SGLang makes in every step: order the whole waiting queue."""
        self.policy.calc_priority(self.waiting)


def load():
    """SGLang's modules (radix_cache, schedule_batch, schedule_policy, sampling_params). Raises ImportError with the
    mend where the package is missing or of another version."""
    check_version()
    stub()
    from sglang.srt.managers import schedule_batch, schedule_policy
    from sglang.srt.mem_cache import radix_cache
    from sglang.srt.sampling import sampling_params

    return radix_cache, schedule_batch, schedule_policy, sampling_params
