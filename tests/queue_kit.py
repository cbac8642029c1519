"""Runs in the queue of a Dagster instance that starts none, and single ticks of the sensor."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import dagster as dg
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin

from dagster_claude_batch import ClaudeBatchResource, held_run
from dagster_claude_batch.sensor.cursor import Cursor
from dagster_claude_batch.sensor.scene import Scene
from dagster_claude_batch.workbench import Waiting

ORIGIN: Final = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
RESOURCE: Final = "claude_batch"

_QUEUE: Final = {
    "module": "dagster._core.run_coordinator",
    "class": "QueuedRunCoordinator",
    "config": {},
}


@contextmanager
def queueing_instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on disk that queues what is launched, and has no daemon that lets it go."""
    home.mkdir(exist_ok=True)
    overrides = {"run_coordinator": _QUEUE}
    with dg.instance_for_test(temp_dir=str(home), overrides=overrides) as instance:
        yield instance


def add_run(
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.QUEUED,
    tags: Mapping[str, str] | None = None,
) -> str:
    """A run of a job that does nothing; its id."""

    @dg.op
    def nothing() -> None: ...

    run = instance.create_run_for_job(
        dg.GraphDefinition(name="empty", node_defs=[nothing]).to_job(),
        tags=tags,
        status=status,
        remote_job_origin=ORIGIN.get_job_origin("empty"),
    )
    return run.run_id


def hold(
    instance: dg.DagsterInstance,
    waiting: Waiting | None = None,
    *,
    key: dg.AssetKey | None = None,
    maker: str | None = None,
    state: str = held_run.WAITING,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.QUEUED,
) -> str:
    """A held run, with what it waits for if its maker has come to say so; its id."""
    made_by = {held_run.MAKER_TAG: maker} if maker else {}
    tags = {held_run.HELD_TAG: RESOURCE, held_run.STATE_TAG: state, **made_by}
    run_id = add_run(instance, status, tags)
    if waiting is not None:
        held_run.describe(instance, run_id, key or dg.AssetKey("x"), waiting)
    return run_id


def run_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    """A run that there is."""
    found = instance.get_run_by_id(run_id)
    assert found is not None
    return found


def let_go(instance: dg.DagsterInstance) -> list[str]:
    """The held runs that the sensor has let go, oldest first."""
    found = instance.get_runs(dg.RunsFilter(tags={held_run.STATE_TAG: held_run.RELEASED}))
    return [run.run_id for run in reversed(found)]


def scene_of(
    instance: dg.DagsterInstance,
    claude: ClaudeBatchResource,
    *,
    cursor: Cursor | None = None,
    now: datetime | None = None,
    grace: timedelta = timedelta(),
    repository: dg.RepositoryDefinition | None = None,
) -> Scene:
    """Where a tick takes place; without a cursor, after others that have seen nothing."""
    now = now or claude.now()
    seen = Cursor(landed_at=now.timestamp()) if cursor is None else cursor
    context = dg.build_sensor_context(instance=instance, repository_def=repository)
    landing = "claude_batch_sensor_landing"
    return Scene(context, claude, RESOURCE, landing, grace, seen, now)
