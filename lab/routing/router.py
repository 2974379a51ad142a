"""Every router that is compared, as one request router of Ray Serve, so that one deployment serves them all in turn.

Ray's routers and Feather's are the real ones: their own ``choose_replicas`` decides. DualMap has none for Ray; its rule is ``rules.DualMap``.
"""

import time
from typing import Any

import ray
from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router import PrefixCacheAffinityRouter
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve.experimental.round_robin_router import RoundRobinRouter

from feather.ray.placement import Placement
from feather.ray.router import FeatherRouter
from lab.routing.real import CHUNK
from lab.routing.rules import OURS, DualMap


class StudyRouter(FeatherRouter, PrefixCacheAffinityRouter):
    """The router that the request's cell names. A new cell begins with nothing known of former ones."""

    def initialize_state(self, **options: Any) -> None:
        PrefixCacheAffinityRouter.initialize_state(self)
        FeatherRouter.initialize_state(self, **{"chunk_size": CHUNK, "stale_after": 5.0} | options)
        self._options = {"stale_after": 5.0} | {name: value for name, value in options.items() if name != "chunk_size"}
        self._round_robin_counter = 0
        self._cell: Any = None
        self._dual = DualMap()

    async def choose_replicas(self, candidate_replicas, pending_request=None):
        if pending_request is None:
            return await PowerOfTwoChoicesRequestRouter.choose_replicas(self, candidate_replicas, pending_request)
        cell = pending_request.args[0].cell
        if cell != self._cell:
            self._begin(cell)
        router = {
            OURS: FeatherRouter, "prefix affinity": PrefixCacheAffinityRouter, "power of two": PowerOfTwoChoicesRequestRouter, "round robin": RoundRobinRouter,
        }.get(cell.router)  # fmt: skip
        if router is not None:
            return await router.choose_replicas(self, candidate_replicas, pending_request)
        here = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        self._dual.update(here)
        path = [hash(pending_request.args[0].prompt[: 4 * CHUNK])]
        chosen, id_ = self._dual.choose(path), pending_request.metadata.internal_request_id
        self._dual.done(id_)
        self._dual.place(id_, path, chosen)
        pending_request.routing_context.should_backoff = True
        return [[here[chosen]], candidate_replicas]

    def _begin(self, cell) -> None:
        names = [replica.to_full_id_str() for replica in self._replica_id_set]
        ray.get([self._tree_actor.remove_tenants.remote(names), self._tree_actor.add_tenants.remote(names, time.time())])
        self._dual = DualMap()
        self.placement = Placement(**self._options)
        FeatherRouter.update_replicas(self, self._replicas_list)
        self._cell = cell

    def on_request_routed(self, pending_request, replica_id, result) -> None:
        if self._cell is not None and self._cell.router == "prefix affinity":
            PrefixCacheAffinityRouter.on_request_routed(self, pending_request, replica_id, result)

    def on_request_completed(self, replica_id, internal_request_id) -> None:
        super().on_request_completed(replica_id, internal_request_id)
        self._dual.done(internal_request_id)
