"""One spelling for equal values, and what of a request does not change the question."""

import json
from typing import Final, TypeGuard

NOT_HASHED: Final = frozenset({"max_tokens", "cache_control", "metadata", "service_tier"})
"""Parameters that do not change what is asked."""


def canonical_json(value: object) -> bytes:
    """One spelling for equal values: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def without_cache_control(value: object) -> object:
    """The same without cache breakpoints, wherever they stand."""
    if _is_object(value):
        return {
            key: without_cache_control(item)
            for key, item in value.items()
            if not (key == "cache_control" and _is_breakpoint(item))
        }
    if _is_array(value):
        return [without_cache_control(item) for item in value]
    return value


def _is_breakpoint(value: object) -> bool:
    """Whether it is one, and no property of that name in a schema."""
    return value is None or (_is_object(value) and value.get("type") == "ephemeral")


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _is_array(value: object) -> TypeGuard[list[object] | tuple[object, ...]]:
    return isinstance(value, list | tuple)
