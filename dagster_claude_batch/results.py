"""Results file → staged rows: what each result line says, checked by the output model.

Works on an in-memory DuckDB of its own, so that the warehouse stays free meanwhile.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import duckdb
import pyarrow as pa
from anthropic.types.messages import MessageBatch
from pydantic import BaseModel

from dagster_claude_batch.errors import InvalidOutputError
from dagster_claude_batch.outcomes import failure_of_stop_reason
from dagster_claude_batch.output import Output
from dagster_claude_batch.resource import ClaudeBatchResource
from dagster_claude_batch.submission import nonce_in, ordinal_in, size_of
from dagster_claude_batch.warehouse import columns_of, read_arrow

DOWNLOADS: Final = 3
"""How often a download that lacks lines is repeated before these lines count as missing."""

STAGED: Final = pa.schema(
    [
        ("ordinal", pa.int32()),
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
"""One row a result. ``outcome`` is NULL for an answer, whose columns ``answer`` then is as JSON;
``cache_write_tokens`` includes those of one hour."""

_COLUMNS: Final = {
    "custom_id": "VARCHAR",
    "result": """STRUCT(
        "type" VARCHAR,
        message STRUCT(
            model VARCHAR,
            stop_reason VARCHAR,
            stop_details STRUCT(category VARCHAR, explanation VARCHAR),
            content STRUCT("type" VARCHAR, "text" VARCHAR, input JSON)[],
            usage STRUCT(
                input_tokens BIGINT, output_tokens BIGINT, cache_read_input_tokens BIGINT,
                cache_creation_input_tokens BIGINT,
                cache_creation STRUCT(ephemeral_1h_input_tokens BIGINT),
                server_tool_use STRUCT(web_search_requests BIGINT))),
        error STRUCT(request_id VARCHAR, error STRUCT("type" VARCHAR, message VARCHAR)))""",
}

_LINES: Final = """
    SELECT custom_id, result."type" AS type, message.model, message.stop_reason,
        message.stop_details.explanation AS explanation,
        coalesce(
            list_aggregate(list_transform(list_filter(
                message.content, lambda b: b."type" = 'text'), lambda b: b."text"),
                'string_agg', ''),
            CAST(list_transform(list_filter(
                message.content, lambda b: b."type" = 'tool_use'), lambda b: b.input)[1] AS VARCHAR)
        ) AS text,
        usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens,
        usage.cache_creation_input_tokens, usage.cache_creation.ephemeral_1h_input_tokens,
        usage.server_tool_use.web_search_requests,
        error.error."type" AS error_type, error.error.message AS error_message, error.request_id
    FROM (SELECT custom_id, result, result.message AS message, result.message.usage AS usage,
        result.error AS error
        FROM read_json($path, format = 'newline_delimited', columns = $columns))
"""


@dataclass(frozen=True)
class _Line:
    """One result line; everything that its kind of result does not have is None."""

    custom_id: str
    type: str | None
    model: str | None = None
    stop_reason: str | None = None
    explanation: str | None = None
    text: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    web_searches: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    request_id: str | None = None


def fetch(
    claude: ClaudeBatchResource, batch: MessageBatch, output: Output, *, nonce: str | None
) -> pa.Table:
    """Download and read a batch's results; downloads short of lines are repeated.

    Lines that are doubled, or not of this chunk, are left out: the first one counts.
    """
    staged = STAGED.empty_table()
    for _ in range(DOWNLOADS):
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
            claude.download(batch, file)
            file.flush()
            staged = read(Path(file.name), output, nonce=nonce)
        if staged.num_rows >= size_of(batch):
            break
    return staged


def read(path: Path, output: Output, *, nonce: str | None) -> pa.Table:
    """Stage a results file. Order is the file's, and does not matter."""
    try:
        batches = list(_staged(_lines_in_sql(path), output, nonce))
    except (duckdb.Error, OSError):  # the latter is how an Arrow stream passes on the former
        # One bad line fails the statement as a whole: then line by line, which loses none.
        batches = list(_staged(_lines_in_python(path), output, nonce))
    table = pa.Table.from_batches(batches, STAGED)
    return _with_responses(table, path)


def _lines_in_sql(path: Path) -> Iterator[_Line]:
    columns = (
        "{" + ", ".join(f"{n}: '{k.replace(chr(10), ' ')}'" for n, k in _COLUMNS.items()) + "}"
    )
    with duckdb.connect() as connection:
        connection.execute("SET produce_arrow_string_view = false")
        sql = _LINES.replace("$columns", columns)
        for batch in read_arrow(connection, sql, {"path": str(path)}):
            yield from (_Line(*values) for values in zip(*columns_of(batch), strict=True))


def _lines_in_python(path: Path) -> Iterator[_Line]:
    """Read what DuckDB refuses: lone surrogates, invalid UTF-8, unexpected shapes."""
    with path.open("rb") as file:
        for number, raw in enumerate(file):
            if raw.strip():
                yield _line_in_python(raw, number)


def _line_in_python(raw: bytes, number: int) -> _Line:
    text = raw.decode("utf-8", errors="replace")
    try:
        parsed = _RawLine.model_validate(json.loads(text))
    except ValueError as error:
        problem = f"Line {number + 1} of the results cannot be read: {type(error).__name__}."
        return _Line(_custom_id_in(text), None, error_message=problem)
    return parsed.line()


def _custom_id_in(text: str) -> str:
    """Save the id of a line that cannot be parsed."""
    _, found, rest = text.partition('"custom_id"')
    return rest.split('"')[1] if found and rest.count('"') > 1 else ""


class _Block(BaseModel):
    type: str | None = None
    text: Any = None
    input: Any = None


class _CacheCreation(BaseModel):
    ephemeral_1h_input_tokens: int | None = None


class _ServerToolUse(BaseModel):
    web_search_requests: int | None = None


class _Usage(BaseModel):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    server_tool_use: _ServerToolUse | None = None


class _StopDetails(BaseModel):
    explanation: str | None = None


class _Message(BaseModel):
    model: str | None = None
    stop_reason: str | None = None
    stop_details: _StopDetails | None = None
    content: list[_Block] = []
    usage: _Usage = _Usage()

    def text(self) -> str | None:
        """All text blocks, or the input of the first tool use."""
        texts = [str(block.text or "") for block in self.content if block.type == "text"]
        if texts:
            return "".join(texts)
        inputs = [block.input for block in self.content if block.type == "tool_use"]
        return json.dumps(inputs[0]) if inputs else None


class _ErrorBody(BaseModel):
    type: str | None = None
    message: str | None = None


class _Error(BaseModel):
    error: _ErrorBody = _ErrorBody()
    request_id: str | None = None


class _Result(BaseModel):
    type: str | None = None
    message: _Message = _Message()
    error: _Error = _Error()


class _RawLine(BaseModel):
    """A result line as JSON, in the shape of `_COLUMNS`."""

    custom_id: str
    result: _Result

    def line(self) -> _Line:
        message, usage, error = self.result.message, self.result.message.usage, self.result.error
        return _Line(
            self.custom_id,
            self.result.type,
            model=_valid(message.model),
            stop_reason=_valid(message.stop_reason),
            explanation=_valid(message.stop_details.explanation) if message.stop_details else None,
            text=message.text(),
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_input_tokens,
            cache_write_tokens=usage.cache_creation_input_tokens,
            cache_write_1h_tokens=usage.cache_creation.ephemeral_1h_input_tokens
            if usage.cache_creation
            else None,
            web_searches=usage.server_tool_use.web_search_requests
            if usage.server_tool_use
            else None,
            error_type=_valid(error.error.type),
            error_message=_valid(error.error.message),
            request_id=_valid(error.request_id),
        )


def _valid(text: str | None) -> str | None:
    """A text without lone surrogates, which no table can hold."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _staged(lines: Iterable[_Line], output: Output, nonce: str | None) -> Iterator[pa.RecordBatch]:
    seen: set[int] = set()
    pending: list[tuple[Any, ...]] = []
    for line in lines:
        ordinal = ordinal_in(line.custom_id)
        foreign = nonce is not None and nonce_in(line.custom_id) != nonce
        if ordinal is None or foreign or ordinal in seen:
            continue
        seen.add(ordinal)
        pending.append(_row(line, ordinal, output))
        if len(pending) == _ROWS_PER_BATCH:
            yield _record_batch(pending)
            pending = []
    if pending:
        yield _record_batch(pending)


_ROWS_PER_BATCH: Final = 8_192


def _record_batch(staged: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = dict(zip(STAGED.names, map(list, zip(*staged, strict=True)), strict=True))
    return pa.RecordBatch.from_pydict(columns, schema=STAGED)


def _row(line: _Line, ordinal: int, output: Output) -> tuple[Any, ...]:
    answer, outcome, message = _judge(line, output)
    return (
        ordinal,
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


def _judge(line: _Line, output: Output) -> tuple[str | None, str | None, str | None]:
    """The columns of an answer, or why it is none: (answer, outcome, message)."""
    match line.type:
        case "succeeded":
            return _judge_message(line, output)
        case "errored":
            return None, line.error_type or "unrecognized_result", line.error_message
        case "canceled":
            return None, "canceled", "The batch was cancelled before this request was processed."
        case "expired":
            return None, "expired", "The request was not processed within 24 hours."
        case _:
            known = f"The result has the type {line.type!r}, which is not known."
            return None, "unrecognized_result", line.error_message or known


def _judge_message(line: _Line, output: Output) -> tuple[str | None, str | None, str | None]:
    failure = failure_of_stop_reason(line.stop_reason)
    if failure is not None:
        explanation = line.explanation or f"The answer ended with stop_reason {line.stop_reason!r}."
        return None, failure, explanation
    if line.text is None:
        return None, "invalid_output", "The answer holds no text."
    try:
        return output.validate(line.text), None, None
    except InvalidOutputError as error:
        return None, "invalid_output", str(error)


def _with_responses(table: pa.Table, path: Path) -> pa.Table:
    """Add the raw result to each failure; answers do not need theirs."""
    staged = table.select(["custom_id", "outcome"]).to_pydict()
    ids, outcomes = staged["custom_id"], staged["outcome"]
    failed = {i for i, outcome in zip(ids, outcomes, strict=True) if outcome is not None}
    if not failed:
        return table
    with path.open("rb") as file:
        raw = dict(_raw_results(file, failed))
    responses = pa.array([raw.get(custom_id) for custom_id in ids], pa.string())
    return table.set_column(STAGED.names.index("response"), "response", responses)


def _raw_results(file: IO[bytes], wanted: set[str]) -> Iterator[tuple[str, str | None]]:
    for raw in file:
        text = raw.decode("utf-8", errors="replace")
        custom_id = _custom_id_in(text)
        if custom_id in wanted:
            yield custom_id, _as_json(text)


def _as_json(text: str) -> str | None:
    """The result as JSON that DuckDB takes, or the line as a JSON string where it is not."""
    try:
        result = json.loads(text)["result"]
    except (ValueError, TypeError, KeyError):
        result = text
    return _valid(json.dumps(result, ensure_ascii=False))
