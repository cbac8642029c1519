"""What requests would take: tokens, of which the API counts a few, and what they may cost."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from dagster_claude_batch import ledger
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.cost import STANDARD
from dagster_claude_batch.preflight import Counted, count_tokens
from dagster_claude_batch.rehearsal import RehearsedPartition
from dagster_claude_batch.warehouse import Connection, row
from dagster_claude_batch.workbench import Workbench

_BYTES_PER_TOKEN: Final = 4
_LANDED_LATELY: Final = 20
_STUDENT: Final = (0.0, 12.71, 4.30, 3.18, 2.78)
"""Student's t for 95 %, by the number of counted requests less one."""


@dataclass(frozen=True)
class Estimate:
    """Input tokens of requests, and what these cost in a batch, in USD.

    The tokens are those of ``counted`` requests that the API has counted, by byte, times all bytes:
    with 95 % they are wrong by no larger a part than ``error``, None if that cannot be said. If
    none was counted, they are a quarter of the bytes. ``most_usd`` is with ``max_tokens`` for each
    answer, and None for a model without a known price; ``likely_usd`` is by what the asset's
    ``landed`` requests have cost lately, None if there are none. Neither knows of retries.
    """

    requests: int
    input_tokens: int
    counted: int
    error: float | None
    most_usd: Decimal | None
    likely_usd: Decimal | None = None
    landed: int = 0

    @property
    def by(self) -> str:
        """How the tokens were found, as a clause."""
        if not self.counted:
            return "by their bytes"
        requests = "1 request" if self.counted == 1 else f"{self.counted} requests"
        error = "" if self.error is None else f", ± {self.error:.0%}"
        return f"by {requests} that the API counted{error}"

    @property
    def standard_most_usd(self) -> Decimal | None:
        """The most that it would cost outside batches."""
        return None if self.most_usd is None else STANDARD * self.most_usd

    def said(self) -> str:
        """All of it as a sentence."""
        tokens = f"About {self.input_tokens:,} input tokens in {self.requests:,} requests"
        if self.most_usd is None:
            return f"{tokens} ({self.by}); no price of the model is known."
        likely = (
            "nothing has been answered yet that would tell how much it will be"
            if self.likely_usd is None
            else f"probably {self.likely_usd:.4f} USD, as the last {self.landed:,} requests"
        )
        return (
            f"{tokens} ({self.by}): at most {self.most_usd:.4f} USD with `max_tokens` for each "
            f"answer, {self.standard_most_usd:.4f} outside batches; {likely}."
        )


def estimate(bench: Workbench, part: RehearsedPartition) -> Estimate:
    """Estimate what a partition would take that has been rehearsed.

    Raises:
        RequestRefusedError: The API would refuse a request.
    """
    counted = _counted(bench, [params for _, params in part.examples])
    questions = part.questions / part.requests if part.requests else 1
    return _estimate(bench, part.requests, part.bytes, counted, questions)


def estimate_sending(
    bench: Workbench, planned: Sequence[Chunk], counted: Sequence[Counted]
) -> Estimate:
    """Estimate what planned chunks will take, of which some requests have been counted."""
    packing = bench.declaration.packing
    together = 1 if packing is None else packing.rows_per_request
    requests = sum(chunk.requests for chunk in planned)
    size = sum(chunk.bytes for chunk in planned)
    most = sum(chunk.requests * (together if chunk.is_packed else 1) for chunk in planned)
    return _estimate(bench, requests, size, counted, most / max(1, requests))


def _estimate(
    bench: Workbench, requests: int, size: int, counted: Sequence[Counted], questions: float
) -> Estimate:
    if not requests:
        return Estimate(0, 0, 0, None, Decimal(0), Decimal(0))
    rates = [each.tokens / each.bytes for each in counted]
    rate = sum(each.tokens for each in counted) / sum(each.bytes for each in counted or _GUESS)
    tokens = round(size * (rate if counted else 1 / _BYTES_PER_TOKEN))
    prices = bench.declaration.batch_prices()
    most: Decimal | None = None
    if prices is not None:
        answer = math.ceil(questions * bench.declaration.max_tokens)
        mean = math.ceil(tokens / requests)
        most = requests * prices.usd(input_tokens=mean, output_tokens=answer)
    likely, landed = bench.warehouse.transact(
        lambda connection: _lately(connection, bench, requests)
    )
    return Estimate(requests, tokens, len(counted), _error(rates), most, likely, landed)


_GUESS: Final = (Counted(1, _BYTES_PER_TOKEN),)


def _error(rates: Sequence[float]) -> float | None:
    """Half of what lies, with 95 %, round the mean of so few, as a part of it."""
    if len(rates) <= 1 or len(rates) > len(_STUDENT):
        return None
    spread = statistics.stdev(rates) / math.sqrt(len(rates))
    return _STUDENT[len(rates) - 1] * spread / statistics.mean(rates)


def _lately(connection: Connection, bench: Workbench, requests: int) -> tuple[Decimal | None, int]:
    """What so many requests cost if they cost as those of the last batches."""
    if not ledger.is_ledger(connection):
        return None, 0
    cost, landed = row(
        connection,
        "SELECT sum(cost_usd), coalesce(sum(requests), 0) FROM (SELECT cost_usd, requests "
        "FROM claude_batch.chunks WHERE asset = $asset AND model = $model AND state = 'landed' "
        f"AND cost_usd > 0 AND NOT is_copy ORDER BY landed_at DESC LIMIT {_LANDED_LATELY})",
        {"asset": bench.declaration.asset, "model": bench.declaration.shape.model},
    )
    return (None if cost is None else requests * Decimal(cost) / int(landed)), int(landed)


def _counted(bench: Workbench, examples: Sequence[str]) -> list[Counted]:
    """Input tokens of some requests, as far as the API counts them."""
    found: list[Counted] = []
    for text in examples:
        params: dict[str, Any] = json.loads(text)
        tokens = count_tokens(bench, params)
        if tokens is None:
            break
        found.append(Counted.of(tokens, text))
    return found
