"""How many tokens a request has, and which of them the prompt cache serves.

An estimate: a token for every four characters, a flat number for images and documents.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dagster_claude_batch.simulator.json_values import (
    Params,
    canonical,
    compact,
    is_array,
    is_object,
    part,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Ttl: TypeAlias = Literal["5m", "1h"]

_LIFETIMES: dict[Ttl, timedelta] = {"5m": timedelta(minutes=5), "1h": timedelta(hours=1)}
_CHARACTERS_PER_TOKEN = 4
_OVERHEAD_OF_REQUEST = 4
_OVERHEAD_OF_MESSAGE = 3
_IMAGE = 1_500
_PAGE = 2_000
_PAGE_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class Cached:
    """Input tokens by what the prompt cache did with them; ``plain`` ones it did not touch."""

    plain: int
    read: int = 0
    written_5m: int = 0
    written_1h: int = 0

    def as_usage(self) -> dict[str, Any]:
        """Show it as the input side of the API's ``usage``."""
        return {
            "input_tokens": self.plain,
            "cache_creation_input_tokens": self.written_5m + self.written_1h,
            "cache_read_input_tokens": self.read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.written_5m,
                "ephemeral_1h_input_tokens": self.written_1h,
            },
        }


def tokens_of(text: str) -> int:
    """Count the tokens of a text: at least one, even of an empty one, as in the API."""
    return max(1, -(-len(text) // _CHARACTERS_PER_TOKEN))


def text_of(tokens: int, text: str) -> str:
    """Take the beginning of a text that is so many tokens long."""
    return text[: tokens * _CHARACTERS_PER_TOKEN]


def input_tokens(params: Params) -> int:
    """Count all input tokens, whether the cache serves them or not."""
    return _OVERHEAD_OF_REQUEST + sum(_tokens_of_block(block) for block in _blocks(params))


def breakpoints(params: Params) -> int:
    """Count the blocks that carry a ``cache_control``."""
    return sum(_ttl(block) is not None for block in _blocks(params))


class PromptCache:
    """The prefixes that are in the cache at one moment, and those that are added to it.

    Hits are certain here; in the API they are best effort.
    """

    def __init__(self, lives_until: Callable[[bytes], datetime | None], *, now: datetime) -> None:
        self._lives_until = lives_until
        self._now = now
        self.added: dict[bytes, datetime] = {}

    def serve(self, params: Params, *, smallest: int) -> Cached:
        """Read and write what the breakpoints of a request say.

        Prefixes of fewer than ``smallest`` tokens are silently not cached.
        """
        total = input_tokens(params)
        points = list(_prefixes(params, smallest=smallest))
        read = at = max((tokens for prefix, tokens, _ in points if self._has(prefix)), default=0)
        written: dict[Ttl, int] = {"5m": 0, "1h": 0}
        for prefix, tokens, ttl in points:
            written[ttl] += max(0, tokens - at)
            at = max(at, tokens)
            self.added[prefix] = self._now + _LIFETIMES[ttl]
        return Cached(total - at, read, written["5m"], written["1h"])

    def _has(self, prefix: bytes) -> bool:
        until = self.added.get(prefix) or self._lives_until(prefix)
        return until is not None and until > self._now


def _prefixes(params: Params, *, smallest: int) -> Iterator[tuple[bytes, int, Ttl]]:
    """Find each breakpoint that is large enough: hash and tokens up to it, its lifetime."""
    if "cache_control" not in canonical(params):
        return
    state, tokens = hashlib.blake2b(str(params.get("model")).encode(), digest_size=16), 0
    for block in _blocks(params):
        state.update(canonical({**block, "cache_control": None}).encode())
        tokens += _tokens_of_block(block)
        ttl = _ttl(block)
        if ttl is not None and tokens >= smallest:
            yield state.digest(), tokens, ttl


def _ttl(block: dict[str, Any]) -> Ttl | None:
    control = block.get("cache_control")
    if not is_object(control):
        return None
    return "1h" if control.get("ttl") == "1h" else "5m"


def _blocks(params: Params) -> Iterator[dict[str, Any]]:
    """List everything that a model reads, in the order of the cache: tools, system, messages."""
    blocks = list(_all_blocks(params))
    if params.get("cache_control") and blocks:
        blocks[-1] = {"cache_control": params["cache_control"], **blocks[-1]}
    return iter(blocks)


def _all_blocks(params: Params) -> Iterator[dict[str, Any]]:
    yield from params.get("tools") or ()
    output_format = part(part(params, "output_config"), "format")
    if output_format:
        yield {"type": "text", "text": compact(output_format)}
    yield from _content_blocks(params.get("system") or [])
    for message in params["messages"]:
        yield {"type": "role", "role": message["role"]}
        yield from _content_blocks(message["content"])


def _content_blocks(content: object) -> Iterator[dict[str, Any]]:
    if isinstance(content, str):
        yield {"type": "text", "text": content}
    elif is_array(content):
        yield from content


def _tokens_of_block(block: dict[str, Any]) -> int:
    match block.get("type"):
        case "role":
            return _OVERHEAD_OF_MESSAGE
        case "text":
            return tokens_of(block["text"])
        case "image":
            return _IMAGE
        case "document" if block["source"].get("type") == "base64":
            return _PAGE * -(-len(block["source"]["data"]) // _PAGE_CHARACTERS)
        case "document" if block["source"].get("type") in {"file", "url"}:
            return _PAGE
        case _:
            return tokens_of(compact(block))
