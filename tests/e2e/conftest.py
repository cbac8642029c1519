from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest
from e2e_stage import Stage, open_stage

if TYPE_CHECKING:
    from collections.abc import Generator

_OPEN: Final = ExitStack()
_STAGES: Final[list[Stage]] = []


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stage]:
    """One Dagster for all tests, for it takes long to start; each test has an asset of its own."""
    if not _STAGES:
        _STAGES.append(_OPEN.enter_context(open_stage(tmp_path_factory.mktemp("stage"))))
    yield _STAGES[0]
    _STAGES[0].open_gates()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Generator[None]:
    """End that Dagster as soon as the next test needs none: it would compute all the time."""
    try:
        return (yield)
    finally:
        if nextitem is None or "e2e" not in nextitem.path.parts:
            _end()


def pytest_sessionfinish() -> None:
    """The same if the tests were interrupted."""
    _end()


def _end() -> None:
    _STAGES.clear()
    _OPEN.close()
