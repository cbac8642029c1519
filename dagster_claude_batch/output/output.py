"""A model as what Claude is asked for: its columns, its schema, and the check of its answers."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pydantic

from dagster_claude_batch.errors import InvalidOutputError
from dagster_claude_batch.output.columns import OutputColumn, columns, structure
from dagster_claude_batch.output.fields import checked_model, read_fields
from dagster_claude_batch.output.grammar import Grammar, grammar_of
from dagster_claude_batch.output.place import Place
from dagster_claude_batch.output.schema import declared_schema, sent_schema
from dagster_claude_batch.output.validating import Validator, text_as_columns


@dataclass(frozen=True)
class Output:
    """What is asked of Claude and where it goes.

    ``schema`` is what the API gets. ``declared_schema`` is what the user declared, for
    hashing: references resolved, titles made up by libraries left out, keywords sorted.
    The order of ``properties`` means something to Claude, so dump it without sorting keys.
    Both are None without a model. ``transform_structure`` is the structure with which
    DuckDB's ``json_transform_strict`` turns what `validate` returns into a STRUCT of the
    columns. ``grammar``, if there is one, tells answers of which `validate` would return the
    same JSON in another spelling. ``validate_utf8`` is `validate` of bytes in UTF-8.
    ``is_of_tool``: the answer is the input of the tool that Claude has to use. ``cites``: beside
    the text stands what it cites.
    """

    columns: tuple[OutputColumn, ...]
    schema: dict[str, Any] | None
    declared_schema: dict[str, Any] | None
    transform_structure: str
    validate_utf8: Callable[[bytes], bytes] = field(repr=False, compare=False)
    grammar: Grammar | None = None
    is_of_tool: bool = False
    cites: bool = False

    @classmethod
    def from_model(cls, model: type[pydantic.BaseModel] | None, *, asset: str) -> "Output":
        """Read the columns off a model; without one, the answer's text is the one column.

        Raises:
            UnsupportedOutputError: The API or DuckDB cannot hold what the model declares.
        """
        if model is None:
            return _TEXT_OUTPUT
        place = Place(asset)
        fields = read_fields(checked_model(model, place), place)
        declared = declared_schema(model)
        return cls(
            columns=columns(fields),
            schema=sent_schema(declared, place),
            declared_schema=declared,
            transform_structure=json.dumps(structure(fields), ensure_ascii=False),
            validate_utf8=Validator(model, fields),
            grammar=grammar_of(model, structure(fields)),
        )

    def citing(self) -> "Output":
        """The same for an answer in text that may cite documents: with a column ``citations``."""
        column = OutputColumn("citations", "JSON", "What the answer cites, as the API says it.")
        structure = {"response": "VARCHAR", "citations": "JSON"}
        return replace(
            self,
            columns=(*self.columns, column),
            transform_structure=json.dumps(structure),
            cites=True,
        )

    def validate_citing(self, text: str, citations: str | None) -> str:
        """Check an answer in text, with the citations of each of its blocks as JSON.

        Raises:
            InvalidOutputError: As `validate`.
        """
        answer: dict[str, Any] = json.loads(self.validate(text))
        cited: list[list[Any] | None] = json.loads(citations or "[]")
        answer["citations"] = [each for of_block in cited for each in of_block or ()]
        return json.dumps(answer, ensure_ascii=False)

    def validate(self, text: str) -> str:
        """Check one answer and return its columns as one JSON object.

        DuckDB turns every returned text into the columns without an error or a loss. Of a
        duplicate key, the last value counts.

        Raises:
            InvalidOutputError: Not JSON, not what the model allows, or a value that its
                column cannot hold.
        """
        try:
            utf8 = text.encode()
        except UnicodeEncodeError:
            raise InvalidOutputError(["the text is not valid Unicode"]) from None
        return self.validate_utf8(utf8).decode()


_TEXT_OUTPUT = Output(
    columns=(OutputColumn("response", "VARCHAR"),),
    schema=None,
    declared_schema=None,
    transform_structure='{"response": "VARCHAR"}',
    validate_utf8=text_as_columns,
)
