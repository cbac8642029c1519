"""What the tests of the simulator share: a client of it, and requests to send."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
from anthropic.types.messages import MessageBatch

from dagster_claude_batch.simulator import Simulator, SimulatorTransport

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

START = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)


def client_of(simulator: Simulator) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="simulated",
        max_retries=0,
        http_client=httpx2.Client(transport=SimulatorTransport(simulator)),
    )


def params(**changes: object) -> dict[str, Any]:
    valid = {
        "model": "claude-haiku-5-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "Rate the sentiment: I love it."}],
    }
    return {name: value for name, value in {**valid, **changes}.items() if value is not ...}


def requests(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"custom_id": f"row-{number}", "params": row} for number, row in enumerate(rows)]


@dataclass
class Service:
    """A simulator whose clock stands still unless it is advanced, and its client."""

    path: Path

    def __post_init__(self) -> None:
        self.open()

    def open(self, **options: object) -> None:
        """Open the same directory anew, with other options."""
        defaults: dict[str, Any] = {"now": lambda: START, "processing_seconds": (60, 60)}
        self.simulator = Simulator(self.path, **(defaults | options))
        self.client = client_of(self.simulator)
        self.batches = self.client.messages.batches

    def create(self, *rows: dict[str, Any]) -> MessageBatch:
        return self.batches.create(requests=requests(*(rows or (params(),))))

    def post(self, content: bytes | Iterable[bytes]) -> MessageBatch:
        return self.client.post("/v1/messages/batches", content=content, cast_to=MessageBatch)

    def results(self, batch: MessageBatch) -> dict[str, dict[str, Any]]:
        """The result lines as they are on the wire, by custom id."""
        with self.batches.with_streaming_response.results(batch.id) as response:
            lines = [json.loads(line) for line in response.iter_lines()]
        return {line["custom_id"]: line["result"] for line in lines}

    def ask(self, *rows: dict[str, Any]) -> list[dict[str, Any]]:
        """Send rows in one batch, let it end, and return their results in order."""
        batch = self.create(*rows)
        self.simulator.end_batches()
        results = self.results(batch)
        return [results[f"row-{number}"] for number in range(len(rows))]

    def text(self, **changes: object) -> str:
        """The text that one request is answered with."""
        return self.ask(params(**changes))[0]["message"]["content"][-1]["text"]

    def counts(self, batch: MessageBatch) -> dict[str, int]:
        """The request counts that are not zero."""
        counts = self.batches.retrieve(batch.id).request_counts
        return {name: count for name, count in counts.model_dump().items() if count}
