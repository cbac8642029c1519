"""A process killed by SIGKILL, wherever it stands, leaves files from which others go on."""

import os
import signal

import pytest

from simulation.killed import play

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal")


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_process_breaks_no_promise(seed: int) -> None:
    killings = play(seed)

    assert not killings.violations, f"{killings} (simulation.killed.play({seed}))"


def test_processes_really_are_killed() -> None:
    assert -signal.SIGKILL in play(1).exits


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(3, 40))
def test_no_killed_process_of_many_breaks_a_promise(seed: int) -> None:
    killings = play(seed, processes=3)

    assert not killings.violations, f"{killings} (simulation.killed.play({seed}, processes=3))"
