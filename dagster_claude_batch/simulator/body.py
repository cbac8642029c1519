"""The body of a create: read as it arrives, checked as the API checks it before it accepts.

Only the envelope is checked here (JSON, the list, ``custom_id``); whatever is wrong inside
``params`` shows in the results alone.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING

from dagster_claude_batch.simulator.errors import ApiError, invalid
from dagster_claude_batch.simulator.json_values import compact, is_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import IO

MAX_BYTES = 256_000_000
MAX_REQUESTS = 100_000

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_WINDOW = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def receive(chunks: Iterable[bytes], lines: IO[str]) -> int:
    """Write the requests of a create down, one a line, and return how many they are.

    The body is never in memory as a whole. It is read to its end whatever is found in it,
    so that broken JSON is reported before anything else, as the API does.

    Raises:
        ApiError: ``request_too_large``, or ``invalid_request_error`` naming the first
            request that is wrong.
    """
    envelope = _Envelope()
    for value, text in _requests(_Cursor(chunks)):
        envelope.check(value)
        lines.write(_one_line(value, text))
    envelope.finish()
    return envelope.count


class _Envelope:
    """The checks that refuse a whole batch; the first problem is the one that is told."""

    def __init__(self) -> None:
        self.count = 0
        self._problem: str | None = None
        self._positions: dict[str, int] = {}

    def check(self, request: object) -> None:
        if self._problem is None and self.count < MAX_REQUESTS:
            problem = self._problem_with(request)
            self._problem = problem and f"requests.{self.count}{problem}"
        self.count += 1

    def finish(self) -> None:
        if self.count == 0:
            raise invalid("requests: List should have at least 1 item after validation, not 0")
        if self.count > MAX_REQUESTS:
            raise invalid(
                f"requests: List should have at most {MAX_REQUESTS} items after validation, "
                f"not {self.count}"
            )
        if self._problem is not None:
            raise invalid(self._problem)

    def _problem_with(self, request: object) -> str | None:
        if not is_object(request):
            return ": Input should be an object"
        for name in ("custom_id", "params"):
            if name not in request:
                return f".{name}: Field required"
        for name in request:
            if name not in {"custom_id", "params"}:
                return f".{name}: Extra inputs are not permitted"
        if not is_object(request["params"]):
            return ".params: Input should be an object"
        return self._problem_with_custom_id(request["custom_id"])

    def _problem_with_custom_id(self, custom_id: object) -> str | None:
        if not isinstance(custom_id, str):
            return ".custom_id: Input should be a valid string"
        if not _CUSTOM_ID.fullmatch(custom_id):
            return ".custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'"
        first = self._positions.setdefault(custom_id, self.count)
        if first != self.count:
            return f".custom_id: {custom_id!r} is already used by requests.{first}"
        return None


def _one_line(value: object, text: str) -> str:
    return f"{compact(value) if chr(10) in text or chr(13) in text else text}\n"


def _requests(cursor: _Cursor) -> Iterator[tuple[object, str]]:
    """Each element of ``requests``, with its text."""
    cursor.expect("{")
    found, separator = False, ""
    while cursor.peek() != "}":
        if separator:
            cursor.expect(separator)
        name, _ = cursor.value()
        cursor.expect(":")
        if name != "requests" or found:
            raise invalid(f"{name}: Extra inputs are not permitted")
        yield from _elements(cursor)
        found, separator = True, ","
    cursor.expect("}")
    if cursor.peek():
        raise cursor.broken("Extra data after the object")
    if not found:
        raise invalid("requests: Field required")


def _elements(cursor: _Cursor) -> Iterator[tuple[object, str]]:
    if cursor.peek() != "[":
        cursor.value()
        raise invalid("requests: Input should be a valid list")
    cursor.expect("[")
    if cursor.peek() == "]":
        cursor.expect("]")
        return
    yield cursor.value()
    while cursor.peek() == ",":
        cursor.expect(",")
        yield cursor.value()
    cursor.expect("]")


class _Cursor:
    """A place in JSON text that is still arriving."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._pieces = _pieces(chunks)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._text = ""
        self._at = 0
        self._bytes = 0
        self._more_to_come = True

    def peek(self) -> str:
        """Look at the next character that is not white space; nothing at the end."""
        while True:
            self._at = _end_of_space(self._text, self._at)
            if self._at < len(self._text) or not self._read():
                return self._text[self._at : self._at + 1]

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise self.broken(f"Expected {character!r}")
        self._at += 1

    def value(self) -> tuple[object, str]:
        """Take the next JSON value and its text; read on until it is complete."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if not self._read():
                    raise self.broken(str(error)) from None
            else:
                if end < len(self._text) or not self._read():
                    return value, self._take(end)

    def broken(self, why: str) -> ApiError:
        # An error further on must not hide that the body is too large.
        while self._read():
            self._text = ""
        return invalid(f"The request body is not valid JSON: {why}")

    def _take(self, end: int) -> str:
        text = self._text[self._at : end]
        self._at = end
        if "\\ud" in text or "\\uD" in text:
            self._refuse_half_characters(text)
        return text

    def _refuse_half_characters(self, text: str) -> None:
        try:
            json.dumps(json.loads(text), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise self.broken("no low surrogate in string") from None

    def _read(self) -> bool:
        """Take in at least as much again as is waiting, and forget what was taken."""
        if not self._more_to_come:
            return False
        parts = [self._text[self._at :]]
        wanted = max(_WINDOW, len(parts[0]))
        while wanted > 0 and self._more_to_come:
            parts.append(self._decoded_piece())
            wanted -= len(parts[-1])
        self._text, self._at = "".join(parts), 0
        return True

    def _decoded_piece(self) -> str:
        piece = next(self._pieces, b"")
        self._more_to_come = bool(piece)
        self._bytes += len(piece)
        if self._bytes > MAX_BYTES:
            raise ApiError("request_too_large", f"Request exceeds the maximum of {MAX_BYTES} bytes")
        try:
            return self._utf8.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise invalid(f"The request body is not valid JSON: {error}") from None


def _end_of_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut the chunks into pieces of a bounded size, none of them empty."""
    for chunk in chunks:
        for start in range(0, len(chunk), _WINDOW):
            yield chunk[start : start + _WINDOW]
