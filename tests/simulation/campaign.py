"""Many seeds: how they went in all, and what to do with one that broke a promise."""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context

from simulation.boundaries import Place, places_of
from simulation.oracle import INVARIANTS, Violation
from simulation.schedule import Outcome, play


@dataclass
class Figures:
    """What many schedules came to."""

    schedules: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    crashed_at: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.schedules += 1
        self.counts += outcome.counts
        self.crashed_at += outcome.crashed_at
        if outcome.violations:
            self.broken.append(outcome)

    def lines(self) -> Iterator[str]:
        """The figures, to be read by a person."""
        yield f"{self.schedules:>9,}  schedules"
        for name in ("runs", "crashes", "rows", "batches", "requests", "requests billed"):
            yield f"{self.counts[name]:>9,}  {name}"
        yield f"{len(self.crashed_at):>9,}  different places and moments of a crash"
        for group in ("fault", "event", "run failed"):
            yield from self._group(group)
        yield f"{len(self.broken):>9,}  schedules with violations"

    def _group(self, group: str) -> Iterator[str]:
        named = {n: c for n, c in self.counts.items() if n.startswith(f"{group}: ")}
        yield f"{sum(named.values()):>9,}  {group}s, of which"
        for name, count in sorted(named.items(), key=lambda item: -item[1]):
            yield f"{count:>9,}    {name.removeprefix(group + ': ')}"


def replay(outcome: Outcome) -> str:
    """The command that plays a schedule again, to be read."""
    return f"cd tests && python -m simulation {outcome.arguments} --trace"


def complaint(outcome: Outcome) -> str:
    """What is wrong, and how to see it happen."""
    return "\n".join([f"seed {outcome.seed}: {_listed(outcome.violations)}", replay(outcome)])


def _listed(violations: Iterable[Violation]) -> str:
    found = list(violations)
    shown = [f"{each} [{INVARIANTS[each.invariant]}]" for each in found[:5]]
    return "; ".join([*shown, *([f"and {len(found) - 5} more"] if len(found) > 5 else [])])


def play_all(seeds: range, *, workers: int = 1) -> Iterator[Outcome]:
    """Play seeds in several processes, in no certain order."""
    if workers == 1:
        yield from map(play, seeds)
        return
    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(play, seeds, chunksize=5)


def first_violation(seeds: range, invariant: str) -> Outcome | None:
    """The first seed that breaks an invariant."""
    broken = (
        outcome
        for outcome in play_all(seeds)
        if any(each.invariant == invariant for each in outcome.violations)
    )
    return next(itertools.islice(broken, 1), None)


def crash_at_each(site: str, seed: int, *, but: Collection[Place] = ()) -> Iterator[Outcome]:
    """Crash at one moment of a site after the other, as long as the seed comes to any."""
    left = set(places_of(site)).difference(but)
    while left:
        outcome = play(seed, crash_at=sorted(left))
        yield outcome
        if left.isdisjoint(outcome.crashed_at):
            return
        left -= outcome.crashed_at.keys()


def seed_that_reaches(site: str, seeds: Iterable[int]) -> int | None:
    """The first seed whose unkind world comes to all moments of a site."""
    wanted = set(places_of(site))
    return next((seed for seed in seeds if wanted <= play(seed, crash_at=()).visited), None)
