"""A deadline for what keeps none itself.

A timeout of an HTTP client is one of each piece of an answer; looking up a name has none.
"""

import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")


def seen_within(seconds: float, items: Iterator[T]) -> tuple[list[T], Exception | None]:
    """What comes of an iterator in so many seconds; and why that is not all, if so.

    It is a `TimeoutError` where the time was over. The iterator is left to itself then, in a
    thread that ends with the item it waits for.
    """
    end = time.monotonic() + seconds
    came = SimpleQueue[tuple[list[T], Exception | None] | None]()
    is_over = Event()

    def follow() -> None:
        try:
            for item in items:
                came.put(([item], None))
                if is_over.is_set():
                    return
        except Exception as error:  # noqa: BLE001  # handed on to whoever waits
            came.put(([], error))
        else:
            came.put(None)

    Thread(target=follow, daemon=True).start()
    seen: list[T] = []
    try:
        while (each := came.get(timeout=max(0.0, end - time.monotonic()))) is not None:
            seen += each[0]
            if each[1] is not None:
                return seen, each[1]
    except Empty:
        is_over.set()
        return seen, TimeoutError(f"nothing more within {seconds:.0f} s")
    return seen, None
