"""Writes `reference.md` out of the package's own words: `python docs/build.py`."""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import docstring_parser
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import dagster_claude_batch as public
from dagster_claude_batch import ledger_tables, metadata, outcomes, tables
from dagster_claude_batch.component.asset import IN_YAML
from dagster_claude_batch.jobs import CancelConfig, PruneConfig, SelectionConfig

REFERENCE = Path(__file__).parent / "reference.md"

_VERBS = (
    "create",
    "create_from_body",
    "retrieve",
    "list",
    "results",
    "download",
    "cancel",
    "delete",
    "count_tokens",
)


def reference() -> str:
    """Every argument, field, table and column, as Markdown."""
    lines = chain(_head(), _declaring(), _running(), _resources(), _operating(), _tables())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _head() -> Iterator[str]:
    yield "# Reference"
    yield ""
    yield (
        "Made by `python docs/build.py` from signatures, docstrings and descriptions in the code; "
        "a test fails if it is out of date. What things are for is said in the "
        "[README](../README.md)."
    )


def _declaring() -> Iterator[str]:
    yield from _function(public.build_claude_batch_asset)
    for part in (public.Text, public.Image, public.Document):
        yield from _part(part)
    yield from _heading(2, "`ClaudeBatchComponent`")
    yield from _paragraphs(public.ClaudeBatchComponent)
    yield from _fields(public.ClaudeBatchComponent.get_model_cls(), "attribute")
    yield from _yaml(public.ClaudeBatchComponent.get_model_cls().model_json_schema())
    yield from _function(public.claude_batch_definitions)
    yield from _function(public.build_claude_batch_failures_spec)


def _yaml(schema: Mapping[str, Any]) -> Iterator[str]:
    """What is written otherwise in YAML, and each form that it may have."""
    asset = schema["$defs"]["ClaudeBatchAssetModel"]["properties"]
    yield from _heading(3, "An asset in YAML")
    yield (
        "All arguments of [`build_claude_batch_asset`](#build_claude_batch_asset), under the same "
        "names. Most are plain values, as in Python: `max_tokens: 200`, `include: [author]`, "
        "`tags: {tier: gold}`. These are written in their own way:"
    )
    yield ""
    yield from _table(
        ("attribute", "in YAML"), ((f"`{name}`", _line(said)) for name, said in IN_YAML.items())
    )
    yield ""
    yield (
        "A template of Dagster's, as `{{ env.CLAUDE_MODEL }}`, may stand for the value of each "
        "other argument, and within its texts; not in `prompt`, `system` and `output`. Templates "
        "of your own are functions with `@dagster.template_var`, in a module beside the YAML that "
        "it names above `attributes`: `template_vars_module: .template_vars`."
    )
    for name in dict.fromkeys(_references(list(asset.values()))):
        yield from _form(schema["$defs"][name])


def _references(schema: object) -> Iterator[str]:
    """The names of the forms that a part of a JSON schema refers to, in its order."""
    match schema:
        case {"$ref": str(reference)}:
            yield reference.rpartition("/")[2]
        case Mapping():
            yield from chain.from_iterable(map(_references, schema.values()))
        case list():
            yield from chain.from_iterable(map(_references, schema))
        case _:
            return


def _form(form: Mapping[str, Any]) -> Iterator[str]:
    """One form: what it is, what it looks like, its fields."""
    argument, _, which = form["title"].partition(":")
    yield from _heading(4, f"`{argument}`{':' if which else ''}{which}")
    yield _line(form["description"])
    yield ""
    for example in form["examples"]:
        text = yaml.safe_dump(_type_first(example), **_FLOW)
        yield f"- `{_line(text)}`"
    yield ""
    required = form.get("required", ())
    yield from _table(
        ("field", "type", "default", ""),
        (
            (
                f"`{name}`",
                _line(_type(field)),
                "required" if name in required else f"`{json.dumps(field['default'])}`",
                _line(field["description"]),
            )
            for name, field in form["properties"].items()
        ),
    )


_FLOW: dict[str, Any] = {"default_flow_style": True, "sort_keys": False, "width": 1_000}


def _type_first(value: object) -> object:
    """The same, beginning with what says which form it is: JSON schemas sort by name."""
    if not isinstance(value, dict):
        return value
    return {key: _type_first(value[key]) for key in sorted(value, key=lambda key: key != "type")}


def _type(field: Mapping[str, Any]) -> str:
    """The type of a value in a JSON schema, in words."""
    match field:
        case {"anyOf": list(kinds)}:
            return " or ".join(_type(kind) for kind in kinds if kind.get("type") != "null")
        case {"enum": list(values)}:
            return ", ".join(f"`{value}`" for value in values)
        case {"const": value}:
            return f"`{value}`"
        case {"type": "array", "items": items}:
            return f"list of {_type(items)}"
        case {"type": "object"}:
            return "names and forms"
        case {"type": str(kind)}:
            return _TYPES[kind]
    raise ValueError(field)


_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
}


def _running() -> Iterator[str]:
    yield from _heading(2, "`ClaudeBatchConfig`")
    yield from _paragraphs(public.ClaudeBatchConfig)
    yield from _fields(public.ClaudeBatchConfig, "run config")


def _resources() -> Iterator[str]:
    yield from _heading(2, "`ClaudeBatchResource`")
    yield from _paragraphs(public.ClaudeBatchResource)
    yield from _fields(public.ClaudeBatchResource, "field")
    yield ""
    verbs = ((name, getattr(public.ClaudeBatchResource, name, None)) for name in _VERBS)
    yield from _table(
        ("verb", ""),
        ((f"`{name}{_signature(verb)}`", _summary(verb)) for name, verb in verbs if verb),
    )
    yield from _heading(2, "`LocalClaudeBatchResource`")
    yield from _paragraphs(public.LocalClaudeBatchResource)
    yield "Besides those of `ClaudeBatchResource`:"
    yield ""
    inherited = public.ClaudeBatchResource.model_fields
    own = {
        name
        for name, field in public.LocalClaudeBatchResource.model_fields.items()
        if name not in inherited or field.description != inherited[name].description
    }
    yield from _fields(public.LocalClaudeBatchResource, "field", own)


def _operating() -> Iterator[str]:
    yield from _function(public.build_claude_batch_sensor)
    yield from _function(public.build_claude_batch_jobs)
    yield ""
    configs = {"collect, reconcile, delete_remote_results": SelectionConfig}
    for jobs, config in {**configs, "cancel": CancelConfig, "prune": PruneConfig}.items():
        yield from _heading(3, f"Run config of {jobs}")
        yield from _fields(config, "run config")
    yield from _function(public.build_claude_batch_spending_asset)


def _tables() -> Iterator[str]:
    yield from _heading(2, "Answers: `<schema>.<asset>`")
    yield "The row key, the `include` columns, those of `output` (or `response`), and:"
    yield ""
    yield from _columns(tables.ANSWER_COLUMNS, tables.DESCRIPTIONS)
    yield from _heading(2, "Failures: `<schema>.<asset>_failures`")
    yield "The row key, the `include` columns, and:"
    yield ""
    yield from _columns(tables.FAILURE_COLUMNS, tables.DESCRIPTIONS)
    yield ""
    yield "`_error_type` is the API's own type for what it reports as errored, else:"
    yield ""
    types = get_args(outcomes.OwnErrorType)
    yield from _table(
        ("type", "", "sent again"),
        (
            (
                f"`{name}`",
                outcomes.OWN_ERRORS[name],
                "yes" if name in outcomes.RETRYABLE else "no",
            )
            for name in types
        ),
    )
    yield from _heading(2, "Metadata of a materialization")
    yield from _table(("key", ""), ((f"`{key}`", said) for key, said in metadata.SHOWN.items()))
    yield from _heading(2, "Ledger: `claude_batch.*`")
    yield "Read it as you like; only this package writes it."
    for name, (said, columns) in ledger_tables.DESCRIPTIONS.items():
        yield from _heading(3, f"`claude_batch.{name}`")
        yield said
        if columns:
            yield ""
            yield from _table(("column", ""), ((f"`{key}`", text) for key, text in columns.items()))


# --- pieces ---------------------------------------------------------------------------------


def _heading(level: int, text: str) -> Iterator[str]:
    yield from ("", f"{'#' * level} {text}", "")


def _function(function: Callable[..., Any]) -> Iterator[str]:
    """A function: what it does, its arguments, its errors."""
    yield from _heading(2, f"`{function.__name__}`")
    yield from _paragraphs(function)
    parsed = docstring_parser.parse(inspect.getdoc(function) or "")
    said = {param.arg_name: param.description or "" for param in parsed.params}
    parameters = inspect.signature(function).parameters.values()
    shown = [each for each in parameters if each.name in said]
    if shown:
        yield from _table(
            ("argument", "default", ""),
            ((f"`{p.name}`", _default(p.default), _line(said[p.name])) for p in shown),
        )
    for raised in parsed.raises:
        yield ""
        yield f"Raises `{raised.type_name}`: {_line(raised.description or '')}"


def _part(part: type[Any]) -> Iterator[str]:
    """A part of a prompt: a dataclass whose docstring describes its fields."""
    yield from _heading(3, f"`{part.__name__}`")
    parsed = docstring_parser.parse(inspect.getdoc(part) or "")
    said = {param.arg_name: param.description or "" for param in parsed.params}
    yield from _paragraphs(part)
    if said:
        parameters = inspect.signature(part).parameters
        yield from _table(
            ("argument", "default", ""),
            (
                (f"`{each.name}`", _default(parameters[each.name].default), _line(said[each.name]))
                for each in fields(part)
            ),
        )


def _fields(model: type[BaseModel], kind: str, only: Iterable[str] | None = None) -> Iterator[str]:
    chosen = model.model_fields if only is None else {*only}
    yield from _table(
        (kind, "default", ""),
        (
            (
                f"`{name}`",
                _default(field.get_default(call_default_factory=True)),
                _line(field.description or ""),
            )
            for name, field in model.model_fields.items()
            if name in chosen
        ),
    )


def _columns(columns: Mapping[str, str], said: Mapping[str, str]) -> Iterator[str]:
    yield from _table(
        ("column", "type", ""), ((f"`{name}`", kind, said[name]) for name, kind in columns.items())
    )


def _paragraphs(documented: object) -> Iterator[str]:
    parsed = docstring_parser.parse(inspect.getdoc(documented) or "")
    for text in (parsed.short_description, parsed.long_description):
        if text:
            yield text.replace("``", "`")
            yield ""


def _summary(documented: object) -> str:
    parsed = docstring_parser.parse(inspect.getdoc(documented) or "")
    return _line(parsed.short_description or "")


def _signature(method: Callable[..., Any]) -> str:
    """The parameters of a method and their defaults, without types."""
    signature = inspect.signature(method)
    _, *parameters = signature.parameters.values()
    shown = [each.replace(annotation=each.empty) for each in parameters]
    return str(signature.replace(parameters=shown, return_annotation=signature.empty))


def _default(value: object) -> str:
    if value is inspect.Parameter.empty or value is PydanticUndefined:
        return "required"
    return f"`{value!r}`".replace("'", '"')


def _line(text: str) -> str:
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *lines):
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    REFERENCE.write_text(reference())
