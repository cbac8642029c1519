"""What held runs cost an instance: its queue, an ordinary run behind them, a tick of the sensor.

``PYTHONPATH=.:e2e python -m benchmarks.held_runs [FEW MANY]``, in ``tests/``: one Dagster, with few
held runs and then with many, each with a batch of its own; medians of five.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

import dagster as dg
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon
from dagster_shared.record import copy
from e2e_stage import Stage, open_stage

from dagster_claude_batch import held_run, holding
from dagster_claude_batch.workbench import Waiting

ROUNDS: Final = 5
ASSET: Final = "materialized"


class Crowd:
    """One Dagster with held runs."""

    def __init__(self, stage: Stage, instance: dg.DagsterInstance) -> None:
        self.stage = stage
        self.instance = instance
        # It reads E2E_HOME when it is imported.
        import e2e_small_project  # noqa: PLC0415

        self.repository = e2e_small_project.defs.get_repository_def()
        self.claude = e2e_small_project.claude("simulator")
        stage.ask(ASSET, 10)
        made_by = stage.dagster.materialize(ASSET, partition="berlin")
        stage.held_by(made_by)
        found = instance.get_run_by_id(made_by)
        assert found is not None
        self.maker = found
        self.count = 1

    def grow(self, count: int) -> None:
        """Let there be so many held runs."""
        key = dg.AssetKey(ASSET)
        asked = self.stage.simulator.requests(self.stage.simulator.batches()[0].id)
        requests: Any = [{"custom_id": "one", "params": params} for _, params in list(asked)[:1]]
        while self.count < count:
            maker = copy(self.maker, run_id=str(uuid4()))
            self.instance.add_run(maker)
            held_id = holding.make(
                self.instance,
                maker,
                asset_graph=self.repository.asset_graph,
                batch_assets=[key],
                claude_resource="claude_batch",
            )
            batch = self.claude.client.messages.batches.create(requests=requests)
            waiting = Waiting((batch.id,), 1, since=datetime.now(UTC))
            held_run.describe(self.instance, held_id, key, waiting)
            self.count += 1

    def pass_of_the_queue(self) -> None:
        """Decide what the queue's daemon would start."""
        daemon = QueuedRunCoordinatorDaemon(interval_seconds=5)
        config = self.instance.get_concurrency_config()
        daemon._get_runs_to_dequeue(self.instance, config, None)  # noqa: SLF001

    def tick(self) -> None:
        """Evaluate the sensor as its code server does, with a look at the API."""
        sensor = self.repository.get_sensor_def("claude_batch_sensor")
        resources = dict(self.repository.get_top_level_resources())
        with dg.build_sensor_context(
            instance=self.instance,
            repository_def=self.repository,
            resources={"claude_batch": resources["claude_batch"]},
        ) as context:
            sensor.evaluate_tick(context)

    def delay_of_an_ordinary_run(self) -> float:
        """Seconds from the launch of a run that asks nothing until it is at work."""
        run_id = self.stage.dagster.materialize("ordinary")
        self.stage.dagster.wait_for_run(run_id)
        (record,) = self.instance.get_run_records(dg.RunsFilter(run_ids=[run_id]))
        assert record.start_time is not None
        return record.start_time - record.create_timestamp.timestamp()


def seconds_of(work: Callable[[], object]) -> float:
    """The median of some rounds."""
    taken: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken)


def main(counts: Sequence[int]) -> None:
    """Print a table."""
    sys.stdout.write("| held runs | pass of the queue | tick | an ordinary run starts after |\n")
    sys.stdout.write("|---|---|---|---|\n")
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory()))
        os.environ["E2E_HOME"] = str(home)
        stage = stack.enter_context(open_stage(home, module="e2e_small_project"))
        instance = dg.DagsterInstance.from_config(str(home / "dagster_home"))
        crowd = Crowd(stage, stack.enter_context(instance))
        for count in counts:
            crowd.grow(count)
            queue, tick = seconds_of(crowd.pass_of_the_queue), seconds_of(crowd.tick)
            delay = median(crowd.delay_of_an_ordinary_run() for _ in range(ROUNDS))
            sys.stdout.write(f"| {count:,} | {queue:.2f} s | {tick:.2f} s | {delay:.1f} s |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [10, 1_000])
