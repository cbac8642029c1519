"""All that a row is asked: what is the same for every row of an asset, and where its own stands."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias, TypeGuard, cast

from dagster_claude_batch.canonical import NOT_HASHED, canonical_json, without_cache_control
from dagster_claude_batch.request.caching import with_breakpoint
from dagster_claude_batch.request.function import FunctionPrompt
from dagster_claude_batch.request.leaf import Leaf, Scope
from dagster_claude_batch.request.parts import Document, Image, Part
from dagster_claude_batch.request.template import Template
from dagster_claude_batch.sdk_types import is_custom

HASH_VERSION: Final = "v1"
"""Begins every request hash. A new version asks every row again: change it never lightly."""

Ttl: TypeAlias = Literal["5m", "1h"]
System: TypeAlias = "str | Template | Sequence[Mapping[str, Any]] | None"
Prompt: TypeAlias = "Template | tuple[Part, ...] | FunctionPrompt | PackedPrompt"


@dataclass(frozen=True)
class PackedPrompt:
    """The content of a request for several rows, with one leaf for all of them."""

    content: "Template | tuple[object, ...]" = field(repr=False)  # no prompt in a log


@dataclass(frozen=True, kw_only=True)
class RequestShape:
    """What was declared of an asset's requests.

    ``system`` may hold templates, as text or as the text of blocks. ``params`` may have
    ``messages``: examples that stand before the row's own. ``schema`` is what the API is sent;
    ``declared_schema`` is the output as the user declared it, whose hash outlives the spelling of
    ``schema``. Where the answer is the input of a tool, ``tool_schema`` is for tools that have none
    of their own. With ``cache``, what is the same for all rows is marked to be cached for so long.
    """

    model: str
    prompt: Prompt = field(repr=False)  # no prompt in a log
    system: System = field(default=None, repr=False)
    params: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    schema: Mapping[str, Any] | None = None
    declared_schema: Mapping[str, Any] | None = None
    tool_schema: Mapping[str, Any] | None = None
    cache: Ttl | None = None

    # --- what is asked ----------------------------------------------------------------------

    @cached_property
    def _fragments(self) -> tuple[str | Leaf, ...]:
        """The JSON of ``params`` but ``max_tokens``, without braces, cut where the row matters."""
        if isinstance(self.prompt, FunctionPrompt):
            return ("", self.prompt, "")
        return tuple(_merged(_json_of_members(self.tree())))

    def tree(self) -> dict[str, Any]:
        """The params but ``max_tokens``, with leaves where the row matters."""
        if isinstance(self.prompt, FunctionPrompt):
            raise TypeError("what a function asks is known row by row")
        content = _content(self.prompt)
        messages = [*self.params.get("messages", ()), {"role": "user", "content": content}]
        tree = {**self.constant_params(), "messages": messages}
        return with_breakpoint(tree, self.cache) if self.cache is not None else tree

    def constant_params(self) -> dict[str, Any]:
        """The params but ``max_tokens`` and ``messages``; of these only ``system`` may vary."""
        fixed: dict[str, Any] = {"model": self.model}
        if self.system is not None:
            fixed["system"] = self.system
        fixed |= {name: value for name, value in self.params.items() if name != "messages"}
        if self.tool_schema is not None:
            fixed["tools"] = [self._with_input_schema(tool) for tool in fixed["tools"]]
        if self.schema is not None:
            output_format = {"type": "json_schema", "schema": self.schema}
            fixed["output_config"] = {**fixed.get("output_config", {}), "format": output_format}
        return fixed

    def _with_input_schema(self, tool: Mapping[str, Any]) -> Mapping[str, Any]:
        lacks_it = is_custom(tool) and "input_schema" not in tool
        return {**tool, "input_schema": self.tool_schema} if lacks_it else tool

    @property
    def leaves(self) -> list[Leaf]:
        """The places where the row matters, in the order of the request."""
        return [each for each in self._fragments if not isinstance(each, str)]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row needs, each once, in the order of first use."""
        return tuple(dict.fromkeys(column for leaf in self.leaves for column in leaf.columns))

    @property
    def needs_whole_row(self) -> bool:
        """Whether all columns of the source matter."""
        return isinstance(self.prompt, FunctionPrompt)

    @property
    def effort(self) -> object:
        """How much effort is asked for, if anything is said of it."""
        return self.params.get("output_config", {}).get("effort")

    @property
    def may_cache(self) -> bool:
        """Whether anything of a request may be written to the cache."""
        texts = [each for each in self._fragments if isinstance(each, str)]
        return self.needs_whole_row or any('"cache_control"' in text for text in texts)

    @property
    def has_more_than_it_says(self) -> bool:
        """Whether the API adds to a prompt: how an output has to look, or how tools are used."""
        return self.needs_whole_row or self.schema is not None or bool(self.params.get("tools"))

    @property
    def endless_tool(self) -> str | None:
        """A tool of the API's own that brings any number of tokens into the prompt, if there is."""
        tools: Sequence[Mapping[str, Any]] = self.params.get("tools") or ()
        kinds = [str(tool.get("type")) for tool in tools]
        return next((kind for kind in kinds if kind.startswith(_ENDLESS)), None)

    @property
    def has_pictures(self) -> bool:
        """Whether the model has to see pictures."""
        return any(isinstance(part, Image) for part in self._parts)

    @property
    def has_pdfs(self) -> bool:
        """Whether the model surely has to read PDFs; a column of BLOBs may hold some too."""
        documents = [part for part in self._parts if isinstance(part, Document)]
        return any(document.media_type == "application/pdf" for document in documents)

    @property
    def _parts(self) -> tuple[Part, ...]:
        return self.prompt if isinstance(self.prompt, tuple) else ()

    # --- as SQL -----------------------------------------------------------------------------

    def json_sql(self, values: Sequence[str], scope: Scope, *, max_tokens: str) -> str:
        """The text of a row's ``params``, from the values of the leaves and SQL of a number."""
        fragments = json_sql(self._fragments, values, scope)
        return f"'{{\"max_tokens\":' || CAST({max_tokens} AS VARCHAR) || ',' || {fragments} || '}}'"

    def constant_size(self, *, max_tokens: int) -> int:
        """Bytes of that which are the same for all rows."""
        texts = [each for each in self._fragments if isinstance(each, str)]
        return len(f'{{"max_tokens":{max_tokens:d},{"".join(texts)}}}'.encode())

    def size_sql(self, values: Sequence[str], scope: Scope) -> str:
        """The other bytes of it, at the most."""
        pairs = zip(self.leaves, values, strict=True)
        return " + ".join(leaf.size(value, scope) for leaf, value in pairs)

    def surplus_sql(self, values: Sequence[str], scope: Scope) -> str | None:
        """How many bytes more than tokens a row's request has; None if it is all text."""
        pairs = zip(self.leaves, values, strict=True)
        found = [leaf.surplus(value, scope) for leaf, value in pairs]
        return " + ".join(f"({each})" for each in found if each is not None) or None

    def problem_sql(self, values: Sequence[str], scope: Scope) -> str:
        """Why a row cannot be asked; NULL if it can."""
        pairs = zip(self.leaves, values, strict=True)
        return f"coalesce({', '.join(leaf.problem(value, scope) for leaf, value in pairs)})"

    def hash_sql(self, values: Sequence[str], scope: Scope) -> str:
        """The request hash of a row."""
        digest = scope.bind(self.digest())
        asked = f"{digest} || chr(10) || {self._identity_sql(values, scope)}"
        return f"'{HASH_VERSION}:' || left(sha256({asked}), 32)"

    def fingerprint_sql(self, values: Sequence[str], scope: Scope) -> str:
        """A number that says much faster, if less surely, whether a row asks the same.

        By another DuckDB it may be another one.
        """
        return f"hash({scope.bind(self.digest())}, {self._identity_sql(values, scope)})"

    def _identity_sql(self, values: Sequence[str], scope: Scope) -> str:
        """What a row is asked: the text itself, where there is nothing else."""
        if self._is_plain:
            (leaf,), (value,) = self.leaves, values
            is_text = isinstance(leaf, Template)
            return leaf.text(value, scope) if is_text else leaf.identity(value, scope)
        pairs = zip(self.leaves, values, strict=True)
        identities = (leaf.identity(value, scope) for leaf, value in pairs)
        return " || ',' || ".join(identities)

    @property
    def _is_plain(self) -> bool:
        """Whether the prompt is the one thing of which the row decides."""
        return not isinstance(self.prompt, tuple) and not _has_leaf(self.system)

    def digest(self) -> str:
        """Identify what was declared, without what may change without changing the question."""
        declared: dict[str, Any] = {
            "model": self.model,
            "system": without_cache_control(_structure(self.system)),
            "params": without_cache_control(
                {k: v for k, v in self.params.items() if k not in NOT_HASHED}
            ),
            # The order of its properties is part of what Claude is asked: not sorted.
            "output": None if self.declared_schema is None else json.dumps(self.declared_schema),
        }
        if not self._is_plain:
            declared["content"] = _structure(
                [part.block() for part in self.prompt] if isinstance(self.prompt, tuple) else None
            )
        return hashlib.sha256(canonical_json(declared)).hexdigest()[:32]


_ENDLESS: Final = ("web_search", "web_fetch", "code_execution", "tool_search")


def _content(prompt: Template | tuple[Part, ...] | PackedPrompt) -> object:
    if isinstance(prompt, PackedPrompt):
        packed = prompt.content
        return list(packed) if isinstance(packed, tuple) else packed
    return [part.block() for part in prompt] if isinstance(prompt, tuple) else prompt


def forces_tool(params: Mapping[str, Any]) -> bool:
    """Whether the model has to use a tool of the user's own, whose input then is the answer."""
    choice: Mapping[str, Any] = params.get("tool_choice") or {}
    tools: Sequence[Mapping[str, Any]] = params.get("tools") or ()
    custom = [tool for tool in tools if is_custom(tool)]
    match choice.get("type"):
        case "any":
            return bool(custom)
        case "tool":
            return choice.get("name") in [tool.get("name") for tool in custom]
        case _:
            return False


# --- trees with leaves ----------------------------------------------------------------------


def is_leaf(value: object) -> TypeGuard[Leaf]:
    """Whether it is a place where the row matters."""
    return hasattr(value, "identity") and hasattr(value, "structure")


def _has_leaf(value: object) -> bool:
    return any(not isinstance(each, str) for each in _json_of(value))


def _structure(value: object) -> object:
    """The same as plain values: of a leaf, what is declared of it."""
    match value:
        case dict():
            return {k: _structure(v) for k, v in cast("dict[str, object]", value).items()}
        case list() | tuple():
            return [_structure(each) for each in cast("list[object]", value)]
        case _:
            return value.structure if is_leaf(value) else value


def json_sql(fragments: Iterable[str | Leaf], values: Sequence[str], scope: Scope) -> str:
    """SQL of JSON text that is cut at leaves, from their values."""
    of_leaves = iter(values)
    pieces = (
        scope.bind(each) if isinstance(each, str) else each.json(next(of_leaves), scope)
        for each in fragments
    )
    return " || ".join(pieces)


def fragments_of(value: object) -> list[str | Leaf]:
    """A tree as JSON text, cut at its leaves."""
    return list(_merged(_json_of(value)))


def _json_of(value: object) -> Iterator[str | Leaf]:
    """A tree as JSON text, cut at its leaves."""
    match value:
        case dict():
            yield "{"
            yield from _json_of_members(cast("dict[str, object]", value))
            yield "}"
        case list() | tuple():
            yield "["
            for number, each in enumerate(cast("list[object]", value)):
                if number:
                    yield ","
                yield from _json_of(each)
            yield "]"
        case _ if is_leaf(value):
            yield value
        case _:
            yield json.dumps(value, ensure_ascii=False, allow_nan=False)


def _json_of_members(members: Mapping[str, object]) -> Iterator[str | Leaf]:
    for number, (key, value) in enumerate(members.items()):
        yield f"{',' if number else ''}{json.dumps(key, ensure_ascii=False)}:"
        yield from _json_of(value)


def _merged(pieces: Iterator[str | Leaf]) -> Iterator[str | Leaf]:
    """Texts and leaves in turn, beginning and ending with a text."""
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        else:
            yield text
            yield piece
            text = ""
    yield text
