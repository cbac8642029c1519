"""Results file → lines: every line that says anything, from a file in any condition.

Works on an in-memory DuckDB of its own, so that the warehouse stays free meanwhile.
"""

import json
import mmap
import re
import tempfile
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, NamedTuple, TypeGuard

import pyarrow as pa

from dagster_claude_batch import duckdb_errors, kept
from dagster_claude_batch.arrow import columns_of
from dagster_claude_batch.outcomes import ANSWER_STOP_REASONS
from dagster_claude_batch.warehouse import read_arrow

_COLUMNS: Final = {
    "custom_id": "VARCHAR",
    "result": """STRUCT(
        "type" VARCHAR,
        message STRUCT(
            model VARCHAR,
            stop_reason VARCHAR,
            stop_details STRUCT(category VARCHAR, explanation VARCHAR),
            content STRUCT("type" VARCHAR, "text" VARCHAR, input JSON, citations JSON)[],
            usage STRUCT(
                input_tokens BIGINT, output_tokens BIGINT, cache_read_input_tokens BIGINT,
                cache_creation_input_tokens BIGINT,
                cache_creation STRUCT(ephemeral_1h_input_tokens BIGINT),
                server_tool_use STRUCT(web_search_requests BIGINT))),
        error STRUCT(request_id VARCHAR, error STRUCT("type" VARCHAR, message VARCHAR)))""",
}

_LARGEST_COUNT: Final = 10_000_000
"""Ten times the largest context: more is no count, and would not fit where costs are summed."""

_COUNTS: Final = ", ".join(
    f"CASE WHEN usage.{path} BETWEEN 0 AND {_LARGEST_COUNT} THEN usage.{path} END AS {name}"
    for name, path in {
        "input_tokens": "input_tokens",
        "output_tokens": "output_tokens",
        "cache_read_tokens": "cache_read_input_tokens",
        "cache_write_tokens": "cache_creation_input_tokens",
        "cache_write_1h_tokens": "cache_creation.ephemeral_1h_input_tokens",
        "web_searches": "server_tool_use.web_search_requests",
    }.items()
)

_LINES: Final = f"""
    SELECT custom_id, result."type" AS type, message.model AS model,
        message.stop_reason AS stop_reason,
        message.stop_details.explanation AS explanation,
        list_aggregate(list_transform(list_filter(
            message.content, lambda b: b."type" = 'text'), lambda b: b."text"),
            'string_agg', '') AS text,
        CAST(list_transform(list_filter(
            message.content, lambda b: b."type" = 'tool_use'), lambda b: b.input)[1] AS VARCHAR)
            AS tool_input,
        CASE WHEN $cites THEN
            CAST(to_json(list_transform(message.content, lambda b: b.citations)) AS VARCHAR) END
            AS citations,
        {_COUNTS},
        error.error."type" AS error_type, error.error.message AS error_message,
        error.request_id AS request_id
    FROM (SELECT custom_id, result, result.message AS message, result.message.usage AS usage,
        result.error AS error
        FROM read_json($path, format = 'newline_delimited', columns = $columns,
            ignore_errors = $lenient, maximum_object_size = $longest))
"""

_LONGEST_LINE: Final = 16_777_216
"""DuckDB's own limit for one line, beyond which its buffers have to grow."""


class Line(NamedTuple):
    """One result line; everything that its kind of result does not have is None.

    ``citations`` is JSON: for each block of the answer what it cites, or null.

    Without a ``type`` it could not be read: ``error_message`` says why.
    """

    custom_id: str | None
    type: str | None
    model: str | None = None
    stop_reason: str | None = None
    explanation: str | None = None
    text: str | None = None
    tool_input: str | None = None
    citations: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    web_searches: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    request_id: str | None = None


@contextmanager
def private_file() -> Generator[IO[bytes]]:
    """Open a file that nobody else can read, and that is gone after every kind of end."""
    with tempfile.TemporaryFile() as file:
        yield file


def read_lines(
    file: IO[bytes],
    *,
    nonce: str | None,
    size: int,
    text: str = "text",
    proven: str = "false",
    cites: bool = True,
) -> Iterator[pa.RecordBatch]:
    """Read the lines of a file whose every line DuckDB takes: columns as the fields of `Line`.

    Then ``ordinal``, of lines of the batch that has this nonce and so many requests; and
    ``is_proven`` and ``is_open``: of lines that end as answers do, and have a ``text``, those of
    which ``proven`` holds, a condition on these columns, and the others. Unless ``cites``, there
    are no citations.

    Raises:
        duckdb_errors.RAISED: One of them it does not take. Some lines may have been read by then.
    """
    is_answer = f"type = 'succeeded' AND list_contains($ended, stop_reason) AND {text} NOT NULL"
    sql = f"""
        SELECT * EXCLUDE (number, is_answer, is_proven),
            CASE WHEN custom_id = $prefix || number AND number >= 0 AND number < $size THEN number
                END AS ordinal,
            is_answer AND is_proven AS is_proven, is_answer AND NOT is_proven AS is_open
        FROM (SELECT *, TRY_CAST(substr(custom_id, length($prefix) + 1) AS INTEGER) AS number,
            coalesce({is_answer}, false) AS is_answer, coalesce({proven}, false) AS is_proven
            FROM ({_LINES}))
    """
    return _read(
        file,
        sql,
        lenient=False,
        longest=_LONGEST_LINE,
        cites=cites,
        ended=sorted(ANSWER_STOP_REASONS),
        prefix=f"{nonce}-",
        size=size,
    )


def read_bad_lines(file: IO[bytes]) -> Iterator[Line]:
    """Read a file with bad lines: the sound ones as ever, then what the others still say.

    A line may be read twice. What does not even say whose it is comes without a custom id.
    """
    with private_file() as sound:
        unsound, longest = _sift(file, sound)
        ignored = 0
        try:
            most = max(longest, _LONGEST_LINE)
            for batch in _read(sound, _LINES, lenient=True, longest=most, cites=True):
                for line in lines_of(batch):
                    ignored += line.custom_id is None
                    yield line
        except duckdb_errors.RAISED:
            ignored += 1
    every = unsound if not ignored else _spans(file)
    for span in every:
        yield from _salvaged(_line_at(file, span))


# --- by DuckDB ------------------------------------------------------------------------------


def lines_of(batch: pa.RecordBatch) -> Iterator[Line]:
    """The same lines one by one."""
    return map(Line._make, zip(*columns_of(batch)[: len(Line._fields)], strict=True))


def _read(file: IO[bytes], lines: str, **options: object) -> Iterator[pa.RecordBatch]:
    kinds = (f"{name}: '{kind.replace(chr(10), ' ')}'" for name, kind in _COLUMNS.items())
    sql = lines.replace("$columns", "{" + ", ".join(kinds) + "}")
    with kept.in_memory() as connection:
        connection.execute("SET produce_arrow_string_view = false")
        connection.execute("SET arrow_large_buffer_size = true")
        yield from read_arrow(connection, sql, {"path": _path_of(file), **options})


def _path_of(file: IO[bytes]) -> str:
    """The path by which this process can open a file that has no name.

    Where a system shows none, DuckDB cannot read it, and Python does.
    """
    file.flush()
    file.seek(0)  # on macOS, whoever opens this path reads on from where we are
    return f"/dev/fd/{file.fileno()}"


# --- by Python ------------------------------------------------------------------------------

_Span = tuple[int, int]
"""Where a line begins, and its length."""


def _spans(file: IO[bytes]) -> Iterator[_Span]:
    file.seek(0)
    start = 0
    for raw in file:
        yield start, len(raw)
        start += len(raw)


def _line_at(file: IO[bytes], span: _Span) -> bytes:
    start, length = span
    file.seek(start)
    return file.read(length)


def _sift(file: IO[bytes], sound: IO[bytes]) -> tuple[list[_Span], int]:
    """Copy the sound lines; where the others are, and how long a sound one is at most."""
    unsound: list[_Span] = []
    longest = 0
    start = 0
    file.seek(0)
    for raw in file:
        if _is_sound(raw):
            sound.write(raw if raw.endswith(b"\n") else raw + b"\n")
            longest = max(longest, len(raw) + 1)
        elif raw.strip():
            unsound.append((start, len(raw)))
        start += len(raw)
    return unsound, longest


def _is_sound(raw: bytes) -> bool:
    """Whether DuckDB takes the line, or at the least skips it without touching its neighbours."""
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError):
        return False
    return _is_object(value) and "custom_id" in value and not _SURROGATE.search(raw)


_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_START: Final = re.compile(r'\{\s*"custom_id"')
_CUSTOM_ID: Final = re.compile(r'"custom_id"\s*:\s*"([A-Za-z0-9_-]{1,64})"')
_DECODER: Final = json.JSONDecoder(strict=False)  # control characters are no reason to lose a text


def _salvaged(raw: bytes) -> Iterator[Line]:
    """Read all results that a bad line holds: bytes may be broken, or a line's end lost."""
    text = raw.decode("utf-8", errors="replace")
    position = text.find("{")
    if position < 0:
        yield Line(None, None)
    while position >= 0:
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            following = _START.search(text, position + 1)
            end = following.start() if following else len(text)
            if following or text.endswith("\n"):  # else it was cut off: there is no such line
                yield _unreadable(text[position:end], error)
        else:
            yield _line_of(value)
        position = text.find("{", end)


def _unreadable(text: str, error: Exception) -> Line:
    found = _CUSTOM_ID.search(text)
    problem = f"The line of this result cannot be read: {type(error).__name__}."
    return Line(found.group(1) if found else None, None, error_message=problem)


def _line_of(value: object) -> Line:
    """Take from a parsed line whatever is of the right type."""
    line = _object(value)
    result = _object(line.get("result"))
    message, error = _object(result.get("message")), _object(result.get("error"))
    usage, body = _object(message.get("usage")), _object(error.get("error"))
    return Line(
        _text(line.get("custom_id")),
        _text(result.get("type")),
        model=_text(message.get("model")),
        stop_reason=_text(message.get("stop_reason")),
        explanation=_text(_object(message.get("stop_details")).get("explanation")),
        text=_said(message.get("content")),
        tool_input=_tool_input(message.get("content")),
        citations=_citations(message.get("content")),
        input_tokens=_number(usage.get("input_tokens")),
        output_tokens=_number(usage.get("output_tokens")),
        cache_read_tokens=_number(usage.get("cache_read_input_tokens")),
        cache_write_tokens=_number(usage.get("cache_creation_input_tokens")),
        cache_write_1h_tokens=_number(
            _object(usage.get("cache_creation")).get("ephemeral_1h_input_tokens")
        ),
        web_searches=_number(_object(usage.get("server_tool_use")).get("web_search_requests")),
        error_type=_text(body.get("type")),
        error_message=_text(body.get("message")),
        request_id=_text(error.get("request_id")),
    )


def _blocks(content: object, kind: str) -> list[dict[str, Any]]:
    blocks = [_object(block) for block in content] if _is_list(content) else []
    return [block for block in blocks if block.get("type") == kind]


def _said(content: object) -> str | None:
    """All text blocks."""
    found = (_text(block.get("text")) for block in _blocks(content, "text"))
    texts = [text for text in found if text is not None]
    return "".join(texts) if texts else None


def _tool_input(content: object) -> str | None:
    """The input of the first tool use."""
    inputs = [block.get("input") for block in _blocks(content, "tool_use")]
    return valid_text(json.dumps(inputs[0], ensure_ascii=False)) if inputs else None


def _citations(content: object) -> str | None:
    """What each block cites, as a list of lists."""
    blocks = [_object(block).get("citations") for block in content] if _is_list(content) else None
    return valid_text(json.dumps(blocks, ensure_ascii=False)) if blocks else None


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _object(value: object) -> dict[str, Any]:
    return value if _is_object(value) else {}


def _text(value: object) -> str | None:
    return valid_text(value) if isinstance(value, str) else None


def _number(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_COUNT:
        return value
    return None


def valid_text(text: str) -> str:
    """A text without lone surrogates, which no table can hold."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


# --- raw results ----------------------------------------------------------------------------


def raw_results(
    file: IO[bytes], wanted: Iterable[str], *, are_sound: bool = False
) -> dict[str, str]:
    """The results of some custom ids as JSON, or as a JSON string of the line that is none.

    ``are_sound``: each line of the file is JSON, with one custom id.
    """
    asked = set(wanted)
    found: dict[str, str] = {}
    broken: dict[str, str] = {}
    for raw in _lines_with(file, asked) if are_sound else _all_lines(file):
        candidates = asked.intersection(_ids_in(raw))
        if candidates:
            text = raw.decode("utf-8", errors="replace")
            result = _raw_result(text)
            if result is None:
                broken |= dict.fromkeys(candidates, json.dumps(text, ensure_ascii=False))
            elif result[0] in candidates:
                found.setdefault(*result)
    return broken | found


def _all_lines(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    yield from file


_USUAL_START: Final = b'{"custom_id":"'


def _lines_with(file: IO[bytes], wanted: Collection[str]) -> Iterator[bytes]:
    """The lines that may be of some custom ids: nearly all begin with theirs."""
    utf8 = {custom_id.encode() for custom_id in wanted}
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        start, size = 0, len(text)
        while start < size:
            end = text.find(b"\n", start) + 1 or size
            begun = start + len(_USUAL_START)
            is_usual = text[start:begun] == _USUAL_START
            if not is_usual or text[begun : text.find(b'"', begun, end)] in utf8:
                yield text[start:end]
            start = end


_ID_BYTES: Final = re.compile(_CUSTOM_ID.pattern.encode())


def _ids_in(raw: bytes) -> list[str]:
    return [found.decode() for found in _ID_BYTES.findall(raw)]


def _raw_result(text: str) -> tuple[str, str] | None:
    """The custom id and the result of a line; None if it is no JSON that DuckDB takes."""
    try:
        line = _object(json.loads(text, strict=False))
        result = json.dumps(line["result"], ensure_ascii=False, allow_nan=False)
    except (ValueError, KeyError, RecursionError):
        return None
    return str(line.get("custom_id")), valid_text(result)
