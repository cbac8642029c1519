"""How long a batch has ended before its partition is materialized, and what that time is spent on.

``PYTHONPATH=.:e2e python -m benchmarks.latency [ROUNDS]``, in ``tests/``: a real Dagster with the
intervals that it has by default, and one small partition that is asked about again and again; the
batch ends at any moment of its first minutes.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import dagster as dg
from e2e_stage import Stage, open_stage

ROUNDS: Final = 9
ASSET: Final = "answers"
LONGEST_WAIT: Final = 90.0
"""Seconds from when a batch waits until it ends, at the most."""


@dataclass(frozen=True)
class Latency:
    """Seconds from one moment to the next."""

    seen: float
    """From the batch's end until the sensor has let the run go."""
    started: float
    """Until the run is at work, in a process of its own."""
    materialized: float
    """Until the partition is materialized."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, each.name) for each in fields(self))


def measure(stage: Stage, instance: dg.DagsterInstance, pause: float) -> Latency:
    """Ask, let the batch end some time after the run waits for it, and look at Dagster's events."""
    stage.sql("UPDATE answers_source SET review = review || '!'")
    held = stage.held_by(stage.dagster.materialize(ASSET, partition="berlin"))
    time.sleep(pause)
    ended = time.time()
    stage.simulator.end_batches()
    stage.succeed(held.run_id)
    (record,) = instance.get_run_records(dg.RunsFilter(run_ids=[held.run_id]))
    event = instance.get_latest_materialization_event(dg.AssetKey(ASSET))
    assert record.start_time is not None
    assert event is not None
    assert event.run_id == held.run_id
    let_go = _let_go_at(instance, held.run_id)
    return Latency(let_go - ended, record.start_time - let_go, event.timestamp - record.start_time)


def _let_go_at(instance: dg.DagsterInstance, run_id: str) -> float:
    """When the queue began to start the run, which it does as soon as the sensor lets it go."""
    begun = instance.all_logs(run_id, of_type=dg.DagsterEventType.PIPELINE_STARTING)
    return begun[-1].timestamp


def main(arguments: Sequence[str]) -> None:
    """Print medians, and the longest."""
    rounds = int(arguments[0]) if arguments else ROUNDS
    random = Random(7)
    pauses = [random.uniform(0, LONGEST_WAIT) for _ in range(rounds)]
    with (
        TemporaryDirectory() as home,
        open_stage(Path(home), module="e2e_default_project", extra_yaml="") as stage,
        dg.DagsterInstance.from_config(str(Path(home) / "dagster_home")) as instance,
    ):
        stage.ask(ASSET, 10)
        found = [measure(stage, instance, pause) for pause in pauses]
    sys.stdout.write("| seconds from a batch's end | median | longest |\n|---|---|---|\n")
    lines = {
        "until the queue takes its run": [each.seen for each in found],
        "until that is at work": [each.started for each in found],
        "until the partition is materialized": [each.materialized for each in found],
        "all of it": [each.total for each in found],
    }
    for name, seconds in lines.items():
        sys.stdout.write(f"| {name} | {median(seconds):.0f} | {max(seconds):.0f} |\n")


if __name__ == "__main__":
    main(sys.argv[1:])
