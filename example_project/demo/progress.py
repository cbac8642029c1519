"""Where every partition of a backfill is, told from what Dagster's own pages show."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from example_project.demo.dagster_api import DagsterApi
from example_project.demo.dagster_shown import IN_PROGRESS, Run
from example_project.demo.partition_statuses import PartitionStatus

Stage = Literal["queued", "submitting", "waiting", "collecting", "collected", "failed"]
"""How far a partition is.

``waiting``: its batches are out, and the run that will collect them is held in the queue.
"""

SUBMITTED: frozenset[Stage] = frozenset({"waiting", "collecting", "collected"})


@dataclass(frozen=True)
class Progress:
    """A backfill at one moment: the stage of each partition, and all runs in progress."""

    stages: Mapping[str, Stage]
    runs_in_progress: int
    runs_held: int
    backfill_has_ended: bool

    @property
    def is_settled(self) -> bool:
        """Whether nothing more will happen to any partition."""
        return self.backfill_has_ended or all(
            stage in ("collected", "failed") for stage in self.stages.values()
        )

    @property
    def is_idle(self) -> bool:
        """Whether batches are out and nothing runs for them, nor for anything else."""
        return "waiting" in self.stages.values() and self.runs_in_progress == 0

    def partitions(self, stages: frozenset[Stage]) -> Iterator[str]:
        """Yield the partitions that are in one of the stages."""
        return (key for key, stage in self.stages.items() if stage in stages)


def progress_of(dagster: DagsterApi, backfill_id: str, asset: str) -> Progress:
    """Ask Dagster, never the DuckDB file: a reader would lock the runs out of it."""
    # In this order: a run that ends in between is not taken for one that left nothing.
    has_ended = dagster.backfill(backfill_id).is_ended
    runs = dagster.runs(tags={"dagster/backfill": backfill_id})
    statuses = dagster.partition_statuses(asset)
    in_progress = dagster.runs(statuses=IN_PROGRESS)
    return Progress(
        stages={
            key: stage_of(status, [run for run in reversed(runs) if run.partition == key])
            for key, status in statuses.items()
        },
        runs_in_progress=len(in_progress),
        runs_held=sum(run.status == "QUEUED" for run in runs),
        backfill_has_ended=has_ended,
    )


def stage_of(status: PartitionStatus, runs: Sequence[Run]) -> Stage:
    """Tell the stage from a partition's status and the backfill's runs for it, oldest first."""
    if not runs:
        return "queued"
    if all(run.is_ended for run in runs):
        return _stage_without_runs(status)
    if any(run.is_in_progress for run in runs):
        return "submitting" if runs[0].is_in_progress else "collecting"
    return "waiting" if runs[0].is_ended else "queued"


def _stage_without_runs(status: PartitionStatus) -> Stage:
    match status:
        case "materialized":
            return "collected"
        case "failed":
            return "failed"
        case "materializing" | "missing":
            return "queued"
