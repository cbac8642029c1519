"""Every place where the engine reaches the database or the API is crashed at, before and after."""

from collections.abc import Iterator

import pytest

from simulation.boundaries import NOT_THE_ENGINE, engine_sites
from simulation.campaign import complaint
from simulation.schedule import Outcome, play

ENOUGH_SEEDS = 60
"""Schedules that are tried until one comes to the place; each is played on to its end."""

PLACES = [
    (site, moment)
    for site in engine_sites()
    for moment in (("before", "commit", "after") if ":transact" in site else ("before", "after"))
]


@pytest.mark.parametrize(("site", "moment"), PLACES, ids=lambda value: str(value))
def test_a_crash_at_this_boundary_breaks_no_promise(site: str, moment: str) -> None:
    crashed = next(_crashed_at(site, moment), None)

    assert crashed is not None, f"no schedule ever comes to {site} ({moment}): cover it"
    assert not crashed.violations, complaint(crashed)


def _crashed_at(site: str, moment: str) -> Iterator[Outcome]:
    for seed in range(ENOUGH_SEEDS):
        outcome = play(seed, crash_at=(site, moment))
        if outcome.violations or outcome.crashed_at[site, moment]:
            yield outcome


def test_the_engines_boundaries_are_found_in_its_source() -> None:
    sites = engine_sites()

    assert "submission.post:create_from_body" in sites
    assert "sending.Sender._intend:transact" in sites
    assert len(sites) > 15


def test_each_exception_still_exists() -> None:
    from simulation.boundaries import PACKAGE, sites_of

    for name in NOT_THE_ENGINE:
        module = name.partition(".")[0]
        assert (PACKAGE / f"{module}.py").exists(), name
        if ":" in name:
            assert name in {site.name for site in sites_of(module)}
