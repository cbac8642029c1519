"""The models that the simulated API knows: a small, honest selection.

Limits and capabilities as documented in November 2026.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from dagster_claude_batch.simulator.errors import ApiError

ThinkingType: TypeAlias = Literal["adaptive", "between_tools", "disabled", "enabled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What the simulator needs to know of a model, in tokens where it counts something."""

    id: str
    line: Literal["haiku", "sonnet", "opus"]
    display_name: str
    created_at: str
    max_input_tokens: int
    max_tokens: int
    min_cached_tokens: int
    thinking: frozenset[ThinkingType]
    current: bool = True
    """Current models refuse sampling parameters and a prefilled answer, and take an effort."""
    structured_outputs: bool = True
    retired_at: str | None = None


_ADAPTIVE = frozenset[ThinkingType]({"adaptive", "between_tools", "disabled"})
_MANUAL = frozenset[ThinkingType]({"disabled", "enabled"})

_MODELS = (
    Model(
        id="claude-haiku-5-5",
        line="haiku",
        display_name="Claude Haiku 5.5",
        created_at="2026-10-21T00:00:00Z",
        max_input_tokens=1_000_000,
        max_tokens=128_000,
        min_cached_tokens=512,
        thinking=_ADAPTIVE,
    ),
    Model(
        id="claude-sonnet-5-5",
        line="sonnet",
        display_name="Claude Sonnet 5.5",
        created_at="2026-10-20T00:00:00Z",
        max_input_tokens=1_000_000,
        max_tokens=128_000,
        min_cached_tokens=1_024,
        thinking=_ADAPTIVE,
    ),
    Model(
        id="claude-opus-5-5",
        line="opus",
        display_name="Claude Opus 5.5",
        created_at="2026-10-19T00:00:00Z",
        max_input_tokens=1_000_000,
        max_tokens=128_000,
        min_cached_tokens=512,
        thinking=frozenset[ThinkingType]({"adaptive"}),
    ),
    Model(
        id="claude-haiku-4-5",
        line="haiku",
        display_name="Claude Haiku 4.5",
        created_at="2025-10-15T00:00:00Z",
        max_input_tokens=200_000,
        max_tokens=64_000,
        min_cached_tokens=4_096,
        thinking=_MANUAL,
        current=False,
    ),
    Model(
        id="claude-3-haiku-20240307",
        line="haiku",
        display_name="Claude Haiku 3",
        created_at="2024-03-07T00:00:00Z",
        max_input_tokens=200_000,
        max_tokens=4_096,
        min_cached_tokens=4_096,
        thinking=frozenset[ThinkingType]({"disabled"}),
        current=False,
        structured_outputs=False,
        retired_at="2026-04-20T00:00:00Z",
    ),
)
_ALIASES = {"claude-haiku-4-5-20251001": "claude-haiku-4-5"}
_BY_ID = {model.id: model for model in _MODELS}


def all_models() -> tuple[Model, ...]:
    """Every model, the newest first, retired ones included."""
    return _MODELS


def find_model(name: str) -> Model:
    """Find the model of that id or alias, retired or not.

    Raises:
        ApiError: ``not_found_error``, in the words of the API.
    """
    model = _BY_ID.get(_ALIASES.get(name, name))
    if model is None:
        raise ApiError("not_found_error", f"model: {name}")
    return model


def usable_model(name: str) -> Model:
    """Find the model if a request may name it: a retired one is as good as unknown."""
    model = find_model(name)
    if model.retired_at is not None:
        raise ApiError("not_found_error", f"model: {name}")
    return model


def as_json(model: Model) -> dict[str, object]:
    """Describe the model as the Models API does."""
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.display_name,
        "created_at": model.created_at,
        "line": model.line,
        "lifecycle": "active" if model.retired_at is None else "retired",
        "deprecated_at": model.retired_at,
        "retires_at": model.retired_at,
        "max_input_tokens": model.max_input_tokens,
        "max_tokens": model.max_tokens,
        "capabilities": _capabilities(model),
    }


def _capabilities(model: Model) -> dict[str, object]:
    yes, current = {"supported": True}, _supported(model.current)
    return {
        "batch": _supported(model.retired_at is None),
        "citations": yes,
        "code_execution": current,
        "context_management": {
            "supported": model.current,
            "clear_thinking_20251015": current,
            "clear_tool_uses_20250919": current,
            "compact_20260112": current,
        },
        "effort": {
            "supported": model.current,
            **dict.fromkeys(("low", "medium", "high", "xhigh", "max"), current),
        },
        "image_input": yes,
        "pdf_input": yes,
        "server_tools": {
            "supported": model.current,
            "code_execution": current,
            "web_search": current,
        },
        "structured_outputs": _supported(model.structured_outputs),
        "thinking": {
            "supported": bool(model.thinking & {"adaptive", "enabled"}),
            "types": {
                kind: _supported(kind in model.thinking)
                for kind in ("adaptive", "between_tools", "disabled", "enabled")
            },
        },
    }


def _supported(value: bool) -> dict[str, bool]:  # noqa: FBT001 - the one thing it says
    return {"supported": value}
