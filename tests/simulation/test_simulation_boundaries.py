"""Every place where the engine reaches the database or the API is crashed at, before and after."""

import pytest

from simulation.boundaries import NOT_THE_ENGINE, PACKAGE, engine_sites, sites_of
from simulation.campaign import complaint
from simulation.schedule import Outcome, play

ENOUGH_SEEDS = 250
"""Schedules that are tried until one has come to each place; most take one of the first dozen."""

AT_ONCE = 5
"""Crashes in one schedule that are not drawn; more would leave little of it."""


@pytest.fixture(scope="module")
def crashes() -> tuple[set[tuple[str, str]], list[Outcome]]:
    """The places that no schedule came to, and all schedules."""
    left, outcomes = _places(), list[Outcome]()
    for seed in range(ENOUGH_SEEDS):
        if not left:
            break
        # The places rotate, so that early ones do not keep later ones from being come to.
        chosen = sorted(left)
        start = seed * AT_ONCE % len(chosen)
        outcomes.append(play(seed, crash_at=(chosen[start:] + chosen[:start])[: 4 * AT_ONCE]))
        left -= outcomes[-1].crashed_at.keys()
    return left, outcomes


def _places() -> set[tuple[str, str]]:
    return {
        (site, moment)
        for site in engine_sites()
        for moment in ("before", "commit", "after")
        if moment != "commit" or ":transact" in site
    }


def test_each_boundary_is_crashed_at(
    crashes: tuple[set[tuple[str, str]], list[Outcome]],
) -> None:
    left, _ = crashes

    assert not left, "no schedule has come to these places: cover them, or say why not"


def test_no_crash_at_a_boundary_breaks_a_promise(
    crashes: tuple[set[tuple[str, str]], list[Outcome]],
) -> None:
    _, outcomes = crashes
    broken = [outcome for outcome in outcomes if outcome.violations]

    assert not broken, "\n".join(map(complaint, broken))


def test_the_engines_boundaries_are_found_in_its_source() -> None:
    sites = engine_sites()

    assert "submission.post:create_from_body" in sites
    assert "sending.Sender._intend:transact" in sites
    assert len(sites) > 15


@pytest.mark.parametrize("name", NOT_THE_ENGINE)
def test_each_exception_still_exists(name: str) -> None:
    module = name.partition(".")[0]

    assert (PACKAGE / f"{module}.py").exists()
    assert ":" not in name or name in {site.name for site in sites_of(module)}
