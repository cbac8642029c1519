"""Drives a real Dagster, webserver, daemon and code server, as a person at its UI does."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dagster_storage import storage_yaml

from example_project.demo.dagster_api import DagsterRefusedError
from example_project.demo.dagster_shown import (
    AssetEvent,
    Backfill,
    CheckExecution,
    Run,
    RunStatus,
    Tick,
)
from example_project.demo.local_dagster import LocalDagster, LocalDagsterError, free_port
from example_project.demo.partition_statuses import PartitionStatus

__all__ = [
    "AssetEvent",
    "Backfill",
    "CheckExecution",
    "DagsterDriver",
    "DagsterRefusedError",
    "LocalDagsterError",
    "PartitionStatus",
    "Run",
    "RunStatus",
    "Tick",
]

RUN_TIMEOUT = 600.0

TERMINATE_RUNS = """
mutation ($runIds: [String!]!) {
  terminateRuns(runIds: $runIds, terminatePolicy: SAFE_TERMINATE) {
    __typename
    ... on Error { message }
  }
}
"""
SET_POOL_LIMIT = """
mutation ($pool: String!, $limit: Int!) {
  setConcurrencyLimit(concurrencyKey: $pool, limit: $limit)
}
"""
DELETE_POOL_LIMIT = """
mutation ($pool: String!) { deleteConcurrencyLimit(concurrencyKey: $pool) }
"""


class DagsterDriver(LocalDagster):
    """A Dagster of its own in a directory of its own, gone when the context is left.

    If the test fails, the end of Dagster's log is printed, where pytest shows it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        module: str | None = None,
        file: Path | None = None,
        workspace: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        extra_yaml: str = "",
    ) -> None:
        """Take exactly one of ``module``, ``file`` and ``workspace``, a ``workspace.yaml``.

        ``cwd`` is ``directory`` if left out. Of several code locations the first is acted on;
        see `at`.
        """
        targets = {"-m": module, "-f": file, "-w": workspace}
        given = [[option, str(value)] for option, value in targets.items() if value is not None]
        if len(given) != 1:
            raise TypeError("give exactly one of `module`, `file` and `workspace`")
        super().__init__(
            given[0],
            home=directory / "dagster_home",
            env=env,
            cwd=cwd or directory,
            extra_yaml=extra_yaml,
        )

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._yaml += "\n"  # whatever was given may end without one
            self._yaml += stack.enter_context(storage_yaml(self.home, free_port()))
            try:
                super().__enter__()
            except BaseException:
                self._print_log()
                raise
            self._storage = stack.pop_all()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._storage:
            super().__exit__(error_type, error, traceback)
        if error is not None:
            self._print_log()

    @property
    def session_id(self) -> int:
        """Id of the session, and of the process group, of everything that was started."""
        assert self._process is not None
        return self._process.pid

    def at(self, location: str) -> Self:
        """The same Dagster, acting on another of its code locations."""
        there = copy(self)
        there._location = {**self._location, "repositoryLocationName": location}  # noqa: SLF001  # a copy of the same class
        return there

    def failed_and_missing(self, asset: str) -> list[str]:
        """Return the partitions that "Backfill only failed and missing" offers."""
        statuses = self.partition_statuses(asset)
        return [key for key, status in statuses.items() if status in ("failed", "missing")]

    def launch_failed_and_missing(
        self, asset: str, *, run_config: Mapping[str, Any] | None = None
    ) -> str | None:
        """Launch what "Backfill only failed and missing" would; None if it offers nothing."""
        partitions = self.failed_and_missing(asset)
        if not partitions:
            return None
        return self.launch_backfill([asset], partitions, run_config=run_config)

    def statuses(self, asset: str) -> list[PartitionStatus]:
        """Return the status of each partition, or of the asset if it has none."""
        return list(self.partition_statuses(asset).values()) or [self.asset_status(asset)]

    def runs_of(self, asset: str) -> list[Run]:
        """Return the runs that were launched for an asset, or by its job ``<asset>_job``."""
        return [run for run in self.runs() if asset in run.assets or run.job == f"{asset}_job"]

    def wait_for_run(self, run_id: str, *, timeout: float = RUN_TIMEOUT) -> Run:
        """Wait until a run has ended, however it ended."""
        self.wait_for(
            lambda: self.run(run_id).is_ended, timeout=timeout, what=f"run {run_id} to end"
        )
        return self.run(run_id)

    def wait_for_backfill(self, backfill_id: str, *, timeout: float = RUN_TIMEOUT) -> Backfill:
        """Wait until a backfill has ended, however it ended."""
        self.wait_for(
            lambda: self.backfill(backfill_id).is_ended,
            timeout=timeout,
            what=f"backfill {backfill_id} to end",
        )
        return self.backfill(backfill_id)

    def wait_for_statuses(
        self, asset: str, expected: Mapping[str, PartitionStatus], *, timeout: float = RUN_TIMEOUT
    ) -> None:
        """Wait until the asset's partition bar shows exactly ``expected``."""
        self.wait_for(
            lambda: self.partition_statuses(asset) == expected,
            timeout=timeout,
            what=f"{asset} to show {expected}",
        )

    def backfill_runs(self, backfill_id: str, *, statuses: Sequence[RunStatus] = ()) -> list[Run]:
        """Return the runs tagged with a backfill, newest first."""
        return self.runs(statuses=statuses, tags={"dagster/backfill": backfill_id})

    def terminate_all(self, runs: Sequence[Run]) -> None:
        """Terminate runs as "Terminate all" on the Runs page does."""
        self._call(TERMINATE_RUNS, runIds=[run.run_id for run in runs])

    def set_pool_limit(self, pool: str, limit: int) -> None:
        """Set a pool's limit, as Deployment → Concurrency does."""
        assert self._call(SET_POOL_LIMIT, pool=pool, limit=limit)

    def delete_pool_limit(self, pool: str) -> None:
        """Delete a pool's limit, as Deployment → Concurrency does."""
        assert self._call(DELETE_POOL_LIMIT, pool=pool)

    def _print_log(self) -> None:
        print(f"\n--- the end of {self.log} ---\n{self.log_tail()}", file=sys.stderr)  # noqa: T201 - pytest shows it when a test fails
