"""What the demonstration does: load, ask in batches, wait, collect, compare."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from example_project.demo.dagster_shown import Backfill, CheckExecution
from example_project.demo.local_dagster import LocalDagster
from example_project.demo.progress import SUBMITTED, Progress, Stage, progress_of
from example_project.demo.report import Cost, cost_of

SOURCE, ASKED, COMPARED = "snippets", "snippet_sentiment", "sentiment_by_corpus"
CHECK = "agrees_with_people"
RUN_TIMEOUT = 300.0


@dataclass(frozen=True)
class Ending:
    """What is left to tell once Dagster has ended."""

    cost: Cost | None
    backfill: Backfill
    check: CheckExecution | None


class RunFailedError(Exception):
    """A run of the demonstration did not succeed."""


def play(dagster: LocalDagster, console: Console, *, timeout: float) -> Ending:
    """Do everything that a person would do in the UI.

    Raises:
        RunFailedError: A run or a partition failed.
        LocalDagsterError: Something took longer than ``timeout`` seconds.
    """
    rows = _load(dagster, console)
    backfill_id = dagster.launch_backfill([ASKED], list(rows))
    console.print(f"Launched a backfill of the {len(rows)} partitions of [bold]{ASKED}[/bold].")
    with _bars(console) as bars:
        Watch(dagster, bars, rows, backfill_id).until_settled(timeout)
    _materialize(dagster, COMPARED)
    backfill = dagster.wait_for(
        lambda: _if_ended(dagster.backfill(backfill_id)), timeout=RUN_TIMEOUT, what="the backfill"
    )
    console.print(f"The backfill is [bold]{backfill.status}[/bold].\n")
    return Ending(
        cost=cost_of(_latest_metadata(dagster)),
        backfill=backfill,
        check=next(iter(dagster.check_executions(COMPARED, CHECK, limit=1)), None),
    )


class Watch:
    """Shows a backfill as bars, and each step of a partition as a line."""

    def __init__(
        self, dagster: LocalDagster, bars: Bars, rows: Mapping[str, int], backfill_id: str
    ) -> None:
        """Take the number of rows by partition."""
        self._dagster = dagster
        self._bars = bars
        self._rows = rows
        self._backfill_id = backfill_id
        self._tasks = {
            name: bars.add_task(name, total=sum(rows.values()))
            for name in ("submitted", "waiting", "collected")
        }
        self._seen: dict[str, Stage] = dict.fromkeys(rows, "queued")
        self._told_idle = False
        self._idle = 0.0
        self._looked = time.monotonic()

    def until_settled(self, timeout: float) -> None:
        """Wait until every partition has been collected, or cannot be any more.

        Raises:
            RunFailedError: A partition failed.
            LocalDagsterError: It took longer than ``timeout`` seconds.
        """
        started = time.monotonic()
        self._dagster.wait_for(self._look, timeout=timeout, what="the batches", every=1)
        failed = [key for key, stage in self._seen.items() if stage != "collected"]
        if failed:
            raise RunFailedError(_why_backfill_failed(self._dagster, self._backfill_id, failed))
        self._say(
            f"For {self._idle:.0f} of these {time.monotonic() - started:.0f} seconds "
            "nothing was running: no process, no run slot."
        )

    def _look(self) -> bool:
        progress = progress_of(self._dagster, self._backfill_id, ASKED)
        self._move_bars(progress)
        self._tell_steps(progress)
        self._tell_idle(progress)
        return progress.is_settled

    def _move_bars(self, progress: Progress) -> None:
        for name, stages in (
            ("submitted", SUBMITTED),
            ("waiting", frozenset[Stage]({"waiting"})),
            ("collected", frozenset[Stage]({"collected"})),
        ):
            rows = sum(self._rows[key] for key in progress.partitions(stages))
            self._bars.update(self._tasks[name], completed=rows)

    def _tell_steps(self, progress: Progress) -> None:
        for key, stage in progress.stages.items():
            if (self._seen[key], stage) == ("collecting", "waiting"):
                self._say(f"{key}: waiting again, for rows that failed and were sent once more")
            elif stage != self._seen[key]:
                self._say(f"{key}: {stage}")
        self._seen = dict(progress.stages)

    def _tell_idle(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.is_idle:
            self._idle += now - self._looked
        self._looked = now
        if progress.is_idle and not self._told_idle:
            self._told_idle = True
            self._say(
                "[bold]Nothing is running while the batches are out[/bold]: 0 runs in progress, "
                f"{progress.runs_held} held in the queue."
            )

    def _say(self, text: str) -> None:
        self._bars.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}")


def _load(dagster: LocalDagster, console: Console) -> dict[str, int]:
    _materialize(dagster, SOURCE)
    rows: dict[str, int] = dagster.asset_materializations(SOURCE, limit=1)[0].metadata[
        "rows_by_corpus"
    ]
    loaded = ", ".join(f"{count:,} {corpus}" for corpus, count in rows.items())
    console.print(f"Loaded {sum(rows.values()):,} snippets into DuckDB: {loaded}.")
    return rows


def _materialize(dagster: LocalDagster, asset: str) -> None:
    run_id = dagster.materialize(asset)
    dagster.wait_for(
        lambda: dagster.run(run_id).is_ended, timeout=RUN_TIMEOUT, what=f"{asset} to be made"
    )
    if dagster.run(run_id).status != "SUCCESS":
        raise RunFailedError(_why(dagster, run_id, asset))


def _why_backfill_failed(dagster: LocalDagster, backfill_id: str, partitions: list[str]) -> str:
    failed = dagster.runs(tags={"dagster/backfill": backfill_id}, statuses=["FAILURE", "CANCELED"])
    reasons = [_why(dagster, run.run_id, run.partition or ASKED) for run in failed]
    return "\n".join([f"Failed: {', '.join(partitions)}.", *reasons])


def _why(dagster: LocalDagster, run_id: str, what: str) -> str:
    messages = "\n".join(dagster.run_messages(run_id)[-8:])
    return f"The run {run_id} of {what} did not succeed:\n{messages}"


def _if_ended(backfill: Backfill) -> Backfill | None:
    return backfill if backfill.is_ended else None


def _latest_metadata(dagster: LocalDagster) -> list[Mapping[str, Any]]:
    latest: dict[str | None, Mapping[str, Any]] = {}
    for event in dagster.asset_materializations(ASKED):
        latest.setdefault(event.partition, event.metadata)
    return list(latest.values())


def _bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeElapsedColumn(),
        console=console,
    )
