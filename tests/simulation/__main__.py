"""``python -m simulation``: play seeds and print the figures, or one seed and its trace."""

import argparse
import sys
import time

from simulation.campaign import Figures, complaint, first_violation, play_all, seed_that_reaches
from simulation.oracle import INVARIANTS
from simulation.schedule import play


def main() -> int:
    options = _options()
    if options.seed is not None:
        return _one(options.seed, options.crash_at, trace=options.trace)
    first, _, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    if options.reach is not None:
        seed = seed_that_reaches(options.reach, seeds)
        print(f'"{options.reach}": {seed},')
        return seed is None
    if options.until is not None:
        outcome = first_violation(seeds, options.until)
        print(outcome.seed if outcome else "none")
        return 0
    return _many(seeds, options.workers)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seeds", default="0-99", help="first and last seed")
    parser.add_argument("--workers", type=int, default=1, help="processes that play")
    parser.add_argument("--seed", type=int, help="one seed only")
    parser.add_argument("--crash-at", help="places of crashes, as a failed test names them")
    parser.add_argument("--trace", action="store_true", help="print each step of it")
    parser.add_argument("--reach", metavar="SITE", help="print a seed that comes to a place of I/O")
    parser.add_argument(
        "--until",
        choices=sorted(INVARIANTS),
        help="print the first seed that breaks this invariant",
    )
    return parser.parse_args()


def _one(seed: int, crash_at: str | None, *, trace: bool) -> int:
    places = None
    if crash_at is not None:
        pairs = (place.rpartition("@") for place in crash_at.split(","))
        places = [(site, moment) for site, _, moment in pairs]
    outcome = play(seed, crash_at=places)
    if trace:
        print("\n".join(outcome.trace))
    print(complaint(outcome) if outcome.violations else f"seed {seed}: no violation")
    print(f"trace {outcome.digest[:16]}")
    return len(outcome.violations)


def _many(seeds: range, workers: int) -> int:
    figures, started = Figures(), time.monotonic()
    for outcome in play_all(seeds, workers=workers):
        figures.add(outcome)
        if outcome.violations:
            print(complaint(outcome), file=sys.stderr, flush=True)
        if figures.schedules % 500 == 0:
            print(f"{figures.schedules:,} schedules …", file=sys.stderr, flush=True)
    print("\n".join(figures.lines()))
    print(f"{time.monotonic() - started:>9,.0f}  seconds")
    return len(figures.broken)


if __name__ == "__main__":
    sys.exit(min(1, main()))
