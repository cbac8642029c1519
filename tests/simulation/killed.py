"""The same with real processes: one that works on a run kills itself with SIGKILL at a boundary.

``python -m simulation.killed DIRECTORY SEED RUN CLOCK BOUNDARY`` is such a process.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any, Final

import dagster_claude_batch
from dagster_claude_batch.ledger import MaterializationConfig
from simulation import faults
from simulation.baton import Boundary
from simulation.circumstances import circumstances_of
from simulation.oracle import Violation, check_create
from simulation.runs import EXPECTED_ENDS
from simulation.schedule import Schedule, fastest_directory
from simulation.wire import Clock
from simulation.world import PARTITIONS, World

VIOLATED: Final = 3
"""Exit status of a process that saw a create call which should not have been."""

LATEST_BOUNDARY: Final = 90
_TESTS: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Killings:
    """How the processes of one seed ended, and what was wrong in the end."""

    seed: int
    exits: list[int]
    violations: list[Violation]


def play(seed: int, *, processes: int = 2) -> Killings:
    """Let several processes work and die one after another; then come to rest and judge."""
    directory = Path(tempfile.mkdtemp(prefix="simulation-", dir=fastest_directory()))
    random = Random(f"killed {seed}")
    world = World(directory, seed, replace(circumstances_of(seed), max_wait_hours=None))
    schedule = Schedule(seed, world)
    try:
        world.load()
        exits = [_spawn(world, number, random) for number in range(processes)]
        violations = [Violation("b", "see the process's output") for e in exits if e == VIOLATED]
        schedule.rest()
        return Killings(seed, exits, violations + schedule.violations)
    finally:
        schedule.kill_all()
        world.close()
        shutil.rmtree(directory, ignore_errors=True)


def _spawn(world: World, number: int, random: Random) -> int:
    """Run one process until it is killed or through; then things change a little."""
    boundary = random.randrange(1, LATEST_BOUNDARY)
    world.close()
    package = Path(dagster_claude_batch.__file__).parents[1]
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "simulation.killed", str(world.directory), str(world.seed)),
            *(f"process{number + 1}", world.clock.now().isoformat(), str(boundary)),
        ],
        cwd=_TESTS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(_TESTS)])},
        check=False,
    )
    world.open()
    world.move_clock(random.choice([600.0, 3_600.0, 40_000.0]))
    world.change_row()
    world.books.learn()
    return ended.returncode


def main() -> int:
    directory, seed, run_id, clock, boundary = sys.argv[1:]
    world = World(
        Path(directory),
        int(seed),
        replace(circumstances_of(int(seed)), max_wait_hours=None),
        Clock(datetime.fromisoformat(clock)),
    )
    violations: list[Violation] = []
    world.books.learn()
    world.at_create = lambda _, body: violations.extend(check_create(world, body))
    engine = world.engine(run_id, _killing_at(int(boundary), Random(f"{seed} {run_id}"), world))
    try:
        found = engine.attach(PARTITIONS, MaterializationConfig())
        engine.before_sending = lambda: engine.attach_run(f"{run_id}.1", found)
        while engine.advance(found) is not None:
            world.move_clock(3_600)
            world.simulator.end_batches()
    except EXPECTED_ENDS as error:
        print(f"{run_id} failed: {type(error).__name__}")
    print(*violations, sep="\n")
    return VIOLATED if violations else 0


def _killing_at(boundary: int, random: Random, world: World) -> Any:
    """A pause that lets faults happen, and kills the process at the n-th boundary."""
    count = itertools.count(1)

    def pause(at: Boundary) -> Any:
        if next(count) == boundary:
            os.kill(os.getpid(), signal.SIGKILL)
        if at.call == "transact" or at.moment != "before":
            return None
        if random.random() >= world.circumstances.fault:
            return None
        return faults.draw(random, at.call, max_delay=60, strays=False)

    return pause


if __name__ == "__main__":
    sys.exit(main())
