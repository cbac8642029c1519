from itertools import chain, groupby, zip_longest
from typing import Any, Final

_OTHERS_THAT_WAIT: Final = {"test_dagster_driver", "test_example_project"}


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Let files of tests that wait for a Dagster alternate with files of tests that compute.

    So the processors have something to do for as long as there is something to wait for.
    """
    files = [list(tests) for _, tests in groupby(items, key=lambda item: item.path)]
    files.reverse()  # the last ones take longest
    waiting = [tests for tests in files if _waits(tests[0])]
    computing = [tests for tests in files if not _waits(tests[0])]
    alternating = chain.from_iterable(zip_longest(waiting, computing, fillvalue=[]))
    items[:] = list(chain.from_iterable(alternating))


def _waits(test: Any) -> bool:  # pytest.Item, which has more attributes than its type
    return "e2e" in test.path.parts or test.path.stem in _OTHERS_THAT_WAIT
