"""Two code locations that name their resources alike, and yet ask with keys of their own."""

import dagster as dg
from e2e_small_project import RESOURCES, asked, claude

from dagster_claude_batch import build_claude_batch_sensor


def first() -> dg.Definitions:
    return dg.Definitions(
        assets=[asked("broken_and_repaired"), asked("restarted")],
        sensors=[build_claude_batch_sensor("claude_batch_sensor", minimum_interval_seconds=1)],
        resources={**RESOURCES, "claude_batch": claude("first")},
        executor=dg.in_process_executor,
    )


def second() -> dg.Definitions:
    """A location with two workspaces, of which one is named as that of the first location."""
    other = {"claude_resource": "claude_other"}
    return dg.Definitions(
        assets=[asked("renamed"), asked("switched_off_and_on", **other)],
        sensors=[
            build_claude_batch_sensor("claude_batch_sensor", minimum_interval_seconds=1),
            build_claude_batch_sensor("other_sensor", minimum_interval_seconds=1, **other),
        ],
        resources={
            **RESOURCES,
            "claude_batch": claude("second"),
            "claude_other": claude("other"),
        },
        executor=dg.in_process_executor,
    )
