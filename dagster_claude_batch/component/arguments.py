"""How the arguments of an asset are written in YAML where that is no plain value."""

import importlib
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, cast

import dagster as dg
import pydantic
from pydantic import ConfigDict, Field, TypeAdapter

from dagster_claude_batch.component.said import said_of
from dagster_claude_batch.request.parts import Document, Image, Part, Text


def form(title: str, *examples: Mapping[str, Any]) -> ConfigDict:
    """How one form is called in editors and the reference, and what it may look like."""
    return ConfigDict(title=title, json_schema_extra={"examples": [dict(e) for e in examples]})


class SourceAsset(dg.Model):
    """An upstream asset, whose table is read."""

    model_config = form("source: an upstream asset", {"asset": "raw/snippets"})

    asset: str = Field(description="The asset's key, as `raw/snippets`.")


class TextPart(dg.Model):
    """A text."""

    model_config = form("prompt: a text", {"text": "What does the customer of {{ id }} want?"})

    text: str = Field(description="The text, in which `{{ column }}` stands for a column.")


class ImagePart(dg.Model):
    """A column of pictures: BLOBs, URLs, or paths of files."""

    model_config = form("prompt: a picture", {"image": "photo", "resize": True})

    image: str = Field(description=said_of(Image, "column"))
    resize: bool | int = Field(default=False, description=said_of(Image, "resize"))


class DocumentPart(dg.Model):
    """A column of documents: PDFs, or plain text."""

    model_config = form("prompt: a document", {"document": "manual", "title": "{{ name }}"})

    document: str = Field(description=said_of(Document, "column"))
    title: str | None = Field(default=None, description=said_of(Document, "title"))
    context: str | None = Field(default=None, description=said_of(Document, "context"))
    citations: bool = Field(default=False, description=said_of(Document, "citations"))
    media_type: Literal["application/pdf", "text/plain"] | None = Field(
        default=None, description=said_of(Document, "media_type")
    )


class FunctionReference(dg.Model):
    """A Python function of a row, in place of a template: slower, and as free as Python is."""

    model_config = form("prompt: a function", {"function": "my_project.prompts:translation"})

    function: str = Field(description="Where it is: `package.module:function`.")


Texts: TypeAlias = list[str]


class OutputField(dg.Model):
    """A field of the answer, which becomes a column; a bare `number` means `{type: number}`."""

    model_config = form(
        "output: a field",
        {"enum": ["positive", "negative"], "description": "What the writer feels, all in all."},
        {"type": "number", "ge": -1, "le": 1},
        {"type": "string", "list": True},
        {"type": "date", "optional": True},
    )

    type: Literal["string", "integer", "number", "boolean", "date", "datetime"] | None = Field(
        default=None, description="What it is. Exactly one of this and `enum`."
    )
    enum: Texts | None = Field(
        default=None, min_length=1, description="The texts of which it is one."
    )
    list: bool = Field(default=False, description="Whether it is a list of such values.")
    optional: bool = Field(default=False, description="Whether it may be null.")
    description: str | None = Field(default=None, description="What Claude is told about it.")
    # A whole number stays one, as in Python: -1.0 in the schema would ask every row anew.
    ge: int | float | None = Field(default=None, description="The least that a number may be.")
    le: int | float | None = Field(default=None, description="The most that a number may be.")


class YamlRetryPolicy(dg.Model):
    """Retries of the op within a run."""

    model_config = form("retry_policy", {"max_retries": 2, "delay": 30})

    max_retries: int = Field(default=1, description="How often it is tried again.")
    delay: float | None = Field(default=None, description="Seconds before each of these tries.")


YamlPrompt: TypeAlias = (
    str | Sequence[str | TextPart | ImagePart | DocumentPart] | FunctionReference
)
YamlSource: TypeAlias = str | SourceAsset | None
YamlOutput: TypeAlias = str | Mapping[str, str | OutputField] | None
YamlSystem: TypeAlias = str | Sequence[Mapping[str, Any]] | None
YamlParams: TypeAlias = Mapping[str, Any] | None

T = TypeVar("T")

_TYPES: Final[Mapping[str, type]] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "date": date,
    "datetime": datetime,
}


# --- from YAML to arguments -----------------------------------------------------------------


def as_it_is(_: dg.ResolutionContext, value: Any) -> Any:
    """Leave ``{{ … }}`` alone: there it stands for a column, and is no template of Dagster's."""
    return value


def as_template(context: dg.ResolutionContext, value: Any) -> Any:
    """A template, or a value with templates in it."""
    return context.resolve_value(value)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # Dagster's overloads


def value_of_type(
    argument: str,
    kind: type,
    context: dg.ResolutionContext,
    value: Any,
) -> Any:
    """The same, of the type that the argument has: a template may have made a number of a text.

    Raises:
        ValueError: It is of another type.
    """
    if value is None:
        return None
    adapter = TypeAdapter[Any](kind, config=ConfigDict(coerce_numbers_to_str=True))
    resolved = as_template(context, value)
    if resolved is None:
        raise ValueError(
            f"`{argument}`: {value!r} comes to nothing, as a variable does that is not set. Set "
            "it, or leave the argument out."
        )
    try:
        return adapter.validate_python(resolved)
    except pydantic.ValidationError as error:
        problems = "; ".join(each["msg"] for each in error.errors(include_input=False))
        raise ValueError(f"`{argument}`: {problems}.") from None


def asset_keys(
    context: dg.ResolutionContext, value: Sequence[str] | str | None
) -> list[dg.AssetKey] | None:
    """Keys of assets, or one of them; each, and all of them, may be a template."""
    if value is None:
        return None
    whole = as_template(context, value) if isinstance(value, str) else value
    several = [whole] if isinstance(whole, str | dg.AssetKey) else whole
    found = (as_template(context, each) for each in several)
    return [k if isinstance(k, dg.AssetKey) else dg.AssetKey.from_user_string(k) for k in found]


def of_template(argument: str, found: object, kind: type[T], written: str) -> T:
    """What a template has come to, of the right kind.

    Raises:
        ValueError: It has come to something else, or was none.
    """
    if not isinstance(found, kind):
        raise ValueError(  # noqa: TRY004  # it is said of what was written
            f"`{argument}`: {found!r} is no {kind.__name__}. Write `{written}`, or a template."
        )
    return found


def asset_key(context: dg.ResolutionContext, value: str) -> dg.AssetKey:
    """The key of one asset; it may be a template."""
    return dg.AssetKey.from_user_string(str(as_template(context, value)))


def source(context: dg.ResolutionContext, value: YamlSource) -> object:
    """The name of a table, or the key of an asset."""
    if isinstance(value, SourceAsset):
        return asset_key(context, value.asset)
    return as_template(context, value)


def prompt(_: dg.ResolutionContext, value: YamlPrompt) -> object:
    """A template, parts, or a function; ``{{ … }}`` is left alone."""
    if isinstance(value, FunctionReference):
        return _imported(value.function)
    return value if isinstance(value, str) else [_part(each) for each in value]


def _part(part: str | TextPart | ImagePart | DocumentPart) -> Part | str:
    match part:
        case str():
            return part
        case TextPart():
            return Text(part.text)
        case ImagePart():
            return Image(part.image, resize=part.resize)
        case DocumentPart():
            rest = part.model_dump(exclude={"document"})
            return Document(part.document, **rest)


def _imported(reference: str) -> Any:
    """What ``package.module:name`` names; ``package.module.name`` too.

    Raises:
        ValueError: There is no such thing.
    """
    module, _, name = reference.rpartition(":" if ":" in reference else ".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        problem = f"{reference!r} cannot be imported ({error}). Write `package.module:name`."
        raise ValueError(problem) from error


def output(_: dg.ResolutionContext, value: YamlOutput) -> object:
    """A model: the one that is named, or one of the fields that are listed."""
    if value is None or isinstance(value, str):
        return None if value is None else _imported(value)
    found = {
        name: _field(OutputField.model_validate({"type": each}) if isinstance(each, str) else each)
        for name, each in value.items()
    }
    return pydantic.create_model("Output", **cast("dict[str, Any]", found))


def _field(declared: OutputField) -> tuple[Any, Any]:
    if (declared.type is None) == (declared.enum is None):
        problem = "A field of `output` needs exactly one of `type` and `enum`."
        raise ValueError(problem)
    kind: Any = Literal[tuple(declared.enum)] if declared.enum else _TYPES[declared.type or ""]
    bounds = [each for each in (declared.ge, declared.le) if each is not None]
    if bounds and declared.type not in {"integer", "number"}:
        problem = "`ge` and `le` bound an `integer` or a `number`, and no other type of field."
        raise ValueError(problem)
    if declared.type == "integer" and any(not float(each).is_integer() for each in bounds):
        problem = "`ge` and `le` of an `integer` are whole numbers."
        raise ValueError(problem)
    if bounds:
        kind = Annotated[kind, Field(ge=declared.ge, le=declared.le)]
    kind = list[kind] if declared.list else kind
    kind = kind | None if declared.optional else kind
    return kind, Field(description=declared.description)


def retry_policy(context: dg.ResolutionContext, value: YamlRetryPolicy | str | None) -> object:
    """The policy; a text is a template, of which it comes."""
    if isinstance(value, str):
        found = as_template(context, value)
        return of_template("retry_policy", found, dg.RetryPolicy, "{max_retries: 2}")
    return None if value is None else dg.RetryPolicy(value.max_retries, value.delay)
