"""Gates: where a run stops, or is refused, because a test has closed the way there.

A gate is a file that a test writes and a run's process finds, when it calls the API or logs.
"""

import json
import logging
import os
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Self

import httpx2

from dagster_claude_batch.simulator import Simulator, SimulatorTransport

_PAUSE = 0.05


@dataclass(frozen=True)
class Gate:
    """Where a call stops: ``before`` it arrives, ``after`` it did, or ``refused`` once.

    ``method`` and ``text`` (in its path or body) tell which call; of those, each process stops at
    the ``nth`` and all that follow. ``name`` begins with ``when``.
    """

    directory: Path
    name: str
    when: Literal["before", "after", "refused"]
    method: str
    text: str
    nth: int = 1
    status: int = 0

    def close(self) -> Self:
        """Stop, from now on, whoever comes here."""
        self.directory.mkdir(exist_ok=True)
        said = {key: value for key, value in asdict(self).items() if key != "directory"}
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps(said))
        draft.rename(self._file)
        return self

    def open(self) -> None:
        """Let all pass that have stopped here."""
        self._file.unlink(missing_ok=True)

    @property
    def is_reached(self) -> bool:
        """Whether somebody has stopped here."""
        return self._file.with_suffix(".reached").exists()

    def stop(self) -> None:
        """Wait until a test opens the gate."""
        self._file.with_suffix(".reached").touch()
        while self._file.exists():
            threading.Event().wait(_PAUSE)

    @property
    def _file(self) -> Path:
        return self.directory / f"{self.name.replace('/', ' ')}.gate"


@dataclass
class Way:
    """A way with gates, which a process goes."""

    directory: Path
    _seen: Counter[str] = field(default_factory=Counter)

    def closed(self, when: str, method: str, call: str) -> list[Gate]:
        """The gates at which a call has to stop."""
        gates: list[Gate] = []
        for file in sorted(self.directory.glob(f"{when} *.gate")):
            with suppress(FileNotFoundError):  # somebody opens it at this moment
                gates.append(Gate(self.directory, **json.loads(file.read_text())))
        return [gate for gate in gates if self._is_at(gate, method, call)]

    def _is_at(self, gate: Gate, method: str, call: str) -> bool:
        if method != gate.method or gate.text not in call:
            return False
        self._seen[gate.name] += 1
        return self._seen[gate.name] >= gate.nth


class LogGates(logging.Handler):
    """Stops what logs a message, method ``LOG``; Dagster makes one for each run's process."""

    def __init__(self) -> None:
        super().__init__()
        self._way = Way(Path(os.environ["E2E_HOME"]) / "gates")

    def emit(self, record: logging.LogRecord) -> None:
        """Stop at the gates that the message comes to."""
        for gate in self._way.closed("before", "LOG", record.getMessage()):
            gate.stop()


@dataclass
class GatedTransport(httpx2.BaseTransport):
    """The simulator, at the end of a way with gates."""

    simulator: Simulator
    way: Way

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        call = f"{request.url.path} {request.read().decode(errors='replace')}"
        if request.url.path.endswith("/count_tokens"):  # pays for nothing, and decides nothing
            return SimulatorTransport(self.simulator).handle_request(request)
        for gate in self.way.closed("before", request.method, call):
            gate.stop()
        for gate in self.way.closed("refused", request.method, call):
            gate.open()
            error = {"type": "invalid_request_error", "message": f"Refused by {gate.name}."}
            return httpx2.Response(gate.status, json={"type": "error", "error": error})
        response = SimulatorTransport(self.simulator).handle_request(request)
        for gate in self.way.closed("after", request.method, call):
            gate.stop()
        return response
