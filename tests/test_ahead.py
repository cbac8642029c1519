"""Calls that are begun before their turn: their order, their errors, and how many wait."""

import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from dagster_claude_batch.ahead import begun_ahead

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT = 20.0
"""Seconds, after which a test has failed."""


@dataclass
class Value:
    """What comes of a call."""

    number: int
    nbytes: int = 10
    is_closed: bool = False

    def close(self) -> None:
        """Note it."""
        self.is_closed = True


class Work:
    """Calls that note when they begin, and what has come of them."""

    def __init__(self, count: int) -> None:
        self.begun: list[int] = []
        self.values: list[Value] = []
        self.changed = threading.Condition()
        self.calls: dict[int, Callable[[], Value]] = {
            number: lambda number=number: self._do(number) for number in range(count)
        }

    def _do(self, number: int) -> Value:
        with self.changed:
            self.begun.append(number)
            self.values.append(Value(number))
            self.changed.notify_all()
            return self.values[-1]

    def has_begun(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: len(self.begun) >= count, WAIT)


def test_what_comes_of_calls_is_what_they_return() -> None:
    work = Work(20)

    with begun_ahead(work.calls, threads=3, max_bytes=25) as begun:
        assert [begun[number]().number for number in begun] == list(range(20))

    assert sorted(work.begun) == list(range(20))


@pytest.mark.parametrize(("threads", "count"), [(0, 5), (2, 1)])
def test_what_needs_no_thread_is_done_when_it_is_asked_for(threads: int, count: int) -> None:
    work = Work(count)

    with begun_ahead(work.calls, threads=threads, max_bytes=1_000) as begun:
        assert work.begun == []
        assert begun[0]().number == 0
        assert work.begun == [0]


def test_calls_are_begun_before_they_are_asked_for_as_long_as_there_is_room() -> None:
    work = Work(10)

    with begun_ahead(work.calls, threads=1, max_bytes=25) as begun:
        assert work.has_begun(3)  # 20 of 25 were ready before the third
        assert begun[0]().number == 0
        assert work.has_begun(4)
        assert begun[1]().number == 1
        assert work.has_begun(5)
        assert len(work.begun) == 5


def test_what_is_asked_for_is_begun_whatever_waits() -> None:
    work = Work(10)

    with begun_ahead(work.calls, threads=2, max_bytes=10) as begun:
        assert work.has_begun(1)
        assert begun[7]().number == 7


def test_an_error_comes_to_whoever_asks_and_stops_nobody_else() -> None:
    work = Work(6)

    def fail() -> Value:
        raise ValueError("no")

    work.calls[2] = fail

    with begun_ahead(work.calls, threads=2, max_bytes=1_000) as begun:
        assert begun[1]().number == 1
        with pytest.raises(ValueError, match="no"):
            begun[2]()
        assert begun[3]().number == 3


def test_whoever_leaves_has_nothing_begun_any_more() -> None:
    work = Work(10)

    with begun_ahead(work.calls, threads=2, max_bytes=15) as begun:
        taken = begun[0]()
        assert work.has_begun(2)

    assert not taken.is_closed
    work.values.remove(taken)
    assert len(work.begun) < len(work.calls)
    assert all(value.is_closed for value in work.values)
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]
    with pytest.raises(CancelledError):
        begun[9]()
