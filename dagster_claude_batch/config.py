"""What a run may be asked for, in the launchpad or as run config."""

from typing import Literal

import dagster as dg
from pydantic import Field


class ClaudeBatchConfig(dg.Config):
    """Run config of a batch asset's op. A run that joins an open materialization keeps its plan."""

    limit: int | None = Field(
        default=None,
        ge=1,
        description="Send at most so many rows, to see answers before all of them are paid for. "
        "The partition is not materialized: materializing it later sends the rest.",
    )
    dry_run: bool = Field(
        default=False,
        description="Render and check everything, show what would be sent, and send nothing. The "
        "partition is not materialized.",
    )
    requests_path: str | None = Field(
        default=None,
        description="In a dry run, write all requests to this new file as JSON Lines, on the "
        "machine of the run. It holds whole prompts.",
    )
    refresh: bool = Field(
        default=False,
        description="Ask every row again, also those whose answer is still valid. Costs as much "
        "as the first time.",
    )
    retry_failed: Literal["retryable", "all", "none"] = Field(
        default="retryable",
        description="Which rows that failed in earlier materializations are asked again, although "
        "they have not changed: those whose failure may pass, all, or none.",
    )
    max_cost_usd: float | None = Field(
        default=None,
        gt=0,
        description="The most that this materialization may spend, in USD, in place of what the "
        "asset declares. What is out counts as the most that it can cost; what does not fit is not "
        "sent, and its partitions fail.",
    )
    wait: Literal["declared", "sensor", "run"] = Field(
        default="declared",
        description="Who waits for the batches: the sensor, while nothing is running, or this run "
        "itself. By default what the asset declares.",
    )
