"""What the end-to-end tests act on: a real Dagster, the simulator that it asks, and DuckDB."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from dagster_driver import DagsterDriver, Run
from e2e_simulated import CURED

from dagster_claude_batch import held_run
from dagster_claude_batch.simulator import Simulator

HERE = Path(__file__).parent

FAST_QUEUE = """
run_coordinator:
  module: dagster._core.run_coordinator
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1
"""


@dataclass(frozen=True)
class Stage:
    """A Dagster of its own for `e2e_project`, and all that its runs touch."""

    home: Path
    dagster: DagsterDriver
    simulator: Simulator

    def fill(self, asset: str, select: str) -> None:
        """Create the asset's source from what a query selects."""
        self.sql(f"CREATE TABLE {asset}_source AS {select}")

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Run SQL in the warehouse, which no run may be using."""
        with closing(duckdb.connect(str(self.home / "warehouse.duckdb"))) as connection:
            return connection.execute(query).fetchall()

    def cure(self) -> None:
        """Let the simulator answer doomed reviews from now on."""
        (self.home / CURED).touch()

    def questions(self, *, after: int = 0) -> list[str]:
        """The reviews of all batches but the first ``after``, sorted."""
        return sorted(
            params["messages"][-1]["content"]
            for batch in self.simulator.batches()[after:]
            for _, params in self.simulator.requests(batch.id)
        )

    def wait_until_seen(self, waiting: str) -> None:
        """Wait until the sensor's newest tick says that so much is waiting."""

        def is_seen() -> bool:
            newest = self.dagster.ticks("claude_batch_sensor", limit=1)
            return any(waiting in (tick.skip_reason or "") for tick in newest)

        self.dagster.wait_for(is_seen, timeout=180, what=f"the sensor to say: {waiting}")

    def held_by(self, run_id: str) -> Run:
        """Wait until a run has ended well, and return the run that it left in the queue."""
        self.succeed(run_id)
        (held,) = self._held_by(run_id)
        assert held.status == "QUEUED"
        return held

    def succeed(self, run_id: str) -> None:
        """Wait until a run has ended, which it does well."""
        ended = self.dagster.wait_for_run(run_id)
        assert ended.status == "SUCCESS", "\n".join(self.dagster.run_messages(run_id))

    def see_through(self, run_id: str) -> Run:
        """End batches until a run, or the last of those that it left in the queue, has ended."""
        run = self.dagster.wait_for_run(run_id)
        while held := self._held_by(run.run_id):
            self.simulator.end_batches()
            run = self.dagster.wait_for_run(held[0].run_id)
        return run

    def _held_by(self, run_id: str) -> list[Run]:
        return self.dagster.runs(tags={held_run.MAKER_TAG: run_id})


@contextmanager
def open_stage(home: Path) -> Iterator[Stage]:
    """Start Dagster, and end it."""
    driver = DagsterDriver(
        home,
        module="e2e_project",
        cwd=HERE,
        env={"E2E_HOME": str(home)},
        extra_yaml=FAST_QUEUE,
    )
    with driver as dagster:
        yield Stage(home, dagster, Simulator(home / "simulator"))
