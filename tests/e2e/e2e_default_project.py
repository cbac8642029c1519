"""A code location as a user would declare it, with all intervals as they are by default."""

import os
from pathlib import Path

import dagster as dg
from dagster_duckdb import DuckDBResource

from dagster_claude_batch import (
    LocalClaudeBatchResource,
    build_claude_batch_asset,
    claude_batch_definitions,
)

HOME = Path(os.environ["E2E_HOME"])

answers = build_claude_batch_asset(
    "answers",
    source="answers_source",
    row_key="review_id",
    prompt="{{ review }}",
    partitions_def=dg.StaticPartitionsDefinition(["berlin"]),
    partition_expr="city",
)

defs = dg.Definitions.merge(
    claude_batch_definitions(answers),
    dg.Definitions(
        resources={
            "duckdb": DuckDBResource(database=str(HOME / "warehouse.duckdb")),
            "claude_batch": LocalClaudeBatchResource(
                path=str(HOME / "simulator"), processing_seconds=[7200, 7200]
            ),
        }
    ),
)
