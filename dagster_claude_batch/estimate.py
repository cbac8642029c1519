"""What a partition would take: tokens, of which the API counts a few, and at most how much."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from dagster_claude_batch.cost import Prices, batch_prices
from dagster_claude_batch.preflight import count_tokens
from dagster_claude_batch.rehearsal import RehearsedPartition
from dagster_claude_batch.workbench import Workbench

_BYTES_PER_TOKEN: Final = 4


@dataclass(frozen=True)
class Estimate:
    """Input tokens of all requests of a partition, and what they cost at most, in USD.

    The tokens are the mean of ``counted`` requests that the API has counted, times all of them; if
    it counted none, a quarter of the bytes. The cost is that with ``max_tokens`` for each answer,
    and None for a model without a known price. It knows nothing of retries and of caching.
    """

    input_tokens: int
    counted: int
    most_usd: Decimal | None


def estimate(bench: Workbench, part: RehearsedPartition) -> Estimate:
    """Estimate what a partition would take that has been rehearsed.

    Raises:
        RequestRefusedError: The API would refuse a request.
    """
    if not part.requests:
        return Estimate(0, 0, Decimal(0))
    counts = _counted(bench, [json.loads(params) for _, params in part.examples])
    guessed = part.bytes / part.requests / _BYTES_PER_TOKEN
    mean = round(sum(counts) / len(counts) if counts else guessed)
    prices = batch_prices(bench.declaration.shape.model)
    packing = bench.declaration.packing
    questions = 1 if packing is None else packing.rows_per_request
    most_tokens = questions * bench.declaration.max_tokens
    most = None if prices is None else part.requests * _most(prices, mean, most_tokens)
    return Estimate(part.requests * mean, len(counts), most)


def _most(prices: Prices, input_tokens: int, max_tokens: int) -> Decimal:
    return prices.usd(input_tokens=input_tokens, output_tokens=max_tokens)


def _counted(bench: Workbench, examples: Sequence[dict[str, Any]]) -> list[int]:
    """Input tokens of some requests, as far as the API counts them."""
    counts: list[int] = []
    for params in examples:
        count = count_tokens(bench, params)
        if count is None:
            break
        counts.append(count)
    return counts
