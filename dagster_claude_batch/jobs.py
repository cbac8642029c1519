"""Jobs to be started by hand: collect, reconcile, cancel, prune, delete. Safe to start twice."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import dagster as dg
from pydantic import Field

from dagster_claude_batch import by_hand, held_run
from dagster_claude_batch.advance import Engine
from dagster_claude_batch.batch_asset import BatchAsset, batch_assets_of, engine_of_job
from dagster_claude_batch.deleting import delete_landed
from dagster_claude_batch.errors import UnknownAssetsError
from dagster_claude_batch.ours import Ours

_AN_HOUR: Final = 3_600.0

_ALL: Final = "Keys of assets, as `snippets/sentiment`; with none, all that use this resource."


class SelectionConfig(dg.Config):
    """Which assets a job is about."""

    assets: list[str] = Field(default=[], description=_ALL)


class CancelConfig(dg.Config):
    """What is to be cancelled."""

    assets: list[str] = Field(
        min_length=1, description="Keys of the assets, as `snippets/sentiment`."
    )
    partitions: list[str] = Field(
        default=[],
        description="Keys of partitions; with none, all. What was asked of several partitions "
        "together is cancelled as a whole if one of them is named.",
    )


class PruneConfig(SelectionConfig):
    """What is to be forgotten."""

    older_than_days: float = Field(
        default=90.0, ge=1.0, description="Only what ended at least so many days ago goes."
    )


def build_claude_batch_jobs(
    name: str = "claude_batch", *, claude_resource: str = "claude_batch"
) -> list[dg.JobDefinition]:
    """Build the jobs for all assets of a code location that use this Claude resource.

    - ``<name>_collect``: lets all runs that wait look now, and lands what no run waits for.
    - ``<name>_reconcile``: finds out now about batches whose creation is in doubt.
    - ``<name>_cancel``: cancels what is out of some assets, or of some of their partitions. What is
      answered by then is billed, and lands; the runs that wait for it end as failed.
    - ``<name>_prune``: takes the requests of what ended long ago out of the ledger. Answers,
      failures and what was spent stay.
    - ``<name>_delete_remote_results``: deletes at Anthropic what has landed.

    Nothing but a person starts them, and they can be started as often as one likes.

    Args:
        name: Begins the names of the jobs.
        claude_resource: Key of the `ClaudeBatchResource`.
    """
    return [_build(f"{name}_{task.name}", claude_resource, task) for task in _TASKS]


# --- what each of them does to one asset ----------------------------------------------------


@dataclass(frozen=True)
class _Desk:
    """One asset, on which a job works."""

    context: dg.OpExecutionContext
    engine: Engine
    ours: Ours

    def is_alive(self, run_id: str) -> bool:
        return held_run.is_alive(self.context.instance, run_id)


def _collect(desk: _Desk, _: dg.Config) -> int:
    waiting = _waiting(desk)
    for run in waiting:
        _let_look(desk, run)
    left = desk.engine.settle([], is_alive=desk.is_alive)
    desk.context.log.info(f"{left:,} batches are still out that no run waits for.")
    return len(waiting)


def _reconcile(desk: _Desk, _: dg.Config) -> int:
    return by_hand.settle_doubts(desk.engine)


def _cancel(desk: _Desk, config: CancelConfig) -> int:
    return by_hand.cancel_open(desk.engine, config.partitions)


def _prune(desk: _Desk, config: PruneConfig) -> int:
    return by_hand.forget(desk.engine, timedelta(days=config.older_than_days))


def _delete(desk: _Desk, _: dg.Config) -> int:
    return delete_landed(desk.engine, is_alive=desk.is_alive, patience_seconds=_AN_HOUR)


@dataclass(frozen=True)
class _Task:
    """A job; ``said`` is what its count is of."""

    name: str
    description: str
    said: str
    work: Callable[[_Desk, Any], int]
    config: type[Any] = SelectionConfig


_TASKS: Final = (
    _Task(
        "collect",
        "Lets all runs that wait for batches look now, and lands what no run waits for.",
        "runs look at their batches",
        _collect,
    ),
    _Task(
        "reconcile",
        "Finds out now about batches whose creation is in doubt.",
        "chunks are still in doubt",
        _reconcile,
    ),
    _Task(
        "cancel",
        "Cancels what is out. What is answered by then is billed, and lands.",
        "materializations were cancelled",
        _cancel,
        CancelConfig,
    ),
    _Task(
        "prune",
        "Takes the requests of what ended long ago out of the ledger. Answers, failures and what "
        "was spent stay.",
        "requests were forgotten",
        _prune,
        PruneConfig,
    ),
    _Task(
        "delete_remote_results",
        "Deletes at Anthropic what has landed, whatever the assets declare.",
        "batches were deleted",
        _delete,
    ),
)


# --- the jobs themselves --------------------------------------------------------------------


def _build(name: str, claude_resource: str, task: _Task) -> dg.JobDefinition:
    @dg.op(
        name=f"{name}_op",
        description=task.description,
        config_schema=task.config.to_config_schema().as_field(),
    )
    def work(context: dg.OpExecutionContext) -> None:
        config: Any = task.config(**context.op_config)
        count, problems = 0, dict[str, Exception]()
        for asset in _chosen(context, claude_resource, config.assets, name):
            try:
                with _at_work(context, claude_resource, asset) as desk:
                    done = task.work(desk, config)
            except Exception as error:  # noqa: BLE001  # one asset's trouble keeps nobody else's work
                # Without its traceback, which would keep open what was read when it was raised.
                problems[asset.declaration.asset] = error.with_traceback(None)
            else:
                context.log.info(f"{asset.declaration.asset}: {done:,} {task.said}.")
                count += done
        context.add_output_metadata({"count": count, "of": task.said})
        for troubled, problem in problems.items():
            context.log.error(f"Asset {troubled!r}: {problem}")
        if problems:
            raise next(iter(problems.values()))

    graph = dg.GraphDefinition(name=name, node_defs=[work])
    return graph.to_job(  # pyright: ignore[reportUnknownMemberType]  # open in Dagster's own types
        description=f"{task.description} Safe to start twice.",
        executor_def=dg.in_process_executor,
    )


def _chosen(
    context: dg.OpExecutionContext, claude_resource: str, names: Sequence[str], job: str
) -> list[BatchAsset]:
    """The assets with these keys, or all.

    Raises:
        UnknownAssetsError: Not all of them are there, with this resource.
    """
    assets = batch_assets_of(context.repository_def)
    known = {each.declaration.asset: each for each in assets if _uses(each, claude_resource)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UnknownAssetsError(job, unknown, claude_resource, list(known))
    return [known[name] for name in names or known]


def _uses(asset: BatchAsset, claude_resource: str) -> bool:
    return asset.claude_resource == claude_resource


@contextmanager
def _at_work(
    context: dg.OpExecutionContext, claude_resource: str, asset: BatchAsset
) -> Generator[_Desk]:
    """Put an asset's engine to work, and watch for second copies of what it settles."""
    ours = Ours.of_run(context.run, claude_resource)
    with engine_of_job(context, asset) as engine:
        yield _Desk(context, engine, ours)
        if engine.is_watching():
            context.instance.add_run_tags(context.run_id, ours.tags(held_run.GAVE_UP_TAG))


# --- runs that wait -------------------------------------------------------------------------


def _waiting(desk: _Desk) -> list[dg.DagsterRun]:
    """Held runs that wait for batches of the asset, and whose makers are at their end."""
    instance, asset = desk.context.instance, desk.engine.declaration.asset
    name = held_run.name_of(dg.AssetKey.from_user_string(asset))
    found = held_run.in_queue(instance, desk.ours.tags(), [dg.DagsterRunStatus.QUEUED])
    return [run for run in found if not held_run.is_copy(run) and _waits(desk, run, name)]


def _waits(desk: _Desk, run: dg.DagsterRun, name: str) -> bool:
    held = held_run.read(run)
    if held.state != held_run.WAITING or name not in held.assets or held.is_ready:
        return False
    maker = desk.context.instance.get_run_by_id(held.maker_run_id)
    return maker is None or maker.is_finished


def _let_look(desk: _Desk, run: dg.DagsterRun) -> None:
    """Let a held run look at its batches; the sensor does, if its pools may have no free slot."""
    held = held_run.read(run)
    if held.pools:
        held_run.make_ready(desk.context.instance, held)
    else:
        why = f"Somebody has started {desk.context.job_name}, for all that wait to look now."
        held_run.release(desk.context.instance, run, "asked to look", why)
