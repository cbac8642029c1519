"""No schedule of crashes, faults, second runs and changes breaks a promise; any can be replayed."""

import pytest

from simulation.campaign import complaint
from simulation.schedule import play

IN_CI = 30
BLOCK = 10


@pytest.mark.parametrize(
    "first", range(0, IN_CI, BLOCK), ids=lambda n: f"seeds {n}-{n + BLOCK - 1}"
)
def test_no_schedule_breaks_a_promise(first: int) -> None:
    broken = [o for o in map(play, range(first, first + BLOCK)) if o.violations]

    assert not broken, "\n".join(map(complaint, broken))


@pytest.mark.exhaustive
@pytest.mark.parametrize("first", range(IN_CI, 10_000, 50), ids=lambda n: f"seeds {n}-{n + 49}")
def test_none_of_ten_thousand_schedules_breaks_a_promise(first: int) -> None:
    broken = [o for o in map(play, range(first, first + 50)) if o.violations]

    assert not broken, "\n".join(map(complaint, broken))


@pytest.mark.parametrize("seed", [3, 17])
def test_the_same_seed_plays_the_same_schedule(seed: int) -> None:
    first, second = play(seed), play(seed)

    assert first.digest == second.digest
    assert first.trace == second.trace
    assert first.counts == second.counts


def test_different_seeds_play_different_schedules() -> None:
    assert len({play(seed).digest for seed in range(3)}) == 3
