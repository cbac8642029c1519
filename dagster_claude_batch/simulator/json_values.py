"""JSON from outside: told apart with types, written and hashed one way only."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeAlias, TypeGuard

Params: TypeAlias = dict[str, Any]
"""The ``params`` of one request."""

_COMPACT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether it is a JSON object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[Any]]:
    """Whether it is a JSON array."""
    return isinstance(value, list)


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is a JSON integer, which a boolean is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a JSON number, which a boolean is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def part(params: Params, name: str) -> dict[str, Any]:
    """Take an optional object out of the params; an empty one if it is not there."""
    value = params.get(name)
    return value if is_object(value) else {}


def compact(value: object) -> str:
    """JSON without spaces; not ASCII only, so that its length is what a model would see."""
    return _COMPACT.encode(value)


def canonical(value: object) -> str:
    """JSON that is equal for equal values, whatever the order of keys."""
    return _CANONICAL.encode(value)


def digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def content_key(params: Params) -> bytes:
    """Hash what makes two requests the same question: model, system and messages."""
    return digest(canonical([params.get("model"), params.get("system"), params.get("messages")]))


def identifier(prefix: str, *parts: object) -> str:
    """Make an id like the API's, always the same for the same parts."""
    number = int.from_bytes(digest(repr(parts)))
    letters: list[str] = []
    for _ in range(22):
        number, letter = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[letter])
    return f"{prefix}_01{''.join(letters)}"
