"""One run of a batch asset: work, then wait — held in the queue, or in the run itself."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final, Literal

import dagster as dg

from dagster_claude_batch import failures, finishing, held_run, holding, trial
from dagster_claude_batch.advance import Engine
from dagster_claude_batch.batch_asset import BatchAsset, engine_for
from dagster_claude_batch.config import ClaudeBatchConfig
from dagster_claude_batch.dagster_internals import PARENT_RUN_ID_TAG, RETRY_NUMBER_TAG
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.deleting import delete_as_declared
from dagster_claude_batch.errors import MaterializationCancelledError, MaterializationDoneError
from dagster_claude_batch.ledger import Materialization, MaterializationConfig
from dagster_claude_batch.ours import Ours
from dagster_claude_batch.report import PartitionReport, read_reports
from dagster_claude_batch.successor import Successor
from dagster_claude_batch.workbench import Waiting

_LAST_PATIENCE: Final = 10.0
"""Seconds that a terminated run waits for a locked database: it may be killed before long."""


def materialize(
    context: dg.AssetExecutionContext, config: ClaudeBatchConfig, asset: BatchAsset
) -> Iterator[Any]:
    """Work on the run's partitions as far as possible, and finish them or wait."""
    run = Run(context, asset, asset.wait if config.wait == "declared" else config.wait)
    if not context.selected_asset_keys:
        yield from finishing.check_results(run.key, asset.declaration, run.reports([]))
        return
    trial.refuse_in_backfill(context.run, asset.declaration, config)
    trial.refuse_file_of_requests(asset.declaration, config)
    asked = _asked(asset.declaration, config)
    if config.dry_run:
        rehearsal = run.engine.rehearse(run.partitions, asked, requests_path=config.requests_path)
        for observation in trial.describe_rehearsal(run.key, asset.declaration, rehearsal):
            context.log_event(observation)
        return
    run.attach(asked)
    if run.is_done(asked):
        try:
            yield from _finish(run)
        finally:
            # Not before: on SQLite, Dagster numbers what comes next as the events that go with a
            # deleted run, and a backfill, which remembers the last number, would not see it.
            run.successor.undo()
            delete_as_declared(run.engine, is_alive=partial(held_run.is_alive, context.instance))


def _asked(declaration: Declaration, config: ClaudeBatchConfig) -> MaterializationConfig:
    declared = declaration.max_cost_usd
    cap = float(declared) if config.max_cost_usd is None and declared else config.max_cost_usd
    return MaterializationConfig(config.refresh, config.retry_failed, config.limit, cap)


def _finish(run: "Run") -> Iterator[Any]:
    """Say how the partitions ended, to whom they are materialized for; or how a trial went."""
    context, declaration = run.context, run.asset.declaration
    reports = run.reports(run.materializations)
    limits = [each.config.limit for each in run.materializations if each.config.limit is not None]
    if limits:
        for observation in trial.describe_limited(run.key, declaration, reports, max(limits)):
            context.log_event(observation)
        finishing.refuse_left(declaration, reports)
        return
    deleted = run.deleted_partitions
    shown = [each for each in reports if each.partition not in deleted]
    for event in failures.reported(context, run.key, declaration, shown):
        context.log_event(event)
    yield from finishing.finish(context, run.key, declaration, reports, deleted=deleted)


@dataclass
class Run:
    """One Dagster run that works on a batch asset."""

    context: dg.AssetExecutionContext
    asset: BatchAsset
    wait: Literal["sensor", "run"]
    engine: Engine = field(init=False)
    successor: Successor = field(init=False)

    def __post_init__(self) -> None:
        run = self.context.run
        # Only Dagster's own retries carry a number: a person's re-execution asks anew.
        is_retry = RETRY_NUMBER_TAG in run.tags
        # A person's re-execution has a held run's tags too, and a parent.
        is_asked_anew = PARENT_RUN_ID_TAG in run.tags and not is_retry
        collects_for = run.tags.get(held_run.attached_tag(self.key))
        self.engine = engine_for(
            self.asset,
            database=getattr(self.context.resources, self.asset.duckdb_resource),
            claude=getattr(self.context.resources, self.asset.claude_resource),
            run_id=run.run_id,
            retry_of=run.tags.get(PARENT_RUN_ID_TAG) if is_retry else None,
            collects_for=None if is_asked_anew else collects_for,
            log=self.context.log,
        )
        self.successor = Successor(self.context, self.asset, self.engine, self.wait)

    @property
    def key(self) -> dg.AssetKey:
        """The asset's key, as the code location knows it."""
        definition = self.context.assets_def
        # In a run of the checks alone, it is left without its asset.
        (key,) = definition.keys or {check.asset_key for check in definition.check_keys}
        return key

    @property
    def partitions(self) -> list[str | None]:
        """The run's partition keys, also of a range; (None,) without partitions.

        Dagster names those of a single partition, and a range, only while its keys exist.
        """
        if self.context.has_partition_key:
            return [self.context.partition_key]
        if not self.context.has_partition_key_range:
            return [None]
        try:
            return list(self.context.partition_keys)
        except dg.DagsterInvalidInvocationError:
            known = self.engine.partitions_of_run()
            if not known:
                raise
            return known

    @property
    def deleted_partitions(self) -> list[str]:
        """Those of the run's keys that the asset has no more: somebody deleted them meanwhile."""
        definition = self.asset.partitions_def
        if definition is None:
            return []
        keys = set(definition.get_partition_keys(dynamic_partitions_store=self.context.instance))
        return [key for key in self.partitions if key is not None and key not in keys]

    @property
    def materializations(self) -> Sequence[Materialization]:
        """What this run works on."""
        return self.successor.materializations

    def attach(self, config: MaterializationConfig) -> None:
        """Find or begin what this run works on; a collecting run that cannot is tried again."""
        self.successor.keep_backfill_open()
        try:
            self.successor.materializations = self.engine.attach(
                self.partitions,
                config,
                is_given_up=partial(held_run.were_given_up, self.context.instance),
            )
        except MaterializationDoneError as done:
            self.successor.settle("nothing was left to do")
            if not self._is_complete(done.materializations):
                self.successor.undo()
                raise
            # All was collected, be it by another run since; to fail too would be untrue.
            self.context.log.info(f"Nothing is left to do of what run {done.parent_run_id} began.")
        except Exception:
            if held_run.HELD_TAG in self.context.run.tags:
                self.successor.leave_to_another_try()
            raise

    def _is_complete(self, done: Sequence[Materialization]) -> bool:
        """Whether materializations have asked all that there is, and no partition would fail."""
        asked_all = all(each.state == "done" and each.config.limit is None for each in done)
        return asked_all and finishing.is_complete(self.asset.declaration, self.reports([]))

    def reports(self, materializations: Sequence[Materialization]) -> list[PartitionReport]:
        """How each partition stands."""
        partitions = self.partitions
        # Checks alone can be run without naming a partition: then they are about all.
        is_about_all = self.asset.partitions_def is not None and partitions == [None]
        return read_reports(
            self.engine.warehouse,
            self.asset.declaration,
            materializations,
            None if is_about_all else partitions,
            self.engine.slices_of,
        )

    def is_done(self, config: MaterializationConfig) -> bool:
        """Advance; wait in the run, or leave a held run to collect. False if one was left.

        Raises:
            MaterializationCancelledError: Somebody else has cancelled it meanwhile.
        """
        try:
            is_done = self._advance(config)
        except BaseException as error:
            # Ctrl-C and the end of a pod interrupt a run too, and cancel nothing.
            instance, run_id = self.context.instance, self.context.run.run_id
            is_given_up = isinstance(error, MaterializationCancelledError)
            if is_given_up or (
                not isinstance(error, Exception) and held_run.is_cancelled(instance, run_id)
            ):
                self._give_up()
            elif not self.engine.may_be_out(self.materializations):
                self.successor.undo()
                self.successor.settle("ended with an error")
            elif isinstance(error, Exception):
                self.successor.leave_to_another_try()
            raise
        if is_done:
            self.successor.settle("results collected")
            if self.engine.is_cancelled(self.materializations):
                self.successor.undo()
                raise MaterializationCancelledError(self.asset.declaration.asset)
        return is_done

    def _advance(self, config: MaterializationConfig) -> bool:
        """Do what can be done now, and see to the rest; False if a held run will."""
        reason = self.successor.why_not()
        self._say_at_work()
        self.engine.before_giving_up = self._say_watching
        self.engine.after_collecting = self.successor.note_collected
        if reason is None:
            self.engine.before_sending = self.successor.hold
        else:
            self.engine.before_sending = self._announce_waiting_here
            self.context.log.info(f"This run waits for its batches itself: {reason}.")
        waiting = self._work(config)
        if waiting is not None and reason is None:
            self.successor.leave(waiting, self.partitions)
            return False
        if waiting is not None:
            self._announce_waiting_here()
            self._wait_here(waiting, config)
        return True

    def _work(self, config: MaterializationConfig) -> Waiting | None:
        """Advance, also with what has come since that was planned which the run has joined."""
        waiting = self.engine.advance(self.materializations)
        while waiting is None:
            more = self.engine.catch_up(
                self.partitions,
                config,
                is_given_up=partial(held_run.were_given_up, self.context.instance),
            )
            if not more:
                break
            self.successor.materializations = [*self.materializations, *more]
            waiting = self.engine.advance(self.materializations)
        return waiting

    def _give_up(self) -> None:
        """Somebody terminates the run, or the one that it has left: cancel what nobody else wants.

        What was answered by then is landed by the landing job, or by the next materialization;
        they also see to what could not be cancelled now.
        """
        self.context.log.info("Terminated: what is out, and nobody else waits for, is cancelled.")
        house = self.engine.warehouse
        self.engine.warehouse = replace(house, lock_timeout_seconds=_LAST_PATIENCE)
        try:
            self._cancel_alone()
            is_out = self.engine.may_be_out(self.materializations)
        except Exception as error:  # noqa: BLE001  # in place of the interruption it would fail the run
            self.context.log.warning(f"Not everything could be cancelled now: {error}")
            is_out = True
        if is_out:
            self._announce_waiting_here()
        self.successor.undo()

    def _cancel_alone(self) -> None:
        """Cancel what no run that is alive works on but this one, and its held run."""
        instance, run_id = self.context.instance, self.context.run.run_id
        held_id = holding.successor_id(instance, self.context.run)
        mine = {run_id, held_id} if holding.is_waiting(instance, held_id) else {run_id}

        def is_wanted(runs: Sequence[str]) -> bool:
            return any(held_run.is_alive(instance, other) for other in runs if other not in mine)

        for each in self.materializations:
            self.engine.cancel(each, unless=is_wanted)

    # --- what its tags say ------------------------------------------------------------------

    def _say_at_work(self) -> None:
        if held_run.SHORT_TAG in self.context.run.tags:
            held_run.mark(self.context.instance, self.context.run.run_id, None, "at work")

    def _say_watching(self) -> None:
        """Let the sensor see to it that second copies are looked for, whatever becomes of us."""
        tags = self._ours.tags(held_run.GAVE_UP_TAG)
        self.context.instance.add_run_tags(self.context.run.run_id, tags)

    @property
    def _ours(self) -> Ours:
        return Ours.of_run(self.context.run, self.asset.claude_resource)

    def _announce_waiting_here(self) -> None:
        """Let the sensor know of this run, should it be killed while something is out."""
        waiter = self._ours.tags(held_run.WAITER_TAG)
        instance, state = self.context.instance, held_run.IN_RUN
        held_run.mark(instance, self.context.run.run_id, state, "waiting in the run", **waiter)

    # --- in the run -------------------------------------------------------------------------

    def _wait_here(self, waiting: Waiting, config: MaterializationConfig) -> None:
        interval = timedelta(seconds=self.engine.claude.poll_interval_seconds)
        left: Waiting | None = waiting
        while left is not None:
            now = self.engine.claude.now()
            pause = held_run.pause_after(now - (left.since or now), interval)
            if left.next_try is not None:
                pause = max(timedelta(), min(pause, left.next_try - now))
            self.context.log.info(
                f"Waiting for {held_run.counted(len(left.batch_ids), 'batch', 'batches')} with "
                f"{held_run.counted(left.requests, 'request', 'requests')}; "
                f"next look in {pause.total_seconds():.0f} s."
            )
            time.sleep(max(0.01, pause.total_seconds()))
            left = self._work(config)
