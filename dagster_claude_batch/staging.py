"""Result lines → staged rows: the best line of each request, checked by the output model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, Final

import pyarrow as pa

from dagster_claude_batch import duckdb_errors
from dagster_claude_batch.arrow import (
    are_both_valid,
    column_of,
    ints_of,
    inverted,
    mask_of,
    only_where,
    put_where,
    recast,
    rows_as,
    texts_of,
    utf8_where,
    values_of,
    with_column,
)
from dagster_claude_batch.errors import InvalidOutputError
from dagster_claude_batch.judging import Judged, judge, judge_several
from dagster_claude_batch.output import Output
from dagster_claude_batch.result_lines import (
    Line,
    lines_of,
    raw_results,
    read_bad_lines,
    read_lines,
)
from dagster_claude_batch.staged import STAGED

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
        before, are_sound = len(self._batches), True
        try:
            found = [self._add_batch(batch) for batch in self._lines(file)]
        except duckdb_errors.RAISED:
            # One bad line fails the statement as a whole, whatever has been read by then.
            found, are_sound = [self._add(read_bad_lines(file))], False
        staged = self._batches[before:]
        self._batches[before:] = _with_responses(staged, file, are_sound=are_sound)
        if found and not any(found):
            return "What was downloaded holds no line of this batch."
        return None

    def table(self) -> pa.Table:
        """All staged rows, one a question. Their order does not matter."""
        table = pa.Table.from_batches(self._batches, STAGED)
        if not self._questions and table.num_rows == len(self._worth):
            return table
        places = zip(_values(table, "ordinal"), _values(table, "position"), strict=True)
        last = {question: place for place, question in enumerate(places)}
        return table.take(column_of([*last.values()], pa.int64()))

    def _lines(self, file: IO[bytes]) -> Iterable[pa.RecordBatch]:
        """The lines, and which of them the output's grammar proves to be answers."""
        grammar = None if self._questions else self._output.grammar
        text = Line._fields[self._text_column]
        proven = "false" if grammar is None else grammar.sql(text)
        return read_lines(
            file,
            nonce=self._nonce,
            size=self._size,
            text=text,
            proven=proven,
            cites=self._output.cites,
        )

    @property
    def _text_column(self) -> int:
        return _TOOL_INPUT if self._output.is_of_tool else _TEXT

    def _add_batch(self, batch: pa.RecordBatch) -> bool:
        """Add lines that are better than what is here; False if all there are are not ours."""
        if not self._may_be_usual(batch, values_of(batch, _NUMBER)):
            return self._add(lines_of(batch))
        answers, numbers = self._answers(batch), ints_of(batch, _NUMBER)
        is_usual = are_both_valid(answers, numbers)
        answered = _answered(batch, numbers, answers).filter(is_usual)
        others = batch.filter(inverted(is_usual))
        self._batches.append(answered)
        self._worth |= dict.fromkeys(values_of(answered, _ORDINAL_COLUMN), _ANSWERED)
        return self._add(lines_of(others)) or answered.num_rows > 0

    def _may_be_usual(self, batch: pa.RecordBatch, ordinals: Sequence[int | None]) -> bool:
        """Whether lines may be what nearly all are: the one of its request, to one question."""
        if self._questions or self._output.cites or batch.nbytes > _TEXT_PER_BATCH:
            return False
        ours = [ordinal for ordinal in ordinals if ordinal is not None]
        return len(set(ours)) == len(ours) and self._worth.keys().isdisjoint(ours)

    def _answers(self, batch: pa.RecordBatch) -> pa.StringArray:
        """The columns of each line's answer as JSON; NULL where one has to look at the line."""
        texts, is_open = texts_of(batch, self._text_column), mask_of(batch, _IS_OPEN)
        proven = only_where(texts, mask_of(batch, _IS_PROVEN))
        return put_where(proven, is_open, [*map(self._validated, utf8_where(texts, is_open))])

    def _validated(self, text: bytes) -> bytes | None:
        try:
            return self._output.validate_utf8(text)
        except InvalidOutputError:  # then it is no answer, and looked at again
            return None

    def _add(self, lines: Iterable[Line]) -> bool:
        """The same, line by line."""
        total = ours = text = 0
        pending: list[tuple[Any, ...]] = []
        try:
            for total, line in enumerate(lines, 1):  # noqa: B007  # how many there were
                ordinal = self._ordinal_of(line.custom_id)
                if ordinal is None:
                    continue
                ours += 1
                better = self._rows_if_better(line, ordinal)
                pending += better
                text += sum(len(row[_ANSWER] or "") for row in better)
                if len(pending) >= _ROWS_PER_BATCH or text > _TEXT_PER_BATCH:
                    self._batches.append(rows_as(STAGED, pending))
                    pending, text = [], 0
        finally:
            if pending:
                self._batches.append(rows_as(STAGED, pending))
        return not total or ours > 0

    def _ordinal_of(self, custom_id: str | None) -> int | None:
        """The number of the request, if it is one of this batch, spelt as we spelt it."""
        nonce, _, digits = (custom_id or "").rpartition("-")
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
            [judge(line, self._output)]
            if questions == 1
            else judge_several(line, self._output, questions)
        )
        found = min(_worth_of(line, each) for each in judged)
        if found <= worth:
            return []
        self._worth[ordinal] = found
        return [_row(line, ordinal, position, each) for position, each in enumerate(judged)]


_ORDINAL: Final = re.compile("0|[1-9][0-9]{0,8}")
_ANSWER: Final = STAGED.names.index("answer")


def _worth_of(line: Line, judged: Judged) -> int:
    _, outcome, _ = judged
    if outcome is None:
        return _ANSWERED
    if line.type is None:
        return _UNREADABLE
    return _BILLED if line.type == "succeeded" else _UNBILLED


def _row(line: Line, ordinal: int, position: int, judged: Judged) -> tuple[Any, ...]:
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
        line.input_tokens,
        line.output_tokens,
        line.cache_read_tokens,
        line.cache_write_tokens,
        line.cache_write_1h_tokens,
        line.web_searches,
        line.request_id,
    )


# --- many lines at once ---------------------------------------------------------------------


_TEXT, _TOOL_INPUT = (Line._fields.index(name) for name in ("text", "tool_input"))
_NUMBER, _IS_PROVEN, _IS_OPEN = range(len(Line._fields), len(Line._fields) + 3)
_ORDINAL_COLUMN: Final = STAGED.names.index("ordinal")


def _answered(
    batch: pa.RecordBatch, ordinals: "pa.Array[Any]", answers: pa.StringArray
) -> pa.RecordBatch:
    """Stage lines as those of answers."""
    columns: dict[str, pa.Array[Any]] = {
        "ordinal": ordinals,
        "position": column_of([0] * batch.num_rows, pa.int32()),
        "answer": answers,
        **{name: batch.column(name) for name in _CARRIED},
    }
    return recast(columns, STAGED, batch.num_rows)


_CARRIED: Final = [n for n in STAGED.names if n in Line._fields and n != "error_message"]


# --- raw results ----------------------------------------------------------------------------


def _with_responses(
    batches: Sequence[pa.RecordBatch], file: IO[bytes], *, are_sound: bool
) -> list[pa.RecordBatch]:
    """Add the raw result to each failure; answers do not need theirs."""
    failed = {
        custom_id
        for batch in batches
        if _has_failures(batch)
        for custom_id, outcome in zip(*(values_of(batch, n) for n in _IDS), strict=True)
        if outcome is not None
    }
    if not failed:
        return list(batches)
    raw = raw_results(file, failed, are_sound=are_sound)
    return [_with_theirs(batch, raw) if _has_failures(batch) else batch for batch in batches]


def _has_failures(batch: pa.RecordBatch) -> bool:
    return batch.column(_IDS[1]).null_count < batch.num_rows


def _with_theirs(batch: pa.RecordBatch, raw: Mapping[str, str]) -> pa.RecordBatch:
    responses = [raw.get(custom_id) for custom_id in values_of(batch, _IDS[0])]
    return with_column(batch, "response", responses)


_IDS: Final = [STAGED.names.index(name) for name in ("custom_id", "outcome")]


def _values(table: pa.Table, column: str) -> list[Any]:
    return table.column(column).to_pylist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # pyarrow's stubs leave the values open
