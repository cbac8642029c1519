"""The runs of a schedule: processes at work, and held runs that wait to collect."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Final

import anthropic
import httpx2

from dagster_claude_batch.advance import Engine
from dagster_claude_batch.errors import (
    AccountHaltedError,
    MaterializationDoneError,
    SubmissionRefusedError,
)
from dagster_claude_batch.ledger import Materialization, MaterializationConfig
from dagster_claude_batch.results import ResultsUnavailableError
from dagster_claude_batch.workbench import Waiting
from simulation.baton import Interrupted, Runner
from simulation.oracle import Violation, check_done, check_launch
from simulation.world import PARTITIONS, World

EXPECTED_ENDS: Final = (
    anthropic.AnthropicError,
    httpx2.HTTPError,
    AccountHaltedError,
    SubmissionRefusedError,
    MaterializationDoneError,
    ResultsUnavailableError,
)
"""How a run may fail here: each of them follows from a fault on the wire, or says what is true."""


@dataclass
class Held:
    """A run that waits to collect; in Dagster a queued run, let go by the sensor."""

    run_id: str
    partitions: tuple[str, ...]
    config: MaterializationConfig
    waiting: Waiting | None = None
    maker: Runner | None = None


@dataclass
class Process:
    """A process at work on a run; ``sending_until`` bounds how long its POST may dally.

    ``edits`` is how often the source had been edited before.
    """

    runner: Runner
    run_id: str
    partitions: tuple[str, ...] = ()
    config: MaterializationConfig = field(default_factory=MaterializationConfig)
    sending_until: datetime | None = None
    edits: int = 0


@dataclass
class Runs:
    """Who is at work on what; ``crash_at`` are places where the next run to come there crashes."""

    seed: int
    world: World
    crash_at: set[tuple[str, str]] = field(default_factory=set)
    trace: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    crashed_at: Counter[tuple[str, str]] = field(default_factory=Counter)
    visited: set[tuple[str, str]] = field(default_factory=set)
    violations: list[Violation] = field(default_factory=list)
    live: list[Process] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    crashed: list[Process] = field(default_factory=list)
    begun: dict[str, int] = field(default_factory=dict)
    launched: dict[str, int] = field(default_factory=dict)
    is_calm: bool = False
    runs: int = 0
    _current: Process | None = None

    def __post_init__(self) -> None:
        self.random = Random(f"schedule {self.seed}")
        self.circumstances = self.world.circumstances
        self.world.say = self.say
        self.world.at_create = self._at_create

    def say(self, line: str) -> None:
        self.trace.append(line)

    def _launch(self, partitions: Sequence[str] | None = None) -> None:
        chosen = tuple(partitions or self._some_partitions())
        config = MaterializationConfig() if partitions else self._some_config()
        self.runs += 1
        self._start(f"run{self.runs}", chosen, config)

    def _some_partitions(self) -> tuple[str, ...]:
        count = self.random.choice([1, 2, len(PARTITIONS), len(PARTITIONS)])
        return tuple(sorted(self.random.sample(PARTITIONS, count)))

    def _some_config(self) -> MaterializationConfig:
        return MaterializationConfig(
            refresh=self.random.random() < 0.15,
            retry_failed=self.random.choice(["retryable", "retryable", "all", "none"]),
            max_cost_usd=self.circumstances.cap,
        )

    def _start(
        self,
        run_id: str,
        partitions: tuple[str, ...],
        config: MaterializationConfig,
        retry_of: str | None = None,
    ) -> None:
        def body(runner: Runner) -> None:
            self._work(runner, run_id, partitions, config, retry_of)

        said = [*partitions, *(["refresh"] if config.refresh else []), config.retry_failed]
        self.say(
            f"{run_id} starts: {' '.join(said)}" + (f" (retries {retry_of})" if retry_of else "")
        )
        self.counts["runs"] += 1
        process = Process(Runner(run_id, body), run_id, partitions, config, edits=self.world.edits)
        self.live.append(process)
        self._current = process

    def _work(
        self,
        runner: Runner,
        run_id: str,
        partitions: tuple[str, ...],
        config: MaterializationConfig,
        retry_of: str | None,
    ) -> None:
        """What a run does, as `waiting.Run`: attach, advance, and leave a held run."""
        engine = self.world.engine(run_id, runner.pause, retry_of=retry_of)
        additions = self.world.additions
        before = self.launched.get(_launch_of(retry_of), additions) if retry_of else additions
        launched = self.launched.setdefault(_launch_of(run_id), before)
        materializations = engine.attach(partitions, config, is_given_up=self._was_given_up)
        self._note_begun(run_id, materializations, additions)
        held = Held(_next_id(run_id), partitions, config, maker=runner)

        def hold() -> None:
            if held not in self.held:
                engine.attach_run(held.run_id, materializations)
                self.held.append(held)

        engine.before_sending = hold
        try:
            waiting = self._advance(engine, materializations, partitions, config)
        except Interrupted:
            self._give_up(engine, materializations, {run_id, held.run_id})
            if held in self.held:
                self.held.remove(held)
            raise
        except Exception:
            # While it looks, somebody else may terminate the held run.
            if held in self.held and not engine.may_be_out(materializations) and held in self.held:
                self.held.remove(held)
            raise
        if waiting is None:
            if held in self.held:
                self.held.remove(held)
            self._check_done(materializations, partitions, launched)
        else:
            hold()
            held.waiting = waiting

    def _advance(
        self,
        engine: Engine,
        materializations: list[Materialization],
        partitions: tuple[str, ...],
        config: MaterializationConfig,
    ) -> Waiting | None:
        """Advance, and catch up with what was not asked by what the run had joined."""
        waiting = engine.advance(materializations)
        while waiting is None:
            additions = self.world.additions
            more = engine.catch_up(partitions, config, is_given_up=self._was_given_up)
            if not more:
                break
            self._note_begun(engine.run.run_id, more, additions)
            materializations += more
            waiting = engine.advance(materializations)
        return waiting

    def _give_up(
        self, engine: Engine, materializations: Sequence[Materialization], mine: set[str]
    ) -> None:
        """What a run does that somebody terminates, as `waiting.Run`."""
        self.abandoned += sorted(mine)
        for each in materializations:
            engine.cancel(each, unless=lambda runs: not self._alive(but=mine).isdisjoint(runs))
        engine.may_be_out(materializations)

    def _was_given_up(self, run_ids: Sequence[str]) -> bool:
        """As `held_run.were_given_up`: the last run was cancelled, and no other is alive."""
        if not run_ids or self._alive().intersection(run_ids):
            return False
        return run_ids[-1] in self.abandoned

    def _alive(self, *, but: Collection[str] = ()) -> set[str]:
        alive = {process.run_id for process in self.live} | {held.run_id for held in self.held}
        return alive - set(but)

    def _note_begun(
        self, run_id: str, materializations: Sequence[Materialization], additions: int
    ) -> None:
        """Remember how many rows had come before each materialization that this run has begun."""
        for each in materializations:
            runs = self.world.sql(
                "SELECT run_id FROM claude_batch.runs WHERE materialization_id = $id "
                "ORDER BY rowid LIMIT 1",  # not by time: their clocks differ
                id=each.materialization_id,
            )
            if runs == [(run_id,)]:
                self.begun.setdefault(each.materialization_id, additions)

    def _check_done(
        self,
        materializations: Sequence[Materialization],
        partitions: tuple[str, ...],
        launched: int,
    ) -> None:
        """A run that ends says of each of its rows what has become of it."""
        for each in materializations:
            self.violations += check_done(self.world, each, self.begun.get(each.materialization_id))
        self.violations += check_launch(self.world, materializations, partitions, launched)

    def _wake(self, held: Held) -> None:
        self.held.remove(held)
        self._start(held.run_id, held.partitions, held.config)

    def _settle(self) -> None:
        """The landing job of the sensor."""
        abandoned = list(self.abandoned)
        self.runs += 1
        name = f"settle{self.runs}"

        def body(runner: Runner) -> None:
            engine = self.world.engine(name, runner.pause)
            engine.settle(abandoned, is_alive=lambda run_id: run_id in self._alive())
            engine.is_watching()

        self.say(f"{name} starts")
        process = Process(Runner(name, body), name)
        self.live.append(process)
        self._current = process


def _launch_of(run_id: str) -> str:
    """The run that was launched, of all that were held for it."""
    return run_id.partition(".")[0]


def _next_id(run_id: str) -> str:
    """What a run's held run is called: run2, run2.1, run2.2, …"""
    name, _, number = run_id.partition(".")
    return f"{name}.{int(number or 0) + 1}"
