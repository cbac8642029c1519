from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from e2e_stage import Stage, open_stage

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One Dagster for all tests, for it takes long to start; each test has an asset of its own."""
    with open_stage(tmp_path_factory.mktemp("stage")) as opened:
        yield opened
