"""What was declared of an asset's requests → their shape; whatever cannot work is refused here."""

import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias, cast

from dagster_claude_batch.errors import DeclarationError
from dagster_claude_batch.output import Output
from dagster_claude_batch.request import files
from dagster_claude_batch.request.caching import (
    LEAST_TOKENS,
    NothingSharedError,
    is_constant,
    shared_tokens,
    with_breakpoint,
)
from dagster_claude_batch.request.function import FunctionPrompt, PromptFunction
from dagster_claude_batch.request.parts import Document, Image, Part, Text
from dagster_claude_batch.request.shape import (
    Prompt,
    RequestShape,
    System,
    Ttl,
    forces_tool,
)
from dagster_claude_batch.request.template import Template
from dagster_claude_batch.sdk_types import (
    problem_with_content,
    problem_with_messages,
    problem_with_param,
    problem_with_tool,
)

DeclaredPrompt: TypeAlias = str | Sequence[Part | str] | PromptFunction
DeclaredSystem: TypeAlias = str | Sequence[Mapping[str, Any]] | None

_ELSEWHERE: Final = {
    "model": "the argument `model`",
    "max_tokens": "the argument `max_tokens`",
    "system": "the argument `system`",
    "stream": "nothing: batches do not stream",
    "speed": "nothing: batches have no speed",
}


def request_shape(
    asset: str,
    *,
    model: str,
    prompt: DeclaredPrompt,
    system: DeclaredSystem,
    params: Mapping[str, Any] | None,
    cache: Ttl | None,
    output: Output,
) -> RequestShape:
    """Check what was declared, by the SDK's own types too, and shape the requests after it.

    Raises:
        DeclarationError: An argument cannot work; the message names it, and the cure.
    """
    given = _params(asset, params)
    is_tool = forces_tool(given)
    _check_format(asset, given, output)
    _check_tools(asset, given, output.schema if is_tool else None)
    schema = None if is_tool else output.schema
    shape = RequestShape(
        model=model,
        prompt=_prompt(asset, prompt, has_format=schema is not None),
        system=_system(asset, system, is_function=callable(prompt)),
        params=given,
        schema=schema,
        declared_schema=output.declared_schema,
        tool_schema=output.schema if is_tool else None,
        cache=_ttl(asset, cache),
    )
    if isinstance(shape.prompt, FunctionPrompt):
        return _with_defaults(asset, shape, shape.prompt)
    if cache is not None:
        _check_cache(asset, shape, shape.tree)
    return shape


def may_cite(prompt: DeclaredPrompt) -> bool:
    """Whether Claude is asked to cite documents; it cannot beside an ``output``."""
    several = isinstance(prompt, Sequence) and not isinstance(prompt, str)
    parts = cast("Sequence[object]", prompt) if several else ()
    return any(isinstance(part, Document) and part.citations for part in parts)


def _plain(asset: str, argument: str, value: object) -> Any:  # noqa: ANN401  # any JSON
    """The same as plain JSON values, as which it is sent."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        said = f"it cannot be written as JSON ({type(error).__name__})."
        raise DeclarationError(asset, argument, said, cure="Use plain values.") from None
    return json.loads(text)


def _ttl(asset: str, cache: object) -> Ttl | None:
    if cache is None or cache in {"5m", "1h"}:
        return cast("Ttl | None", cache)
    raise DeclarationError(
        asset, "cache", f"nothing is cached for {cache!r}.", cure='Use "5m" or "1h".'
    )


# --- prompts --------------------------------------------------------------------------------


def _prompt(asset: str, prompt: object, *, has_format: bool) -> Prompt:
    if isinstance(prompt, str):
        template = Template.parse(_plain(asset, "prompt", prompt))
        _refuse_unless(asset, template.columns)
        return template
    if callable(prompt):
        _refuse_coroutine(asset, prompt)
        return FunctionPrompt(prompt)
    several = isinstance(prompt, Sequence)
    listed = cast("Sequence[object]", prompt) if several else [prompt]
    parts = tuple(Text(each) if isinstance(each, str) else each for each in listed)
    checked = tuple(_checked_part(asset, part, has_format=has_format) for part in parts)
    _refuse_unless(asset, RequestShape(model="", prompt=checked).columns)
    return checked


def _refuse_unless(asset: str, columns: Sequence[str]) -> None:
    if not columns:
        raise DeclarationError(
            asset,
            "prompt",
            "it names no column, so that each row would be asked the same.",
            cure="Write {{ column }} where a column's value belongs.",
        )


def _refuse_coroutine(asset: str, prompt: object) -> None:
    if inspect.iscoroutinefunction(prompt):
        raise DeclarationError(
            asset, "prompt", "it is a coroutine function.", cure="Use an ordinary function."
        )


def _checked_part(asset: str, part: object, *, has_format: bool) -> Part:
    match part:
        case Text():
            if not str(_plain(asset, "prompt", part.template)).strip():
                raise DeclarationError(
                    asset, "prompt", "one of its texts is empty.", cure="Leave it out."
                )
            return part
        case Image():
            _check_image(asset, part)
            return part
        case Document():
            _check_document(asset, part, has_format=has_format)
            return part
        case _:
            raise DeclarationError(
                asset,
                "prompt",
                f"{type(part).__name__} is no part of a prompt.",
                cure="Use Text(…), Image(…) and Document(…).",
            )


def _check_document(asset: str, document: Document, *, has_format: bool) -> None:
    if document.media_type not in {None, "application/pdf", "text/plain"}:
        raise DeclarationError(
            asset,
            "prompt",
            f"there is no document of the type {document.media_type!r}.",
            cure="Use application/pdf or text/plain.",
        )
    if document.citations and has_format:
        raise DeclarationError(
            asset,
            "prompt",
            "the API gives no citations where `output` asks for JSON.",
            cure="Leave out one of the two.",
        )


def _check_image(asset: str, image: Image) -> None:
    if image.max_edge is None:
        return
    if image.max_edge < 1:
        raise DeclarationError(
            asset, "prompt", f"no picture has {image.resize} pixels.", cure="Use resize=True."
        )
    try:
        files.require_pillow()
    except ImportError as error:
        raise DeclarationError(
            asset,
            "prompt",
            "scaling pictures down needs Pillow, which is not installed.",
            cure="pip install 'dagster-claude-batch[images]', or leave out `resize`.",
        ) from error


def _system(asset: str, system: object, *, is_function: bool) -> System:
    """The system prompt, with templates where it names columns."""
    if system is None:
        return None
    given = _plain(asset, "system", system)
    problem = problem_with_content(given, "system")
    if problem is None and isinstance(given, str) and not given.strip():
        problem = "it is empty"
    if problem is None and not isinstance(given, str):
        is_text = all(block["type"] == "text" for block in given)
        problem = None if is_text else "it may have blocks of text only"
    if problem is not None:
        raise DeclarationError(asset, "system", f"{problem}.", cure="Correct it.")
    found: System = (
        _templated(given)
        if isinstance(given, str)
        else [{**block, "text": _templated(block["text"])} for block in given]
    )
    if is_function and not is_constant(found):
        raise DeclarationError(
            asset,
            "system",
            "it names columns, and `prompt` is a function.",
            cure="Let the function return a dict with `system` and `messages`.",
        )
    return found


def _templated(text: str) -> str | Template:
    template = Template.parse(text, name="The system prompt")
    return template if template.columns else text


# --- parameters -----------------------------------------------------------------------------


def _params(asset: str, params: object) -> dict[str, Any]:
    """Check all but the tools by the SDK's types."""
    if params is not None and not isinstance(params, Mapping):
        raise DeclarationError(asset, "params", "it is no mapping.", cure="Use a dict.")
    listed = cast("Mapping[str, Any]", params or {})
    given: dict[str, Any] = _plain(asset, "params", dict(listed))
    for name, value in given.items():
        if name in _ELSEWHERE:
            raise DeclarationError(
                asset, "params", f"{name!r} is not for here.", cure=f"Use {_ELSEWHERE[name]}."
            )
        is_examples = name == "messages"
        problem = problem_with_messages(value) if is_examples else problem_with_param(name, value)
        if problem is not None:
            raise DeclarationError(
                asset, "params", f"{problem}.", cure="Correct it, or upgrade `anthropic`."
            )
    return given


def _check_format(asset: str, params: Mapping[str, Any], output: Output) -> None:
    if output.schema is not None and params.get("output_config", {}).get("format"):
        raise DeclarationError(
            asset,
            "params",
            "it declares a format of the answer, and so does `output`.",
            cure="Leave out one of the two.",
        )


def _check_tools(asset: str, params: Mapping[str, Any], schema: Mapping[str, Any] | None) -> None:
    """Check the tools as they are sent: with ``schema`` for the input that has no other."""
    filled = {} if schema is None else {"input_schema": schema}
    tools = params.get("tools", [])
    for number, tool in enumerate(tools):
        problem = problem_with_tool({**filled, **tool}, f"tools.{number}")
        if problem is not None:
            raise DeclarationError(asset, "params", f"{problem}.", cure="Correct it.")
    choice = params.get("tool_choice")
    if choice is None:
        return
    names = [tool.get("name") for tool in tools]
    if not tools or (choice.get("type") == "tool" and choice.get("name") not in names):
        raise DeclarationError(
            asset,
            "params",
            "`tool_choice` is about tools that are not among `tools`.",
            cure="Add them to `tools`, or leave it out.",
        )


# --- caching --------------------------------------------------------------------------------


def _check_cache(
    asset: str, shape: RequestShape, tree: Callable[[], Mapping[str, Any]]
) -> Mapping[str, Any]:
    try:
        cached = tree()
    except NothingSharedError:
        raise DeclarationError(
            asset,
            "cache",
            "nothing that all rows share stands before what differs, so nothing can be cached.",
            cure="Put instructions first, or into `system`, or leave out `cache`.",
        ) from None
    least, shared = LEAST_TOKENS.get(shape.model), shared_tokens(cached)
    if least is not None and shared < least:
        warnings.warn(
            f"Asset {asset!r}, argument `cache`: what all rows share is about {shared:,} tokens, "
            f"and {shape.model} caches nothing below {least:,}. Nothing will be cached, at no "
            "cost.",
            stacklevel=4,
        )
    return cached


def _with_defaults(asset: str, shape: RequestShape, prompt: FunctionPrompt) -> RequestShape:
    """Give a function prompt what it need not return."""
    examples = shape.params.get("messages", ())
    tree: dict[str, Any] = {**shape.constant_params(), "messages": [*examples]}
    if shape.cache is not None:
        own = {"role": "user", "content": Template(("", ""), ("row",))}
        marked = _check_cache(
            asset,
            shape,
            lambda: with_breakpoint(
                {**tree, "messages": [*examples, own]}, cast("Ttl", shape.cache)
            ),
        )
        tree = {**marked, "messages": marked["messages"][:-1]}
    defaults = {name: value for name, value in tree.items() if name != "messages"}
    filled = replace(prompt, defaults=defaults, examples=tuple(tree["messages"]))
    return replace(shape, prompt=filled)
