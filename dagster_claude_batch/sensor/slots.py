"""Slots of the user's own pools, which Dagster's queue does not see in a held run's plan.

It would start all that are let go, and each process would wait for its slot.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import dagster as dg

from dagster_claude_batch.held_run import HeldRun

_BEFORE_ITS_STEPS = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
)


class Slots:
    """The free slots of pools as a tick goes on; ``let_go`` are the held runs that have been."""

    def __init__(self, instance: dg.DagsterInstance, let_go: Iterable[HeldRun]) -> None:
        self._instance = instance
        self._taken = Counter[str]()
        self._free: dict[str, int | None] = {}
        for held in let_go:
            if held.status in _BEFORE_ITS_STEPS:
                self._taken.update(held.pools)

    def take(self, pools: Sequence[str]) -> bool:
        """Take a slot in each of these pools that has one; False if none has, as in the queue."""
        free = [pool for pool in pools if self._has_free(pool)]
        self._taken.update(free)
        return bool(free) or not pools

    def _has_free(self, pool: str) -> bool:
        if pool not in self._free:
            self._free[pool] = self._count(pool)
        free = self._free[pool]
        return free is None or self._taken[pool] < free

    def _count(self, pool: str) -> int | None:
        """Slots that no step has or waits for; None if the pool has no limit."""
        storage = self._instance.event_log_storage
        if not storage.supports_global_concurrency_limits:
            return None
        if pool not in {limit.name for limit in storage.get_pool_limits()}:
            return self._instance.get_concurrency_config().pool_config.default_pool_limit
        info = storage.get_concurrency_info(pool)
        return info.slot_count - max(len(info.pending_steps), len(info.claimed_slots))
