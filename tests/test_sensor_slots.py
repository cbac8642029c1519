"""Held runs of an asset in a pool of the user's: let go no faster than the pool has free slots."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from queue_kit import ORIGIN, RESOURCE, let_go, queueing_instance, run_of, scene_of

from dagster_claude_batch import LocalClaudeBatchResource, held_run, holding
from dagster_claude_batch.sensor.tick import tick
from dagster_claude_batch.workbench import Waiting

POOL = "warehouse"


@dg.asset(pool=POOL)
def pooled() -> None: ...


@dg.asset(deps=[pooled], pool="downstream")
def after_it() -> None: ...


@dg.asset
def free() -> None: ...


REPOSITORY = dg.Definitions(assets=[pooled, after_it, free]).get_repository_def()
READY = Waiting(("a",))


class Pools:
    """An instance that starts nothing, with a sensor."""

    def __init__(self, instance: dg.DagsterInstance, directory: Path) -> None:
        self.instance = instance
        self.storage = instance.event_log_storage
        self.claude = LocalClaudeBatchResource(path=str(directory))

    def make(self, *assets: dg.AssetsDefinition, made_by: str | None = None) -> dg.DagsterRun:
        """The held run of a run of these assets, or of a run that there is."""
        keys = {asset.key for asset in assets}
        job = REPOSITORY.get_job("__ASSET_JOB").get_subset(asset_selection=keys)
        maker = self.instance.get_run_by_id(made_by) if made_by else None
        maker = maker or self.instance.create_run_for_job(
            job,
            status=dg.DagsterRunStatus.SUCCESS,
            remote_job_origin=ORIGIN.get_job_origin(job.name),
        )
        held_id = holding.make(
            self.instance,
            maker,
            asset_graph=REPOSITORY.asset_graph,
            batch_assets=keys,
            claude_resource=RESOURCE,
        )
        return run_of(self.instance, held_id)

    def hold(self) -> str:
        """A held run whose time has come."""
        run = self.make(pooled)
        waiting = Waiting(("a",), not_before=self.claude.now())
        held_run.describe(self.instance, run.run_id, pooled.key, waiting)
        return run.run_id

    def tick(self) -> str | None:
        """What a tick says."""
        reason = tick(scene_of(self.instance, self.claude)).skip_reason
        return reason.skip_message if isinstance(reason, dg.SkipReason) else reason

    def let_go(self) -> set[str]:
        return set(let_go(self.instance))


@pytest.fixture
def pools(tmp_path: Path) -> Iterator[Pools]:
    with queueing_instance(tmp_path / "dagster") as instance:
        yield Pools(instance, tmp_path / "simulator")


def test_only_as_many_are_let_go_as_their_pool_has_free_slots(pools: Pools) -> None:
    pools.storage.set_concurrency_slots(POOL, 2)
    pools.storage.claim_concurrency_slot(POOL, "somebody", "a step")
    held = [pools.hold() for _ in range(3)]

    pools.tick()
    first = pools.let_go()
    said = pools.tick()

    assert len(first) == 1
    assert pools.let_go() == first
    assert said is not None
    assert "2 of them wait for a free slot of a pool" in said
    (waits, _) = [run_id for run_id in held if run_id not in first]
    shown = run_of(pools.instance, waits).tags[held_run.LONG_TAG]
    assert f"when pool {POOL!r} has a free slot" in shown


def test_the_next_is_let_go_when_a_slot_is_free_again(pools: Pools) -> None:
    pools.storage.set_concurrency_slots(POOL, 1)
    pools.storage.claim_concurrency_slot(POOL, "somebody", "a step")
    held = pools.hold()
    pools.tick()
    before = pools.let_go()

    pools.storage.free_concurrency_slot_for_step("somebody", "a step")
    pools.tick()

    assert (before, pools.let_go()) == (set(), {held})


def test_a_step_that_waits_for_its_slot_counts_as_if_it_had_it(pools: Pools) -> None:
    pools.storage.set_concurrency_slots(POOL, 2)
    for step in ("has it", "has it too", "waits"):
        pools.storage.claim_concurrency_slot(POOL, "somebody", step)
    pools.storage.free_concurrency_slot_for_step("somebody", "has it")
    pools.hold()

    pools.tick()

    assert pools.let_go() == set()


def test_a_pool_without_a_limit_keeps_nobody(pools: Pools) -> None:
    held = {pools.hold() for _ in range(3)}

    pools.tick()

    assert pools.let_go() == held


def test_a_held_run_knows_the_pools_of_its_first_steps_and_passes_them_on(pools: Pools) -> None:
    first = pools.make(pooled, after_it)
    second = pools.make(pooled, after_it, made_by=first.run_id)

    assert held_run.read(first).pools == (POOL,)
    assert held_run.read(second).pools == (POOL,)


def test_a_run_that_can_begin_without_a_pool_is_kept_by_none(pools: Pools) -> None:
    assert held_run.read(pools.make(pooled, free)).pools == ()
