"""One seed → one schedule: who goes on, what fails, what happens outside; then rest, and a verdict."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Final

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
from simulation import faults
from simulation.baton import Boundary, Interrupted, Runner
from simulation.invariants import check_at_rest
from simulation.oracle import Violation, check_create
from simulation.world import PARTITIONS, TIMEOUT_SECONDS, Circumstances, World

EVENTS: Final = {
    "change": 6,
    "add": 3,
    "remove": 3,
    "end batches": 6,
    "minutes": 6,
    "hours": 6,
    "day": 2,
    "month": 1,
    "cancel batch": 2,
    "delete batch": 1,
    "terminate": 2,
    "interrupt": 2,
    "settle": 2,
    "launch": 5,
    "retry": 3,
    "wake": 10,
    "wake early": 2,
}
"""What happens outside the engine, and how often beside each other."""

WATCHED: Final = timedelta(hours=24)
"""So long after it strayed in a second copy is sure to be looked for."""

WAKE_UPS_TO_REST: Final = 40
"""Wake-ups after which everything must have come to rest."""

EXPECTED_ENDS: Final = (
    anthropic.AnthropicError,
    httpx2.HTTPError,
    AccountHaltedError,
    SubmissionRefusedError,
    MaterializationDoneError,
    ResultsUnavailableError,
)
"""How a run may fail here: each of them follows from a fault on the wire, or says what is true."""


def circumstances_of(seed: int) -> Circumstances:
    """How unkind the world of a seed is: some faults often, some never."""
    random = Random(f"circumstances {seed}")
    events = {name for name in EVENTS if random.random() < 0.7} | {"end batches", "launch", "wake"}
    return Circumstances(
        rows=random.randint(2, 10),
        chunk_size=random.randint(2, 5),
        window=random.choice([4, 6, 100]),
        bad_share=random.choice([0.0, 0.2, 0.5]),
        skew=timedelta(minutes=random.choice([0, 0, 0, -4, 4])),
        hides=random.random() < 0.5,
        strays=(strays := random.random() < 0.15),
        max_wait_hours=random.choice([None, None, None, 3.0]),
        crash=random.choice([0.0, 0.01, 0.03, 0.06]),
        fault=random.choice([0.0, 0.05, 0.15, 0.3]),
        switch=random.choice([0.0, 0.1, 0.5]),
        event=random.choice([0.0, 0.05, 0.15]),
        length=random.randint(4, 14),
        events=frozenset(events - {"day", "month"} if strays else events),
    )


_INTENTS: Final = ("sending.Sender._intend:", "sending.Sender._is_still_ours:")
"""After these transactions a POST follows at once, by the engine's assumption: within its timeout."""

_SENT: Final = {("create", "after"), ("transact", "before")}
"""Where it is behind us, whatever came of it."""


@dataclass(frozen=True)
class Outcome:
    """How a schedule went."""

    seed: int
    violations: list[Violation]
    trace: list[str]
    counts: Counter[str]
    crashed_at: Counter[tuple[str, str]]

    @property
    def digest(self) -> str:
        """The same for the same schedule."""
        return sha256("\n".join(self.trace).encode()).hexdigest()


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
    """A process at work on a run; ``sending_until`` bounds how long its POST may dally."""

    runner: Runner
    run_id: str
    partitions: tuple[str, ...] = ()
    config: MaterializationConfig = field(default_factory=MaterializationConfig)
    sending_until: datetime | None = None


@dataclass
class Schedule:
    """The play of one seed."""

    seed: int
    world: World
    crash_at: tuple[str, str] | None = None
    trace: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    crashed_at: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    live: list[Process] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    crashed: list[Process] = field(default_factory=list)
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

    def play(self) -> None:
        """Let things happen, then let everything come to rest, and look at what is left."""
        self.world.load()
        self._launch()
        happened = 0
        while happened < self.circumstances.length or self.live:
            happened += self._turn()
        self.say("--- calm")
        self.rest()

    def kill_all(self) -> None:
        """Leave no thread behind."""
        for process in self.live:
            while not process.runner.is_over:
                process.runner.step("crash")

    # --- one turn ---------------------------------------------------------------------------

    def _turn(self) -> int:
        """Let one process go on to its next boundary, or something happen outside."""
        self.world.deliver()
        urgent = self._urgent()
        if urgent is not None:
            self._move(urgent)
            return 0
        if not self.live or (not self.is_calm and self.random.random() < self.circumstances.event):
            self._happen()
            return 1
        self._move(self._chosen())
        return 0

    def _urgent(self) -> Process | None:
        """A process in the middle of sending, whose call has to arrive in time."""
        half = timedelta(seconds=TIMEOUT_SECONDS / 2)
        for process in self.live:
            until = process.sending_until
            if until is not None and until - self.world.clock.now() < half:
                return process
        return None

    def _chosen(self) -> Process:
        current = self._current
        sleeps = current is not None and _is_at(current, "sleep")
        others = [each for each in self.live if each is not current]
        if current in self.live and current is not None and not (sleeps and others):
            if not others or self.random.random() >= self.circumstances.switch:
                return current
        return self.random.choice(others)

    def _move(self, process: Process) -> None:
        self._current = process
        at = process.runner.at
        decision = self._decide(process, at) if at is not None else None
        self._step(process, decision)

    def _step(self, process: Process, decision: Any) -> None:
        process.runner.step(decision)
        self._note_sending(process)
        if process.runner.is_over:
            self._over(process)

    def _decide(self, process: Process, at: Boundary) -> Any:
        where = f"{process.runner.name} {at.site} {at.call} {at.moment}"
        if at.moment in {"sleep", "rest"}:
            return None
        if self._crashes(at):
            self.say(f"{where}: CRASH")
            self.crashed_at[at.site, at.moment] += 1
            self.counts["crashes"] += 1
            return "crash"
        if at.call != "transact" and at.moment == "before" and not self.is_calm:
            if self.random.random() < self.circumstances.fault:
                fault = faults.draw(
                    self.random,
                    at.call,
                    max_delay=self._time_left(process),
                    strays=self.circumstances.strays,
                )
                self.say(f"{where}: {fault.kind}")
                self.counts[f"fault: {fault.kind}"] += 1
                return fault
        self.say(where)
        return None

    def _crashes(self, at: Boundary) -> bool:
        if self.crash_at == (at.site, at.moment):
            self.crash_at = None
            return True
        return not self.is_calm and self.random.random() < self.circumstances.crash

    def _time_left(self, process: Process) -> float:
        if process.sending_until is None:
            return TIMEOUT_SECONDS / 2
        left = (process.sending_until - self.world.clock.now()).total_seconds()
        return max(0.0, left - 2)

    def _note_sending(self, process: Process) -> None:
        """From its intent on a POST must arrive in time; the clock is bound to that."""
        at = process.runner.at
        if at is None or process.runner.is_over:
            return
        if at.moment == "commit" and at.site.startswith(_INTENTS):
            bound = timedelta(seconds=TIMEOUT_SECONDS - 5)
            process.sending_until = self.world.clock.now() + bound
        elif at.moment == "sleep" or (at.call, at.moment) in _SENT:
            process.sending_until = None

    def _over(self, process: Process) -> None:
        self.live.remove(process)
        error = process.runner.error
        if process.runner.is_dead or (error is None and not process.partitions):
            self.crashed.append(process)
        if error is None:
            return
        self.say(f"{process.runner.name} fails: {type(error).__name__}")
        self.counts[f"run failed: {type(error).__name__}"] += 1
        if not isinstance(error, EXPECTED_ENDS):
            self.violations.append(
                Violation("g", f"{process.runner.name} failed with {type(error).__name__}: {error}")
            )
        elif self.is_calm and not isinstance(
            error, MaterializationDoneError | AccountHaltedError
        ):
            self.violations.append(Violation("g", f"a run fails although nothing does: {error!r}"))

    # --- runs -------------------------------------------------------------------------------

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
        process = Process(Runner(run_id, body), run_id, partitions, config)
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
        materializations = engine.attach(partitions, config, is_given_up=self._was_given_up)
        held = Held(_next_id(run_id), partitions, config, maker=runner)

        def hold() -> None:
            if held not in self.held:
                engine.attach_run(held.run_id, materializations)
                self.held.append(held)

        engine.before_sending = hold
        try:
            waiting = engine.advance(materializations)
        except Interrupted:
            self._give_up(engine, materializations, {run_id, held.run_id})
            if held in self.held:
                self.held.remove(held)
            raise
        except Exception:
            if held in self.held and not engine.may_be_out(materializations):
                self.held.remove(held)
            raise
        if waiting is None:
            if held in self.held:
                self.held.remove(held)
            self._check_done(materializations)
        else:
            hold()
            held.waiting = waiting

    def _give_up(
        self, engine: Engine, materializations: Sequence[Materialization], mine: set[str]
    ) -> None:
        """What a run does that somebody terminates, as `waiting.Run`."""
        self.abandoned += sorted(mine)
        for each in materializations:
            if not self._alive(but=mine).intersection(engine.runs_of(each)):
                engine.cancel(each)
        engine.may_be_out(materializations)

    def _was_given_up(self, run_ids: Sequence[str]) -> bool:
        """As `held_run.were_given_up`: the last run was cancelled, and no other is alive."""
        if not run_ids or self._alive().intersection(run_ids):
            return False
        return run_ids[-1] in self.abandoned

    def _alive(self, *, but: Collection[str] = ()) -> set[str]:
        alive = {process.run_id for process in self.live} | {held.run_id for held in self.held}
        return alive - set(but)

    def _check_done(self, materializations: Sequence[Materialization]) -> None:
        ids = [each.materialization_id for each in materializations]
        still = self.world.sql(
            "SELECT count(*) FROM claude_batch.materializations WHERE state = 'open' "
            "AND materialization_id IN (SELECT unnest($ids::VARCHAR[]))",
            ids=ids,
        )
        if still != [(0,)]:
            self.violations.append(Violation("g", "a run is done, its materialization is open"))

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

    # --- what happens outside ---------------------------------------------------------------

    def _happen(self) -> None:
        possible = [name for name in EVENTS if name in self.circumstances.events]
        event = self.random.choices(possible, [EVENTS[name] for name in possible])[0]
        said = self._events()[event]()
        self.counts[f"event: {event}"] += 1
        self.say(f"* {event}" + (f": {said}" if said else ""))

    def _events(self) -> dict[str, Callable[[], str | None]]:
        return {
            "change": self.world.change_row,
            "add": self.world.add_row,
            "remove": self.world.remove_row,
            "end batches": self._end_batches,
            "minutes": lambda: self._pass(self.random.uniform(10, 900)),
            "hours": lambda: self._pass(self.random.uniform(900, 6 * 3_600)),
            "day": lambda: self._pass(25 * 3_600.0),
            "month": lambda: self._pass(30 * 86_400.0),
            "cancel batch": self._cancel_batch,
            "delete batch": self._delete_batch,
            "terminate": self._terminate,
            "interrupt": self._interrupt,
            "settle": self._settle,
            "launch": self._launch_another,
            "retry": self._retry,
            "wake": lambda: self._wake_one(early=False),
            "wake early": lambda: self._wake_one(early=True),
        }

    def _end_batches(self) -> None:
        self.world.simulator.end_batches()
        self.world.books.learn()

    def _pass(self, seconds: float) -> str:
        """Move the clock, but not past the moment by which a call must have arrived."""
        now = self.world.clock.now()
        bounds = [each.sending_until for each in self.live if each.sending_until is not None]
        left = min(((bound - now).total_seconds() for bound in bounds), default=seconds)
        passed = max(0.0, min(seconds, left / 2 if bounds else seconds))
        out = {b.id for b in self.world.simulator.batches()} - self.world.books.truth.keys()
        self.world.move_clock(passed)
        del out
        self._note_archived()
        return f"{passed:.0f} s"

    def _note_archived(self) -> None:
        for batch in self.world.simulator.batches():
            if batch.archived_at is not None and self._is_unlanded(batch.id):
                self.world.books.lost_results.add(batch.id)

    def _is_unlanded(self, batch_id: str) -> bool:
        if not self.world.has("claude_batch.chunks"):
            return True
        return not self.world.sql(
            "SELECT 1 FROM claude_batch.chunks WHERE batch_id = $id AND state = 'landed'",
            id=batch_id,
        )

    def _cancel_batch(self) -> str | None:
        running = [b.id for b in self.world.simulator.batches() if b.ended_at is None]
        if not running:
            return None
        batch_id = self.random.choice(running)
        self.world.simulator.cancel(batch_id)
        return self.world.books.name(batch_id)

    def _delete_batch(self) -> str | None:
        ended = [b.id for b in self.world.simulator.batches() if b.ended_at is not None]
        if not ended:
            return None
        batch_id = self.random.choice(ended)
        self.world.books.learn()
        if self._is_unlanded(batch_id):
            self.world.books.lost_results.add(batch_id)
        self.world.simulator.delete(batch_id)
        return self.world.books.name(batch_id)

    def _terminate(self) -> str | None:
        """A person terminates a held run in Dagster."""
        if not self.held:
            return None
        held = self.random.choice(self.held)
        self.held.remove(held)
        self.abandoned.append(held.run_id)
        return held.run_id

    def _interrupt(self) -> str | None:
        """A person terminates a run at work."""
        at_work = [
            process
            for process in self.live
            if process.partitions
            and not process.runner.is_interrupted
            and process.runner.at is not None
        ]
        if not at_work:
            return None
        process = self.random.choice(at_work)
        self._step(process, "interrupt")
        return process.run_id

    def _launch_another(self) -> None:
        if len(self.live) < 3:
            self._launch()

    def _retry(self) -> str | None:
        """Dagster retries a run whose process has crashed; or a person executes it again."""
        again = [process for process in self.crashed if process.partitions]
        if not again or len(self.live) >= 3:
            return None
        process = self.random.choice(again)
        self.runs += 1
        of_dagster = self.random.random() < 0.5
        retry_of = process.run_id if of_dagster else None
        self._start(f"run{self.runs}", process.partitions, process.config, retry_of)
        return process.run_id

    def _wake_one(self, *, early: bool) -> str | None:
        due = [held for held in self.held if _maker_is_over(held) and (early or self._is_due(held))]
        if not due or len(self.live) >= 3:
            return None
        held = self.random.choice(due)
        self._wake(held)
        return held.run_id

    def _is_due(self, held: Held) -> bool:
        waiting = held.waiting
        if waiting is None:
            return True
        ended = {b.id for b in self.world.simulator.batches() if b.ended_at is not None}
        some = waiting.unsent > 0 or waiting.any_end
        done = ended.issuperset(waiting.batch_ids) or (
            some and not ended.isdisjoint(waiting.batch_ids)
        )
        too_early = waiting.not_before is None or waiting.not_before > self.world.clock.now()
        return (bool(waiting.batch_ids) and done) or not too_early

    # --- rest -------------------------------------------------------------------------------

    def rest(self) -> None:
        """No faults any more: let everything come to rest, and look at what is left."""
        self._come_to_rest()
        self.violations += check_at_rest(self.world)

    def _come_to_rest(self) -> None:
        """Wake up what waits, then ask for all partitions until all is done."""
        self.is_calm = self.world.is_calm = True
        self._overlook_strays()
        for wake_ups in range(WAKE_UPS_TO_REST):
            self._let_pass(30 * 86_400.0 if wake_ups == WAKE_UPS_TO_REST // 2 else 3_600.0)
            if not self.held or wake_ups % 4 == 3:
                self._settle()
                self._finish_live()
            if not self.held:
                if self._is_at_rest():
                    break
                self._launch(PARTITIONS)
            else:
                self._wake(self.held[0])
            self._finish_live()
        else:
            self.violations.append(Violation("f", f"no rest after {WAKE_UPS_TO_REST} wake-ups"))
            return
        self._materialize_all()

    def _overlook_strays(self) -> None:
        """What strayed in longer ago than anybody watches for it is nobody's fault."""
        now = self.world.clock.now()
        for batch in self.world.simulator.batches():
            if batch.id in self.world.books.strays and now - batch.created_at > WATCHED:
                self.world.books.lost_results.add(batch.id)

    def _materialize_all(self) -> None:
        """One more materialization, of all partitions as they are now, to its end."""
        self.say("--- all partitions once more")
        self._launch(PARTITIONS)
        self._finish_live()
        for _ in range(WAKE_UPS_TO_REST):
            if not self.held:
                return
            self._let_pass(3_600.0)
            self._wake(self.held[0])
            self._finish_live()
        self.violations.append(Violation("f", "the last materialization never ends"))

    def _finish_live(self) -> None:
        for _ in range(5_000):
            if not self.live:
                return
            self._turn()
        self.violations.append(Violation("f", "a run never ends"))

    def _let_pass(self, seconds: float) -> None:
        latest = [h.waiting.not_before for h in self.held if h.waiting and h.waiting.not_before]
        now = self.world.clock.now()
        if latest and not any(h.waiting.batch_ids for h in self.held if h.waiting):
            seconds = max(seconds, (min(latest) - now).total_seconds())
        self.world.move_clock(seconds)
        self._end_batches()
        self.world.deliver()
        self._note_archived()

    def _is_at_rest(self) -> bool:
        if self.world.letters or self._strays_left():
            return False
        if not self.world.has("claude_batch.chunks"):
            return True
        (out,) = self.world.sql(
            "SELECT count(*) FROM claude_batch.chunks "
            "WHERE state IN ('planned', 'sending', 'submitted')"
        )[0]
        (still,) = self.world.sql(
            "SELECT count(*) FROM claude_batch.materializations WHERE state = 'open'"
        )[0]
        return not (out or still)

    def _strays_left(self) -> bool:
        """Whether second copies are there that nobody has seen yet."""
        known = {b for (b,) in self.world.sql("SELECT batch_id FROM claude_batch.chunks")}
        return not known.issuperset(self.world.books.strays - self.world.books.lost_results)

    def _at_create(self, run: str, body: bytes) -> None:
        for violation in check_create(self.world, body):
            self.say(f"    {run}: {violation}")
            self.violations.append(violation)


def _is_at(process: Process, moment: str) -> bool:
    return process.runner.at is not None and process.runner.at.moment == moment


def _next_id(run_id: str) -> str:
    """What a run's held run is called: run2, run2.1, run2.2, …"""
    name, _, number = run_id.partition(".")
    return f"{name}.{int(number or 0) + 1}"


def _maker_is_over(held: Held) -> bool:
    return held.maker is None or held.maker.is_over


def play(seed: int, *, crash_at: tuple[str, str] | None = None) -> Outcome:
    """Play one seed in a directory of its own, which is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="simulation-", dir=fastest_directory()))
    world = World(directory, seed, circumstances_of(seed))
    schedule = Schedule(seed, world, crash_at)
    try:
        schedule.play()
        counts = schedule.counts
        counts["batches"] = len(world.books.batches)
        counts["requests"] = len(world.books.requests())
        world.books.read_bill()
        counts["requests billed"] = world.books.billed.total()
        counts["rows"] = world.circumstances.rows
    finally:
        schedule.kill_all()
        world.close()
        shutil.rmtree(directory, ignore_errors=True)
    return Outcome(seed, schedule.violations, schedule.trace, schedule.counts, schedule.crashed_at)


def fastest_directory() -> str | None:
    """Memory, where the system has a file system in it."""
    shared = Path("/dev/shm")  # noqa: S108  # a private directory is made in it
    return str(shared) if shared.is_dir() else None
