"""What a row can be made to end as, whatever it asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, TypeGuard, get_args

from dagster_claude_batch.simulator.errors import ApiError, ErrorType
from dagster_claude_batch.simulator.json_values import Params

OutcomeName: TypeAlias = Literal[
    "errored:invalid_request_error",
    "errored:not_found_error",
    "errored:permission_error",
    "errored:authentication_error",
    "errored:billing_error",
    "errored:api_error",
    "errored:overloaded_error",
    "errored:timeout_error",
    "errored:rate_limit_error",
    "halted",
    "expired",
    "canceled",
    "refusal",
    "max_tokens",
    "pause_turn",
    "model_context_window_exceeded",
    "invalid_output",
    "missing",
    "unknown",
]
"""How a row ends that is not simply answered.

- ``errored:…``: an errored row of that type, unbilled.
- ``halted``: an ``invalid_request_error`` that speaks of the credit balance, unbilled.
- ``expired``, ``canceled``: such a row, even in a batch that neither expired nor was cancelled.
- ``refusal``, ``max_tokens``, ``pause_turn``, ``model_context_window_exceeded``: succeeded and
  billed, with that ``stop_reason``; text is cut in the middle.
- ``invalid_output``: succeeded and billed, but prose instead of the JSON that was asked for.
- ``missing``: counted as succeeded and billed, without a line in the results.
- ``unknown``: counted as succeeded, with a result type that nobody knows; not billed.
"""

Outcome: TypeAlias = Callable[[Params, str, int], str | None]
"""``(params, custom_id, seen)`` → an :data:`OutcomeName`, or None for a normal answer.

``seen`` says how often the same question (model, system, messages) was submitted before,
counting all batches that were created, and earlier requests of this one. Asked for valid
requests only: what the API refuses is an errored row in any case.
"""

UNKNOWN_RESULT_TYPE = "deferred"
INVALID_OUTPUT = "I would rather answer in prose: {it depends."

_NAMES = frozenset[str](get_args(OutcomeName))


def is_outcome(value: object) -> TypeGuard[OutcomeName]:
    """Whether it is one of the names."""
    return isinstance(value, str) and value in _NAMES


def error_of(outcome: OutcomeName) -> ApiError | None:
    """Find the error of an outcome that is one."""
    if outcome == "halted":
        return ApiError(
            "invalid_request_error",
            "Your credit balance is too low to access the Anthropic API. "
            "Please go to Plans & Billing to upgrade or purchase credits.",
        )
    for error_type in get_args(ErrorType):
        if outcome == f"errored:{error_type}":
            return ApiError(error_type, f"Simulated {error_type}")
    return None
