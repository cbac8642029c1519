"""The simulation finds bugs: each of some deliberate ones breaks the invariant that it should."""

import pytest

from simulation.boundaries import PACKAGE
from simulation.bugs import BUGS, Bug, first_seed
from simulation.oracle import INVARIANTS

QUICK = {
    "a retry does not count as another attempt",
    "the first answer of a chunk is not written",
}


def _named(bug: Bug) -> str:
    return bug.name


@pytest.mark.parametrize("bug", [b for b in BUGS if b.name in QUICK], ids=_named)
def test_a_deliberate_bug_is_found(bug: Bug) -> None:
    assert first_seed(bug) is not None


@pytest.mark.exhaustive
@pytest.mark.parametrize("bug", [b for b in BUGS if b.name not in QUICK], ids=_named)
def test_each_deliberate_bug_is_found(bug: Bug) -> None:
    assert first_seed(bug) is not None


@pytest.mark.parametrize("bug", BUGS, ids=_named)
def test_a_deliberate_bug_can_still_be_put_into_the_source(bug: Bug) -> None:
    source = (PACKAGE / f"{bug.module}.py").read_text(encoding="utf-8")

    assert source.count(bug.old) == 1


def test_each_invariant_has_a_deliberate_bug() -> None:
    assert {bug.invariant for bug in BUGS} == set(INVARIANTS)
