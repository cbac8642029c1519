"""The resources, and the only Anthropic client of this package."""

import base64
import io
import itertools
import json
import re
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

import anthropic
import dagster as dg
import httpx2
from anthropic import APIResponse
from anthropic.resources.messages.batches import Batches
from anthropic.types import MessageTokensCount, ModelInfo
from anthropic.types.messages import (
    DeletedMessageBatch,
    MessageBatch,
    MessageBatchIndividualResponse,
)
from anthropic.types.messages.batch_create_params import Request
from pydantic import BaseModel, Field

from dagster_claude_batch.deadline import seen_within
from dagster_claude_batch.errors import NoCredentialsError, UnreadableAnswerError
from dagster_claude_batch.simulator import Simulator, SimulatorTransport

LIST_PAGE: Final = 1_000
"""Batches in one page of `list`: the API's maximum."""

RESULTS_LAST: Final = timedelta(days=29)
"""How long results can be collected, counted from the creation of the batch."""

UNANSWERED: Final = (anthropic.AnthropicError, UnreadableAnswerError)
"""What the verbs raise where the API refuses, cannot be reached, or gives no usable answer."""

_BATCHES: Final = "/v1/messages/batches"

_SPAN_OF_CREATE: Final = {
    "span_name": "anthropic.messages.batches.create",
    "span_route": _BATCHES,
    "span_created_id": "anthropic.message.batch.id",
}
"""What the SDK's own verb calls itself to a tracer; a call by `client.post` has no span else."""

_BODY_PIECE: Final = 2**20
_FEW_BATCHES: Final = 5
"""Up to here, asking for each batch costs less than listing all of them."""


class ClaudeBatchResource(dg.ConfigurableResource[Any]):
    """Anthropic's Message Batches API, with the credentials of one workspace.

    Without ``api_key`` the SDK finds credentials itself: ``ANTHROPIC_API_KEY``, a profile, or
    workload identity. The verbs also serve your own ops; they raise the SDK's errors, and
    `UnreadableAnswerError` for what is no answer.
    """

    api_key: str | None = Field(
        default=None,
        repr=False,
        description="An API key; left out, the SDK's own chain of credentials.",
    )
    base_url: str | None = Field(default=None, description="Another address of the API.")
    workspace_id: str | None = Field(
        default=None, description="For credentials that can act on several workspaces."
    )
    max_in_flight_requests: int = Field(
        default=100_000,
        gt=0,
        description="Requests that are out at the same time, over all assets of the database.",
    )
    max_cost_usd_per_day: float | None = Field(
        default=None,
        gt=0,
        description="The most that all assets of the database together may spend on what is sent "
        "within a day (UTC), in USD. What is out counts as the most that it can cost.",
    )
    poll_interval_seconds: float = Field(
        default=60.0,
        gt=0,
        description="First pause between two looks at a batch; it widens to ten times as much.",
    )
    lock_timeout_seconds: float = Field(
        default=600.0,
        ge=0,
        description="How long to wait for a DuckDB file that another process holds.",
    )
    timeout_seconds: float = Field(
        default=600.0,
        gt=0,
        description="How long an upload may take in all, and how long the API may be silent.",
    )

    @cached_property
    def client(self) -> anthropic.Anthropic:
        """The SDK's client. It retries what is safe to retry; `create` never is."""
        headers = {"anthropic-workspace-id": self.workspace_id} if self.workspace_id else None
        return anthropic.Anthropic(
            api_key=self._credential(),
            base_url=self.base_url,
            timeout=self.timeout_seconds,
            default_headers=headers,
            http_client=self._http_client(),
        )

    def _credential(self) -> str | None:
        # An empty variable behind EnvVar is no key; the SDK must go on to look for others.
        return self.api_key or None

    def _http_client(self) -> httpx2.Client | None:
        return None

    def now(self) -> datetime:
        """The time by which batches are dated."""
        return datetime.now(UTC)

    def create(self, requests: Iterable[Request]) -> MessageBatch:
        """Create a batch. Never retried: the API has no idempotency key, a retry may pay twice."""
        # Not by the SDK's own verb: at DEBUG it writes all requests into its log.
        body = json.dumps({"requests": list(requests)}, default=_as_json).encode()
        return self.create_from_body(io.BytesIO(body), len(body))

    def create_from_body(self, body: IO[bytes], size: int) -> MessageBatch:
        """Create a batch from the JSON text of a whole request body, ``size`` bytes long.

        Raises:
            UnreadableAnswerError: What came back is no batch; there may be one all the same.
        """
        with _reading():
            headers = {"content-type": "application/json", "content-length": str(size)}
            options: Any = {"max_retries": 0, "headers": headers, **_SPAN_OF_CREATE}
            created = self.client.post(
                _BATCHES,
                content=_Pieces(body, time.monotonic() + self.timeout_seconds),
                cast_to=MessageBatch,
                options=options,
            )
            return _checked(created)

    def retrieve(self, batch_id: str) -> MessageBatch:
        """Look at one batch."""
        with _reading():
            return _checked(self.client.messages.batches.retrieve(batch_id))

    def list(self, *, limit: int = LIST_PAGE) -> Iterator[MessageBatch]:
        """Look at all batches of the workspace, newest first, ``limit`` to a page.

        Raises:
            UnreadableAnswerError: What came back is no page of batches.
        """
        return _pages(self.client.messages.batches, limit)

    def results(self, batch_id: str) -> Iterator[MessageBatchIndividualResponse]:
        """Read the results of a batch that has ended, in any order.

        The SDK takes a result of a type that it does not know for a succeeded one: branch on
        ``result.type``, never on the class.
        """
        with _reading():
            return iter(self.client.messages.batches.results(batch_id))

    def download(self, batch: MessageBatch, file: IO[bytes]) -> None:
        """Write the results' JSON lines to a file, as they are.

        Raises:
            LookupError: The batch has no results: not ended, or archived.
        """
        if not batch.results_url:
            raise LookupError(batch.id)
        with ExitStack() as stack:
            response = self._open_results(batch.id, stack)
            try:
                for piece in response.iter_bytes():
                    file.write(piece)
            except httpx2.RequestError as error:
                # The SDK makes its own errors only of what happens before the body.
                said, request = f"{type(error).__name__}: {error}", response.http_request
                raise anthropic.APIConnectionError(message=said, request=request) from error

    def _open_results(self, batch_id: str, stack: ExitStack) -> APIResponse[Any]:
        streaming = self.client.messages.batches.with_streaming_response
        try:
            with _reading():
                return stack.enter_context(streaming.results(batch_id))
        except anthropic.APIError:
            raise
        except anthropic.AnthropicError as error:
            # The SDK has looked once more, and the batch has no address of its results.
            raise LookupError(batch_id) from error

    def cancel(self, batch_id: str, *, timeout_seconds: float | None = None) -> MessageBatch:
        """Ask for the end of a batch; what is answered by then is billed and can be collected.

        With ``timeout_seconds`` the call is made once, and ends by then.
        """
        with _reading():
            return _checked(self._client_within(timeout_seconds).messages.batches.cancel(batch_id))

    def delete(self, batch_id: str, *, timeout_seconds: float | None = None) -> DeletedMessageBatch:
        """Delete a batch that has ended, with its results.

        With ``timeout_seconds`` the call is made once, and ends by then.
        """
        with _reading():
            deleted = self._client_within(timeout_seconds).messages.batches.delete(batch_id)
            _check_id(deleted.id)
            return deleted

    def look(self, batch_ids: Sequence[str]) -> dict[str, MessageBatch]:
        """Look at several batches in as few calls as possible; those not found are left out."""
        return dict(self._look(self.client.messages.batches, batch_ids))

    def look_within(
        self, batch_ids: Sequence[str], seconds: float
    ) -> tuple[dict[str, MessageBatch], Exception | None]:
        """Look as far as one comes in so many seconds; and why not at all of them, if so.

        Each call is made once. What has been seen before an error, or before the time is over,
        is returned.
        """

        def looking() -> Iterator[tuple[str, MessageBatch]]:
            yield from self._look(self._client_within(seconds).messages.batches, batch_ids)

        seen, problem = seen_within(seconds, looking())
        return dict(seen), problem

    def _look(
        self, batches: Batches, batch_ids: Sequence[str]
    ) -> Iterator[tuple[str, MessageBatch]]:
        if len(batch_ids) <= _FEW_BATCHES:
            yield from _look_at_each(batches, batch_ids)
            return
        left = set(batch_ids)
        for batch in self._since(batches, RESULTS_LAST):
            if batch.id in left:
                left.remove(batch.id)
                yield batch.id, batch
            if not left:
                return

    def _client_within(self, timeout_seconds: float | None) -> anthropic.Anthropic:
        if timeout_seconds is None:
            return self.client
        return self.client.with_options(timeout=timeout_seconds, max_retries=0)

    def _since(self, batches: Batches, age: timedelta) -> Iterator[MessageBatch]:
        oldest = self.now() - age
        recent = _pages(batches, LIST_PAGE)
        return itertools.takewhile(lambda batch: batch.created_at >= oldest, recent)

    def count_tokens(self, params: Mapping[str, Any]) -> int:
        """Count the input tokens of a request, which costs nothing.

        The API takes what of ``params`` matters to that: not ``max_tokens``, for one.
        """
        # Neither by the SDK's own verb nor as bytes: at DEBUG both are written into its log.
        body = json.dumps(params, default=_as_json).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        with _reading():
            counted = self.client.post(
                "/v1/messages/count_tokens",
                content=_Pieces(io.BytesIO(body), time.monotonic() + self.timeout_seconds),
                cast_to=MessageTokensCount,
                options={"headers": headers},
            )
            if type(counted.input_tokens) is not int:
                raise UnreadableAnswerError("no count of tokens")
            return counted.input_tokens

    def model(self, model: str) -> ModelInfo | None:
        """What the API says of a model; None if there is none of that name."""
        return self.model_and_time(model)[0]

    def model_and_time(self, model: str) -> tuple[ModelInfo | None, datetime | None]:
        """The same, and what time it is by the API's clock, if it says so."""
        try:
            with _reading():
                answer = self.client.models.with_raw_response.retrieve(model)
                found = answer.parse()
                if not isinstance(found.id, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # the SDK takes what it gets
                    raise UnreadableAnswerError("no model")
                return found, _time_of(answer.headers)
        except anthropic.NotFoundError as error:
            return None, _time_of(error.response.headers)


class LocalClaudeBatchResource(ClaudeBatchResource):
    """The same API, simulated in this process: no key, no server, no cost.

    Processes that name the same ``path`` share its state.
    """

    path: str = Field(description="Directory of the simulator's state; made if it is missing.")
    poll_interval_seconds: float = Field(
        default=1.0,
        gt=0,
        description="First pause between two looks at a batch; short, for looking costs nothing.",
    )
    answer: str | None = Field(
        default=None,
        description="`package.module:function` that answers a request's `params`; left out, "
        "answers that fit the schema.",
    )
    outcome: str | None = Field(
        default=None,
        description="`package.module:function` of `(params, custom_id, seen)` that names how a "
        "request ends other than with an answer.",
    )
    processing_seconds: list[float] = Field(
        default=[2.0, 6.0],
        min_length=2,
        max_length=2,
        description="Shortest and longest time that a batch takes.",
    )
    max_queued_requests: int = Field(
        default=200_000, description="Requests in the queue above which a batch is refused."
    )

    @cached_property
    def simulator(self) -> Simulator:
        """What answers: its clock can be moved, its bill read."""
        return Simulator(
            self.path,
            answer=self.answer,
            outcome=self.outcome,
            processing_seconds=(self.processing_seconds[0], self.processing_seconds[1]),
            max_queued_requests=self.max_queued_requests,
        )

    def now(self) -> datetime:
        """The simulator's time."""
        return self.simulator.now()

    def _credential(self) -> str | None:
        return self.api_key or "simulated"

    def _http_client(self) -> httpx2.Client | None:
        return httpx2.Client(transport=SimulatorTransport(self.simulator))


def _look_at_each(batches: Batches, batch_ids: Sequence[str]) -> Iterator[tuple[str, MessageBatch]]:
    for batch_id in batch_ids:
        try:
            with _reading():
                batch = _checked(batches.retrieve(batch_id))
        except anthropic.NotFoundError:
            continue
        yield batch_id, batch


def _pages(batches: Batches, limit: int) -> Iterator[MessageBatch]:
    with _reading():
        for page in batches.list(limit=limit).iter_pages():
            # Without this, an answer that is no page would show that there is no batch.
            if type(page.data) is not list or type(page.has_more) is not bool:
                raise UnreadableAnswerError("no page of batches")
            for batch in page.data:
                yield _checked(batch)


def _time_of(headers: Mapping[str, str]) -> datetime | None:
    try:
        said = parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return None
    return said if said.tzinfo is not None else None


_BATCH_ID: Final = re.compile("[A-Za-z0-9_-]+")


def _checked(batch: MessageBatch) -> MessageBatch:
    """Make sure of what the SDK does not check: that an answer is a batch.

    Raises:
        UnreadableAnswerError: It is not.
    """
    _check_id(batch.id)
    counts = batch.request_counts
    numbers = (counts.processing, counts.succeeded, counts.errored, counts.canceled, counts.expired)
    are_numbers = all(type(number) is int for number in numbers)
    if batch.created_at.tzinfo is None or not are_numbers:
        raise UnreadableAnswerError("no sound batch")
    return batch


def _check_id(batch_id: str) -> None:
    if not _BATCH_ID.fullmatch(batch_id):
        raise UnreadableAnswerError("no batch's id")


@contextmanager
def _reading() -> Generator[None]:
    """The SDK hands on whatever it gets, and stumbles over it later.

    Raises:
        UnreadableAnswerError: It has stumbled.
        NoCredentialsError: It found none, before it asked.
    """
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        if "authentication method" in str(error):
            raise NoCredentialsError from error
        raise UnreadableAnswerError(type(error).__name__) from error


def _as_json(value: object) -> object:
    """What the SDK takes in a request besides plain values: its own models, and files."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Path):
        return base64.b64encode(value.read_bytes()).decode()
    if isinstance(value, io.IOBase):
        return base64.b64encode(value.read()).decode()
    raise TypeError(f"A request holds a {type(value).__name__}, which is no JSON.")


class _Pieces:
    """A file as a request body, which has to be on its way by a deadline.

    A timeout of the client's is one of each piece only: without this, an upload could go on for
    longer than anybody waits for its batch to appear.
    """

    def __init__(self, file: IO[bytes], deadline: float) -> None:
        self._file = file
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        for piece in iter(lambda: self._file.read(_BODY_PIECE), b""):
            if time.monotonic() > self._deadline:
                raise httpx2.WriteTimeout("the upload took too long")
            yield piece
