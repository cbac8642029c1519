"""Results file → staged rows: what each result line says, checked by the output model."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import IO, Any, Final

import anthropic
import pyarrow as pa
from anthropic.types.messages import MessageBatch

from dagster_claude_batch import duckdb_errors
from dagster_claude_batch.errors import (
    InvalidOutputError,
    ResultsUnavailableError,
    UnreadableAnswerError,
)
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.outcomes import failure_of_stop_reason
from dagster_claude_batch.output import Output
from dagster_claude_batch.request.packing import answers_in
from dagster_claude_batch.resource import UNANSWERED, ClaudeBatchResource
from dagster_claude_batch.result_lines import (
    Line,
    private_file,
    raw_results,
    read_bad_lines,
    read_lines,
)
from dagster_claude_batch.submission import size_of

PAUSES: Final = (1.0, 5.0)
"""Seconds before each further try of a download that breaks, lacks lines or has other counts."""

FINAL_AFTER: Final = timedelta(hours=1)
"""After a batch's end; until then, lines that its results lack may still come."""

STAGED: Final = pa.schema(
    [
        ("ordinal", pa.int32()),
        ("position", pa.int32()),
        ("custom_id", pa.string()),
        ("answer", pa.string()),
        ("outcome", pa.string()),
        ("error_message", pa.string()),
        ("stop_reason", pa.string()),
        ("response", pa.string()),
        ("model", pa.string()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cache_read_tokens", pa.int64()),
        ("cache_write_tokens", pa.int64()),
        ("cache_write_1h_tokens", pa.int64()),
        ("web_searches", pa.int64()),
        ("request_id", pa.string()),
    ]
)
"""One row a question: ``position`` tells those of one request apart. ``outcome`` is NULL for an
answer, whose columns ``answer`` then is as JSON;
``cache_write_tokens`` includes those of one hour."""


# --- downloading ----------------------------------------------------------------------------


def fetch(
    claude: ClaudeBatchResource,
    batch: MessageBatch,
    output: Output,
    *,
    nonce: str | None,
    questions: Mapping[int, int] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> pa.Table:
    """Download and read a batch's results, in several tries if lines are lacking or broken.

    ``questions`` is how many each request has, by its ordinal, of those that have several.
    What one try has read counts, whatever becomes of the next. Lines that no try brings are left
    to be missing, but only where each download came to its regular end, and long after the batch's.

    Raises:
        ResultsUnavailableError: Not all of it is here, and the rest may still come.
        OSError: The temporary directory has no room for it.
    """
    counts = batch.request_counts
    staging = Staging(
        output,
        nonce=nonce,
        size=size_of(batch),
        succeeded=counts.succeeded,
        questions=questions,
    )
    broken: list[str] = []
    for pause in (0.0, *PAUSES):
        if pause:
            sleep(pause)
        with private_file() as file:
            problem = _download(claude, batch, file)
            problem = staging.read(file) or problem
        if staging.is_complete:
            return staging.table()
        broken += [problem] if problem else []
    if broken:
        raise ResultsUnavailableError(batch.id, broken[-1])
    if staging.lacking and claude.now() - (batch.ended_at or batch.created_at) < FINAL_AFTER:
        lacking = f"{staging.lacking:,} of {size_of(batch):,} lines are not there, and may come."
        raise ResultsUnavailableError(batch.id, lacking)
    return staging.table()


def _download(claude: ClaudeBatchResource, batch: MessageBatch, file: IO[bytes]) -> str | None:
    """Download once: None, or in what way it broke; ``file`` has what had come by then."""
    try:
        claude.download(batch, file)
    except anthropic.APIStatusError as error:
        reason = one_line(f"{error.status_code} {error.api_message or error.message}")
        if isinstance(error, anthropic.NotFoundError):
            is_gone = _is_gone(claude, batch.id)
            raise ResultsUnavailableError(batch.id, f"{reason}.", is_gone=is_gone) from error
        if error.status_code in _PASSING or error.status_code >= _SERVER_ERRORS:
            return f"{reason}."
        raise
    except LookupError as error:
        is_gone = _is_gone(claude, batch.id)
        raise ResultsUnavailableError(
            batch.id, "The API shows no results.", is_gone=is_gone
        ) from error
    except (anthropic.APIConnectionError, UnreadableAnswerError) as error:
        return one_line(f"{error}.")
    return None


_PASSING: Final = frozenset({408, 409, 429})
_SERVER_ERRORS: Final = 500


def _is_gone(claude: ClaudeBatchResource, batch_id: str) -> bool:
    try:
        now = claude.retrieve(batch_id)
    except UNANSWERED:
        return False
    return now.processing_status == "ended" and now.archived_at is not None


# --- staging --------------------------------------------------------------------------------

_UNREADABLE, _UNBILLED, _BILLED, _ANSWERED = range(1, 5)
"""What a line is worth: of several for one request the best counts, and the first of these."""

_ROWS_PER_BATCH: Final = 8_192
_TEXT_PER_BATCH: Final = 2**27
"""Characters; an Arrow array of strings ends at 2 GiB."""


class Staging:
    """Rows for the requests of one batch, gathered from one file after another."""

    def __init__(
        self,
        output: Output,
        *,
        nonce: str | None,
        size: int,
        succeeded: int = 0,
        questions: Mapping[int, int] | None = None,
    ) -> None:
        self._output = output
        self._questions = questions or {}
        self._nonce = nonce
        self._size = size
        self._succeeded = succeeded
        self._worth: dict[int, int] = {}
        self._batches: list[pa.RecordBatch] = []

    @property
    def is_complete(self) -> bool:
        """Whether each request has a line that can be read, and as many succeeded as were said."""
        worths = list(self._worth.values())
        readable = sum(worth > _UNREADABLE for worth in worths)
        return readable >= self._size and sum(w >= _BILLED for w in worths) >= self._succeeded

    @property
    def lacking(self) -> int:
        """Requests without any line."""
        return self._size - len(self._worth)

    def read(self, file: IO[bytes]) -> str | None:
        """Stage what a results file holds that is better; why it cannot be one, or None."""
        before = len(self._batches)
        try:
            found = self._add(read_lines(file))
        except duckdb_errors.RAISED:
            # One bad line fails the statement as a whole, whatever has been read by then.
            found = self._add(read_bad_lines(file))
        self._batches[before:] = _with_responses(self._batches[before:], file)
        return None if found else "What was downloaded holds no line of this batch."

    def table(self) -> pa.Table:
        """All staged rows, one a question. Their order does not matter."""
        table = pa.Table.from_batches(self._batches, STAGED)
        if not self._questions and table.num_rows == len(self._worth):
            return table
        places = zip(_values(table, "ordinal"), _values(table, "position"), strict=True)
        last = {question: place for place, question in enumerate(places)}
        return table.take(pa.array(last.values(), pa.int64()))

    def _add(self, lines: Iterable[Line]) -> bool:
        """Add lines that are better than what is here; False if all there are are not ours."""
        total = ours = text = 0
        pending: list[tuple[Any, ...]] = []
        try:
            for total, line in enumerate(lines, 1):  # noqa: B007  # how many there were
                ordinal = self._ordinal_of(line)
                if ordinal is None:
                    continue
                ours += 1
                better = self._rows_if_better(line, ordinal)
                pending += better
                text += sum(len(row[_ANSWER] or "") for row in better)
                if len(pending) >= _ROWS_PER_BATCH or text > _TEXT_PER_BATCH:
                    self._batches.append(_record_batch(pending))
                    pending, text = [], 0
        finally:
            if pending:
                self._batches.append(_record_batch(pending))
        return not total or ours > 0

    def _ordinal_of(self, line: Line) -> int | None:
        """The number of the request, if the line is one of this batch, spelt as we spelt it."""
        nonce, _, digits = (line.custom_id or "").rpartition("-")
        if self._nonce not in {None, nonce} or not _ORDINAL.fullmatch(digits):
            return None
        ordinal = int(digits)
        return ordinal if ordinal < self._size else None

    def _rows_if_better(self, line: Line, ordinal: int) -> list[tuple[Any, ...]]:
        """A row for each question of the request that the line is about."""
        worth = self._worth.get(ordinal, 0)
        if worth == _ANSWERED:
            return []
        questions = self._questions.get(ordinal, 1)
        judged = (
            [_judge(line, self._output)]
            if questions == 1
            else _judge_several(line, self._output, questions)
        )
        found = min(_worth_of(line, each) for each in judged)
        if found <= worth:
            return []
        self._worth[ordinal] = found
        return [_row(line, ordinal, position, each) for position, each in enumerate(judged)]


_ORDINAL: Final = re.compile("0|[1-9][0-9]{0,8}")
_ANSWER: Final = STAGED.names.index("answer")

_Judged = tuple[str | None, str | None, str | None]
"""The columns of an answer as JSON, or why it is none: (answer, outcome, message)."""


def _worth_of(line: Line, judged: _Judged) -> int:
    _, outcome, _ = judged
    if outcome is None:
        return _ANSWERED
    if line.type is None:
        return _UNREADABLE
    return _BILLED if line.type == "succeeded" else _UNBILLED


def _record_batch(staged: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = dict(zip(STAGED.names, map(list, zip(*staged, strict=True)), strict=True))
    return pa.RecordBatch.from_pydict(columns, schema=STAGED)


def _row(line: Line, ordinal: int, position: int, judged: _Judged) -> tuple[Any, ...]:
    answer, outcome, message = judged
    return (
        ordinal,
        position,
        line.custom_id,
        answer,
        outcome,
        message,
        line.stop_reason,
        None,
        line.model,
        _count(line.input_tokens),
        _count(line.output_tokens),
        _count(line.cache_read_tokens),
        _count(line.cache_write_tokens),
        _count(line.cache_write_1h_tokens),
        _count(line.web_searches),
        line.request_id,
    )


_LARGEST_COUNT: Final = 10_000_000
"""Ten times the largest context: more is no count, and would not fit where costs are summed."""


def _count(number: int | None) -> int | None:
    return number if number is not None and 0 <= number <= _LARGEST_COUNT else None


# --- judging --------------------------------------------------------------------------------


def _judge(line: Line, output: Output) -> _Judged:
    match line.type:
        case "succeeded":
            return _judge_message(line, output)
        case "errored":
            return _judge_error(line)
        case "canceled":
            return None, "canceled", "The batch was cancelled before this request was processed."
        case "expired":
            return None, "expired", "The request was not processed within 24 hours."
        case None:
            unknown = "The result has no type."
            return None, "unrecognized_result", line.error_message or unknown
        case _:
            unknown = f"The result has the type {_quoted(line.type)}, which is not known."
            return None, "unrecognized_result", line.error_message or unknown


def _judge_message(line: Line, output: Output) -> _Judged:
    failure = _failure_of(line)
    if failure is not None:
        return failure
    first, second = line.text, line.tool_input
    if output.is_of_tool:
        first, second = second, first
    answer = first if first is not None else second
    if answer is None:
        return None, "invalid_output", "The answer holds no text."
    try:
        if output.cites:
            return output.validate_citing(answer, line.citations), None, None
        return output.validate(answer), None, None
    except InvalidOutputError as error:
        return None, "invalid_output", str(error)


def _judge_several(line: Line, output: Output, questions: int) -> list[_Judged]:
    """Judge the answer to each question by itself; what is wrong with all of it fails all."""
    if line.type != "succeeded":
        return [_judge(line, output)] * questions
    failure = _failure_of(line)
    if failure is not None:
        return [failure] * questions
    try:
        found = answers_in(line.text or "", output, questions)
    except InvalidOutputError as error:
        return [(None, "invalid_output", str(error))] * questions
    return [
        (answer, None if answer is not None else "invalid_output", message)
        for answer, message in found
    ]


def _failure_of(line: Line) -> _Judged | None:
    """Why a message is no answer, by the reason for which it ended."""
    failure = failure_of_stop_reason(line.stop_reason)
    if failure is None:
        return None
    ended = f"The answer ended with stop_reason {_quoted(line.stop_reason)}."
    return None, failure, line.explanation or ended


def _judge_error(line: Line) -> _Judged:
    """Take over the API's type; what cannot be one must not pass for a word of ours."""
    if line.error_type and _ERROR_TYPE.fullmatch(line.error_type):
        return None, line.error_type, line.error_message or None
    unknown = f"The error has the type {_quoted(line.error_type)}, which is not known."
    return None, "unrecognized_result", line.error_message or unknown


_ERROR_TYPE: Final = re.compile("(?!answer$)[a-z][a-z0-9_]{0,63}")


def _quoted(text: str | None) -> str:
    return repr(text) if text is None else f"'{one_line(text, longest=80)}'"


# --- raw results ----------------------------------------------------------------------------


def _with_responses(batches: list[pa.RecordBatch], file: IO[bytes]) -> list[pa.RecordBatch]:
    """Add the raw result to each failure; answers do not need theirs."""
    table = pa.Table.from_batches(batches, STAGED)
    ids, outcomes = _values(table, "custom_id"), _values(table, "outcome")
    failed = {i for i, outcome in zip(ids, outcomes, strict=True) if outcome is not None}
    if not failed:
        return batches
    raw = raw_results(file, failed)
    responses = pa.array([raw.get(custom_id) for custom_id in ids], pa.string())
    return table.set_column(STAGED.names.index("response"), "response", responses).to_batches()


def _values(table: pa.Table, column: str) -> list[Any]:
    return table.column(column).to_pylist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # pyarrow's stubs leave the values open
