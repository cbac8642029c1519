"""The held run: a queued Dagster run that waits to collect, without a process or a run slot.

Dagster has no first-class way to suspend a run. A copy of the run stays in the queue because its
steps name a pool of their own, whose limit is 0 until the sensor deletes it.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import dagster as dg
from dagster._core.errors import DagsterRunAlreadyExists
from dagster._core.events import DagsterEvent
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator
from dagster._core.storage.tags import (
    AUTO_RETRY_RUN_ID_TAG,
    GRPC_INFO_TAG,
    PARENT_RUN_ID_TAG,
    PRIORITY_TAG,
    RESUME_RETRY_TAG,
    RETRY_NUMBER_TAG,
    ROOT_RUN_ID_TAG,
    RUN_FAILURE_REASON_TAG,
    RUN_KEY_TAG,
    RUN_WORKER_ID_TAG,
    SENSOR_NAME_TAG,
    TICK_ID_TAG,
    WILL_RETRY_TAG,
)

from dagster_claude_batch.workbench import Waiting

if TYPE_CHECKING:
    from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
    from dagster._core.snap import ExecutionPlanSnapshot

POOL_PREFIX: Final = "waiting_for_claude_batch/"

HELD_TAG: Final = ".dagster/claude_batch.held"
"""On every held run, for ever; its value is the key of the Claude resource."""
STATE_TAG: Final = ".dagster/claude_batch.state"
MAKER_TAG: Final = ".dagster/claude_batch.maker"
POOL_TAG: Final = ".dagster/claude_batch.pool"
OLD_PRIORITY_TAG: Final = ".dagster/claude_batch.priority"
FRUITLESS_TAG: Final = ".dagster/claude_batch.fruitless"
"""How many runs before this one, in a chain, ended without having sent anything."""
_WAIT_TAG: Final = ".dagster/claude_batch.wait."
_BATCHES_TAG: Final = ".dagster/claude_batch.batches."
SHORT_TAG: Final = "claude_batch"
LONG_TAG: Final = "claude_batch_details"
_OURS: Final = ".dagster/claude_batch."

WAITER_TAG: Final = ".dagster/claude_batch.waiter"
"""On a run that waits itself; its value is the key of the Claude resource."""

RunState: TypeAlias = Literal["waiting", "released", "in_run", "settled"]
"""The value of `STATE_TAG`.

``waiting`` is a held run, ``released`` one that may collect, ``in_run`` a run that waits itself.
``settled`` has nothing out any more that somebody would have to look after.
"""

WAITING: Final[RunState] = "waiting"
RELEASED: Final[RunState] = "released"
IN_RUN: Final[RunState] = "in_run"
SETTLED: Final[RunState] = "settled"

SENSOR_RESOURCE_TAG: Final = "dagster_claude_batch/claude_resource"
"""On a sensor definition: the key of the Claude resource whose held runs it lets go."""

OLD_AGE: Final = timedelta(hours=10)
"""From this age of a batch on, looks are ten times as far apart as at first."""

MOST_FRUITLESS: Final = 5
"""So many runs in a chain may end without having sent anything, before it is given up."""

LAST_IN_QUEUE: Final = "-1000"
"""Dagster counts a held run against tag limits before it looks at pools: so it goes last."""

_IDS_IN_A_TAG: Final = 50
"""Tag values are indexed, and PostgreSQL refuses index rows above about 2,700 bytes."""

_NOT_COPIED: Final = frozenset(
    {
        AUTO_RETRY_RUN_ID_TAG,
        GRPC_INFO_TAG,
        PARENT_RUN_ID_TAG,
        PRIORITY_TAG,
        RESUME_RETRY_TAG,
        RETRY_NUMBER_TAG,
        ROOT_RUN_ID_TAG,
        RUN_FAILURE_REASON_TAG,
        RUN_KEY_TAG,
        RUN_WORKER_ID_TAG,
        SENSOR_NAME_TAG,
        TICK_ID_TAG,
        WILL_RETRY_TAG,
    }
)


@dataclass(frozen=True)
class HeldRun:
    """A held run, as far as its tags tell; ``waits`` is empty until its maker has sent."""

    run_id: str
    maker_run_id: str
    pool: str
    state: str
    status: dg.DagsterRunStatus
    waits: tuple[Waiting, ...] = field(default=())

    @property
    def batch_ids(self) -> set[str]:
        """All batches that the run waits for."""
        return {batch_id for wait in self.waits for batch_id in wait.batch_ids}


def held_run_id(maker_run_id: str) -> str:
    """The id of the one held run that a run makes, however often it is asked to."""
    return str(uuid.uuid5(uuid.UUID(maker_run_id), "held run of dagster_claude_batch"))


def pool_of(run_id: str) -> str:
    """The pool that keeps a held run in the queue."""
    return f"{POOL_PREFIX}{run_id[:8]}"


def why_not(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Why a run of this instance cannot be held, or None if it can.

    Elsewhere than where this holds, Dagster would start the held run at once.
    """
    if instance.is_ephemeral:
        return "the Dagster instance is ephemeral"
    if not isinstance(instance.run_coordinator, QueuedRunCoordinator):
        return "the instance's run coordinator does not queue runs"
    if run.remote_job_origin is None:
        return "the run was not launched through a code location"
    queue = instance.get_concurrency_config().run_queue_config
    if queue is None or not queue.should_block_op_concurrency_limited_runs:
        return "the run queue does not look at pools (block_op_concurrency_limited_runs)"
    if queue.op_concurrency_slot_buffer != 0:
        return "the run queue has a buffer for pools (op_granularity_run_buffer)"
    if not instance.event_log_storage.supports_global_concurrency_limits:
        return "the instance's event log storage has no pools"
    return None


def make(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    *,
    asset_graph: "BaseAssetGraph[Any]",
    batch_assets: Iterable[dg.AssetKey],
    claude_resource: str,
) -> str:
    """Create and enqueue the run that will collect; its id. Making it twice makes one.

    It repeats of ``run`` the batch assets and what is downstream of them.

    Raises:
        RuntimeError: Dagster would not hold it, or one run after the other has made a successor
            without sending anything. There is no held run then.
    """
    if _fruitless(run) > MOST_FRUITLESS:
        raise RuntimeError(
            f"{MOST_FRUITLESS} runs in a row have ended before they had sent anything. Nothing was "
            "submitted. Read why the runs before this one failed, then materialize again."
        )
    held_id = held_run_id(run.run_id)
    pool = pool_of(held_id)
    snapshot = instance.get_execution_plan_snapshot(str(run.execution_plan_snapshot_id))
    selection = _waiting_assets(snapshot, asset_graph, batch_assets)
    # Never the run before its limit: a pool without one does not block.
    instance.event_log_storage.set_concurrency_slots(pool, 0)
    try:
        held = instance.create_run(  # pyright: ignore[reportUnknownMemberType]  # not public
            job_name=run.job_name,
            run_id=held_id,
            run_config=run.run_config,
            status=dg.DagsterRunStatus.NOT_STARTED,
            tags=_tags(run, held_id, pool, claude_resource),
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=None,
            execution_plan_snapshot=_held_plan(snapshot, selection, pool),
            job_snapshot=instance.get_historical_job(str(run.job_snapshot_id)).job_snapshot,
            parent_job_snapshot=None,
            asset_selection=selection,
            asset_check_selection=_checks_of(run, selection),
            resolved_op_selection=None,
            op_selection=None,
            remote_job_origin=run.remote_job_origin,
            job_code_origin=run.job_code_origin,
            asset_graph=asset_graph,
        )
    except DagsterRunAlreadyExists:
        return held_id
    concurrency = held.run_op_concurrency
    if concurrency is None or set(concurrency.root_key_counts) != {pool}:
        undo(instance, run.run_id)
        raise RuntimeError(f"Dagster would start the held run {held_id} at once.")
    enqueue(instance, held)
    return held_id


def enqueue(instance: dg.DagsterInstance, held: dg.DagsterRun) -> None:
    """Put a held run into the queue."""
    instance.report_dagster_event(DagsterEvent.job_enqueue(held), run_id=held.run_id)


def undo(instance: dg.DagsterInstance, maker_run_id: str) -> None:
    """Delete the held run that a run has made, for it turned out to have nothing to wait for."""
    held_id = held_run_id(maker_run_id)
    if instance.get_run_by_id(held_id) is not None:
        instance.delete_run(held_id)
    instance.event_log_storage.delete_concurrency_limit(pool_of(held_id))


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
    snapshot: "ExecutionPlanSnapshot", selection: frozenset[dg.AssetKey], pool: str
) -> "ExecutionPlanSnapshot":
    """The plan of the selected assets, each step in the held run's pool."""
    steps = [
        step._replace(pool=pool)
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
    return snapshot._replace(
        steps=steps,
        step_keys_to_execute=[step.key for step in steps],
        initial_known_state=None,
    )


def _checks_of(
    run: dg.DagsterRun, selection: frozenset[dg.AssetKey]
) -> frozenset[dg.AssetCheckKey] | None:
    if run.asset_check_selection is None:
        return None
    return frozenset(key for key in run.asset_check_selection if key.asset_key in selection)


def _tags(run: dg.DagsterRun, held_id: str, pool: str, claude_resource: str) -> dict[str, str]:
    copied = {
        key: value
        for key, value in run.tags.items()
        if key not in {*_NOT_COPIED, SHORT_TAG, LONG_TAG} and not key.startswith(_OURS)
    }
    return {
        **copied,
        PRIORITY_TAG: LAST_IN_QUEUE,
        OLD_PRIORITY_TAG: original_priority(run.tags),
        HELD_TAG: claude_resource,
        STATE_TAG: WAITING,
        MAKER_TAG: run.run_id,
        FRUITLESS_TAG: str(_fruitless(run)),
        POOL_TAG: pool,
        SHORT_TAG: "sending batches",
        LONG_TAG: f"The sensor starts run {held_id[:8]} when its batches have ended.",
    }


def _fruitless(run: dg.DagsterRun) -> int:
    """Count the links of a chain of held runs that never had anything to wait for."""
    if HELD_TAG not in run.tags or read(run).waits:
        return 0
    return int(run.tags.get(FRUITLESS_TAG, "0")) + 1


def original_priority(tags: Mapping[str, str]) -> str:
    """The priority that the user gave a run, also behind a chain of held runs."""
    if tags.get(HELD_TAG) and tags.get(PRIORITY_TAG) == LAST_IN_QUEUE:
        return tags.get(OLD_PRIORITY_TAG, "0")
    return tags.get(PRIORITY_TAG, "0")


def describe(
    instance: dg.DagsterInstance, held_id: str, asset: dg.AssetKey, waiting: Waiting
) -> None:
    """Write what is waited for into the held run's tags, for the sensor and for people."""
    name = uuid.uuid5(uuid.NAMESPACE_URL, asset.to_string()).hex[:12]
    pages = [
        waiting.batch_ids[start : start + _IDS_IN_A_TAG]
        for start in range(0, len(waiting.batch_ids), _IDS_IN_A_TAG)
    ]
    wait = {
        "requests": waiting.requests,
        "unsent": waiting.unsent,
        "needs": waiting.needs,
        "since": _stamp(waiting.since),
        "not_before": _stamp(waiting.not_before),
    }
    instance.add_run_tags(
        held_id,
        {
            **{f"{_BATCHES_TAG}{name}.{n}": ",".join(page) for n, page in enumerate(pages)},
            f"{_WAIT_TAG}{name}": json.dumps(wait),
            SHORT_TAG: _short(waiting),
            LONG_TAG: _long(waiting),
        },
    )


def _stamp(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _short(waiting: Waiting) -> str:
    """At most 22 characters, of which the run's page shows all."""
    if waiting.since is None:
        return "waiting to send"
    return f"waiting since {waiting.since:%H:%M} UTC"


def _long(waiting: Waiting) -> str:
    """What the sensor does comes first, for the UI cuts long tags."""
    batches = counted(len(waiting.batch_ids), "batch", "batches")
    parts = [f"{batches} with {counted(waiting.requests, 'request', 'requests')} out"]
    if waiting.unsent:
        parts.append(f"{counted(waiting.unsent, 'chunk', 'chunks')} not sent yet")
    if waiting.not_before:
        parts.append(f"at {waiting.not_before:%Y-%m-%d %H:%M} UTC at the latest")
    return f"The sensor starts this run when they have ended: {', '.join(parts)}."


def counted(number: int, one: str, many: str) -> str:
    """A number with its noun, for people."""
    return f"{number:,} {one if number == 1 else many}"


def read(run: dg.DagsterRun) -> HeldRun:
    """Read a held run's tags."""
    tags = run.tags
    names = [key.removeprefix(_WAIT_TAG) for key in tags if key.startswith(_WAIT_TAG)]
    return HeldRun(
        run.run_id,
        tags.get(MAKER_TAG, ""),
        tags.get(POOL_TAG, pool_of(run.run_id)),
        tags.get(STATE_TAG, WAITING),
        run.status,
        tuple(_read_wait(tags, name) for name in names),
    )


def _read_wait(tags: Mapping[str, str], name: str) -> Waiting:
    wait = json.loads(tags[f"{_WAIT_TAG}{name}"])
    pages = [ids for key, ids in tags.items() if key.startswith(f"{_BATCHES_TAG}{name}.")]
    return Waiting(
        tuple(batch_id for ids in pages for batch_id in ids.split(",") if batch_id),
        int(wait["requests"]),
        int(wait["unsent"]),
        int(wait["needs"]),
        _moment(wait["since"]),
        _moment(wait["not_before"]),
    )


def _moment(stamp: str | None) -> datetime | None:
    return datetime.fromisoformat(stamp) if stamp else None


def release(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Let the queue have a held run. Repeating it changes nothing."""
    instance.add_run_tags(
        run.run_id,
        {
            STATE_TAG: RELEASED,
            PRIORITY_TAG: run.tags.get(OLD_PRIORITY_TAG, "0"),
            SHORT_TAG: "results ready",
            LONG_TAG: "The batches have ended; this run collects their results.",
        },
    )
    forget_pool(instance, run.tags.get(POOL_TAG, pool_of(run.run_id)))


def mark(
    instance: dg.DagsterInstance, run_id: str, state: RunState | None, said: str, **tags: str
) -> None:
    """Note how a run stands; ``said`` is for people."""
    states = {STATE_TAG: state} if state is not None else {}
    instance.add_run_tags(run_id, {**states, SHORT_TAG: said, **tags})


def forget_pool(instance: dg.DagsterInstance, pool: str) -> None:
    """Delete the limit of a held run's pool."""
    instance.event_log_storage.delete_concurrency_limit(pool)


def in_queue(
    instance: dg.DagsterInstance, tags: Mapping[str, str], statuses: Sequence[dg.DagsterRunStatus]
) -> list[dg.DagsterRun]:
    """Held runs with these tags and statuses, oldest first."""
    found = instance.get_runs(dg.RunsFilter(tags=dict(tags), statuses=list(statuses)))
    return list(reversed(list(found)))


def pause_after(age: timedelta, poll_interval: timedelta) -> timedelta:
    """How long to wait before the next look at batches of this age.

    One interval for the first hour, then longer and longer, up to ten intervals.
    """
    hours = max(0.0, (age - timedelta(hours=1)) / (OLD_AGE - timedelta(hours=1)))
    return poll_interval * min(10.0, 1.0 + 9.0 * hours)
