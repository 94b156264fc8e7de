"""To which replica a request goes: to the one that has heard its recording, or to the less busy of two."""

import random
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RunningReplica


class Affinity(ConsistentHashRouter):
    """Keeps what has one key, the header `x-session-id`, at one replica; few keys move when replicas come and go.

    A replica that has `busy_requests` or more, as far as this proxy knows, is passed over for the next on Ray's ring of hashes while any
    has fewer; one that has `max_ongoing_requests` takes no other.
    """

    _busy_requests = 0

    def initialize_state(self, *, busy_requests: int, **kwargs: Any) -> None:
        """Takes the deployment's `request_router_kwargs`."""
        super().initialize_state(**kwargs)
        self._busy_requests = busy_requests

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas, in the order in which to ask them; of a group, the one with the fewest requests is asked."""
        if pending_request is None or pending_request.metadata.session_id:
            ranks = await super().choose_replicas(candidate_replicas, pending_request)
            return sorted(ranks, key=lambda rank: all(map(self._is_busy, rank)))  # stable: the ring's order otherwise
        pending_request.routing_context.should_backoff = True  # else it would ask again and again without a pause
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]

    def _is_busy(self, replica: RunningReplica) -> bool:
        return (self.replica_queue_len_cache.get(replica.replica_id) or 0) >= self._busy_requests
