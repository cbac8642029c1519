"""Work that is begun before its turn, in threads of its own."""

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Condition
from typing import Generic, Protocol, TypeVar


class Result(Protocol):
    """What comes of a call."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...

    def close(self) -> None:
        """Let it go."""
        ...


K = TypeVar("K")
T = TypeVar("T", bound=Result)


@contextmanager
def begun_ahead(
    calls: Mapping[K, Callable[[], T]], *, threads: int, max_bytes: int
) -> Generator[dict[K, Callable[[], T]]]:
    """Begin calls in their order, some of them before anybody asks for what comes of them.

    Yields, under the same keys, how to wait for their results or errors; each is to be asked for
    once. While ``max_bytes`` wait to be asked for, only what is asked for is begun. Without
    ``threads`` nothing is. Whoever leaves waits for what is in progress; what nobody has asked for
    is closed.
    """
    if not threads or len(calls) < 2:  # noqa: PLR2004  # a single one has no turn to wait for
        yield dict(calls)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead = _Ahead[T](max_bytes)
        futures = {
            key: pool.submit(ahead.work, number, call)
            for number, (key, call) in enumerate(calls.items())
        }
        try:
            yield {
                key: partial(ahead.take, number, futures, key) for number, key in enumerate(futures)
            }
        finally:
            ahead.stop()
            pool.shutdown(cancel_futures=True)
            for future in futures.values():
                if not future.cancelled() and future.exception() is None:
                    future.result().close()


class _Ahead(Generic[T]):
    """How much is ready, and what has been asked for."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._ready = 0
        self._wanted = -1
        self._is_over = False
        self._changed = Condition()

    def work(self, number: int, call: Callable[[], T]) -> T:
        """Do the work of a call when there is room for what comes of it."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(number))
            if self._is_over:
                raise CancelledError
        result = call()
        with self._changed:
            self._ready += result.nbytes
        return result

    def _has_room(self, number: int) -> bool:
        return self._is_over or self._ready < self._max_bytes or number <= self._wanted

    def take(self, number: int, futures: "dict[K, Future[T]]", key: K) -> T:
        """Wait for a call's result, and forget it."""
        with self._changed:
            self._wanted = max(self._wanted, number)
            self._changed.notify_all()
        result = futures.pop(key).result()
        with self._changed:
            self._ready -= result.nbytes
            self._changed.notify_all()
        return result

    def stop(self) -> None:
        """Begin nothing more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
