"""What the end-to-end tests act on: a real Dagster, the simulator that it asks, and DuckDB."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb
from dagster_driver import RUN_TIMEOUT, DagsterDriver, Run
from e2e_gates import Gate
from e2e_simulated import CURED
from e2e_situations import Shown

from dagster_claude_batch import held_run, reserve
from dagster_claude_batch.simulator import Batch, Simulator

HERE = Path(__file__).parent

FAST_QUEUE = """
run_coordinator:
  module: dagster._core.run_coordinator
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1
run_retries:
  enabled: true
nux:
  enabled: false
python_logs:
  dagster_handler_config:
    handlers:
      gates:
        class: e2e_gates.LogGates
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

    def ask(self, asset: str, rows: int, *, cities: tuple[str, ...] = ("berlin",)) -> None:
        """Create the asset's source: in each city so many reviews, `<asset> <city> <number>`."""
        self.fill(
            asset,
            f"SELECT city, i AS review_id, '{asset} ' || city || ' ' || i AS review "
            f"FROM (SELECT unnest({list(cities)}) AS city), range({rows}) AS r(i)",
        )

    @property
    def warehouse(self) -> Path:
        """The file of the DuckDB database."""
        return self.home / "warehouse.duckdb"

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Run SQL in the warehouse, as soon as no run uses it."""
        with self.locked() as connection:
            return connection.execute(query).fetchall()

    @contextmanager
    def locked(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Hold the warehouse's file, as soon as no run does."""
        connection = self.dagster.wait_for(
            self._connect, timeout=300, every=0.05, what="the warehouse to be free"
        )
        with closing(connection):
            yield connection

    def is_locked(self) -> bool:
        """Whether a run uses the warehouse at this moment."""
        connection = self._connect()
        if connection is not None:
            connection.close()
        return connection is None

    def _connect(self) -> duckdb.DuckDBPyConnection | None:
        with suppress(duckdb.IOException):
            return duckdb.connect(str(self.warehouse))
        return None

    def close_gate(
        self,
        when: Literal["before", "after", "refused"],
        text: str,
        *,
        method: str = "POST",
        nth: int = 1,
        status: int = 0,
    ) -> Gate:
        """Stop runs at a call of the API. See `Gate`."""
        name = f"{when} {method} {text}"
        return Gate(self.home / "gates", name, when, method, text, nth, status).close()

    def open_gates(self) -> None:
        """Let all go on: runs that a failed test has stopped would keep others from starting."""
        for closed in (self.home / "gates").glob("*.gate"):
            closed.unlink(missing_ok=True)

    def wait_until_reached(self, gate: Gate, *, timeout: float = 600) -> None:
        """Wait until a run has stopped at a gate."""
        self.dagster.wait_for(
            lambda: gate.is_reached, timeout=timeout, every=0.1, what=f"the gate {gate.name}"
        )

    def batches_of(self, asset: str) -> list[Batch]:
        """The batches that ask what `ask` has written, oldest first."""
        return [batch for batch in self.simulator.batches() if self._is_of(batch, asset)]

    def _is_of(self, batch: Batch, asset: str) -> bool:
        (_, params) = next(self.simulator.requests(batch.id))
        return params["messages"][-1]["content"].startswith(f"{asset} ")

    def sent(self, asset: str, *, after: int = 0) -> list[str]:
        """The reviews in an asset's batches but the first ``after``, sorted."""
        return sorted(
            params["messages"][-1]["content"]
            for batch in self.batches_of(asset)[after:]
            for _, params in self.simulator.requests(batch.id)
        )

    def wait_for_batches(self, asset: str, count: int) -> list[Batch]:
        """Wait until an asset has sent so many batches."""
        return self.dagster.wait_for(
            lambda: batches if len(batches := self.batches_of(asset)) >= count else None,
            timeout=600,
            what=f"{count} batches of {asset}",
        )

    def wait_until_landed(self, *assets: str) -> None:
        """Wait until nothing of these assets is out any more, as far as the ledger knows."""
        out = (
            "SELECT count(*) FROM claude_batch.chunks WHERE state IN ('sending', 'submitted') "
            f"AND asset IN (SELECT unnest({list(assets)}))"
        )
        self.dagster.wait_for(
            lambda: self.sql(out) == [(0,)], timeout=600, what=f"{assets} to land"
        )

    def wait_for_ticks(self, sensor: str, count: int = 2) -> None:
        """Wait until a sensor has ticked so many times more."""
        newest = self.dagster.ticks(sensor, limit=1)
        since = newest[0].timestamp if newest else 0.0
        self.dagster.wait_for(
            lambda: sum(t.timestamp > since for t in self.dagster.ticks(sensor, limit=20)) > count,
            timeout=600,
            what=f"ticks of {sensor}",
        )

    def shown(self, asset: str, backfill: str | None = None) -> Shown:
        """What Dagster shows of an asset, of its runs and of its batches, at this moment."""
        runs = self.dagster.runs_of(asset)
        return Shown(
            partitions=dict(Counter(self.dagster.statuses(asset))),
            backfill=None if backfill is None else self.dagster.backfill(backfill).status,
            started=sum(run.is_in_progress for run in runs),
            queued=sum(not (run.is_in_progress or run.is_ended) for run in runs),
            batches_out=sum(batch.ended_at is None for batch in self.batches_of(asset)),
        )

    def wait_until_it_waits(self, asset: str, runs: int = 1, *, timeout: float = 600) -> None:
        """Wait until so many held runs of an asset are in the queue, something is out, and no
        other run is left: neither in progress, nor in the queue before it has sent anything.
        """

        def waits() -> bool:
            left = [run for run in self.dagster.runs_of(asset) if not run.is_ended]
            held = [
                run for run in left if run.status == "QUEUED" and held_run.SHORT_TAG in run.tags
            ]
            return len(left) == len(held) == runs and self.shown(asset).batches_out > 0

        self.dagster.wait_for(waits, timeout=timeout, every=1, what=f"{runs} held runs of {asset}")

    def wait_until_shown(
        self, asset: str, expected: Shown, backfill: str | None = None, *, timeout: float = 600
    ) -> Shown:
        """Wait until there is just this to see of an asset: of many held runs, the queue may have
        started one that was made while it read them, which waits again in another.
        """
        self.dagster.wait_for(
            lambda: self.shown(asset, backfill) == expected,
            timeout=timeout,
            every=1,
            what=f"{asset} to show {expected}",
        )
        return expected

    def wait_until_over(
        self, asset: str, backfill: str | None = None, *, timeout: float = 600
    ) -> None:
        """Wait until every run of an asset has ended, and the backfill too."""
        if backfill is not None:
            self.dagster.wait_for_backfill(backfill, timeout=timeout)
        self.dagster.wait_for(
            lambda: all(run.is_ended for run in self.dagster.runs_of(asset)),
            timeout=timeout,
            every=1,
            what=f"the runs of {asset} to end",
        )

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

        self.dagster.wait_for(is_seen, timeout=600, what=f"the sensor to say: {waiting}")

    def held_by(self, run_id: str) -> Run:
        """Wait until a run has ended well, and return the run that it left in the queue."""
        self.succeed(run_id)
        (held,) = self.held_runs_of(run_id)
        assert held.status == "QUEUED"
        return held

    def succeed(self, run_id: str, *, timeout: float = RUN_TIMEOUT) -> None:
        """Wait until a run has ended, which it does well."""
        ended = self.dagster.wait_for_run(run_id, timeout=timeout)
        assert ended.status == "SUCCESS", "\n".join(self.dagster.run_messages(run_id))

    def see_through(self, run_id: str) -> Run:
        """End batches until a run, or the last of those that it left in the queue, has ended."""
        run = self.dagster.wait_for_run(run_id)
        while held := self.held_runs_of(run.run_id):
            self.simulator.end_batches()
            run = self.dagster.wait_for_run(held[0].run_id)
        return run

    def cancel(self, *run_ids: str) -> None:
        """Terminate runs, and wait until they have ended, which they do as cancelled."""
        for run_id in run_ids:
            self.dagster.terminate(run_id)
        for run_id in run_ids:
            ended = self.dagster.wait_for_run(run_id)
            assert ended.status == "CANCELED", "\n".join(self.dagster.run_messages(run_id))

    def pid_of(self, run_id: str) -> int:
        """The process in which a run is at work."""
        messages = "\n".join(self.dagster.run_messages(run_id))
        (pid,) = set(re.findall(r"in process \(pid: (\d+)\)", messages))
        return int(pid)

    def held_runs_of(self, run_id: str) -> list[Run]:
        """The run that a run has made to collect, if there is one."""
        made = self.dagster.runs(tags={held_run.MAKER_TAG: run_id})
        return [run for run in made if run.run_id != reserve.reserve_id(run_id)]


def environment(home: Path) -> dict[str, str]:
    """What the processes of a Dagster need to find their files and the tests' modules."""
    return {"E2E_HOME": str(home), "PYTHONPATH": str(HERE)}


@contextmanager
def open_stage(
    home: Path, *, module: str = "e2e_project", extra_yaml: str = FAST_QUEUE
) -> Iterator[Stage]:
    """Start Dagster, and end it."""
    driver = DagsterDriver(
        home,
        module=module,
        cwd=HERE,
        env=environment(home),
        extra_yaml=extra_yaml,
    )
    with driver as dagster:
        yield Stage(home, dagster, Simulator(home / "simulator"))
