"""A project on a real DuckDB file, with the simulator where bytes leave the process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit import KEEPERS, Project


@pytest.fixture(autouse=True)
def _keepers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the warehouse open, but for tests of what becomes of its file."""
    KEEPERS.is_wanted = request.node.get_closest_marker("opens_anew") is None
    yield
    KEEPERS.close()


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Project]:
    def make(**declared: object) -> Project:
        return Project(tmp_path, **declared)

    return make


@pytest.fixture
def tweets(tmp_path: Path) -> Project:
    """Ten tweets, t0 to t9, in one partition of their own; sentiment is asked."""
    made = Project(tmp_path)
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(10)])
    return made
