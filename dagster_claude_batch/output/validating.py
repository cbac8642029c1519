"""Check one answer and write it as the JSON of its columns.

The text is parsed by the model's own validator, a second time with the letter case of its
choices corrected if it is refused, and written by a serializer made of the columns. Problems
are told by field and reason.
"""

from collections.abc import Sequence

import pydantic
from pydantic_core import PydanticSerializationError, SchemaSerializer, from_json, to_json

from dagster_claude_batch.errors import InvalidOutputError
from dagster_claude_batch.output.columns import Field, Recase, Shape, encode_fields
from dagster_claude_batch.output.letter_case import recase_fields


def text_as_columns(text: bytes) -> bytes:
    """Return the answer's text as the one column of an output without a model."""
    return to_json({"response": text.decode()})


class Validator:
    """Answer text to column JSON: the model's own validator, then the columns' serializer."""

    def __init__(self, model: type[pydantic.BaseModel], fields: Sequence[Field]) -> None:
        self._parse = pydantic.TypeAdapter(model).validator.validate_json
        self._recase = recase_fields(fields)
        self._dump = SchemaSerializer(encode_fields(fields)).to_json
        self._columns = [field for field in fields if not field.excluded]

    def __call__(self, text: bytes) -> bytes:
        """Return the columns of one answer, as `Output.validate` promises."""
        answer = self._checked(text if text.startswith(b"{") else _without_fence(text))
        try:
            return self._dump(answer, warnings="error")
        except PydanticSerializationError:
            raise InvalidOutputError(self._unfit(answer)) from None

    def _checked(self, text: bytes) -> object:
        try:
            return self._parse(text)
        except pydantic.ValidationError as error:
            if self._recase is None or _is_not_json(error):
                raise InvalidOutputError(_problems(error)) from None
            return self._checked_in_any_case(text, self._recase)
        except Exception as error:  # a user's validator costs its row, not the batch
            raise _raised_by_model(error) from error

    def _checked_in_any_case(self, text: bytes, recase: Recase) -> object:
        try:
            return self._parse(to_json(recase(from_json(text))))
        except pydantic.ValidationError as error:
            raise InvalidOutputError(_problems(error)) from None
        except Exception as error:
            raise _raised_by_model(error) from error

    def _unfit(self, answer: object) -> list[str]:
        values = getattr(answer, "__dict__", {})
        return [
            f"`{field.name}`: the value cannot be stored as {field.shape.type}"
            for field in self._columns
            if field.name not in values or not _fits(field.shape, values[field.name])
        ]


def _without_fence(utf8: bytes) -> bytes:
    text = utf8.decode().strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.removeprefix("```json").strip("`")
    return text.encode()


def _is_not_json(error: pydantic.ValidationError) -> bool:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return not first["loc"] and first["type"] in {"json_invalid", "string_unicode"}


def _problems(error: pydantic.ValidationError) -> list[str]:
    return [
        f"`{_location(problem['loc'])}`: {problem['msg']}" if problem["loc"] else problem["msg"]
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def _location(loc: Sequence[int | str]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).removeprefix(".")


def _raised_by_model(error: Exception) -> InvalidOutputError:
    return InvalidOutputError([f"the model's own validation raised {type(error).__name__}"])


def _fits(shape: Shape, value: object) -> bool:
    try:
        SchemaSerializer(shape.encoding).to_json(value, warnings="error")
    except PydanticSerializationError:
        return False
    return True
