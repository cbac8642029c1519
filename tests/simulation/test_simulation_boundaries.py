"""Every place where the engine reaches the database or the API is crashed at, before and after."""

from collections.abc import Iterable, Iterator

import pytest

from simulation.boundaries import (
    NOT_THE_ENGINE,
    PACKAGE,
    Place,
    engine_sites,
    places_of,
    sites_of,
)
from simulation.campaign import complaint, crash_at_each
from simulation.schedule import Outcome, play

ENOUGH_SEEDS = 32
"""Schedules that are tried until one has come to each place that most schedules come to."""

AT_ONCE = 12
"""Crashes in one schedule that are not drawn; more would leave little of it."""

DIRECTED = {
    "sending.Sender._split:transact": 1,
    "sending.Sender._unsend:transact": 2,
    "advance.Engine._adopt:transact": 25,
    "reconciling.record_late:transact": 11,
    "sending.Sender._is_still_ours:transact": 6,
    "advance.Engine._refuse_to_go_on_halted:transact": 9,
    "workbench.Workbench.plan_anew:transact": 3,
    "collecting.Collector._drop_what_it_answered:transact": 11,
    "reconciling.Reconciler._record_copies:transact": 24,
    "reconciling.record:transact#2": 5,
    "collecting.Collector._sees_older:transact": 22,
    "workbench.Workbench.cancel_batch:cancel": 8,
    "budget.Budget._send_less:transact": 5,
}
"""Rare places, and seeds in whose unkind worlds they are come to."""


@pytest.fixture(scope="module")
def crashes() -> list[Outcome]:
    """Schedules that crash at every place."""
    outcomes = list[Outcome]()
    for site, seed in DIRECTED.items():
        outcomes += crash_at_each(site, seed, but=_crashed(outcomes))
    return [*outcomes, *_crash_at_the_others(_places() - _crashed(outcomes))]


def _crash_at_the_others(left: set[Place]) -> Iterator[Outcome]:
    for seed in range(ENOUGH_SEEDS):
        chosen = sorted(place for place in left if place[0] not in DIRECTED)
        if not chosen:
            return
        # The places rotate, so that early ones do not keep later ones from being come to. When few
        # are left, others are crashed at again: some places are come to only after crashes.
        start = seed * AT_ONCE % len(chosen)
        again = sorted(_places() - set(chosen))
        first = seed * AT_ONCE % len(again) if again else 0
        in_turn = [*chosen[start:], *chosen[:start], *again[first:], *again[:first]]
        outcome = play(seed, crash_at=in_turn[:AT_ONCE])
        left = left - outcome.crashed_at.keys()
        yield outcome


def _places() -> set[Place]:
    return {place for site in engine_sites() for place in places_of(site)}


def _crashed(outcomes: Iterable[Outcome]) -> set[Place]:
    return {place for outcome in outcomes for place in outcome.crashed_at}


def test_each_boundary_is_crashed_at(crashes: list[Outcome]) -> None:
    left = _places() - _crashed(crashes)

    assert not left, (
        "no schedule has come to these places: put what `python -m simulation --reach SITE` "
        "(in tests/) prints of each into DIRECTED, or say in NOT_THE_ENGINE why not"
    )


@pytest.mark.parametrize("site", DIRECTED)
def test_each_directed_site_still_exists(site: str) -> None:
    assert site in engine_sites()


def test_no_crash_at_a_boundary_breaks_a_promise(
    crashes: list[Outcome],
) -> None:
    broken = [outcome for outcome in crashes if outcome.violations]

    assert not broken, "\n".join(map(complaint, broken))


def test_the_engines_boundaries_are_found_in_its_source() -> None:
    sites = engine_sites()

    assert "submission.post:create_from_body" in sites
    assert "sending.Sender._intend:transact" in sites
    assert len(sites) > 15


@pytest.mark.parametrize("name", NOT_THE_ENGINE)
def test_each_exception_still_exists(name: str) -> None:
    module = name.partition(".")[0]

    assert (PACKAGE / module).is_dir() or (PACKAGE / f"{module}.py").exists()
    assert ":" not in name or name in {site.name for site in sites_of(module)}
