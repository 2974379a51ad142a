"""The scheduler of the studies on a clock of its own."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from feather.options import Options
from feather.studies.scheduler import StudyScheduler
from feather.vllm.queue import FeatherQueue

_REMEMBERED = 512  # prompts


class SimScheduler(StudyScheduler):
    """``clock`` gives the seconds that Feather takes for the time."""

    def __init__(self, *args, clock: Callable[[], float], **kwargs):
        self.clock = clock
        super().__init__(*args, **kwargs)

    def make_feather_queue(self, options: Options) -> FeatherQueue:
        # The budget is one of real time, of which a virtual clock knows nothing.
        return super().make_feather_queue(replace(options, decision_budget=float("inf")))


class BlockHasher:
    """vLLM's own block hashes. Those of the leading blocks that a prompt has in common with an earlier one are looked up
    instead of computed again: most of the time of a simulated run would go there."""

    def __init__(self, block_size: int):
        hash_function = get_hash_fn_by_name("sha256")
        init_none_hash(hash_function)
        self._hash = get_request_block_hasher(block_size, hash_function)
        self._block_size = block_size
        self._known: OrderedDict[tuple, tuple[Sequence[int], list]] = OrderedDict()

    def __call__(self, request: Request) -> list:
        if request.block_hashes:
            return self._hash(request)
        tokens = request.prompt_token_ids
        first = tuple(tokens[: self._block_size])
        earlier, hashes = self._known.get(first, ((), []))
        request.block_hashes.extend(hashes[: self._shared_blocks(tokens, earlier)])
        computed = self._hash(request)
        self._known[first] = tokens, [*request.block_hashes, *computed]
        self._known.move_to_end(first)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return computed

    def _shared_blocks(self, tokens: Sequence[int], earlier: Sequence[int]) -> int:
        low, high = 0, min(len(tokens), len(earlier)) // self._block_size
        while low < high:
            middle = (low + high + 1) // 2
            start, end = low * self._block_size, middle * self._block_size
            if tokens[start:end] == earlier[start:end]:
                low = middle
            else:
                high = middle - 1
        return low
