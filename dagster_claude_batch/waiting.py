"""One run of a batch asset: work, then wait — held in the queue, or in the run itself."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final, Literal

import dagster as dg

from dagster_claude_batch import finishing, held_run, holding, ledger
from dagster_claude_batch.advance import Engine
from dagster_claude_batch.batch_asset import BatchAsset, batch_asset, engine_for
from dagster_claude_batch.config import ClaudeBatchConfig
from dagster_claude_batch.dagster_internals import PARENT_RUN_ID_TAG, RETRY_NUMBER_TAG
from dagster_claude_batch.errors import (
    MaterializationCancelledError,
    MaterializationDoneError,
    NoSensorError,
)
from dagster_claude_batch.ledger import Materialization, MaterializationConfig
from dagster_claude_batch.report import PartitionReport, partitions_with_rows, report_on
from dagster_claude_batch.warehouse import Connection
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
    materializations = run.attach(config)
    if run.is_done(materializations):
        reports = run.reports(materializations)
        yield from finishing.finish(
            context, run.key, asset.declaration, reports, deleted=run.deleted_partitions
        )


@dataclass
class Run:
    """One Dagster run that works on a batch asset."""

    context: dg.AssetExecutionContext
    asset: BatchAsset
    wait: Literal["sensor", "run"]
    engine: Engine = field(init=False)
    _held_id: str | None = None
    _materializations: Sequence[Materialization] = ()

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

    @property
    def key(self) -> dg.AssetKey:
        """The asset's key, as the code location knows it."""
        return self.context.assets_def.key

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

    def attach(self, config: ClaudeBatchConfig) -> Sequence[Materialization]:
        """Find or begin what this run works on; a collecting run that cannot is tried again."""
        try:
            self._materializations = self.engine.attach(
                self.partitions,
                MaterializationConfig(config.refresh, config.retry_failed),
                is_given_up=partial(held_run.were_given_up, self.context.instance),
            )
        except MaterializationDoneError:
            self._say_settled("nothing was left to do")
            raise
        except Exception:
            if held_run.HELD_TAG in self.context.run.tags:
                self._leave_to_another_try()
            raise
        return self._materializations

    def reports(self, materializations: Sequence[Materialization]) -> list[PartitionReport]:
        """How each partition stands."""
        declaration = self.asset.declaration

        def work(connection: Connection) -> list[PartitionReport]:
            registered = (
                ledger.find_asset(connection, declaration.asset)
                if ledger.is_ledger(connection)
                else None
            )
            if registered is None:
                return []
            partitions = self.partitions
            if self.asset.partitions_def is not None and partitions == [None]:
                # Checks alone can be run without naming a partition: then they are about all.
                partitions = partitions_with_rows(connection, declaration)
            return [
                report_on(connection, declaration, registered, materializations, partition)
                for partition in partitions
            ]

        return self.engine.warehouse.transact(work)

    def is_done(self, materializations: Sequence[Materialization]) -> bool:
        """Advance; wait in the run, or leave a held run to collect. False if one was left.

        Raises:
            MaterializationCancelledError: Somebody else has cancelled it meanwhile.
        """
        try:
            is_done = self._advance()
        except BaseException as error:
            # Ctrl-C and the end of a pod interrupt a run too, and cancel nothing.
            instance, run_id = self.context.instance, self.context.run.run_id
            if not isinstance(error, Exception) and held_run.is_cancelled(instance, run_id):
                self._give_up()
            elif not self.engine.may_be_out(materializations):
                self._undo()
                self._say_settled("ended with an error")
            elif isinstance(error, Exception):
                self._leave_to_another_try()
            raise
        if is_done:
            self._say_settled("results collected")
            if self.engine.is_cancelled(materializations):
                raise MaterializationCancelledError(self.asset.declaration.asset)
        return is_done

    def _advance(self) -> bool:
        """Do what can be done now, and see to the rest; False if a held run will."""
        reason = self._why_in_the_run()
        self._say_at_work()
        self.engine.before_giving_up = self._say_watching
        if reason is None:
            self.engine.before_sending = self._hold
        else:
            self.engine.before_sending = self._announce_waiting_here
            self.context.log.info(f"This run waits for its batches itself: {reason}.")
        waiting = self.engine.advance(self._materializations)
        if waiting is None:
            self._undo()
        elif reason is None:
            self._leave(waiting)
        else:
            self._announce_waiting_here()
            self._wait_here(waiting)
        return waiting is None or reason is not None

    def _give_up(self) -> None:
        """Somebody terminates the run: cancel what nobody else works on.

        What was answered by then is landed by the landing job, or by the next materialization;
        they also see to what could not be cancelled now.
        """
        self.context.log.info("Terminated: what is out, and nobody else waits for, is cancelled.")
        house = self.engine.warehouse
        self.engine.warehouse = replace(house, lock_timeout_seconds=_LAST_PATIENCE)
        try:
            self._cancel_alone()
            is_out = self.engine.may_be_out(self._materializations)
        except Exception as error:  # noqa: BLE001  # in place of the interruption it would fail the run
            self.context.log.warning(f"Not everything could be cancelled now: {error}")
            is_out = True
        if is_out:
            self._announce_waiting_here()
        self._undo()

    def _cancel_alone(self) -> None:
        """Cancel what no run that is alive works on but this one, and its held run."""
        instance, run_id = self.context.instance, self.context.run.run_id
        mine = {run_id, holding.held_run_id(run_id)}
        for each in self._materializations:
            others = [other for other in self.engine.runs_of(each) if other not in mine]
            if not any(held_run.is_alive(instance, other) for other in others):
                self.engine.cancel(each)

    def _why_in_the_run(self) -> str | None:
        if self.wait == "run":
            return 'it was asked to (`wait="run"`)'
        reason = holding.why_not(self.context.instance, self.context.run)
        if reason is not None:
            return reason
        # Only a run that a code location has launched knows what else it is made of.
        if len({asset.claude_resource for asset in self._batch_assets().values()}) > 1:
            return "its assets use several Claude resources, and one held run has one sensor"
        return None

    # --- what its tags say ------------------------------------------------------------------

    def _say_at_work(self) -> None:
        if held_run.SHORT_TAG in self.context.run.tags:
            held_run.mark(self.context.instance, self.context.run.run_id, None, "at work")

    def _say_watching(self) -> None:
        """Let the sensor see to it that second copies are looked for, whatever becomes of us."""
        tags = {held_run.GAVE_UP_TAG: self.asset.claude_resource}
        self.context.instance.add_run_tags(self.context.run.run_id, tags)

    def _say_settled(self, said: str) -> None:
        """Nothing is left to this run that somebody would have to look after, however it ends."""
        run = self.context.instance.get_run_by_id(self.context.run.run_id)
        if run is not None and held_run.SHORT_TAG in run.tags:
            held_run.settle(self.context.instance, run, self.key, self._batch_assets(), said)

    def _announce_waiting_here(self) -> None:
        """Let the sensor know of this run, should it be killed while something is out."""
        waiter = {held_run.WAITER_TAG: self.asset.claude_resource}
        instance, state = self.context.instance, held_run.IN_RUN
        held_run.mark(instance, self.context.run.run_id, state, "waiting in the run", **waiter)

    # --- held -------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Make the run that will collect, before anything is paid for.

        Raises:
            NoSensorError: Nobody would let it go.
        """
        if self._held_id is not None:
            return
        self._require_sensor()
        held_id = holding.held_run_id(self.context.run.run_id)
        self.engine.attach_run(held_id, self._materializations)
        self._held_id = self._make()
        self._note_attached(held_id)

    def _make(self, *, has_failed: bool = False) -> str:
        return holding.make(
            self.context.instance,
            self.context.run,
            asset_graph=self.context.repository_def.asset_graph,
            batch_assets=set(self._batch_assets()) - self._materialized_here(),
            claude_resource=self.asset.claude_resource,
            has_failed=has_failed,
        )

    def _note_attached(self, held_id: str) -> None:
        attached = {held_run.attached_tag(self.key): self.context.run.run_id}
        self.context.instance.add_run_tags(held_id, attached)

    def _leave_to_another_try(self) -> None:
        """Leave another run, unless one is there: something is out, and this one fails.

        What keeps it from that must not take the place of the error that the run fails with.
        """
        try:
            if self._held_id is None and self._can_be_held():
                self._held_id = self._make(has_failed=True)
                self._say_again(self._held_id)
                if self._materializations:
                    self.engine.attach_run(self._held_id, self._materializations)
                    self._note_attached(self._held_id)
        except Exception as error:  # noqa: BLE001  # see above
            self.context.log.warning(f"No other run tries again by itself: {error}")
        if self._held_id is not None:
            self._say_settled(f"again by run {self._held_id[:8]}")

    def _can_be_held(self) -> bool:
        problem = sensor_problem(self.context, self.asset.claude_resource)
        return problem is None and self._why_in_the_run() is None

    def _say_again(self, held_id: str) -> None:
        interval = timedelta(seconds=self.engine.claude.poll_interval_seconds)
        run = self.context.run
        moment = held_run.say_again(self.context.instance, held_id, run, interval)
        self.context.log.info(
            f"Something is out: run {held_id} tries again at {moment:%H:%M:%S} UTC."
        )

    def _batch_assets(self) -> dict[dg.AssetKey, BatchAsset]:
        """The batch assets of the run."""
        # Not the repository's: `dg.materialize` has none.
        graph = self.context.job_def.asset_layer.asset_graph
        in_run = graph.executable_asset_keys
        found = {key: batch_asset(graph.get(key).assets_def) for key in in_run}
        return {key: asset for key, asset in found.items() if asset is not None}

    def _materialized_here(self) -> set[dg.AssetKey]:
        """What earlier steps of this run have materialized: it need not be collected."""
        events = self.context.instance.all_logs(
            self.context.run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        made = [event.asset_materialization for event in events]
        return {each.asset_key for each in made if each is not None}

    def _require_sensor(self) -> None:
        problem = sensor_problem(self.context, self.asset.claude_resource)
        if problem is not None:
            raise NoSensorError(self.asset.declaration.asset, problem)

    def _leave(self, waiting: Waiting) -> None:
        self._hold()
        held_id = str(self._held_id)
        partitions = len(self.partitions)
        held_run.describe(self.context.instance, held_id, self.key, waiting, partitions=partitions)
        self.context.log.info(
            f"Out: {held_run.counted(len(waiting.batch_ids), 'batch', 'batches')} with "
            f"{held_run.counted(waiting.requests, 'request', 'requests')}. This run ends now; "
            f"run {held_id} waits in the queue and will collect the results."
        )
        run, said = self.context.run, f"collected by run {held_id[:8]}"
        held_run.settle(self.context.instance, run, self.key, self._batch_assets(), said)
        for partition in self.partitions:
            self.context.log_event(
                dg.AssetObservation(
                    self.key,
                    partition=partition,
                    description=_waits_for(waiting, held_id),
                    metadata={
                        "waiting_for_batches": len(waiting.batch_ids),
                        "waiting_for_requests": waiting.requests,
                        "collecting_run": dg.MetadataValue.dagster_run(held_id),
                    },
                )
            )

    def _undo(self) -> None:
        """Delete the held run of a run that ends otherwise.

        With several batch assets in the run it stays, for another one's step may count on it; it
        is let go when this run has ended, and finds nothing left to do.
        """
        if self._held_id is not None and len(self._batch_assets()) == 1:
            holding.undo(self.context.instance, self.context.run.run_id)

    # --- in the run -------------------------------------------------------------------------

    def _wait_here(self, waiting: Waiting) -> None:
        interval = timedelta(seconds=self.engine.claude.poll_interval_seconds)
        left: Waiting | None = waiting
        while left is not None:
            now = self.engine.claude.now()
            pause = held_run.pause_after(now - (left.since or now), interval)
            if left.not_before is not None:
                pause = max(timedelta(), min(pause, left.not_before - now))
            self.context.log.info(
                f"Waiting for {held_run.counted(len(left.batch_ids), 'batch', 'batches')} with "
                f"{held_run.counted(left.requests, 'request', 'requests')}; "
                f"next look in {pause.total_seconds():.0f} s."
            )
            time.sleep(max(0.01, pause.total_seconds()))
            left = self.engine.advance(self._materializations)


def _waits_for(waiting: Waiting, held_id: str) -> str:
    """What an observation says of a wait that begins."""
    out = held_run.counted(len(waiting.batch_ids), "Claude batch", "Claude batches")
    requests = held_run.counted(waiting.requests, "request", "requests")
    unsent = held_run.counted(waiting.unsent, "chunk is", "chunks are")
    more = f" {unsent} not sent yet." if waiting.unsent else ""
    return (
        f"Waiting for {out} with {requests}.{more} Run {held_id[:8]} stays queued meanwhile and "
        "collects the results; terminating it cancels the batches."
    )


def sensor_problem(context: dg.AssetExecutionContext, claude_resource: str) -> str | None:
    """Why no sensor would let a held run go, as the end of a sentence; None if one will."""
    sensors = [
        each
        for each in context.repository_def.sensor_defs
        if each.tags.get(held_run.SENSOR_RESOURCE_TAG) == claude_resource
    ]
    if not sensors:
        return (
            f"this code location has no sensor for the resource {claude_resource!r} "
            "(`claude_batch_sensor`)."
        )
    if all(_is_off(context, each) for each in sensors):
        return f"the sensor {sensors[0].name!r} is switched off."
    return None


def _is_off(context: dg.AssetExecutionContext, sensor: dg.SensorDefinition) -> bool:
    job_origin = context.run.remote_job_origin
    if job_origin is None:
        return False
    origin = job_origin.repository_origin.get_instigator_origin(sensor.name)
    state = context.instance.get_instigator_state(origin.get_id(), origin.get_selector().get_id())
    if state is None:
        return sensor.default_status == dg.DefaultSensorStatus.STOPPED
    return state.status.value == "STOPPED"
