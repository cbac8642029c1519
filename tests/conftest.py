from itertools import chain, groupby
from typing import Any, Final

_OTHERS_THAT_WAIT: Final = {"test_dagster_driver", "test_example_project"}


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Begin with files of tests that wait for a Dagster, so that none of them is alone at the end.

    Tests that compute come last, when there is no Dagster any more that would compute as well.
    """
    files = [list(tests) for _, tests in groupby(items, key=lambda item: item.path)]
    files.reverse()  # the last ones take longest
    items[:] = chain.from_iterable(sorted(files, key=lambda tests: not _waits(tests[0])))


def _waits(test: Any) -> bool:  # pytest.Item, which has more attributes than its type
    return "e2e" in test.path.parts or test.path.stem in _OTHERS_THAT_WAIT
