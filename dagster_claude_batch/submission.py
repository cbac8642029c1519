"""Chunk → batch: the one call that creates it, and what its answer means."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal, TypeAlias

import anthropic
import httpx2
from anthropic.types.messages import MessageBatch

from dagster_claude_batch.bodies import Body
from dagster_claude_batch.errors import UnreadableAnswerError
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.outcomes import is_halt
from dagster_claude_batch.resource import ClaudeBatchResource


@dataclass(frozen=True)
class Created:
    """The batch exists."""

    batch: MessageBatch


@dataclass(frozen=True)
class NotCreated:
    """The batch surely does not exist, and why.

    ``unreachable`` was not heard at all, ``busy`` may be asked again after ``retry_after``,
    ``too_large`` has to be split; ``halted`` is the account's fault, ``refused`` the batch's.
    """

    reason: str
    because: Literal["unreachable", "busy", "too_large", "halted", "refused"]
    retry_after: timedelta | None = None


@dataclass(frozen=True)
class InDoubt:
    """Nobody can say yet whether the batch exists."""

    reason: str


Sent: TypeAlias = Created | NotCreated | InDoubt


# --- sending --------------------------------------------------------------------------------


def post(claude: ClaudeBatchResource, body: Body) -> Sent:
    """Send one body, once, and say what is known about the batch then."""
    try:
        return Created(claude.create_from_body(body.file, body.size))
    except anthropic.APIStatusError as error:
        return _refusal(error)
    except anthropic.APIConnectionError as error:
        if isinstance(error.__cause__, _NEVER_SENT):
            return NotCreated(one_line(f"{error.__cause__}"), "unreachable")
        return InDoubt(one_line(f"{type(error.__cause__).__name__}: {error.__cause__}"))
    except UnreadableAnswerError as error:
        return InDoubt(str(error))


_NEVER_SENT: Final = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.UnsupportedProtocol,
)
"""Errors from before the first byte of the body left."""

_TIMEOUT, _CONFLICT, _TOO_LARGE, _TOO_MANY, _SERVER = 408, 409, 413, 429, 500
_HALTING: Final = frozenset({401, 402, 403})
_HALTING_CODES: Final = frozenset(
    {
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
        "organization_on_hold",
        "cmek_key_disabled",
    }
)


def _refusal(error: anthropic.APIStatusError) -> Sent:
    """Tell what an error status means for a create."""
    status, message = error.status_code, error.api_message or ""
    reason = f"{status} {one_line(message) or type(error).__name__}"
    if status in {_TIMEOUT, _CONFLICT} or status >= _SERVER:
        return InDoubt(reason)
    if status == _TOO_LARGE:
        return NotCreated(reason, "too_large")
    if status in _HALTING or error.error_code in _HALTING_CODES or is_halt(message):
        return NotCreated(reason, "halted")
    if status == _TOO_MANY:
        return NotCreated(reason, "busy", _retry_after(error))
    return NotCreated(reason, "refused")


def _retry_after(error: anthropic.APIStatusError) -> timedelta | None:
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return timedelta(seconds=min(max(1.0, seconds), _LONGEST_PAUSE.total_seconds()))


_LONGEST_PAUSE: Final = timedelta(hours=1)


# --- what a batch shows ---------------------------------------------------------------------


def size_of(batch: MessageBatch) -> int:
    """How many requests a batch has: the sum of its counts, whatever its status."""
    counts = batch.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
