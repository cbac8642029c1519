"""Prompts that are Python functions of a row: the slower way out, where SQL cannot say it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeGuard

import duckdb

from dagster_claude_batch.canonical import NOT_HASHED, canonical_json, without_cache_control
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.request.leaf import Row, Scope
from dagster_claude_batch.sdk_types import problem_with_messages, problem_with_param

Asked: TypeAlias = "str | list[dict[str, Any]] | dict[str, Any]"
"""What a prompt function returns: text, content blocks, or whole ``params``."""

PromptFunction: TypeAlias = Callable[[Row], Any]

_RENDERED: Final = duckdb.struct_type(
    {"identity": "VARCHAR", "members": "VARCHAR", "size": "BIGINT", "problem": "VARCHAR"}
)

_Rendered: TypeAlias = "dict[str, str | int | None]"

DECLARED_ELSEWHERE: Final = ("model", "max_tokens", "stream", "speed")
"""Parameters that a row cannot have for itself."""


@dataclass(frozen=True)
class FunctionPrompt:
    """A prompt that a function makes of a row: of a dict of all columns of the source.

    ``defaults`` are all parameters but ``max_tokens`` and ``messages``; what the function returns
    as ``params`` counts before them. ``examples`` are messages before the row's own.
    """

    function: PromptFunction
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    examples: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """None: what to do with NULL is the function's own affair."""
        return ()

    @property
    def structure(self) -> object:
        """Nothing: all that it returns is hashed."""
        return "function"

    def value(self, scope: Scope) -> str:
        """A STRUCT: identity, members of the params and their bytes, problem."""
        render = self.render if scope.writes else self.judge
        return scope.call(render, scope.row(), takes=scope.row_type(), returns=_RENDERED)

    def json(self, value: str, scope: Scope) -> str:
        """The members of ``params``, without braces."""
        del scope
        return f"{value}.members"

    def size(self, value: str, scope: Scope) -> str:
        """Their bytes."""
        del scope
        return f"{value}.size"

    def surplus(self, value: str, scope: Scope) -> str | None:
        """None: no token is shorter than a byte."""
        del value, scope
        return None

    def identity(self, value: str, scope: Scope) -> str:
        """Of text, the text itself: the same question as a template's has the same hash."""
        del scope
        return f"{value}.identity"

    def problem(self, value: str, scope: Scope) -> str:
        """Why a row cannot be asked."""
        del scope
        return f"{value}.problem"

    # --- one row ----------------------------------------------------------------------------

    def judge(self, row: Row) -> _Rendered:
        """The same, of which nobody keeps what is asked."""
        return {**self.render(row), "members": None}

    def render(self, row: Row) -> _Rendered:
        """What one row is asked, or why it cannot be."""
        try:
            asked = self.function(row)
            return self._rendered(asked)
        except Exception as error:  # noqa: BLE001  # a user's function; one row must not fail others
            return _problem(f"The prompt function raised {type(error).__name__}: {error}")

    def _rendered(self, asked: object) -> _Rendered:
        if isinstance(asked, str):
            if not asked.strip():
                return _problem("The prompt is empty.")
            return self._params({}, asked, identity=asked)
        if _is_blocks(asked):
            return self._params({}, asked, identity=_identity_of(asked))
        if _is_params(asked):
            return self._whole(asked)
        return _problem(
            f"The prompt function returned a {type(asked).__name__}: it must return text, a list "
            "of content blocks, or a dict of parameters."
        )

    def _whole(self, asked: Mapping[str, Any]) -> _Rendered:
        """Whole ``params``, whose messages are all that there are."""
        for name, value in asked.items():
            if name in DECLARED_ELSEWHERE:
                return _problem(f"The prompt function returned `{name}`, which the asset declares.")
            problem = None if name == "messages" else problem_with_param(name, value)
            if problem:
                return _problem(f"The prompt function returned what the API refuses: {problem}.")
        if "messages" not in asked:
            return _problem("The prompt function returned parameters without `messages`.")
        others = {name: value for name, value in asked.items() if name != "messages"}
        if "output_config" in others:
            ours = self.defaults.get("output_config", {})
            if "format" in ours and "format" in others["output_config"]:
                return _problem("The prompt function returned a format, which `output` declares.")
            others["output_config"] = {**ours, **others["output_config"]}
        hashed = {name: value for name, value in asked.items() if name not in NOT_HASHED}
        return self._members(others, asked["messages"], identity=_identity_of(hashed))

    def _params(self, others: Mapping[str, Any], content: object, *, identity: str) -> _Rendered:
        messages = [*self.examples, {"role": "user", "content": content}]
        return self._members(others, messages, identity=identity)

    def _members(self, others: Mapping[str, Any], messages: object, *, identity: str) -> _Rendered:
        problem = problem_with_messages(messages)
        if problem:
            return _problem(f"The prompt function returned what the API refuses: {problem}.")
        params = {**self.defaults, **others, "messages": messages}
        text = json.dumps(params, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        size = len(text.encode())  # raises where it holds half of a character
        return {"identity": identity, "members": text[1:-1], "size": size, "problem": None}


def _problem(said: str) -> _Rendered:
    return {"identity": None, "members": None, "size": None, "problem": one_line(said)}


def _identity_of(asked: object) -> str:
    """One spelling for what is no plain text, which no text of a prompt is likely to be."""
    return "\x1f" + canonical_json(without_cache_control(asked)).decode()


def _is_blocks(asked: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(asked, list)


def _is_params(asked: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(asked, dict)
