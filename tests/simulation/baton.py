"""Several runs, of which one at a time goes on: threads that hand a baton back and forth."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Moment: TypeAlias = Literal["before", "commit", "after", "sleep", "rest"]
"""Where in an I/O: before it, within a transaction just before its commit, after it had its
effect; ``sleep`` and ``rest`` are pauses that the engine or the run takes by itself."""


class Crash(BaseException):  # no error of anybody: the process is gone
    """The process of a run ends here."""


class Interrupted(BaseException):  # raised as Dagster's own, which is none either
    """Somebody terminates the run, which may still tidy up."""


@dataclass(frozen=True)
class Boundary:
    """Where a run stands."""

    site: str
    moment: Moment
    call: str = "transact"


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass
class Runner:
    """One process of a run; it only moves while `step` is executing."""

    name: str
    body: Callable[["Runner"], None]
    at: Boundary | None = None
    is_over: bool = False
    is_dead: bool = False
    is_interrupted: bool = False
    error: BaseException | None = None
    decision: Any = None
    _go: threading.Lock = field(default_factory=_held_lock)
    _back: threading.Lock = field(default_factory=_held_lock)
    _thread: threading.Thread | None = None

    def step(self, decision: Any = None) -> None:
        """Let it go on to its next boundary, or to its end."""
        self.decision = decision
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name=self.name, daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._back.acquire()
        if self.is_over:
            self._thread.join()

    def pause(self, boundary: Boundary) -> Any:
        """Stop at a boundary; what was decided for it. Called by the run itself.

        Raises:
            Crash: It was decided that the process ends, now or at an earlier boundary.
        """
        if self.is_dead:
            raise Crash
        self.at = boundary
        self._back.release()
        self._go.acquire()
        if self.decision == "crash":
            self.is_dead = True
            raise Crash
        if self.decision == "interrupt":
            self.is_interrupted = True
            raise Interrupted
        return self.decision

    def _live(self) -> None:
        try:
            self.body(self)
        except (Crash, Interrupted):
            pass
        except Exception as error:  # noqa: BLE001  # how a run ends is judged by the schedule
            self.error = error
        finally:
            self.is_over = True
            self._back.release()
