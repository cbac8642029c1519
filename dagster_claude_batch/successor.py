"""The run that a run leaves in the queue: to collect what was sent, or to try again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import dagster as dg

from dagster_claude_batch import held_run, holding, reserve, trial
from dagster_claude_batch.advance import Engine
from dagster_claude_batch.batch_asset import BatchAsset, batch_assets_of_run
from dagster_claude_batch.dagster_internals import BACKFILL_TAG
from dagster_claude_batch.errors import MaterializationCancelledError, NoSensorError
from dagster_claude_batch.estimate import Estimate
from dagster_claude_batch.ledger import Materialization
from dagster_claude_batch.workbench import Waiting


@dataclass
class Successor:
    """What comes after one run's work on one asset; ``held_id`` is set once there is such a run."""

    context: dg.AssetExecutionContext
    asset: BatchAsset
    engine: Engine
    wait: Literal["sensor", "run"]
    materializations: Sequence[Materialization] = ()
    held_id: str | None = None

    @property
    def key(self) -> dg.AssetKey:
        """The asset's key, as the code location knows it."""
        return self.context.assets_def.key

    def why_not(self) -> str | None:
        """Why the run has to wait itself; None if another can."""
        if self.wait == "run":
            return 'it was asked to (`wait="run"`)'
        reason = holding.why_not(self.context.instance, self.context.run)
        if reason is not None:
            return reason
        # Only a run that a code location has launched knows what else it is made of.
        if len({asset.claude_resource for asset in batch_assets_of_run(self.context).values()}) > 1:
            return "its assets use several Claude resources, and one held run has one sensor"
        return None

    def hold(self) -> None:
        """Make the run that will collect, before anything is paid for.

        Raises:
            NoSensorError: Nobody would let it go.
        """
        if self.held_id is not None:
            return
        self._require_sensor()
        held_id = holding.successor_id(self.context.instance, self.context.run)
        self.engine.attach_run(held_id, self.materializations)
        self.held_id = self._make()
        self._note_attached(held_id)

    def keep_backfill_open(self) -> None:
        """Put a run in reserve before a collecting run of a backfill begins its work."""
        run = self.context.run
        if held_run.HELD_TAG not in run.tags or BACKFILL_TAG not in run.tags:
            return
        try:
            if self._can_be_held():
                reserve.make(
                    self.context.instance,
                    run,
                    self.key,
                    asset_graph=self.context.repository_def.asset_graph,
                    claude_resource=self.asset.claude_resource,
                )
        except Exception as error:  # noqa: BLE001  # it is there for bad luck, and is not worth any
            self.context.log.info(f"No run is in reserve: {error}")

    def leave(self, waiting: Waiting, partitions: Sequence[str | None]) -> None:
        """Hand over to it, and say so.

        Raises:
            MaterializationCancelledError: Somebody has cancelled, or deleted, it meanwhile.
        """
        self.hold()
        held_id = str(self.held_id)
        self._drop_reserve()
        if held_run.is_cancelled(self.context.instance, held_id):
            raise MaterializationCancelledError(self.asset.declaration.asset)
        claude = self.engine.claude
        waiting = held_run.found_no_room(
            held_run.read(self.context.run),
            self.key,
            waiting,
            claude.now(),
            timedelta(seconds=claude.poll_interval_seconds),
        )
        if holding.is_waiting(self.context.instance, held_id):
            held_run.describe(
                self.context.instance, held_id, self.key, waiting, partitions=len(partitions)
            )
        self.context.log.info(
            f"Out: {held_run.counted(len(waiting.batch_ids), 'batch', 'batches')} with "
            f"{held_run.counted(waiting.requests, 'request', 'requests')}. This run ends now; "
            f"run {held_id} waits in the queue and will collect the results."
        )
        run, said = self.context.run, f"collected by run {held_id[:8]}"
        held_run.settle(
            self.context.instance, run, self.key, batch_assets_of_run(self.context), said
        )
        for partition in partitions:
            self.context.log_event(
                dg.AssetObservation(
                    self.key,
                    partition=partition,
                    description=_waits_for(waiting, held_id),
                    metadata={
                        "waiting_for_batches": len(waiting.batch_ids),
                        "waiting_for_requests": waiting.requests,
                        "collecting_run": dg.MetadataValue.dagster_run(held_id),
                        **_estimated(self.engine.estimates),
                    },
                )
            )

    def leave_to_another_try(self) -> None:
        """Leave another run, unless one is there: something is out, and this one fails.

        What keeps it from that must not take the place of the error that the run fails with.
        """
        try:
            if self.held_id is None and self._can_be_held():
                self.held_id = self._make(has_failed=True)
                self._say_again(self.held_id)
                if self.materializations:
                    self._note_attached(self.held_id)
                    self.engine.attach_run(self.held_id, self.materializations)
        except Exception as error:  # noqa: BLE001  # see above
            self.context.log.warning(f"No other run tries again by itself: {error}")
        if self.held_id is not None:
            self.settle(f"again by run {self.held_id[:8]}")
            self._drop_reserve()

    def note_collected(self) -> None:
        """The chain of runs that came to nothing ends here."""
        run, instance = self.context.run, self.context.instance
        if held_run.HELD_TAG in run.tags:
            instance.add_run_tags(run.run_id, {held_run.FRUITFUL_TAG: run.run_id})

    def undo(self) -> None:
        """Delete the held run of a run that ends otherwise.

        With several batch assets in the run it stays, for another one's step may count on it; it
        is let go when this run has ended, and finds nothing left to do.
        """
        if self.held_id is not None and self._is_alone():
            holding.undo(self.context.instance, self.held_id)
        self._drop_reserve()

    def _drop_reserve(self) -> None:
        """Delete the run in reserve; where another step may count on it, the sensor does."""
        try:
            if self._is_alone():
                reserve.drop(self.context.instance, self.context.run.run_id)
        except Exception as error:  # noqa: BLE001  # the sensor deletes it too: no reason to fail
            self.context.log.info(f"The run in reserve was not deleted: {error}")

    def _is_alone(self) -> bool:
        return len(batch_assets_of_run(self.context)) == 1

    def settle(self, said: str) -> None:
        """Nothing is left to this run that somebody would have to look after, however it ends."""
        run = self.context.instance.get_run_by_id(self.context.run.run_id)
        if run is not None and held_run.SHORT_TAG in run.tags:
            held_run.settle(
                self.context.instance, run, self.key, batch_assets_of_run(self.context), said
            )

    def _make(self, *, has_failed: bool = False) -> str:
        return holding.make(
            self.context.instance,
            self.context.run,
            asset_graph=self.context.repository_def.asset_graph,
            batch_assets=set(batch_assets_of_run(self.context)) - self._materialized_here(),
            claude_resource=self.asset.claude_resource,
            has_failed=has_failed,
        )

    def _materialized_here(self) -> set[dg.AssetKey]:
        """What earlier steps of this run have materialized: it need not be collected."""
        return held_run.materialized_in(self.context.instance, self.context.run.run_id)

    def _note_attached(self, held_id: str) -> None:
        attached = {held_run.attached_tag(self.key): self.context.run.run_id}
        self.context.instance.add_run_tags(held_id, attached)

    def _can_be_held(self) -> bool:
        claude_resource = self.asset.claude_resource
        return self.why_not() is None and sensor_problem(self.context, claude_resource) is None

    def _say_again(self, held_id: str) -> None:
        if not holding.is_waiting(self.context.instance, held_id):
            return
        interval = timedelta(seconds=self.engine.claude.poll_interval_seconds)
        run = self.context.run
        moment = held_run.say_again(self.context.instance, held_id, run, interval)
        self.context.log.info(
            f"Something is out: run {held_id} tries again at {moment:%H:%M:%S} UTC."
        )

    def _require_sensor(self) -> None:
        problem = sensor_problem(self.context, self.asset.claude_resource)
        if problem is not None:
            raise NoSensorError(self.asset.declaration.asset, problem)


def _estimated(estimates: Sequence[Estimate]) -> Mapping[str, Any]:
    """What the run's sending may cost, of all its partitions together."""
    return trial.estimated(estimates[0]) if len(estimates) == 1 else {}


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
