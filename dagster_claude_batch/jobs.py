"""Jobs to be started by hand: collect, reconcile, cancel, prune, delete. Safe to start twice."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, Final, Self

import dagster as dg
from pydantic import Field

from dagster_claude_batch import by_hand, held_run
from dagster_claude_batch.advance import Engine
from dagster_claude_batch.batch_asset import BatchAsset, batch_assets_of, engine_of_job
from dagster_claude_batch.deleting import delete_landed
from dagster_claude_batch.errors import (
    BatchesNotCancelledError,
    BatchesNotDeletedError,
    ClaudeBatchError,
    UnknownAssetsError,
    UnknownPartitionsError,
)
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
        "together is cancelled as a whole if one of them is named. Keys that none of the assets "
        "was ever asked for are refused.",
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

    Nothing but a person starts them, and they can be started as often as one likes. One that could
    not do all of it, for the API or a database was in its way, fails and says so: start it again.
    Declare them as often as you like, too, also by ``jobs: true`` in YAML: under one name they are
    the same ones.

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
    asset: BatchAsset
    engine: Engine
    ours: Ours

    def is_alive(self, run_id: str) -> bool:
        return held_run.is_alive(self.context.instance, run_id)


@dataclass(frozen=True)
class _Done:
    """What a job has done to an asset: how often; what it left to whom; what it could not do."""

    count: int
    left: Mapping[str, Any] | None = None
    problem: ClaudeBatchError | None = None


def _collect(desk: _Desk, _: dg.Config) -> _Done:
    waiting = _waiting(desk)
    for run in waiting:
        _let_look(desk, run)
    left = desk.engine.settle([], is_alive=desk.is_alive)
    out = held_run.counted(left, "batch is", "batches are")
    desk.context.log.info(f"{out} still out that no run waits for.")
    return _Done(len(waiting))


def _reconcile(desk: _Desk, _: dg.Config) -> _Done:
    return _Done(by_hand.settle_doubts(desk.engine))


def _cancel(desk: _Desk, config: CancelConfig) -> _Done:
    done = by_hand.cancel(desk.engine, config.partitions)
    problem = BatchesNotCancelledError(_shown(desk.asset), done.failed) if done.failed else None
    return _Done(done.count, problem=problem)


def _prune(desk: _Desk, config: PruneConfig) -> _Done:
    return _Done(by_hand.forget(desk.engine, timedelta(days=config.older_than_days)))


def _delete(desk: _Desk, _: dg.Config) -> _Done:
    done = delete_landed(desk.engine, is_alive=desk.is_alive, patience_seconds=_AN_HOUR)
    if done.waiting:
        batches = held_run.counted(done.waiting, "batch is", "batches are")
        desk.context.log.info(f"{batches} left to the runs that wait: {', '.join(done.runs)}.")
    return _Done(
        done.count,
        {"batches": done.waiting, "runs": list(done.runs)} if done.waiting else None,
        BatchesNotDeletedError(_shown(desk.asset), done.left, done.reason) if done.left else None,
    )


@dataclass(frozen=True)
class _Task:
    """A job; ``one`` and ``many`` are what its count is of."""

    name: str
    description: str
    one: str
    many: str
    work: Callable[[_Desk, Any], _Done]
    config: type[Any] = SelectionConfig


_TASKS: Final = (
    _Task(
        "collect",
        "Lets all runs that wait for batches look now, and lands what no run waits for.",
        "run looks at its batches",
        "runs look at their batches",
        _collect,
    ),
    _Task(
        "reconcile",
        "Finds out now about batches whose creation is in doubt.",
        "chunk is still in doubt",
        "chunks are still in doubt",
        _reconcile,
    ),
    _Task(
        "cancel",
        "Cancels what is out. What is answered by then is billed, and lands.",
        "materialization was cancelled",
        "materializations were cancelled",
        _cancel,
        CancelConfig,
    ),
    _Task(
        "prune",
        "Takes the requests of what ended long ago out of the ledger. Answers, failures and what "
        "was spent stay.",
        "request was forgotten",
        "requests were forgotten",
        _prune,
        PruneConfig,
    ),
    _Task(
        "delete_remote_results",
        "Deletes at Anthropic what has landed, whatever the assets declare.",
        "batch was deleted",
        "batches were deleted",
        _delete,
    ),
)


# --- the jobs themselves --------------------------------------------------------------------


class _OneJob(dg.JobDefinition):
    """A job that stays the same object wherever it is declared; see `OneSensor`."""

    def with_metadata(self, metadata: Mapping[str, Any]) -> Self:
        """The same job, without a note of the file."""
        del metadata
        return self


@cache
def _build(name: str, claude_resource: str, task: _Task) -> dg.JobDefinition:
    @dg.op(
        name=f"{name}_op",
        description=task.description,
        config_schema=task.config.to_config_schema().as_field(),
    )
    def work(context: dg.OpExecutionContext) -> None:
        config: Any = task.config(**context.op_config)
        assets = _chosen(context, claude_resource, config.assets, name)
        if isinstance(config, CancelConfig):
            _refuse_unknown(context, claude_resource, assets, config.partitions)
        _work(context, claude_resource, assets, task, config)

    return _OneJob(
        graph_def=dg.GraphDefinition(name=name, node_defs=[work]),
        description=f"{task.description} Safe to start twice.",
        executor_def=dg.in_process_executor,
    )


def _work(
    context: dg.OpExecutionContext,
    claude_resource: str,
    assets: Sequence[BatchAsset],
    task: _Task,
    config: dg.Config,
) -> None:
    """Do a job's work on each asset, and say what has come of it."""
    count, left, problems = 0, dict[str, Any](), dict[str, Exception]()
    for asset in assets:
        key = _shown(asset)
        try:
            with _at_work(context, claude_resource, asset) as desk:
                done = task.work(desk, config)
        except Exception as error:  # noqa: BLE001  # one asset's trouble keeps nobody else's work
            # Without its traceback, which would keep open what was read when it was raised.
            problems[key] = error.with_traceback(None)
            continue
        context.log.info(f"{key}: {held_run.counted(done.count, task.one, task.many)}.")
        count += done.count
        if done.left is not None:
            left[key] = done.left
        if done.problem is not None:
            problems[key] = done.problem
    context.add_output_metadata(
        {"count": count, "of": task.many, **({"left_to_runs": left} if left else {})}
    )
    for troubled, problem in problems.items():
        context.log.error(f"Asset {troubled!r}: {problem}")
    if problems:
        raise next(iter(problems.values()))


def _shown(asset: BatchAsset) -> str:
    """What Dagster calls an asset."""
    return asset.key.to_user_string()


def _chosen(
    context: dg.OpExecutionContext, claude_resource: str, names: Sequence[str], job: str
) -> list[BatchAsset]:
    """The assets with these keys, as the code location or the declaration has them; or all.

    Raises:
        UnknownAssetsError: Not all of them are there, with this resource.
    """
    every = batch_assets_of(context.repository_def)
    assets = [each for each in every if each.claude_resource == claude_resource]
    if not names:
        return assets
    declared = {each.declaration.asset: each for each in assets}
    known = declared | {_shown(each): each for each in assets}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UnknownAssetsError(job, unknown, claude_resource, [_shown(each) for each in assets])
    return list({known[name].key: known[name] for name in names}.values())


def _refuse_unknown(
    context: dg.OpExecutionContext,
    claude_resource: str,
    assets: Sequence[BatchAsset],
    partitions: Sequence[str],
) -> None:
    """Check that any of the assets was ever asked for each of the partitions.

    Raises:
        UnknownPartitionsError: None was, for some of them.
    """
    known = dict[str, bool]()
    for asset in assets if partitions else ():
        try:
            with _at_work(context, claude_resource, asset) as desk:
                found = by_hand.partitions_of(desk.engine)
        except Exception as error:  # noqa: BLE001  # it is the job's error when its turn comes
            context.log.warning(f"Asset {_shown(asset)!r}: {error}")
            return
        known = {key: known.get(key, False) or found.get(key, False) for key in known | found}
    unknown = [key for key in partitions if key not in known]
    if unknown:
        still_open = [key for key, is_open in known.items() if is_open]
        raise UnknownPartitionsError(context.job_name, unknown, still_open)


@contextmanager
def _at_work(
    context: dg.OpExecutionContext, claude_resource: str, asset: BatchAsset
) -> Generator[_Desk]:
    """Put an asset's engine to work, and watch for second copies of what it settles."""
    ours = Ours.of_run(context.run, claude_resource)
    with engine_of_job(context, asset) as engine:
        yield _Desk(context, asset, engine, ours)
        if engine.is_watching():
            context.instance.add_run_tags(context.run_id, ours.tags(held_run.GAVE_UP_TAG))


# --- runs that wait -------------------------------------------------------------------------


def _waiting(desk: _Desk) -> list[dg.DagsterRun]:
    """Held runs that wait for batches of the asset, and whose makers are at their end."""
    name = held_run.name_of(desk.asset.key)
    found = held_run.in_queue(desk.context.instance, desk.ours.tags(), [dg.DagsterRunStatus.QUEUED])
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
