"""What a tick works on."""

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

import dagster as dg

from dagster_claude_batch.held_run import HeldRun
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.ours import Ours
from dagster_claude_batch.resource import ClaudeBatchResource
from dagster_claude_batch.sensor.cursor import Cursor
from dagster_claude_batch.sensor.memory import Memory

QUEUED: Final = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)

_LONGEST_TICK: Final = 30.0
"""Seconds."""

_ASKED_BY: Final = 20.0
"""Seconds of a tick after which the API is not waited for any more: then there is time to act."""

_TIME_TO_ASK: Final = 5.0
"""Seconds that it has in any case."""

Held: TypeAlias = tuple[HeldRun, dg.DagsterRun]


@dataclass
class Scene:
    """One tick of one sensor: its resource, its instance, and when; ``now`` is the API's time.

    ``landing_job`` is the job that lands what nobody waits for, ``grace`` how long after the end
    of the last run that did. ``problems`` are what went wrong in this tick.
    """

    context: dg.SensorEvaluationContext
    claude: ClaudeBatchResource
    claude_resource: str
    landing_job: str
    grace: timedelta
    cursor: Cursor
    now: datetime
    began: float = field(default_factory=time.monotonic)
    memory: Memory | None = None
    problems: list[str] = field(default_factory=list[str])

    @property
    def instance(self) -> dg.DagsterInstance:
        """The Dagster instance."""
        return self.context.instance

    @property
    def poll_interval(self) -> timedelta:
        """How long to wait at least between two looks."""
        return timedelta(seconds=self.claude.poll_interval_seconds)

    def is_late(self) -> bool:
        """Whether the rest must be left to the next tick: Dagster ends a tick after 60 seconds."""
        return time.monotonic() - self.began > _LONGEST_TICK

    def seconds_to_ask(self) -> float:
        """How long all calls of the API may take, together."""
        return max(_TIME_TO_ASK, _ASKED_BY - (time.monotonic() - self.began))

    def remember(self) -> str:
        """Keep the cursor for the next tick; the part of it that this one carries."""
        return self.cursor.dump() if self.memory is None else self.memory.keep(self.cursor)

    @contextmanager
    def boundary(self, what: str) -> Generator[None]:
        """Keep what fails for one run, or in one step, from all others; the tick says it.

        ``what`` is what was not done.
        """
        try:
            yield
        except Exception as error:  # whatever Dagster, its storage or a run's tags give rise to
            problem = f"{what} ({type(error).__name__}: {one_line(str(error))})."
            self.problems.append(problem)
            self.context.log.warning(problem, exc_info=error)

    def real_now(self) -> datetime:
        """Dagster's time, by which runs are dated."""
        return datetime.now(UTC)

    @property
    def ours(self) -> Ours:
        """Which runs this sensor looks after."""
        origin = self.context.code_location_origin
        return Ours(self.claude_resource, origin and origin.location_name)

    def runs(self, run_ids: Iterable[str]) -> dict[str, dg.DagsterRun]:
        """Those of these runs that exist, by id."""
        wanted = sorted(set(run_ids))
        if not wanted:
            return {}
        return {r.run_id: r for r in self.instance.get_runs(dg.RunsFilter(run_ids=wanted))}

    def records(self, run_ids: Iterable[str]) -> dict[str, dg.RunRecord]:
        """The same with their times."""
        wanted = sorted(set(run_ids))
        if not wanted:
            return {}
        found = self.instance.get_run_records(dg.RunsFilter(run_ids=wanted))
        return {record.dagster_run.run_id: record for record in found}
