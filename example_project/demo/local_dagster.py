"""`dagster dev`, started here and ended here with everything it has started."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from example_project.demo.dagster_api import DagsterApi

T = TypeVar("T")

START_TIMEOUT = 300.0
INTERRUPT_TIMEOUT = 60.0
"""Seconds that Dagster has to shut down by itself, before it is told more firmly."""


class LocalDagsterError(Exception):
    """Dagster did not start, has ended, or did not get somewhere in time."""


class LocalDagster(DagsterApi):
    """Webserver, daemon and code server of one code location, on a loopback port.

    They run in a session of their own: whatever they start belongs to it, so that leaving
    this context ends exactly that, also when it is left by an interrupt. Their log is
    ``dagster.log`` in ``home``, which becomes their ``DAGSTER_HOME``.
    """

    def __init__(
        self,
        target: Sequence[str],
        *,
        home: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        extra_yaml: str = "",
    ) -> None:
        """Take what ``dagster dev`` shall load: ``["-m", module]`` or ``["-f", file]``.

        ``env`` adds to this process's environment, ``extra_yaml`` to ``dagster.yaml``.
        """
        self._port = free_port()
        super().__init__(f"http://127.0.0.1:{self._port}")
        self.home = home.resolve()
        self.log = self.home / "dagster.log"
        self._target = target
        self._env = {**os.environ, **(env or {}), "DAGSTER_HOME": str(self.home)}
        self._cwd = cwd
        self._yaml = f"telemetry:\n  enabled: false\n{extra_yaml}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start Dagster, and wait until it is ready.

        Raises:
            LocalDagsterError: It has ended, or was not ready in time.
            DagsterRefusedError: The code location does not load.
        """
        try:
            self._start()
            self.wait_for(self.is_ready, timeout=START_TIMEOUT, what="Dagster to start")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def wait_for(
        self,
        condition: Callable[[], T | None],
        *,
        timeout: float,
        what: str = "the condition",
        every: float = 0.5,
    ) -> T:
        """Wait until ``condition`` returns something true, and return that.

        Raises:
            LocalDagsterError: ``timeout`` seconds have passed, or Dagster has ended.
        """
        deadline = time.monotonic() + timeout
        while not (result := condition()):
            if self._process is None or self._process.poll() is not None:
                raise LocalDagsterError(f"Dagster has ended; its log is {self.log}")
            if time.monotonic() > deadline:
                raise LocalDagsterError(f"waited {timeout:.0f} s for {what}; log: {self.log}")
            threading.Event().wait(every)
        return result

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of Dagster's log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "dagster.yaml").write_text(self._yaml)
        command = [sys.executable, "-m", "dagster", "dev", *self._target]
        with self.log.open("wb") as log, interruptible_children():
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [*command, "-h", "127.0.0.1", "-p", str(self._port)],
                env=self._env,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _stop(self) -> None:
        self.close()
        if self._process is None:
            return
        try:
            self._process.send_signal(signal.SIGINT)
            _wait_until_ended(self._process, timeout=INTERRUPT_TIMEOUT)
            _signal_session(self._process, signal.SIGTERM)
            _wait_until_ended(self._process, timeout=5)
        finally:
            _signal_session(self._process, signal.SIGKILL)
            self._process.wait()


def _wait_until_ended(process: subprocess.Popen[bytes], *, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        if ended and not _signal_session(process, 0):
            return
        threading.Event().wait(0.1)


def _signal_session(process: subprocess.Popen[bytes], signal_number: int) -> bool:
    """Signal every process that is left of the session; return whether there was one.

    Nothing in Dagster leaves the process group it was born in, and the group keeps the id of
    its first process, which no other process can get as long as the group has a member.
    """
    # macOS says "not permitted" of a group that only has zombies left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal_number)
        return True
    return False


@contextmanager
def interruptible_children() -> Iterator[None]:
    """Let children react to SIGINT even if this process was started without.

    A shell starts background jobs with SIGINT ignored, children inherit that, and Dagster
    then ignores SIGTERM too. Only the main thread may change this.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
