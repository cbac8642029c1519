"""What the simulated API refuses, and what a user of the simulator got wrong."""

from __future__ import annotations

from typing import Literal, TypeAlias

from dagster_claude_batch.errors import ClaudeBatchError

ErrorType: TypeAlias = Literal[
    "invalid_request_error",
    "authentication_error",
    "billing_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "timeout_error",
    "api_error",
    "overloaded_error",
]

_STATUSES: dict[ErrorType, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class ApiError(ClaudeBatchError):
    """An error as the API reports it: of a whole call, or of one row in the results."""

    def __init__(self, error_type: ErrorType, message: str) -> None:
        super().__init__(message)
        self.type: ErrorType = error_type
        self.message = message

    @property
    def status(self) -> int:
        """The HTTP status that goes with the type."""
        return _STATUSES[self.type]

    def as_json(self, request_id: str | None) -> dict[str, object]:
        """Show it as the API's error replies do, and errored rows in the results."""
        return {
            "type": "error",
            "error": {"type": self.type, "message": self.message},
            "request_id": request_id,
        }


def invalid(message: str) -> ApiError:
    """Make the error for everything that is wrong with what was sent."""
    return ApiError("invalid_request_error", message)


class SimulatorSetupError(ClaudeBatchError):
    """The simulator cannot do what it was set up to do; over HTTP this is a 400."""


class FunctionNotFoundError(SimulatorSetupError):
    """``answer`` or ``outcome`` names a function that cannot be imported."""

    def __init__(self, argument: str, name: str, *, reason: str) -> None:
        super().__init__(
            f"The simulator cannot import {argument}={name!r}: {reason}. No batch was created. "
            "Name a function as 'package.module:function', in a module that this process can "
            "import."
        )


class UnknownOutcomeError(SimulatorSetupError):
    """The ``outcome`` function returned something that is no outcome."""

    def __init__(self, custom_id: str, outcome: object) -> None:
        super().__init__(
            f"The simulator's `outcome` function returned {outcome!r} for {custom_id!r}. No batch "
            "was created. Return None or one of `dagster_claude_batch.simulator.OutcomeName`."
        )


class OutcomeFunctionError(SimulatorSetupError):
    """The ``outcome`` function raised."""

    def __init__(self, custom_id: str, error: Exception) -> None:
        super().__init__(
            f"The simulator's `outcome` function raised {type(error).__name__}: {error} for "
            f"{custom_id!r}. No batch was created."
        )
