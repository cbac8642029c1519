"""A result line → an answer's columns, or why it is none."""

import re
from typing import Final, NamedTuple

from dagster_claude_batch.errors import InvalidOutputError
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.outcomes import failure_of_stop_reason
from dagster_claude_batch.output import Output
from dagster_claude_batch.request.packing import answers_in
from dagster_claude_batch.result_lines import Line


class Judged(NamedTuple):
    """The columns of an answer as JSON; or else why there is none, as an outcome and in words."""

    answer: str | None
    outcome: str | None = None
    message: str | None = None


def _none(outcome: str, message: str | None) -> Judged:
    return Judged(None, outcome, message)


def judge(line: Line, output: Output) -> Judged:
    """Judge the answer to the one question of a request."""
    match line.type:
        case "succeeded":
            return _judge_message(line, output)
        case "errored":
            return _judge_error(line)
        case "canceled":
            return _none("canceled", "The batch was cancelled before this request was processed.")
        case "expired":
            return _none("expired", "The request was not processed within 24 hours.")
        case None:
            unknown = "The result has no type."
            return _none("unrecognized_result", line.error_message or unknown)
        case _:
            unknown = f"The result has the type {_quoted(line.type)}, which is not known."
            return _none("unrecognized_result", line.error_message or unknown)


def _judge_message(line: Line, output: Output) -> Judged:
    failure = _failure_of(line)
    if failure is not None:
        return failure
    first, second = line.text, line.tool_input
    if output.is_of_tool:
        first, second = second, first
    answer = first if first is not None else second
    if answer is None:
        return _none("invalid_output", "The answer holds no text.")
    try:
        if output.cites:
            return Judged(output.validate_citing(answer, line.citations))
        return Judged(output.validate(answer))
    except InvalidOutputError as error:
        return _none("invalid_output", str(error))


def judge_several(line: Line, output: Output, questions: int) -> list[Judged]:
    """Judge the answer to each question by itself; what is wrong with all of it fails all."""
    if line.type != "succeeded":
        return [judge(line, output)] * questions
    failure = _failure_of(line)
    if failure is not None:
        return [failure] * questions
    try:
        found = answers_in(line.text or "", output, questions)
    except InvalidOutputError as error:
        return [_none("invalid_output", str(error))] * questions
    return [
        Judged(answer) if answer is not None else _none("invalid_output", message)
        for answer, message in found
    ]


def _failure_of(line: Line) -> Judged | None:
    """Why a message is no answer, by the reason for which it ended."""
    failure = failure_of_stop_reason(line.stop_reason)
    if failure is None:
        return None
    ended = f"The answer ended with stop_reason {_quoted(line.stop_reason)}."
    return _none(failure, line.explanation or ended)


def _judge_error(line: Line) -> Judged:
    """Take over the API's type; what cannot be one must not pass for a word of ours."""
    if line.error_type and _ERROR_TYPE.fullmatch(line.error_type):
        return _none(line.error_type, line.error_message or None)
    unknown = f"The error has the type {_quoted(line.error_type)}, which is not known."
    return _none("unrecognized_result", line.error_message or unknown)


_ERROR_TYPE: Final = re.compile("(?!answer$)[a-z][a-z0-9_]{0,63}")


def _quoted(text: str | None) -> str:
    return repr(text) if text is None else f"'{one_line(text, longest=80)}'"
