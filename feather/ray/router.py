"""Feather's placement as a request router of Ray Serve: ``request_router_class="feather.ray.router.FeatherRouter"``.

It reads prefixes from the arguments of a handle's call, so it belongs to the deployment that holds the engines, whatever stands in front
of it. Where replicas do not report (``record_routing_stats``, see ``feather.ray.statistics``), Ray's own power of two choices decides.
"""

from typing import Any, cast

from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter  # as Ray's own prefix router does
from ray.serve.request_router import LocalityMixin, MultiplexMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from feather.ray.placement import Placement
from feather.ray.prompts import prefix_path
from feather.ray.statistics import KEY


class FeatherRouter(LocalityMixin, MultiplexMixin, RequestRouter):
    """``request_router_kwargs``: those of ``Placement``, and ``chunk_size`` in tokens, the same as in the replicas' reports."""

    def initialize_state(self, chunk_size: int = 512, **options: Any) -> None:
        self.chunk_size = chunk_size
        self.placement = Placement(**options)
        self._here: dict[Any, RunningReplica] = {}

    async def choose_replicas(self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None) -> Any:
        rays: Any = await PowerOfTwoChoicesRequestRouter.choose_replicas(cast(Any, self), candidate_replicas, pending_request)
        if pending_request is None:
            return rays
        id_, model = pending_request.metadata.internal_request_id, pending_request.metadata.multiplexed_model_id
        path = prefix_path((*pending_request.args, *pending_request.kwargs.values()), self.chunk_size, model)
        among = {replica.replica_id.unique_id for replica in sum(rays, [])} if model else self._here
        chosen = self.placement.choose(path, among)

        def settled(future) -> None:  # to our replica or another one, or withdrawn
            self.placement.place(id_, path, None if future.cancelled() else future.result().replica_id.unique_id)

        pending_request.future.add_done_callback(settled)
        if chosen is not None:
            self.placement.place(id_, path, chosen)  # already, so that the next decision knows
            rays = [[self._here[chosen]], *rays]
        return rays

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        self._here = {replica.replica_id.unique_id: replica for replica in replicas}
        self.placement.update(self._here)
        for id_, replica in self._here.items():
            if told := (replica.routing_stats or {}).get(KEY):
                self.placement.report(id_, told)
        super().update_replicas(replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._here.pop(replica_id.unique_id, None)
        self.placement.update(self._here)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self.placement.done(internal_request_id, replica_id.unique_id)
