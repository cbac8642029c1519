"""One request → the line of it in the results, as if the batch ran to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dagster_claude_batch.simulator.answers import Answer, Answered, answer_to, cut
from dagster_claude_batch.simulator.errors import (
    ApiError,
    OutcomeFunctionError,
    UnknownOutcomeError,
)
from dagster_claude_batch.simulator.json_values import Params, compact, identifier
from dagster_claude_batch.simulator.outcomes import (
    INVALID_OUTPUT,
    UNKNOWN_RESULT_TYPE,
    Outcome,
    OutcomeName,
    error_of,
    is_outcome,
)
from dagster_claude_batch.simulator.params import check
from dagster_claude_batch.simulator.tokens import tokens_of

if TYPE_CHECKING:
    from dagster_claude_batch.simulator.models import Model
    from dagster_claude_batch.simulator.tokens import PromptCache

Kind: TypeAlias = Literal["succeeded", "missing", "unknown", "errored", "expired", "canceled"]
"""How a row counts: missing and unknown ones as succeeded, the others as what they are."""

_REFUSAL = {
    "type": "refusal",
    "category": "general_harms",
    "explanation": "This request was declined by a simulated classifier.",
}


@dataclass(frozen=True, slots=True)
class Row:
    """What one request came to; ``line`` is there even for a missing row, which is billed."""

    kind: Kind
    line: bytes


@dataclass(frozen=True, slots=True)
class RowWorker:
    """Works through the requests of one batch, in their order."""

    batch_id: str
    seed: int
    answer: Answer | None
    outcome: Outcome | None
    cache: PromptCache

    def work(self, custom_id: str, params: Params, *, seen: int) -> Row:
        """Find the row that a request ends as, if nothing befalls its batch.

        Raises:
            SimulatorSetupError: The ``outcome`` function is at fault.
        """
        try:
            model = check(params)
            outcome = self._outcome(custom_id, params, seen)
            return self._row(custom_id, params, model, outcome)
        except ApiError as error:
            return self._errored(custom_id, error)

    def _outcome(self, custom_id: str, params: Params, seen: int) -> OutcomeName | None:
        if self.outcome is None:
            return None
        try:
            outcome = self.outcome(params, custom_id, seen)
        except Exception as error:
            raise OutcomeFunctionError(custom_id, error) from error
        if outcome is None or is_outcome(outcome):
            return outcome
        raise UnknownOutcomeError(custom_id, outcome)

    def _row(
        self, custom_id: str, params: Params, model: Model, outcome: OutcomeName | None
    ) -> Row:
        error = error_of(outcome) if outcome is not None else None
        if error is not None:
            raise error
        match outcome:
            case "expired" | "canceled":
                return Row(outcome, line_of(custom_id, {"type": outcome}))
            case "unknown":
                return Row(outcome, line_of(custom_id, {"type": UNKNOWN_RESULT_TYPE}))
            case _:
                message = self._message(custom_id, params, model, self._answered(params, outcome))
                result = {"type": "succeeded", "message": message}
                kind = "missing" if outcome == "missing" else "succeeded"
                return Row(kind, line_of(custom_id, result))

    def _answered(self, params: Params, outcome: OutcomeName | None) -> Answered:
        match outcome:
            case "refusal":
                return Answered([], "refusal", 1)
            case "invalid_output":
                content = [{"type": "text", "text": INVALID_OUTPUT}]
                return Answered(content, "end_turn", tokens_of(INVALID_OUTPUT))
            case "max_tokens":
                return cut(self._normal(params), outcome, tokens=params["max_tokens"])
            case "pause_turn" | "model_context_window_exceeded":
                return cut(self._normal(params), outcome)
            case _:
                return self._normal(params)

    def _normal(self, params: Params) -> Answered:
        try:
            return answer_to(params, answer=self.answer, seed=self.seed)
        except Exception as error:
            raise ApiError(
                "api_error",
                f"The simulator's `answer` function raised {type(error).__name__}: {error}",
            ) from error

    def _message(
        self, custom_id: str, params: Params, model: Model, answered: Answered
    ) -> dict[str, Any]:
        return {
            "model": params["model"],
            "id": identifier("msg", self.batch_id, custom_id),
            "type": "message",
            "role": "assistant",
            "content": answered.content,
            "stop_reason": answered.stop_reason,
            "stop_sequence": answered.stop_sequence,
            "stop_details": _REFUSAL if answered.stop_reason == "refusal" else None,
            "usage": self._usage(params, model, answered),
        }

    def _usage(self, params: Params, model: Model, answered: Answered) -> dict[str, Any]:
        cached = self.cache.serve(params, smallest=model.min_cached_tokens)
        return {
            **cached.as_usage(),
            "output_tokens": answered.output_tokens,
            "output_tokens_details": {"thinking_tokens": answered.thinking_tokens},
            "service_tier": "batch",
            **(answered.usage or {}),
        }

    def _errored(self, custom_id: str, error: ApiError) -> Row:
        body = error.as_json(identifier("req", self.batch_id, custom_id))
        return Row("errored", line_of(custom_id, {"type": "errored", "error": body}))


def line_of(custom_id: str, result: dict[str, Any]) -> bytes:
    """Write a line of the results."""
    return f"{compact({'custom_id': custom_id, 'result': result})}\n".encode(errors="replace")


def custom_id_of(line: bytes) -> str:
    """Read the custom id of such a line; it holds nothing that JSON escapes."""
    return line.split(b'"', 4)[3].decode()
