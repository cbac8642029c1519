"""What the SDK's own types say against a request's parameters, before they are sent."""

import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from json import loads
from typing import Any, TypeGuard, cast, get_args, get_type_hints

from anthropic.types.content_block_param import ContentBlockParam
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from anthropic.types.thinking_config_param import ThinkingConfigParam
from anthropic.types.tool_choice_param import ToolChoiceParam
from anthropic.types.tool_param import ToolParam
from pydantic import TypeAdapter, ValidationError

from dagster_claude_batch.canonical import canonical_json

SAMPLING = frozenset({"temperature", "top_p", "top_k"})
"""Parameters that have left the SDK's types; older models take them."""

_ROLES = frozenset({"user", "assistant", "system"})

_TAGGED = {"tool_choice": ToolChoiceParam, "thinking": ThinkingConfigParam}
"""Unions told by ``type``: without that, errors of unions are such as nobody can read."""


def problem_with_param(name: str, value: object) -> str | None:
    """What the types say against a parameter, or None.

    ``max_tokens``, ``messages`` and ``model`` are not for here. Equal values are checked once.
    """
    if name in SAMPLING:
        return None
    if name not in _fields():
        return f"{name}: Extra inputs are not permitted"
    try:
        text = canonical_json(value).decode()
    except (TypeError, ValueError) as error:
        return f"{name}: it cannot be written as JSON ({error})"
    return _problem_with_field(name, text)


@lru_cache(maxsize=1_024)
def _problem_with_field(name: str, value: str) -> str | None:
    loaded = loads(value)
    problem = problem_with(_fields()[name], loaded, name)
    if problem is None and name in _TAGGED and _is_object(loaded):
        return _problem_with_tagged(name, loaded)
    return problem


def _problem_with_tagged(name: str, value: dict[str, Any]) -> str | None:
    for member in get_args(_TAGGED[name]):
        if value.get("type") in get_args(get_type_hints(member)["type"]):
            return problem_with(adapter(member), value, name)
    return f"{name}.type: Input tag {value.get('type')!r} does not match any of the expected tags"


@cache
def _fields() -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(MessageCreateParamsNonStreaming)
    hints |= dict.fromkeys(_TAGGED, dict[str, object])
    hints["tools"] = list[dict[str, object]]  # of these, `problem_with_tool`
    return {name: TypeAdapter(hint) for name, hint in hints.items()}


def problem_with_messages(messages: object) -> str | None:
    """What the types say against a list of messages, or None."""
    if not isinstance(messages, list | tuple):
        return "messages: Input should be a valid list"
    if not messages:
        return "messages: at least one message is required"
    listed = cast("list[object]", messages)
    found = (problem_with_message(each, f"messages.{n}") for n, each in enumerate(listed))
    return next((problem for problem in found if problem), None)


def problem_with_message(message: object, where: str) -> str | None:
    """What the types say against a message, or None; ``where`` is its path."""
    if not _is_object(message):
        return f"{where}: Input should be an object"
    for name in ("role", "content"):
        if name not in message:
            return f"{where}.{name}: Field required"
    for name in message.keys() - {"role", "content"}:
        return f"{where}.{name}: Extra inputs are not permitted"
    if message["role"] not in _ROLES:
        return f"{where}.role: Input should be 'user', 'assistant' or 'system'"
    content = message["content"]
    if not content or (isinstance(content, str) and not content.strip()):
        return f"{where}: all messages must have non-empty content"
    return problem_with_content(message["content"], f"{where}.content")


def problem_with_content(content: object, where: str) -> str | None:
    """What the types say against text or blocks, or None."""
    if isinstance(content, str):
        return None
    if not isinstance(content, list | tuple):
        return f"{where}: Input should be a valid string or list"
    blocks = cast("list[object]", content)
    found = (_problem_with_block(block, f"{where}.{n}") for n, block in enumerate(blocks))
    return next((problem for problem in found if problem), None)


def _problem_with_block(block: object, where: str) -> str | None:
    if not _is_object(block):
        return f"{where}: Input should be an object"
    kind = block.get("type")
    member = _blocks().get(kind) if isinstance(kind, str) else None
    if member is None:
        return f"{where}.type: Input tag {kind!r} does not match any of the expected tags"
    problem = problem_with(adapter(member), block, where)
    if problem is None and kind == "text" and not block["text"].strip():
        return f"{where}.text: text content blocks must contain non-whitespace text"
    return problem


def problem_with_tool(tool: dict[str, Any], where: str) -> str | None:
    """What the types say against a tool of the user's own; the API's are left to the API."""
    return problem_with(adapter(ToolParam), tool, where) if is_custom(tool) else None


def is_custom(tool: Mapping[str, Any]) -> bool:
    """Whether a tool is the user's own, and none that the API brings along."""
    return tool.get("type", "custom") in {"custom", None}


@cache
def _blocks() -> dict[str, Any]:
    """The types of content blocks, by their tag."""
    members = get_args(ContentBlockParam)
    return {tag: each for each in members for tag in get_args(get_type_hints(each)["type"])}


@cache
def adapter(declared: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - a type of the SDK
    """What checks values of a type."""
    return TypeAdapter(declared)


def problem_with(checks: TypeAdapter[Any], value: object, where: str) -> str | None:
    """The first problem with a value, with its path."""
    try:
        _exhaust(checks.validate_python(value, strict=True))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = [str(step) for step in first["loc"] if re.fullmatch(r"[a-z0-9_]+", str(step))]
        return f"{'.'.join([where, *path])}: {first['msg']}"
    return None


def _exhaust(value: object) -> None:
    """Walk through what was validated: the SDK's ``Iterable`` fields are checked only then."""
    if _is_object(value):
        for each in value.values():
            _exhaust(each)
    elif _is_sequence(value):
        for each in value:
            _exhaust(each)


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_sequence(value: object) -> TypeGuard[list[object] | Iterator[object]]:
    return isinstance(value, list | Iterator)
