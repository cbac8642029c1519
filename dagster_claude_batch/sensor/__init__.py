"""The sensor: it lets held runs go whose batches have ended, and looks after what nobody waits for.

It knows only what stands in the tags of runs and in its cursor; it never opens DuckDB.
"""

from datetime import timedelta
from typing import Any, Final, Self

import dagster as dg

from dagster_claude_batch import held_run
from dagster_claude_batch.landing_job import build_landing_job
from dagster_claude_batch.sensor.memory import Memory
from dagster_claude_batch.sensor.scene import Scene
from dagster_claude_batch.sensor.tick import tick


class OneSensor(dg.SensorDefinition):
    """A sensor that stays the same object wherever it is declared.

    Dagster takes an object that several definitions of a code location have for one, but notes in
    copies from which files they come; and two of one name are an error.
    """

    def with_attributes(self, **_: object) -> Self:
        """The same sensor, without a note of the file."""
        return self


def build_claude_batch_sensor(
    name: str,
    *,
    claude_resource: str = "claude_batch",
    minimum_interval_seconds: int = 30,
    cancel_after_seconds: float = 600.0,
) -> dg.SensorDefinition:
    """Build the sensor for one Claude resource; a code location needs one for each of them.

    It is running by default. Its landing job, which lands what no run waits for any more, comes
    with it.

    Args:
        name: The sensor's name.
        claude_resource: Key of the `ClaudeBatchResource`.
        minimum_interval_seconds: Pause between two ticks. It asks the API only when a look is due.
        cancel_after_seconds: How long batches outlive the last run that waited for them: within
            that time, materializing again joins them.
    """
    landing_job = f"{name}_landing"

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        claude: Any = getattr(context.resources, claude_resource)
        origin = context.code_location_origin
        location = origin.location_name if origin else ""
        of_whom = f"{location}/{context.repository_name or ''}/{name}"
        memory = Memory(context.instance, f"dagster_claude_batch/{of_whom}")
        scene = Scene(
            context,
            claude,
            claude_resource,
            landing_job,
            timedelta(seconds=cancel_after_seconds),
            memory.recall(context.cursor),
            claude.now(),
            memory=memory,
        )
        return tick(scene)

    return OneSensor(
        name=name,
        evaluation_fn=evaluate,
        job=build_landing_job(landing_job, claude_resource=claude_resource),
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={claude_resource},
        tags={held_run.SENSOR_RESOURCE_TAG: claude_resource},
        description=(
            "Lets runs go that wait for Claude batches, as soon as their results are ready. "
            "It must be running: without it, nobody collects."
        ),
    )


claude_batch_sensor: Final = build_claude_batch_sensor("claude_batch_sensor")
"""The sensor for the resource ``claude_batch``: put it into the `sensors` of your definitions."""
