"""What was declared for one asset, checked; the engine knows nothing else of its user."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from dagster_claude_batch.chunking import SizeLimits
from dagster_claude_batch.cost import Prices, batch_prices
from dagster_claude_batch.output import Output
from dagster_claude_batch.request.packing import Packing
from dagster_claude_batch.request.shape import RequestShape
from dagster_claude_batch.tables import TableName


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """One asset's table, requests, output and limits.

    ``source_candidates`` are looked for in turn; with ``query_relation``, a SELECT in
    parentheses, there are none. ``partition_exprs`` has one SQL expression a dimension, none when
    the asset is not partitioned. ``packing`` says how several rows are asked in one request, and is
    None if each has its own. ``prices`` are what the user says to pay, None for the public ones;
    ``max_cost_usd`` is for one materialization. ``workspace`` names the resource whose API window
    is shared.
    """

    asset: str
    answers: TableName
    source_label: str
    source_candidates: tuple[TableName, ...] = ()
    query_relation: str | None = None
    row_key: tuple[str, ...]
    include: tuple[str, ...] = ()
    partition_exprs: tuple[str, ...] = ()
    output: Output
    shape: RequestShape
    max_tokens: int
    max_attempts: int = 3
    max_failure_rate: float = 0.01
    max_wait: timedelta | None = None
    deduplicate: bool = True
    packing: Packing | None = None
    pilot: int | None = None
    prices: Prices | None = None
    max_cost_usd: Decimal | None = None
    delete_remote_results: bool = False
    limits: SizeLimits
    workspace: str

    def batch_prices(self) -> Prices | None:
        """What its requests cost now; None if nobody knows."""
        return self.prices or batch_prices(self.shape.model)

    @property
    def failures(self) -> TableName:
        """The failures table, beside the answers."""
        return self.answers.renamed(f"{self.answers.name}_failures")
