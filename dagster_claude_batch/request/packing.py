"""Several rows in one request: what is said once for all of them, and how their answers return."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, cast

from dagster_claude_batch.errors import DeclarationError, InvalidOutputError
from dagster_claude_batch.output import Output
from dagster_claude_batch.request.caching import is_constant
from dagster_claude_batch.request.function import FunctionPrompt
from dagster_claude_batch.request.leaf import Scope
from dagster_claude_batch.request.parts import Document
from dagster_claude_batch.request.shape import (
    PackedPrompt,
    RequestShape,
    forces_tool,
    fragments_of,
    json_sql,
)
from dagster_claude_batch.request.template import Template

MOST_ROWS: Final = 1_000
"""Rows in one request: far more than a model answers reliably."""

ROWS: Final = "rows"

_INTRODUCTION: Final = (
    "What follows is asked about several rows at once. Answer for each row by itself, as if it "
    "were the only one, and give one element for each, with the row's number as `{number}`.\n\n"
)
_BYTES_OF_A_ROW: Final = 60
_LONGEST_ANSWER: Final = 10**9

Answer: TypeAlias = "tuple[str | None, str | None]"
"""An answer's columns as JSON, or why it is none."""


@dataclass(frozen=True)
class PackedBlocks:
    """A leaf: the content blocks of all rows of a request."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What the rows have been put together in."""
        return (ROWS,)

    @property
    def structure(self) -> object:
        """Nothing: which rows share a request is no part of what they are asked."""
        return None

    def value(self, scope: Scope) -> str:
        """The blocks as JSON, with commas between them."""
        return scope.aliases[ROWS]

    def json(self, value: str, scope: Scope) -> str:
        """The same."""
        del scope
        return value

    def size(self, value: str, scope: Scope) -> str:
        """Their bytes."""
        del scope
        return f"strlen({value})"

    def surplus(self, value: str, scope: Scope) -> str | None:
        """None: no token is shorter than a byte."""
        del value, scope
        return None

    def identity(self, value: str, scope: Scope) -> str:
        """The same."""
        del scope
        return value

    def problem(self, value: str, scope: Scope) -> str:
        """None: each row has been looked at before."""
        del value, scope
        return "CAST(NULL AS VARCHAR)"


@dataclass(frozen=True)
class Packing:
    """How so many rows stand in one request.

    ``is_text``: rows are pieces of one text, and not blocks.
    """

    rows_per_request: int
    shape: RequestShape
    is_text: bool

    def constant_size(self, *, max_tokens: int) -> int:
        """Bytes of a request besides what is the rows' own."""
        most = max_tokens * self.rows_per_request
        constant = self.shape.constant_size(max_tokens=most)
        return constant + self.rows_per_request * _BYTES_OF_A_ROW

    def most_bytes_of_row(self, max_request_bytes: int) -> int:
        """Bytes of a row's own, up to which so many rows surely fit into one request."""
        constant = self.constant_size(max_tokens=_LONGEST_ANSWER)
        return max(0, max_request_bytes - constant) // self.rows_per_request

    def rows_sql(self, own: str, position: str, scope: Scope) -> str:
        """SQL that puts a request's rows together, from each row's own and its place from 0."""
        number = f"CAST({position} + 1 AS VARCHAR)"
        before, behind, between = (
            ('<row number="', '">', "</row>")
            if self.is_text
            else ('{"type":"text","text":"Row ', ':"},', "")
        )
        text = " || ".join(
            [scope.bind(before), number, scope.bind(behind), own, scope.bind(between)]
        )
        comma = scope.bind("\n" if self.is_text else ",")
        return f"string_agg({text}, {comma} ORDER BY {position})"

    def json_sql(self, rows: str, scope: Scope, *, max_tokens: str) -> str:
        """SQL of the ``params`` of a request, from its rows; ``max_tokens`` is SQL too."""
        (leaf,) = self.shape.leaves
        inner = Scope({ROWS: rows}, parameters=scope.parameters)
        return self.shape.json_sql([leaf.value(inner)], inner, max_tokens=max_tokens)


# --- what is answered -----------------------------------------------------------------------


def answers_in(text: str, output: Output, questions: int) -> list[Answer]:
    """The answer to each question of a request that had several, in their order.

    Raises:
        InvalidOutputError: It is no list of answers at all.
    """
    name = _name_of_number(output)
    found: dict[int, list[Mapping[str, Any]]] = {}
    for element in _elements(text):
        number = element.get(name)
        if isinstance(number, int) and not isinstance(number, bool):
            own = {key: value for key, value in element.items() if key != name}
            found.setdefault(number, []).append(own)
    return [_answer(found.get(n, []), n, output) for n in range(1, questions + 1)]


def _answer(found: Sequence[Mapping[str, Any]], number: int, output: Output) -> Answer:
    if len(found) != 1:
        count = f"{len(found)} elements" if found else "no element"
        return None, f"The answer for several rows has {count} for row {number}."
    (own,) = found
    if output.schema is None:
        response = own.get(_RESPONSE)
        if not isinstance(response, str):
            return None, f"The answer for several rows has no text for row {number}."
        return output.validate(response), None
    try:
        return output.validate(json.dumps(own, ensure_ascii=False)), None
    except InvalidOutputError as error:
        return None, str(error)


_RESPONSE: Final = "response"


def _elements(text: str) -> list[Mapping[str, Any]]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidOutputError([f"it is no JSON ({error})"]) from None
    listed = cast("dict[str, Any]", answer).get(ROWS) if isinstance(answer, dict) else None
    if not isinstance(listed, list):
        raise InvalidOutputError([f"it has no list `{ROWS}` of answers for several rows"])
    return [
        cast("dict[str, Any]", each)
        for each in cast("list[object]", listed)
        if isinstance(each, dict)
    ]


# --- from what was declared -----------------------------------------------------------------


def packing(asset: str, shape: RequestShape, output: Output, rows_per_request: int) -> Packing:
    """Shape requests that ask about several rows after those that ask about one.

    Raises:
        DeclarationError: What is declared cannot be asked about several rows at once.
    """
    if not 1 < rows_per_request <= MOST_ROWS:
        raise _refusal(asset, f"{rows_per_request:,} is no number of rows.", f"1 to {MOST_ROWS:,}")
    problem = _problem_with(shape, output)
    if problem is not None:
        raise _refusal(asset, f"{problem}.", "1")
    number = _name_of_number(output)
    content = _content_of_row(shape)
    introduction = _INTRODUCTION.format(number=number)
    if isinstance(content, Template):
        front, back = content.before + content.texts[0], content.texts[-1]
        texts = (f"{introduction}{front}<rows>\n", f"\n</rows>{back}")
        prompt = PackedPrompt(Template(texts, (ROWS,)))
    else:
        before, _, behind = _cut(content)
        first = {"type": "text", "text": introduction.strip()}
        prompt = PackedPrompt((first, *before, PackedBlocks(), *behind))
    packed = replace(shape, prompt=prompt, schema=_schema(output, number))
    return Packing(rows_per_request, packed, isinstance(content, Template))


def own_sql(shape: RequestShape, values: Sequence[str], scope: Scope) -> str:
    """SQL of what is a row's own of what it is asked: text, or blocks as JSON between commas."""
    content = _content_of_row(shape)
    if isinstance(content, Template):
        (value,) = values
        front, back = len(content.texts[0]), len(content.texts[-1])
        return f"substring({value}, {front + 1}, length({value}) - {front + back})"
    _, own, _ = _cut(content)
    first, *between, last = fragments_of(own)
    return json_sql([str(first)[1:], *between, str(last)[:-1]], values, scope)


def _content_of_row(shape: RequestShape) -> "Template | list[Mapping[str, Any]]":
    """What stands in the row's own message."""
    content = shape.tree()["messages"][-1]["content"]
    if isinstance(content, list):
        blocks = cast("list[Mapping[str, Any]]", content)
        if not isinstance(shape.prompt, Template):
            return blocks
        return next(cast("Template", block["text"]) for block in blocks if not is_constant(block))
    return cast("Template", content)


_Blocks: TypeAlias = "list[Mapping[str, Any]]"


def _cut(blocks: _Blocks) -> tuple[_Blocks, _Blocks, _Blocks]:
    """The blocks that all rows share in front, those from the first to the last own, the rest."""
    own = [number for number, block in enumerate(blocks) if not is_constant(block)]
    return blocks[: own[0]], blocks[own[0] : own[-1] + 1], blocks[own[-1] + 1 :]


def _problem_with(shape: RequestShape, output: Output) -> str | None:
    """Why what is declared cannot be asked about several rows at once."""
    prompt = shape.prompt
    parts = prompt if isinstance(prompt, tuple) else ()
    has_format = bool(shape.params.get("output_config", {}).get("format"))
    problems = (
        (
            isinstance(prompt, FunctionPrompt),
            "`prompt` is a function, of which nobody knows what all rows have in common",
        ),
        (not is_constant(shape.system), "`system` names columns, so that it differs by row"),
        ("messages" in shape.params, "the examples in `params` show how one row is answered"),
        (forces_tool(shape.params), "the answer is the input of a tool"),
        (output.schema is None and has_format, "`params` declares a format of the answer"),
        (
            any(isinstance(part, Document) and part.citations for part in parts),
            "the API gives no citations in JSON, as which several rows are answered",
        ),
        ((output.schema or {}).get("type", "object") != "object", "`output` is no object"),
    )
    return next((problem for is_so, problem in problems if is_so), None)


def _refusal(asset: str, said: str, cure: str) -> DeclarationError:
    return DeclarationError(asset, "rows_per_request", said, cure=f"Use {cure}.")


def _name_of_number(output: Output) -> str:
    schema = output.schema or {}
    taken: Mapping[str, Any] = schema.get("properties", {})
    return next(name for name in ("row", "row_number", "_row") if name not in taken)


def _schema(output: Output, number: str) -> dict[str, Any]:
    """A list of what is asked for a single row, each with the row's number."""
    one = output.schema or {"properties": {_RESPONSE: {"type": "string"}}, "required": [_RESPONSE]}
    element = {key: value for key, value in one.items() if key not in {"$defs", "properties"}}
    element |= {
        "type": "object",
        "properties": {number: {"type": "integer"}, **one["properties"]},
        "required": [number, *one.get("required", ())],
        "additionalProperties": False,
    }
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {ROWS: {"type": "array", "items": element}},
        "required": [ROWS],
        "additionalProperties": False,
    }
    return {**schema, "$defs": one["$defs"]} if "$defs" in one else schema
