"""Making a held run: a copy of a run, restricted to what waits, that the queue does not start.

Most of what is called here is no public part of Dagster; each call has a test that names the
behaviour it relies on.
"""

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from dagster_claude_batch import dagster_internals, held_run
from dagster_claude_batch.dagster_internals import (
    CONCURRENCY_TAG,
    NOT_COPIED,
    PARENT_RUN_ID_TAG,
    PRIORITY_TAG,
    RETRY_NUMBER_TAG,
)
from dagster_claude_batch.ours import Ours

if TYPE_CHECKING:
    from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
    from dagster._core.snap import ExecutionPlanSnapshot
    from dagster._core.snap.execution_plan_snapshot import ExecutionStepSnap

MOST_FRUITLESS: Final = 5
"""So many runs in a chain may end without having collected anything, before it is given up."""


def held_run_id(maker_run_id: str) -> str:
    """The id of the one held run that a run makes, however often it is asked to."""
    return str(uuid.uuid5(uuid.UUID(maker_run_id), "held run of dagster_claude_batch"))


def successor_id(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """The id of the one held run that comes after a run, and after all Dagster's retries of it.

    A retry goes on with the run that an earlier try has left; where that one has ended, with what
    it has left in turn. Else each failure would leave two runs, each of which may leave two.
    """
    first: dg.DagsterRun | None = run
    held_id = held_run_id(run.run_id)
    while first is not None and RETRY_NUMBER_TAG in first.tags:
        held_id = held_run_id(first.tags[PARENT_RUN_ID_TAG])
        first = instance.get_run_by_id(first.tags[PARENT_RUN_ID_TAG])
    while first is not run and _has_handed_over(instance.get_run_by_id(held_id)):
        held_id = held_run_id(held_id)
    return held_id


def _has_handed_over(held: dg.DagsterRun | None) -> bool:
    """Whether a run has ended; what somebody has cancelled is not gone on with."""
    return held is not None and held.is_finished and held.status != dg.DagsterRunStatus.CANCELED


def is_waiting(instance: dg.DagsterInstance, held_id: str) -> bool:
    """Whether a held run is still in the queue, and has not been let go."""
    held = instance.get_run_by_id(held_id)
    if held is None or not has_not_begun(held):
        return False
    return held_run.read(held).state == held_run.WAITING


def has_not_begun(run: dg.DagsterRun | None) -> bool:
    """Whether a run is there, and in the queue or on its way there."""
    not_begun = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED)
    return run is not None and run.status in not_begun


def why_not(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Why a run of this instance cannot be held, or None if it can.

    Elsewhere than where this holds, Dagster would start the held run at once.
    """
    if instance.is_ephemeral:
        return "the Dagster instance is ephemeral"
    lacking = dagster_internals.missing(instance)
    if lacking is not None:
        return dagster_internals.lacks(lacking)
    if not dagster_internals.queues_runs(instance):
        return "the instance's run coordinator does not queue runs"
    if run.remote_job_origin is None:
        return "the run was not launched through a code location"
    try:
        return _why_queue_not(instance, run)
    except AttributeError as error:  # its configuration is read in another way by now
        return dagster_internals.lacks(str(error.name))


def _why_queue_not(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    config = instance.get_concurrency_config()
    queue = config.run_queue_config
    if queue is None or not queue.should_block_op_concurrency_limited_runs:
        return "the run queue does not look at pools (block_op_concurrency_limited_runs)"
    if queue.op_concurrency_slot_buffer != 0:
        return "the run queue has a buffer for pools (op_granularity_run_buffer)"
    if not instance.event_log_storage.supports_global_concurrency_limits:
        return "the instance's event log storage has no pools"
    granularity = config.pool_config.pool_granularity
    if granularity is not None and granularity.value == "run" and (pools := _users_pools(run)):
        # A step names one pool: that of the wait would take the place of the user's.
        return f"the pool {min(pools)!r} counts whole runs (pools.granularity)"
    return None


def _users_pools(run: dg.DagsterRun) -> set[str]:
    known = run.run_op_concurrency
    pools = (known.all_pools if known is not None else None) or ()
    return {pool for pool in pools if not pool.startswith(held_run.POOL_PREFIX)}


def make(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    *,
    asset_graph: "BaseAssetGraph[Any]",
    batch_assets: Iterable[dg.AssetKey],
    claude_resource: str,
    has_failed: bool = False,
) -> str:
    """Create and enqueue the run that will collect; its id. Making it twice makes one.

    It repeats of ``run`` the batch assets and what is downstream of them. One that an earlier try
    of the run has left waits for the end of this try now. ``has_failed``: the run has failed with
    something out, and this one is to try again.

    Raises:
        RuntimeError: Dagster would not hold it, or one run after the other has come to nothing.
            There is no held run then.
    """
    held_id = successor_id(instance, run)
    if instance.has_run(held_id):
        if is_waiting(instance, held_id):
            instance.add_run_tags(held_id, {held_run.MAKER_TAG: run.run_id})
        return held_id
    now = instance.get_run_by_id(run.run_id) or run
    fruitless = fruitless_runs(now, has_failed=has_failed)
    if fruitless > MOST_FRUITLESS:
        raise RuntimeError(
            f"{fruitless} runs in a row have ended without having collected anything, and this one "
            "leaves no other. Read why they failed, then materialize again: it goes on with what "
            "is out."
        )
    pool = held_run.pool_of(held_id)
    selection = _waiting_assets(planned_in(instance, run), asset_graph, batch_assets)
    tags = {
        **copied_tags(run, claude_resource, pool),
        # Who tries again needs the same ledger, from its first moment on.
        **(held_run.attached_tags(run) if has_failed else {}),
        held_run.STATE_TAG: held_run.WAITING,
        held_run.FRUITLESS_TAG: str(fruitless),
        held_run.SHORT_TAG: "sending batches",
        held_run.LONG_TAG: f"The sensor starts run {held_id[:8]} when its batches have ended.",
    }
    held = create_held(instance, run, held_id, tags, selection, asset_graph)
    if held is not None:
        enqueue(instance, held)
    return held_id


def create_held(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    held_id: str,
    tags: Mapping[str, str],
    selection: frozenset[dg.AssetKey],
    asset_graph: "BaseAssetGraph[Any]",
    *,
    is_silent: bool = False,
) -> dg.DagsterRun | None:
    """Create a copy of a run for some of its assets, which its pool holds; None if it is there.

    With ``is_silent`` it does not say what it is going to materialize and to check.

    Raises:
        RuntimeError: Dagster would not hold it. There is none then.
    """
    pool = tags[held_run.POOL_TAG]
    # Never the run before its limit: a pool without one does not block.
    instance.event_log_storage.set_concurrency_slots(pool, 0)
    held = _create(instance, run, held_id, tags, selection, asset_graph, is_silent=is_silent)
    concurrency = held.run_op_concurrency if held is not None else None
    if held is None or (concurrency and set(concurrency.root_key_counts) == {pool}):
        return held
    instance.delete_run(held_id)
    held_run.forget_pool(instance, pool)
    raise RuntimeError(f"Dagster would start the held run {held_id} at once.")


def narrow(
    instance: dg.DagsterInstance,
    held: dg.DagsterRun,
    selection: frozenset[dg.AssetKey],
    asset_graph: "BaseAssetGraph[Any]",
) -> dg.DagsterRun:
    """Put a held run for fewer assets in the place of one that has not been let go.

    A run's assets cannot be changed, so it is another run; it is there before the first one goes.
    """
    held_id = held_run_id(held.run_id)
    made = _create(instance, held, held_id, held.tags, selection, asset_graph)
    if made is not None:
        enqueue(instance, made)
    instance.delete_run(held.run_id)
    narrowed = made or instance.get_run_by_id(held_id)
    assert narrowed is not None  # noqa: S101  # it was created above, or before a crash
    return narrowed


def planned_in(instance: dg.DagsterInstance, run: dg.DagsterRun) -> "ExecutionPlanSnapshot":
    """The plan of a run."""
    return instance.get_execution_plan_snapshot(str(run.execution_plan_snapshot_id))


def _create(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    held_id: str,
    tags: Mapping[str, str],
    selection: frozenset[dg.AssetKey],
    asset_graph: "BaseAssetGraph[Any]",
    *,
    is_silent: bool = False,
) -> dg.DagsterRun | None:
    snapshot = planned_in(instance, run)
    plan = _held_plan(snapshot, selection, tags[held_run.POOL_TAG], is_silent=is_silent)
    try:
        return instance.create_run(  # pyright: ignore[reportUnknownMemberType]  # not public
            job_name=run.job_name,
            run_id=held_id,
            run_config=run.run_config,
            status=dg.DagsterRunStatus.NOT_STARTED,
            tags={**tags, held_run.POOLS_TAG: _first_pools(run, snapshot, selection)},
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=None,
            execution_plan_snapshot=plan,
            job_snapshot=instance.get_historical_job(str(run.job_snapshot_id)).job_snapshot,
            parent_job_snapshot=None,
            asset_selection=selection,
            asset_check_selection=frozenset() if is_silent else _checks_of(run, selection),
            resolved_op_selection=None,
            op_selection=None,
            remote_job_origin=run.remote_job_origin,
            job_code_origin=run.job_code_origin,
            asset_graph=asset_graph,
        )
    except dagster_internals.already_exists_error():
        return None
    except dg.DagsterInvalidInvocationError:
        # A key of the run's range is no partition any more. Dagster asks for it only when it has
        # written the run, to say what that is going to materialize.
        written = instance.get_run_by_id(held_id)
        if written is None:
            held_run.forget_pool(instance, tags[held_run.POOL_TAG])
            raise
        return written


def enqueue(instance: dg.DagsterInstance, held: dg.DagsterRun) -> None:
    """Put a held run into the queue."""
    instance.report_dagster_event(
        dagster_internals.event_class().job_enqueue(held), run_id=held.run_id
    )


def undo(instance: dg.DagsterInstance, held_id: str) -> None:
    """Delete a held run, for it turned out to have nothing to wait for; not one let go already."""
    if is_waiting(instance, held_id):
        instance.delete_run(held_id)
        held_run.forget_pool(instance, held_run.pool_of(held_id))


def _waiting_assets(
    snapshot: "ExecutionPlanSnapshot",
    asset_graph: "BaseAssetGraph[Any]",
    batch_assets: Iterable[dg.AssetKey],
) -> frozenset[dg.AssetKey]:
    """The batch assets of a plan, and all that is downstream of them within it."""
    planned = snapshot.asset_selection
    found: set[dg.AssetKey] = set()
    pending = [key for key in batch_assets if key in planned]
    while pending:
        key = pending.pop()
        if key not in found:
            found.add(key)
            pending += [child for child in asset_graph.get(key).child_keys if child in planned]
    return frozenset(found)


def _held_plan(
    snapshot: "ExecutionPlanSnapshot",
    selection: frozenset[dg.AssetKey],
    pool: str,
    *,
    is_silent: bool,
) -> "ExecutionPlanSnapshot":
    """The plan of the selected assets, each step in the held run's pool."""
    steps = [step._replace(pool=pool) for step in _steps_of(snapshot, selection)]
    if is_silent:
        steps = [step._replace(outputs=[]) for step in steps]
    return snapshot._replace(
        steps=steps,
        step_keys_to_execute=[step.key for step in steps],
        initial_known_state=None,
    )


def _first_pools(
    run: dg.DagsterRun, snapshot: "ExecutionPlanSnapshot", selection: frozenset[dg.AssetKey]
) -> str:
    """The user's pools of a plan's first steps, for the tag; none if one of these has no pool.

    Dagster starts a run if one of its first steps can begin. In a held run's plan their pools have
    given way to its own.
    """
    if held_run.HELD_TAG in run.tags:
        return run.tags.get(held_run.POOLS_TAG, "[]")
    steps = _steps_of(snapshot, selection)
    keys = {step.key for step in steps}
    known: Any = snapshot  # its types are open
    deps: Mapping[str, set[str]] = known.step_deps
    first = [step for step in steps if keys.isdisjoint(deps.get(step.key, ()))]
    pools = {step.pool or (step.tags or {}).get(CONCURRENCY_TAG) for step in first}
    return json.dumps([] if None in pools else sorted(str(pool) for pool in pools))


def _steps_of(
    snapshot: "ExecutionPlanSnapshot", selection: frozenset[dg.AssetKey]
) -> "list[ExecutionStepSnap]":
    """The steps of the selected assets and of their checks."""
    return [
        step
        for step in snapshot.steps
        if any(
            output.properties is not None
            and (
                output.properties.asset_key in selection
                or (
                    output.properties.asset_check_key is not None
                    and output.properties.asset_check_key.asset_key in selection
                )
            )
            for output in step.outputs
        )
    ]


def _checks_of(
    run: dg.DagsterRun, selection: frozenset[dg.AssetKey]
) -> frozenset[dg.AssetCheckKey] | None:
    if run.asset_check_selection is None:
        return None
    return frozenset(key for key in run.asset_check_selection if key.asset_key in selection)


def copied_tags(run: dg.DagsterRun, claude_resource: str, pool: str) -> dict[str, str]:
    """The tags of a run that its held run has too, and those that say whose it is."""
    copied = {
        key: value
        for key, value in run.tags.items()
        if key not in {*NOT_COPIED, held_run.SHORT_TAG, held_run.LONG_TAG}
        and not key.startswith(held_run.OURS)
    }
    return {
        **copied,
        **Ours.of_run(run, claude_resource).tags(),
        PRIORITY_TAG: held_run.LAST_IN_QUEUE,
        held_run.OLD_PRIORITY_TAG: original_priority(run.tags),
        held_run.MAKER_TAG: run.run_id,
        held_run.POOL_TAG: pool,
    }


def fruitless_runs(run: dg.DagsterRun, *, has_failed: bool) -> int:
    """How many runs in a row, up to this one, came to nothing, should this one do so too.

    A held run that waits for something follows one that has come to something.
    """
    chain = 0
    is_fruitful = run.tags.get(held_run.FRUITFUL_TAG) == run.run_id
    is_asked_anew = held_run.is_copy(run) and RETRY_NUMBER_TAG not in run.tags
    if held_run.HELD_TAG in run.tags and not (
        is_asked_anew or is_fruitful or held_run.read(run).waits
    ):
        chain = held_run.read(run).fruitless + 1
    return max(chain, 1) if has_failed else chain


def original_priority(tags: Mapping[str, str]) -> str:
    """The priority that the user gave a run, also behind a chain of held runs."""
    if tags.get(held_run.HELD_TAG) and tags.get(PRIORITY_TAG) == held_run.LAST_IN_QUEUE:
        return tags.get(held_run.OLD_PRIORITY_TAG, "0")
    return tags.get(PRIORITY_TAG, "0")
