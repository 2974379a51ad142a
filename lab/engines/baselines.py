"""What Feather is measured against, as waiting queues for the same scheduler on the same engine.

Each has one method more than vLLM's queues: ``reconcile``, called before every scheduling step.
"""

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.request_queue import FCFSRequestQueue, RequestQueue
from vllm.v1.request import Request

from lab.radix import RadixNode, RadixTree

SGLANG_IN_BATCH = 32  # tokens; SGLang 0.5.9, IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD and ..._DEPRIORITIZE_THRESHOLD


def group_of(request: Request) -> int:
    """The prefix group that a study's workload has written on the request."""
    return request.sampling_params.extra_args["group"]


class ArrivalQueue(FCFSRequestQueue):
    """vLLM's own queue, as it is."""

    def reconcile(self) -> None:
        pass


class OrderedQueue(RequestQueue):
    """Orders the whole queue once a step, then serves from the front; the engine alone decides when to stop."""

    def __init__(self) -> None:
        self._arrived: dict[str, Request] = {}  # in order of arrival
        self._order: list[Request] = []  # what is left of this step's order, last first

    @abstractmethod
    def order(self, waiting: list[Request]) -> list[Request]:
        """The waiting requests, which come by arrival, in the order to admit them."""

    def reconcile(self) -> None:
        self._order = self.order(list(self._arrived.values()))[::-1]

    def __bool__(self) -> bool:
        return bool(self._arrived)

    def peek_request(self) -> Request:
        while self._order and self._order[-1].request_id not in self._arrived:
            self._order.pop()
        return self._order[-1] if self._order else next(iter(self._arrived.values()))

    def pop_request(self) -> Request:
        request = self.peek_request()
        del self._arrived[request.request_id]
        return request

    def add_request(self, request: Request) -> None:
        self._arrived[request.request_id] = request

    def prepend_request(self, request: Request) -> None:
        self._arrived = {request.request_id: request, **self._arrived}

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: Request) -> None:
        del self._arrived[request.request_id]

    def remove_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._arrived.pop(request.request_id, None)

    def __len__(self) -> int:
        return len(self._arrived)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._arrived.values())


class OracleQueue(OrderedQueue):
    """Group ids are given, so detection is free and exact. Groups that run already come first, then the others, each as one piece.

    Shares no code with the tree, so that it can also tell when the tree is wrong.

    Args:
        running: the scheduler's live list of running requests.
        at_once: a batch holds requests of so many groups at most; whoever is of another waits until one has run out. None: no stopping.
        refill: whether requests join a group that has begun in an earlier step.
        largest: whether the group with most waiting requests comes next, instead of that of the oldest request.
    """

    def __init__(self, running: Callable[[], list[Request]], at_once: int | None = None, refill: bool = True, largest: bool = False):
        super().__init__()
        self._running, self._at_once, self._refill, self._largest = running, at_once, refill, largest
        self._closed: set[int] = set()  # groups that nobody may join in this step

    def order(self, waiting: list[Request]) -> list[Request]:
        running = {group_of(request) for request in self._running()}
        self._closed = set() if self._refill else running
        first: dict[int, int] = {}
        sizes = Counter(group_of(request) for request in waiting)
        for place, request in enumerate(waiting):
            first.setdefault(group_of(request), place)

        def rank(request: Request) -> tuple:
            group = group_of(request)
            return (group in self._closed, group not in running, -sizes[group] if self._largest else 0, first[group])

        return sorted(waiting, key=rank)

    def __bool__(self) -> bool:
        if not self._arrived:
            return False
        group, running = group_of(self.peek_request()), {group_of(request) for request in self._running()}
        if group in running:
            return group not in self._closed
        return self._at_once is None or len(running) < self._at_once


class CachedPrompts:
    """Prompts by their tokens, the least recently used leaves dropped above ``capacity`` tokens. Marks say when a node was last used."""

    def __init__(self, capacity: float):
        self.tree = RadixTree()
        self._capacity = capacity
        self._clock = 0

    def match(self, tokens: list[int]) -> tuple[int, RadixNode]:
        """Length of the longest cached prefix, and the node that ends there."""
        path = self._use(self.tree.walk(tokens))
        return sum(len(node.edge) for node in path), path[-1] if path else self.tree.root

    def insert(self, tokens: list[int]) -> None:
        self._use(self.tree.walk(tokens, grow=True))
        if self.tree.size > self._capacity:
            self._evict()

    def _use(self, path: list[RadixNode]) -> list[RadixNode]:
        self._clock += 1
        for node in path:
            node.mark = self._clock
        return path

    def _evict(self) -> None:
        leaves = [node for node in self.tree.nodes() if not node.children]
        for leaf in sorted(leaves, key=lambda node: node.mark):
            if self.tree.size <= self._capacity:
                return
            self.tree.remove(leaf)


class RadixQueue(OrderedQueue):
    """Queue policies over a token-level radix tree of the prompts whose KV is cached: SGLang's own, and two that were proposed for it.

    * "lpm": longest cached prefix first. Of several requests without one that share a prefix among themselves, only the
      first keeps its place, so that the others find it cached later.
    * "dfs-weight": depth-first through the tree, the subtree with more waiting requests first.
    * "hrrn": highest response ratio next: prompt tokens that the engine has computed since the request came, over those that it would
      have to compute for it.
    * "shortest-prefill-first": fewest tokens to compute first.
    * "lpm, ageing": lpm with ``ageing`` tokens added to the match for every pass that a request was seen and not admitted.
    * "k-lpm": of every k requests, first the oldest, then k - 1 by lpm: first come, first served at k = 1, lpm as k grows.

    Args:
        policy: one of these.
        capacity: tokens of KV cache.
        running: the scheduler's live list of running requests.
        cached: prompts whose KV is cached to begin with.
        cut_off: above so many waiting requests lpm and hrrn give way to order of arrival (SGLang: 128); None: never.
        computed: gives the prompt tokens that the engine has computed so far, for hrrn.
        ageing: tokens per pass.
        k: requests.
    """

    def __init__(
        self,
        policy: str,
        capacity: int,
        running: Callable[[], list[Request]],
        cached: Iterable[list[int]] = (),
        cut_off: int | None = None,
        computed: Callable[[], int] = lambda: 0,
        ageing: int = 0,
        k: int = 1,
    ):
        super().__init__()
        self._order_of = {
            "lpm": self._longest_prefix_first,
            "lpm, ageing": self._longest_prefix_first,
            "dfs-weight": self._depth_first,
            "hrrn": self._highest_response_ratio_first,
            "shortest-prefill-first": self._shortest_prefill_first,
            "k-lpm": self._oldest_and_longest_prefix_in_turns,
        }[policy]
        self._cut_off = cut_off if policy in ("lpm", "hrrn") else None
        self._running, self._computed, self._ageing, self._k = running, computed, ageing, k
        self._cached = CachedPrompts(capacity)
        for tokens in cached:
            self._cached.insert(tokens)
        self._inserted: set[str] = set()
        self._passes: Counter[str] = Counter()  # in which a waiting request was seen
        self._computed_before: dict[str, int] = {}  # when a waiting request came
        self._taken = 0  # requests so far

    def order(self, waiting: list[Request]) -> list[Request]:
        running = self._running()
        for request in running:
            if request.request_id not in self._inserted:
                self._cached.insert(request.prompt_token_ids)
        self._inserted = {request.request_id for request in running}
        self._passes.update(request.request_id for request in waiting)
        if self._cut_off is not None and len(waiting) > self._cut_off:
            return waiting
        return self._order_of(waiting)

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        self._computed_before[request.request_id] = self._computed()

    def pop_request(self) -> Request:
        self._taken += 1
        return super().pop_request()

    def _matches(self, waiting: list[Request]) -> dict[str, tuple[bool, int]]:
        """By id: whether another that waits is to go first and leave the prefix in the cache, and how many tokens are cached."""
        among_waiting = CachedPrompts(float("inf"))
        found = {}
        for request in waiting:
            tokens = request.prompt_token_ids
            cached, _ = self._cached.match(tokens)
            later = False
            if cached <= SGLANG_IN_BATCH:
                later = among_waiting.match(tokens)[0] >= SGLANG_IN_BATCH
                if not later:
                    among_waiting.insert(tokens)
            found[request.request_id] = later, cached
        return found

    def _longest_prefix_first(self, waiting: list[Request]) -> list[Request]:
        matches = self._matches(waiting)

        def key(request: Request) -> tuple[bool, int]:
            later, cached = matches[request.request_id]
            # The present pass is none in which the request has waited in vain.
            return later, 0 if later else -(cached + self._ageing * (self._passes[request.request_id] - 1))

        return sorted(waiting, key=key)

    def _highest_response_ratio_first(self, waiting: list[Request]) -> list[Request]:
        matches, computed = self._matches(waiting), self._computed()

        def key(request: Request) -> tuple[float, str]:
            later, cached = matches[request.request_id]
            waited = computed - self._computed_before.get(request.request_id, computed)
            return float("inf") if later else -waited / max(1, len(request.prompt_token_ids) - cached), request.request_id

        return sorted(waiting, key=key)

    def _shortest_prefill_first(self, waiting: list[Request]) -> list[Request]:
        matches = self._matches(waiting)

        def key(request: Request) -> tuple[bool, int]:
            later, cached = matches[request.request_id]
            return later, max(1, len(request.prompt_token_ids) + request.num_output_tokens - cached)  # one token at least is computed

        return sorted(waiting, key=key)  # stable: among equals, the one that came first

    def _oldest_and_longest_prefix_in_turns(self, waiting: list[Request]) -> list[Request]:
        by_match, ordered = {request.request_id: request for request in self._longest_prefix_first(waiting)}, []
        by_arrival = {request.request_id: request for request in waiting}
        for turn in range(self._taken, self._taken + len(waiting)):
            id_ = next(iter(by_match if turn % self._k else by_arrival))
            del by_match[id_]
            ordered.append(by_arrival.pop(id_))
        return ordered

    def _depth_first(self, waiting: list[Request]) -> list[Request]:
        ending: dict[RadixNode, list[Request]] = defaultdict(list)
        for request in waiting:
            ending[self._cached.match(request.prompt_token_ids)[1]].append(request)
        weight: Counter[RadixNode] = Counter({node: len(requests) for node, requests in ending.items()})
        for node in reversed(self._cached.tree.nodes()):
            weight[node.parent] += weight[node]
        ordered: list[Request] = []
        stack: list[tuple[RadixNode, bool]] = [(self._cached.tree.root, False)]
        while stack:
            node, children_done = stack.pop()
            if children_done:
                ordered += ending.get(node, ())
                continue
            stack.append((node, True))
            heavier_first = sorted((child for child in node.children.values() if weight[child]), key=lambda child: -weight[child])
            stack += [(child, False) for child in reversed(heavier_first)]
        return ordered


class BlockTableQueue(OrderedQueue):
    """Detection over the block table, each step anew: the pass over the running requests' tables that prefix-packing
    kernels make (PAT), and, since it has to order a queue, the cached blocks of every waiting request. First comes whoever
    shares the most blocks with the batch.

    Args:
        manager: the engine's own KV-cache manager.
        running: the scheduler's live list of running requests.
    """

    def __init__(self, manager: KVCacheManager, running: Callable[[], list[Request]]):
        super().__init__()
        self._manager = manager
        self._running = running

    def order(self, waiting: list[Request]) -> list[Request]:
        in_use = set()
        for request in self._running():
            in_use.update(self._manager.get_block_ids(request.request_id)[0])
        shared = {}
        for request in waiting:
            blocks, *_ = self._manager.get_computed_blocks(request)
            shared[request.request_id] = sum(block in in_use for block in blocks.get_block_ids()[0])
        return sorted(waiting, key=lambda request: -shared[request.request_id])


class WindowQueue(OrderedQueue):
    """A bounded, cache-aware look ahead: of the first ``window`` requests by arrival, those whose prefix is in the cache go first, the longest
    first, before a request without one takes its blocks; all others keep their places. While less than ``threshold`` of the KV cache is in
    use there is nothing to protect, and the order is that of arrival.

    Args:
        manager: the engine's own KV-cache manager.
        window: requests.
        threshold: share of the KV cache, 0 … 1.
    """

    def __init__(self, manager: KVCacheManager, window: int, threshold: float = 0.5):
        super().__init__()
        self._manager, self._window, self._threshold = manager, window, threshold

    def order(self, waiting: list[Request]) -> list[Request]:
        if self._manager.usage < self._threshold:
            return waiting
        near = sorted(waiting[: self._window], key=lambda request: -self._manager.get_computed_blocks(request)[1])
        return near + waiting[self._window :]
