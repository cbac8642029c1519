"""What the world knows of each request by itself: asked, answered, billed, damaged on the way.

Nothing here uses the engine's code; rows are told apart by the prompts that arrive.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from dagster_claude_batch.simulator import ApiError, Simulator
from simulation.faults import Damaged

DOWNLOADS: Final = 3
"""A row that is in none of so many downloads in a row, or cannot be read, is given up."""

FINAL_AFTER: Final = timedelta(minutes=50)
"""The engine waits an hour for lines that lack; its clock and the API's may differ."""


@dataclass(frozen=True)
class Request:
    """One request of a batch: which row it asks about, and what."""

    batch_id: str
    custom_id: str
    key: str
    text: str

    @property
    def identity(self) -> tuple[str, str]:
        return self.batch_id, self.custom_id

    @property
    def nonce(self) -> str:
        return self.custom_id.rpartition("-")[0]


@dataclass
class Books:
    """All batches that were ever created, in their order."""

    simulator: Simulator
    batches: dict[str, list[Request]] = field(default_factory=dict)
    truth: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    lost_results: set[str] = field(default_factory=set)
    strays: set[str] = field(default_factory=set)
    exempt: set[tuple[str, str]] = field(default_factory=set)
    billed: Counter[tuple[str, str]] = field(default_factory=Counter)
    _unread: dict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))

    def name(self, batch_id: str) -> str:
        """Batches are called by their order: ids mean nothing to a reader."""
        names = list(self.batches)
        return f"b{names.index(batch_id) + 1}" if batch_id in self.batches else "b?"

    def created(self, batch_id: str, requests: Iterable[tuple[str, dict[str, Any]]]) -> None:
        self.batches[batch_id] = [
            Request(batch_id, custom_id, *row_of(params)) for custom_id, params in requests
        ]

    def learn(self) -> None:
        """Take in what happened while nobody looked: batches made elsewhere, and ended ones."""
        for batch in self.simulator.batches():
            if batch.id not in self.batches:
                self.created(batch.id, self.simulator.requests(batch.id))
            if batch.ended_at is not None and batch.id not in self.truth:
                self._learn_results(batch.id)

    def _learn_results(self, batch_id: str) -> None:
        try:
            lines = [json.loads(line) for line in self.simulator.results(batch_id)]
        except ApiError:
            return
        self.truth[batch_id] = {line["custom_id"]: line["result"] for line in lines}

    def missing(self, batch_id: str) -> set[str]:
        """Requests without a line: the API itself has lost their results."""
        ids = {request.custom_id for request in self.batches[batch_id]}
        return ids - self.truth.get(batch_id, {}).keys()

    def note_download(self, run: str, batch_id: str, damaged: Damaged | None) -> None:
        """Remember which rows nobody could have read."""
        self.learn()
        absent = set(self.missing(batch_id))
        if damaged is not None:
            absent |= damaged.absent
        unread = set[str]() if self._may_still_come(batch_id) else absent
        if damaged is not None:
            unread |= damaged.garbled
        for request in self.batches[batch_id]:
            row = run, batch_id, request.custom_id
            if request.custom_id not in unread or (damaged is not None and damaged.breaks_off):
                self._unread[row] = 0
                continue
            self._unread[row] += 1
            if self._unread[row] == DOWNLOADS:
                self.exempt.add(request.identity)

    def _may_still_come(self, batch_id: str) -> bool:
        """Whether a batch has ended so recently that lines which lack must be waited for."""
        ended = next(b.ended_at for b in self.simulator.batches() if b.id == batch_id)
        return ended is not None and self.simulator.now() - ended < FINAL_AFTER

    def requests(self) -> list[Request]:
        return [request for batch in self.batches.values() for request in batch]

    def result(self, request: Request) -> dict[str, Any] | None:
        return self.truth.get(request.batch_id, {}).get(request.custom_id)

    def is_usable(self, request: Request) -> bool:
        """Whether the API has answered this request with something that fits the output."""
        result = self.result(request)
        if result is None or result["type"] != "succeeded":
            return False
        message = result["message"]
        return message["stop_reason"] == "end_turn" and _fits(message["content"])

    def is_unreadable(self, request: Request) -> bool:
        """Whether its result was destroyed on the way, or by the API itself, or by somebody."""
        return request.identity in self.exempt or request.batch_id in self.lost_results

    def read_bill(self) -> None:
        self.billed = Counter((each.batch_id, each.custom_id) for each in self.simulator.bill())


def row_of(params: dict[str, Any]) -> tuple[str, str]:
    """The row's key and its text, as the prompt holds them: ``Rate <key> now: <text>``."""
    content = params["messages"][-1]["content"]
    prompt = content if isinstance(content, str) else content[-1]["text"]
    head, _, text = prompt.partition(": ")
    return head.split()[1], text


def requests_in(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    """The custom ids and parameters of a create call."""
    return [(each["custom_id"], each["params"]) for each in json.loads(body)["requests"]]


def sha256_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _fits(content: list[dict[str, Any]]) -> bool:
    text = "".join(block["text"] for block in content if block["type"] == "text")
    try:
        answer = json.loads(text)
    except ValueError:
        return False
    labels = {"positive", "neutral", "negative"}
    return isinstance(answer, dict) and answer.get("label") in labels
