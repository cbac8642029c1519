"""A process killed by SIGKILL, wherever it stands, leaves files from which others go on."""

import os
import signal

import pytest

from simulation.killed import Killings, play

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal")

IN_CI = (0, 1)


@pytest.fixture(scope="module")
def killings() -> list[Killings]:
    return [play(seed) for seed in IN_CI]


def test_no_killed_process_breaks_a_promise(killings: list[Killings]) -> None:
    broken = [f"{each} (simulation.killed.play({each.seed}))" for each in killings]

    assert not any(each.violations for each in killings), "\n".join(broken)


def test_processes_really_are_killed(killings: list[Killings]) -> None:
    assert any(-signal.SIGKILL in each.exits for each in killings)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(2, 40))
def test_no_killed_process_of_many_breaks_a_promise(seed: int) -> None:
    killings = play(seed, processes=3)

    assert not killings.violations, f"{killings} (simulation.killed.play({seed}, processes=3))"
