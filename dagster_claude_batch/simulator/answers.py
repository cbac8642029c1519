"""What a request is answered with: what the user's function says, or something that fits."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

from dagster_claude_batch.simulator.errors import FunctionNotFoundError
from dagster_claude_batch.simulator.json_values import (
    Params,
    compact,
    content_key,
    identifier,
    is_array,
    is_object,
    part,
)
from dagster_claude_batch.simulator.schema_values import value_for
from dagster_claude_batch.simulator.tokens import text_of, tokens_of


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, for what text alone cannot say.

    ``usage`` replaces single fields of the estimated usage.
    """

    content: list[dict[str, Any]]
    stop_reason: str = "end_turn"
    usage: dict[str, Any] | None = None


Answer: TypeAlias = Callable[[Params], "str | dict[str, Any] | list[Any] | Reply"]
"""``params`` → the answer's text, a value that becomes JSON text, or a whole :class:`Reply`.

Where ``tool_choice`` forces a tool, a dict is that tool's input.
"""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer with all that a Message needs, apart from the input tokens."""

    content: list[dict[str, Any]]
    stop_reason: str
    output_tokens: int
    stop_sequence: str | None = None
    thinking_tokens: int = 0
    usage: dict[str, Any] | None = None


def import_function(argument: str, name: str) -> Callable[..., Any]:
    """Import the function that 'package.module:function' names.

    Raises:
        FunctionNotFoundError: It cannot be imported, or is no function.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise FunctionNotFoundError(argument, name, reason="it is not 'package.module:function'")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise FunctionNotFoundError(argument, name, reason=str(error)) from error
    if not callable(function):
        raise FunctionNotFoundError(argument, name, reason="it is not callable")
    return function


def answer_to(params: Params, *, answer: Answer | None, seed: int) -> Answered:
    """Answer a valid request; without ``answer``, the same for the same question and seed."""
    return _answered(answer(params) if answer is not None else _something(params, seed), params)


def cut(answered: Answered, stop_reason: str, *, tokens: int | None = None) -> Answered:
    """Keep the first half of an answer's text; ``tokens`` are its output tokens."""
    content = [
        {**block, "text": block["text"][: len(block["text"]) // 2]}
        for block in answered.content
        if block.get("type") == "text"
    ]
    return Answered(content, stop_reason, tokens or max(1, _tokens(content)))


def forced_tool(params: Params) -> dict[str, Any] | None:
    """Find the tool that the request makes the model use, if it does."""
    tools: list[dict[str, Any]] = params.get("tools") or []
    choice = part(params, "tool_choice")
    match choice.get("type"):
        case "any":
            return tools[0]
        case "tool":
            return next(tool for tool in tools if tool.get("name") == choice.get("name"))
        case _:
            return None


def _answered(said: object, params: Params) -> Answered:
    tool = forced_tool(params)
    if isinstance(said, Reply):
        return _replied(said)
    if isinstance(said, str):
        return _text(said, params)
    if tool is not None and is_object(said):
        return _tool_use(tool, said, params)
    if is_object(said) or is_array(said):
        return _text(compact(said), params)
    raise TypeError(f"it returned {said!r}: not a string, a dict, a list or a Reply")


def _something(params: Params, seed: int) -> str | dict[str, Any] | list[Any]:
    key = content_key(params).hex()
    random = Random(f"{seed}:{key}")  # noqa: S311 - it has to be the same each time
    tool = forced_tool(params)
    if tool is not None:
        value = value_for(tool.get("input_schema", {"type": "object"}), random)
        return value if is_object(value) else {}
    output_format = part(part(params, "output_config"), "format")
    if output_format:
        schema = output_format["schema"]
        several = _several(schema, params, random)
        return compact(several if several is not None else value_for(schema, random))
    return f"This is a simulated answer ({key[:8]})."


_ROW_NUMBER = re.compile(r'<row number="(\d+)">|^Row (\d+):$', re.MULTILINE)


def _several(schema: dict[str, Any], params: Params, random: Random) -> dict[str, Any] | None:
    """Answer each of the numbered rows of a request, if that is what it asks for."""
    lists = list(part(schema, "properties"))
    name = lists[0] if len(lists) == 1 else None
    element = part(part(part(schema, "properties"), name or ""), "items")
    number = next(iter(part(element, "properties")), None)
    asked = [int(one or other) for one, other in _ROW_NUMBER.findall(_question(params))]
    if name is None or number is None or not asked:
        return None
    element = {**element, "$defs": part(schema, "$defs")}
    answers = [value_for(element, random) for _ in asked]
    return {
        name: [
            {**answer, number: row}
            for row, answer in zip(asked, answers, strict=True)
            if is_object(answer)
        ]
    }


def _question(params: Params) -> str:
    content = params["messages"][-1]["content"]
    blocks = [{"text": content}] if isinstance(content, str) else content
    return "\n".join(str(block.get("text", "")) for block in blocks)


def _replied(reply: Reply) -> Answered:
    return Answered(
        reply.content, reply.stop_reason, _tokens(reply.content), usage=reply.usage or {}
    )


def _tool_use(tool: dict[str, Any], value: dict[str, Any], params: Params) -> Answered:
    content = [
        {
            "type": "tool_use",
            "id": identifier("toolu", content_key(params)),
            "name": tool["name"],
            "input": value,
        }
    ]
    return Answered(content, "tool_use", _tokens(content))


def _text(text: str, params: Params) -> Answered:
    """Text, ended by a stop sequence or by ``max_tokens`` as a model's would be."""
    thinking = _thinking(params)
    thought = _tokens(thinking)
    text, stop_sequence = _until_stop_sequence(text, params.get("stop_sequences") or [])
    stop_reason = "end_turn" if stop_sequence is None else "stop_sequence"
    if thought + tokens_of(text) > params["max_tokens"]:
        text = text_of(max(0, params["max_tokens"] - thought), text)
        stop_reason, stop_sequence = "max_tokens", None
    return Answered(
        [*thinking, {"type": "text", "text": text}],
        stop_reason,
        min(thought + tokens_of(text), params["max_tokens"]),
        stop_sequence,
        thought,
    )


def _thinking(params: Params) -> list[dict[str, Any]]:
    """Think where the request asks for it; by default simple rows are answered without."""
    kind = part(params, "thinking").get("type")
    if kind not in {"adaptive", "enabled"}:
        return []
    return [{"type": "thinking", "thinking": "Simulated thinking.", "signature": "c2ltdWxhdGVk"}]


def _until_stop_sequence(text: str, sequences: list[str]) -> tuple[str, str | None]:
    found = [(text.index(each), each) for each in sequences if each and each in text]
    if not found:
        return text, None
    position, sequence = min(found)
    return text[:position], sequence


def _tokens(content: list[dict[str, Any]]) -> int:
    return sum(
        tokens_of(block["text"] if block.get("type") == "text" else compact(block))
        for block in content
    )
