"""What was declared of an asset's requests → their shape; whatever cannot work is refused here."""

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
    shared_tokens,
    with_breakpoint,
)
from dagster_claude_batch.request.function import FunctionPrompt, PromptFunction
from dagster_claude_batch.request.parts import Document, Image, Part, Text
from dagster_claude_batch.request.shape import Prompt, RequestShape, System, Ttl
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

_FORCING: Final = ("tool", "any")
"""Values of ``tool_choice.type`` with which the answer is a tool's input."""


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
    given = _params(asset, params or {})
    is_tool = answers_with_tool(given)
    if is_tool:
        given = _with_input_schema(given, output)
    _check_tools(asset, given)
    shape = RequestShape(
        model=model,
        prompt=_prompt(asset, prompt, output),
        system=_system(asset, system, is_function=callable(prompt)),
        params=given,
        schema=None if is_tool else output.schema,
        declared_schema=output.declared_schema,
        cache=cache,
    )
    if isinstance(shape.prompt, FunctionPrompt):
        return _with_defaults(asset, shape, shape.prompt)
    if cache is not None:
        _check_cache(asset, shape, shape.tree)
    return shape


def answers_with_tool(params: Mapping[str, Any]) -> bool:
    """Whether the model is made to use a tool, whose input then is the answer."""
    choice = params.get("tool_choice")
    return isinstance(choice, Mapping) and cast("Any", choice).get("type") in _FORCING


# --- prompts --------------------------------------------------------------------------------


def _prompt(asset: str, prompt: DeclaredPrompt, output: Output) -> Prompt:
    if isinstance(prompt, str):
        template = Template.parse(prompt)
        _refuse_unless(asset, template.columns)
        return template
    if callable(prompt):
        return FunctionPrompt(prompt)
    parts = tuple(Text(each) if isinstance(each, str) else each for each in prompt)
    for part in parts:
        _check_part(asset, part, output)
    _refuse_unless(asset, RequestShape(model="", prompt=parts).columns)
    return parts


def _refuse_unless(asset: str, columns: Sequence[str]) -> None:
    if not columns:
        raise DeclarationError(
            asset,
            "prompt",
            "it names no column, so that each row would be asked the same.",
            cure="Write {{ column }} where a column's value belongs.",
        )


def _check_part(asset: str, part: object, output: Output) -> None:
    match part:
        case Text():
            if not part.template.strip():
                raise DeclarationError(
                    asset, "prompt", "one of its texts is empty.", cure="Leave it out."
                )
        case Image():
            _check_image(asset, part)
        case Document():
            if part.citations and output.schema is not None:
                raise DeclarationError(
                    asset,
                    "prompt",
                    "the API gives no citations where `output` asks for JSON.",
                    cure="Leave out one of the two.",
                )
        case _:
            raise DeclarationError(
                asset,
                "prompt",
                f"{type(part).__name__} is no part of a prompt.",
                cure="Use Text(…), Image(…) and Document(…).",
            )


def _check_image(asset: str, image: Image) -> None:
    if image.max_edge is not None and image.max_edge < 1:
        raise DeclarationError(
            asset, "prompt", f"no picture has {image.resize} pixels.", cure="Use resize=True."
        )
    try:
        files.image_reader(image.max_edge)
    except ImportError as error:
        raise DeclarationError(
            asset,
            "prompt",
            "scaling pictures down needs Pillow, which is not installed.",
            cure="pip install 'dagster-claude-batch[images]', or leave out `resize`.",
        ) from error


def _system(asset: str, system: DeclaredSystem, *, is_function: bool) -> System:
    """The system prompt, with templates where it names columns."""
    if system is None:
        return None
    if isinstance(system, str):
        found: System = _templated(system)
    else:
        blocks = [dict(block) for block in system]
        problem = problem_with_content(blocks, "system")
        if problem is not None:
            raise DeclarationError(asset, "system", f"{problem}.", cure="Correct it.")
        found = [{**block, "text": _templated(block["text"])} for block in blocks]
    varies = isinstance(found, Template) or (
        not isinstance(found, str) and any(isinstance(b["text"], Template) for b in found)
    )
    if varies and is_function:
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


def _params(asset: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Check all but the tools by the SDK's types."""
    for name, value in params.items():
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
    return dict(params)


def _with_input_schema(params: dict[str, Any], output: Output) -> dict[str, Any]:
    """Fill in, for the tool that has to be used, what its input is to be: the output."""
    if output.schema is None:
        return params
    chosen = params["tool_choice"].get("name")
    tools = [
        {**tool, "input_schema": output.schema}
        if tool.get("name") == chosen and "input_schema" not in tool
        else tool
        for tool in params.get("tools", ())
    ]
    return {**params, "tools": tools}


def _check_tools(asset: str, params: Mapping[str, Any]) -> None:
    tools = params.get("tools", ())
    for number, tool in enumerate(tools):
        problem = problem_with_tool(tool, f"tools.{number}")
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
            "`tool_choice` asks for a tool that is not among `tools`.",
            cure="Add it to `tools`.",
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
