"""What a result means: an answer, or a failure that is worth another attempt or not."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

ResultType: TypeAlias = Literal["succeeded", "errored", "canceled", "expired"]
"""The result types of the API; anything else is an ``unrecognized_result``."""

OwnErrorType: TypeAlias = Literal[
    "expired",
    "canceled",
    "missing",
    "refusal",
    "max_tokens",
    "pause_turn",
    "model_context_window_exceeded",
    "invalid_output",
    "results_expired",
    "unrecognized_result",
    "invalid_row",
]
"""Why a row failed where the API itself reported no error for it."""

OWN_ERRORS: Final[dict[OwnErrorType, str]] = {
    "expired": "The batch did not come to it within 24 hours, or `max_wait_hours` had passed.",
    "canceled": "The batch was cancelled before it came to it.",
    "missing": "The batch has ended, and its results have no line for it.",
    "refusal": "The model declined to answer.",
    "max_tokens": "The answer was cut off, with the most tokens that the model can give, or at the "
    "last attempt.",
    "pause_turn": "The model paused a long turn, which a batch cannot go on with.",
    "model_context_window_exceeded": "Prompt and answer are longer than the model's context.",
    "invalid_output": "The answer does not fit `output`.",
    "results_expired": "The results were archived, deleted or older than 29 days.",
    "unrecognized_result": "The result ends in a way that this version does not know.",
    "invalid_row": "It could not be asked: a NULL or unusable value in a column of the prompt, or "
    "a function that made no request of it. Never sent.",
}
"""What each of these means, for people."""

ANSWER_STOP_REASONS: Final = frozenset({"end_turn", "stop_sequence", "tool_use"})
"""Stop reasons of a complete answer."""

TRUNCATED: Final = "max_tokens"
"""Worth another attempt only with more room, up to the model's own limit."""

RETRYABLE: Final = frozenset(
    {
        # The API's own types: passing trouble on its side, not billed.
        "api_error",
        "overloaded_error",
        "timeout_error",
        "rate_limit_error",
        # Ours.
        "expired",
        "canceled",
        "missing",
        "results_expired",
        "invalid_output",
        TRUNCATED,
    }
)
"""Failures that the same request may not meet again."""


@dataclass(frozen=True)
class Absent:
    """What becomes of a request without a result.

    ``may_be_billed`` where nobody can know its cost; ``is_attempt`` unless it was never sent.
    """

    error_type: str
    message: str
    may_be_billed: bool = True
    is_attempt: bool = True


MISSING: Final = Absent(
    "missing", "The batch has ended, but its results hold no line for this request."
)
RESULTS_EXPIRED: Final = Absent(
    "results_expired", "The results were gone before they were collected."
)
TOO_LARGE: Final = Absent(
    "request_too_large",
    "The API refused this request alone as too large.",
    may_be_billed=False,
)
NOT_SENT: Final = Absent(
    "expired",
    "It could not be sent before `max_wait_hours` had passed.",
    may_be_billed=False,
    is_attempt=False,
)

UNREAD: Final = frozenset({MISSING.error_type, "unrecognized_result"})
"""Failures of rows whose results somebody may still want to read where they are."""

HALT_MESSAGES: Final = ("credit balance is too low", "usage limit", "spend limit")
"""Words of the API's messages that concern the account, whatever the error type says."""


def is_halt(message: str | None) -> bool:
    """Whether an error message says that the account, not the request, is at fault."""
    text = (message or "").lower()
    return any(words in text for words in HALT_MESSAGES)


def is_halt_of_row(error_type: str | None, message: str | None) -> bool:
    """Whether a row was refused for the account's sake: that was no attempt."""
    return error_type == "billing_error" or is_halt(message)


def failure_of_stop_reason(stop_reason: str | None) -> str | None:
    """Why a succeeded result is no answer; None for one that is."""
    if stop_reason in ANSWER_STOP_REASONS:
        return None
    if stop_reason in get_args(OwnErrorType):
        return stop_reason
    return "unrecognized_result"


def is_retryable(error_type: str, *, max_tokens: int, model_max_tokens: int | None) -> bool:
    """Whether another attempt may end differently.

    ``max_tokens`` is what the failed attempt was allowed; ``model_max_tokens`` None when unknown.
    """
    if error_type == TRUNCATED:
        return model_max_tokens is None or max_tokens < model_max_tokens
    return error_type in RETRYABLE


def next_max_tokens(error_type: str, *, max_tokens: int, model_max_tokens: int | None) -> int:
    """What the next attempt is allowed: twice as much after a truncated answer."""
    if error_type != TRUNCATED:
        return max_tokens
    doubled = 2 * max_tokens
    return doubled if model_max_tokens is None else min(doubled, model_max_tokens)
