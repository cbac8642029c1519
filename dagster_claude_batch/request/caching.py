"""Prompt caching: the one breakpoint behind all that the rows of an asset have in common."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, cast

from dagster_claude_batch.canonical import canonical_json
from dagster_claude_batch.request.template import Template

_CHARACTERS_PER_TOKEN: Final = 4

LEAST_TOKENS: Final[Mapping[str, int]] = {
    "claude-haiku-5-5": 512,
    "claude-opus-5-5": 512,
    "claude-sonnet-5-5": 1_024,
    "claude-haiku-4-5": 4_096,
}
"""Tokens of a prefix below which a model silently caches nothing, as far as that is known."""


class NothingSharedError(ValueError):
    """Nothing that could be cached stands before the row's own values."""


def with_breakpoint(tree: Mapping[str, Any], ttl: Literal["5m", "1h"]) -> dict[str, Any]:
    """The same params, with a breakpoint behind the last block that all rows share.

    Claude reads tools, then the system prompt, then the messages. The constant text with which
    the row's own begins becomes a block of its own.

    Raises:
        NothingSharedError: There is no such block.
    """
    blocks = _Blocks(tree)
    last = None
    for place, block in blocks:
        if is_constant(block):
            last = place
            continue
        front = _front_of(block)
        if front is not None:
            blocks.insert(place, {"type": "text", "text": front})
            blocks[place[0], place[1] + 1] = {**block, "text": block["text"].split()[1]}
            last = place
        break
    if last is None:
        raise NothingSharedError
    control = {"type": "ephemeral"} if ttl == "5m" else {"type": "ephemeral", "ttl": ttl}
    blocks[last] = {**blocks[last], "cache_control": control}
    return blocks.tree()


def is_constant(value: object) -> bool:
    """Whether a tree has no leaf where the row matters."""
    match value:
        case dict():
            return all(is_constant(v) for v in cast("dict[str, object]", value).values())
        case list() | tuple():
            return all(is_constant(each) for each in cast("list[object]", value))
        case _:
            return value is None or isinstance(value, str | int | float)


def _front_of(block: object) -> str | None:
    """The constant text with which a block of text begins, if Claude takes it as a block."""
    text = cast("dict[str, object]", block).get("text") if isinstance(block, dict) else None
    if not isinstance(text, Template):
        return None
    front, _ = text.split()
    return front if front.strip() else None


_Place = tuple[int, int]
"""A group of blocks, and a block within it."""


class _Blocks:
    """What Claude reads of ``params``, in its order, as groups of blocks that can be changed."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree
        self._messages = list(cast("list[dict[str, Any]]", tree["messages"]))
        self._groups: list[list[dict[str, Any]]] = [
            [dict(tool) for tool in tree.get("tools", ())],
            _as_blocks(tree.get("system")),
            *(_as_blocks(message["content"]) for message in self._messages),
        ]

    def __iter__(self) -> Iterator[tuple[_Place, dict[str, Any]]]:
        for group, blocks in enumerate(self._groups):
            for number, block in enumerate(list(blocks)):
                yield (group, number), block

    def __getitem__(self, place: _Place) -> dict[str, Any]:
        return self._groups[place[0]][place[1]]

    def __setitem__(self, place: _Place, block: dict[str, Any]) -> None:
        self._groups[place[0]][place[1]] = block

    def insert(self, place: _Place, block: dict[str, Any]) -> None:
        self._groups[place[0]].insert(place[1], block)

    def tree(self) -> dict[str, Any]:
        tools, system, *contents = self._groups
        pairs = zip(self._messages, contents, strict=True)
        changed: dict[str, Any] = {
            "messages": [{**message, "content": content} for message, content in pairs]
        }
        if tools:
            changed["tools"] = tools
        if system:
            changed["system"] = system
        return {**self._tree, **changed}


def _as_blocks(content: object) -> list[dict[str, Any]]:
    if content is None:
        return []
    if isinstance(content, str | Template):
        return [{"type": "text", "text": content}]
    return list(cast("list[dict[str, Any]]", content))


def shared_tokens(tree: Mapping[str, Any]) -> int:
    """About how many tokens of params with a breakpoint stand before it."""
    characters = 0
    for _, block in _Blocks(tree):
        if not is_constant(block):
            break
        characters += len(canonical_json({**block, "cache_control": None}))
        if "cache_control" in block:
            break
    return characters // _CHARACTERS_PER_TOKEN
