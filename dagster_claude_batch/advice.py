"""What a materialization's usage says about its declaration: room for answers, packing, caching."""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import DeclarationError
from dagster_claude_batch.request.caching import (
    LEAST_TOKENS,
    NothingSharedError,
    shared_tokens,
    with_breakpoint,
)
from dagster_claude_batch.request.function import FunctionPrompt
from dagster_claude_batch.request.packing import packing

_ENOUGH: Final = 100
"""Of fewer requests, nothing is concluded."""

_FAR_TOO_LARGE: Final = 4
_ROOM: Final = 2
_LEAST_ROOM: Final = 64
_CUT_OFF: Final = 0.01
_WORTH_PACKING: Final = 0.2
_WORTH_CACHING: Final = 0.1
_PACKED: Final = 10
_CACHED_SAVES: Final = Decimal("0.9")


@dataclass(frozen=True)
class Use:
    """What requests came to: their mean bytes and tokens of prompt, and tokens of their answers.

    The answer's tokens are those to one question; ``cut_off`` answers met ``max_tokens``.
    """

    requests: int = 0
    bytes_each: float = 0.0
    prompt_tokens_each: float = 0.0
    median_output_tokens: int = 0
    p99_output_tokens: int = 0
    cut_off: int = 0
    cost_usd: Decimal | None = None


def advise(declaration: Declaration, use: Use) -> Iterator[str]:
    """Say what might be declared otherwise, in whole sentences; nothing if all is well."""
    if use.requests < _ENOUGH:
        return
    yield from _on_max_tokens(declaration.max_tokens, use)
    prices = declaration.batch_prices()
    if prices is None or not use.cost_usd:
        return
    each = use.cost_usd / use.requests
    of_token = prices.base.input / 1_000_000
    for what, tokens, least in (
        (_packed(), _saved_by_packing(declaration, use), _WORTH_PACKING),
        (_cached(), _saved_by_caching(declaration), _WORTH_CACHING),
    ):
        share = min(1.0, float(tokens * of_token / each))
        if share >= least:
            saved = float(tokens * of_token) * 1_000
            yield f"{what} up to {saved:.4f} USD for 1,000 rows ({share:.0%} of the cost)."


def _on_max_tokens(max_tokens: int, use: Use) -> Iterator[str]:
    share = use.cut_off / use.requests
    enough = _enough(use.p99_output_tokens)
    if share >= _CUT_OFF:
        yield (
            f"{share:.1%} of the answers were cut off at `max_tokens`, paid for, and asked again "
            f"with more: `max_tokens={2 * max_tokens}` would cost less."
        )
    elif use.p99_output_tokens * _FAR_TOO_LARGE <= max_tokens and enough < max_tokens:
        yield (
            f"99 % of the answers take up to {use.p99_output_tokens:,} tokens, of `max_tokens` "
            f"{max_tokens:,}: `max_tokens={enough}` would bound what one can cost, and let a cap "
            "allow more at a time."
        )


def _enough(p99: int) -> int:
    """Twice what nearly all answers take, as a power of two."""
    return max(_LEAST_ROOM, 2 ** (p99 * _ROOM - 1).bit_length())


def _packed() -> str:
    return f"What all rows share is sent once a row. `rows_per_request={_PACKED}` would save"


def _cached() -> str:
    return '`cache="1h"` would let what all rows share be read from the cache, and save'


def _saved_by_packing(declaration: Declaration, use: Use) -> Decimal:
    """Tokens of prompt that a row would have less."""
    if declaration.packing is not None or declaration.shape.may_cache:
        return Decimal(0)
    try:
        packing(declaration.asset, declaration.shape, declaration.output, _PACKED)
    except DeclarationError:
        return Decimal(0)
    shared = declaration.shape.constant_size(max_tokens=declaration.max_tokens)
    part = min(1.0, shared / use.bytes_each) if use.bytes_each else 0.0
    return Decimal(use.prompt_tokens_each * part * (1 - 1 / _PACKED))


def _saved_by_caching(declaration: Declaration) -> Decimal:
    """Tokens of prompt that a row would not have to pay, if the cache were always hit."""
    shape = declaration.shape
    if isinstance(shape.prompt, FunctionPrompt) or shape.may_cache:
        return Decimal(0)
    try:
        shared = shared_tokens(with_breakpoint(shape.tree(), "1h"))
    except NothingSharedError:
        return Decimal(0)
    if shared < LEAST_TOKENS.get(shape.model, 0):
        return Decimal(0)
    return shared * _CACHED_SAVES
