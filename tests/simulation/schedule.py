"""One seed → one schedule: who goes on, what fails, what happens outside; then rest, a verdict."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from dagster_claude_batch.errors import (
    AccountHaltedError,
    MaterializationDoneError,
    UnstableSourceError,
)
from dagster_claude_batch.steadiness import STALE_ROUNDS
from simulation import faults
from simulation.baton import Boundary
from simulation.circumstances import circumstances_of, unkind
from simulation.invariants import check_at_rest
from simulation.oracle import Violation, check_create
from simulation.outside import Outside
from simulation.runs import EXPECTED_ENDS, Process
from simulation.world import PARTITIONS, TIMEOUT_SECONDS, World

WATCHED: Final = timedelta(hours=24)
"""So long after it strayed in a second copy is sure to be looked for."""

TURNS: Final = 5_000
"""Steps of processes after which all of them must have ended."""

WAKE_UPS_TO_REST: Final = 40
"""Wake-ups after which everything must have come to rest."""

_INTENTS: Final = ("sending.Sender._intend:", "sending.Sender._is_still_ours:")
"""After these transactions a POST follows, and arrives within its timeout: an assumption."""

_SENT: Final = {("create", "after"), ("transact", "before")}
"""Where it is behind us, whatever came of it."""


class EndlessError(Exception):
    """A run goes on and on: there is no use in going on with the schedule."""


@dataclass(frozen=True)
class Outcome:
    """How a schedule went."""

    seed: int
    violations: list[Violation]
    trace: list[str]
    counts: Counter[str]
    crashed_at: Counter[tuple[str, str]]
    visited: set[tuple[str, str]]
    arguments: str = ""

    @property
    def digest(self) -> str:
        """The same for the same schedule."""
        return sha256("\n".join(self.trace).encode()).hexdigest()


@dataclass
class Schedule(Outside):
    """The play of one seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.world.at_create = self._at_create

    def play(self) -> None:
        """Let things happen, then let everything come to rest, and look at what is left."""
        self.world.load()
        self._launch()
        happened = 0
        for _ in range(TURNS):
            if happened >= self.circumstances.length and not self.live:
                break
            happened += self._turn()
        else:
            self.violations.append(Violation("f", "a run never ends"))
            return
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
        may_stay = current is not None and current in self.live and not (sleeps and others)
        stays = not others or self.random.random() >= self.circumstances.switch
        if current is not None and may_stay and stays:
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
        self.visited.add((at.site, at.moment))
        if self._crashes(at):
            self.say(f"{where}: CRASH")
            self.crashed_at[at.site, at.moment] += 1
            self.counts["crashes"] += 1
            return "crash"
        fault = self._fault(process, at)
        if fault is None:
            self.say(where)
            return None
        self.say(f"{where}: {fault.kind}")
        self.counts[f"fault: {fault.kind}"] += 1
        return fault

    def _fault(self, process: Process, at: Boundary) -> faults.Fault | None:
        """What befalls a call that is about to be made; a create more often than others."""
        if at.call == "transact" or at.moment != "before" or self.is_calm:
            return None
        chance = self.circumstances.fault * (2 if at.call == "create" else 1)
        if self.random.random() >= chance:
            return None
        return faults.draw(
            self.random,
            at.call,
            max_delay=self._time_left(process),
            strays=self.circumstances.strays,
            favourite=self.circumstances.favourite,
        )

    def _crashes(self, at: Boundary) -> bool:
        if (at.site, at.moment) in self.crash_at:
            self.crash_at.remove((at.site, at.moment))
            return True
        return not self.is_calm and self.random.random() < self.circumstances.crash

    def _time_left(self, process: Process) -> float:
        if process.sending_until is None:
            return TIMEOUT_SECONDS / 2
        left = (process.sending_until - self.world.clock.now()).total_seconds()
        return max(0.0, left - 2)

    def _note_sending(self, process: Process) -> None:
        """From its intent on a POST must arrive in time; the clock is bound to that.

        An upload may take its time, and then the API may be silent for as long.
        """
        at = process.runner.at
        if at is None or process.runner.is_over:
            return
        if at.moment == "commit" and at.site.startswith(_INTENTS):
            bound = timedelta(seconds=2 * TIMEOUT_SECONDS - 5)
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
        if not isinstance(error, EXPECTED_ENDS) and not self._is_overrun(process, error):
            self.violations.append(
                Violation("g", f"{process.runner.name} failed with {type(error).__name__}: {error}")
            )
        elif self.is_calm and not isinstance(error, MaterializationDoneError | AccountHaltedError):
            self.violations.append(Violation("g", f"a run fails although nothing does: {error!r}"))

    def _is_overrun(self, process: Process, error: BaseException) -> bool:
        """Whether a run gave up because the source was edited each time before it could send."""
        edits = self.world.edits - process.edits
        return isinstance(error, UnstableSourceError) and edits >= STALE_ROUNDS

    # --- rest -------------------------------------------------------------------------------

    def rest(self) -> None:
        """No faults any more: let everything come to rest, and look at what is left."""
        try:
            self._come_to_rest()
        except EndlessError:
            self.violations.append(Violation("f", "a run never ends"))
            return
        self.violations += check_at_rest(self.world)

    def _come_to_rest(self) -> None:
        """Wake up what waits, then ask for all partitions until all is done."""
        self.is_calm = self.world.is_calm = True
        self._overlook_strays()
        hurries = self.seed % 2 == 1  # a person materializes again before the sensor has settled
        for wake_ups in range(WAKE_UPS_TO_REST):
            self._let_pass(30 * 86_400.0 if wake_ups == WAKE_UPS_TO_REST // 2 else 3_600.0)
            if wake_ups % 4 == 3 or not (self.held or (hurries and wake_ups == 0)):
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
        if self.circumstances.reloads:
            self._reload()

    def _overlook_strays(self) -> None:
        """What strayed in longer ago than anybody watches for it is nobody's fault."""
        now = self.world.clock.now()
        for batch in self.world.simulator.batches():
            if batch.id in self.world.books.strays and now - batch.created_at > WATCHED:
                self.world.books.lost_results.add(batch.id)

    def _materialize_all(self) -> None:
        """One more materialization, of all partitions as they are now, to its end."""
        self.say("--- all partitions once more")
        self.crash_at.clear()  # nobody comes after these runs
        self._launch(PARTITIONS)
        self._finish_live()
        for _ in range(WAKE_UPS_TO_REST):
            if not self.held:
                return
            self._let_pass(3_600.0)
            self._wake(self.held[0])
            self._finish_live()
        self.violations.append(Violation("f", "the last materialization never ends"))

    def _reload(self) -> None:
        """The source is truncated, and loaded again: nothing of it is paid for again."""
        self.say(f"--- {self.world.truncate()}")
        self._materialize_all()
        self.say(f"--- {self.world.load_again()}")
        self._materialize_all()

    def _finish_live(self) -> None:
        for _ in range(TURNS):
            if not self.live:
                return
            self._turn()
        raise EndlessError

    def _let_pass(self, seconds: float) -> None:
        waits = [held.waiting for held in self.held if held.waiting]
        moments = [w.send_after if w.is_for_room else w.not_before for w in waits]
        latest = [moment for moment in moments if moment]
        now = self.world.clock.now()
        if latest and not any(wait.batch_ids for wait in waits):
            seconds = max(seconds, (min(latest) - now).total_seconds())
        self.world.move_clock(seconds)
        self._end_batches()
        self.world.deliver()
        self._note_archived()

    def _is_at_rest(self) -> bool:
        if not self.world.has("claude_batch.chunks"):
            return True
        if self.world.letters or self._strays_left():
            return False
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


def play(seed: int, *, crash_at: Collection[tuple[str, str]] | None = None) -> Outcome:
    """Play one seed in a directory of its own, which is gone afterwards.

    ``crash_at``: a site and a moment each, where the first process to come there ends; it is an
    unkind world then, in which they are likely to be come to.
    """
    directory = Path(tempfile.mkdtemp(prefix="simulation-", dir=fastest_directory()))
    drawn = circumstances_of(seed)
    world = World(directory, seed, drawn if crash_at is None else unkind(drawn, seed))
    schedule = Schedule(seed, world, set(crash_at or ()))
    arguments = f"--seed {seed}"
    if crash_at is not None:
        arguments += f" --crash-at '{','.join('@'.join(place) for place in crash_at)}'"
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
    return Outcome(
        seed,
        schedule.violations,
        schedule.trace,
        counts,
        schedule.crashed_at,
        schedule.visited,
        arguments,
    )


def fastest_directory() -> str | None:
    """Memory, where the system has a file system in it."""
    shared = Path("/dev/shm")  # noqa: S108  # a private directory is made in it
    return str(shared) if shared.is_dir() else None
