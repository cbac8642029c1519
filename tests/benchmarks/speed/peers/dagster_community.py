"""dagster-community-components: both assets of ``AnthropicLlmBatchComponent``, called as functions.

A batch is a partition there, so rows are partitioned by 100,000. The component asks for no
structured output: ``output_schema`` only checks the answers. It keeps no tokens.
"""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pandas as pd
from benchmarks.speed.data import INSTRUCTION, MAX_TOKENS, MODEL, SOURCE, Review
from benchmarks.speed.peers import half
from dagster_community_components.assets.ai.anthropic_llm_batch.component import (
    AnthropicLlmBatchComponent,
)

LIMIT = 100_000
"""Requests of a batch, which the component leaves to its users."""

INSTANCE = dg.DagsterInstance.ephemeral()


def assets(partitions: list[str]) -> dict[str, dg.AssetsDefinition]:
    component = AnthropicLlmBatchComponent(
        asset_name="reviews",
        upstream_asset_key=SOURCE,
        prompt_template=f"{INSTRUCTION}\n\n{{text}}",
        id_column="id",
        model=MODEL,
        max_tokens=MAX_TOKENS,
        output_schema="benchmarks.speed.data:Review",
        partition_type="static",
        partition_values=partitions,
        partition_static_column="part",
    )
    return {each.key.to_user_string(): each for each in component.build_defs(None).assets}


def context(partition: str) -> dg.AssetExecutionContext:
    return dg.build_asset_context(instance=INSTANCE, partition_key=partition)


def submit(folder: Path) -> str:
    with closing(duckdb.connect(half.database(folder), read_only=True)) as connection:
        rows = connection.execute(
            f"SELECT id, text, (row_number() OVER (ORDER BY id) - 1) // {LIMIT} AS part "
            f"FROM {SOURCE} ORDER BY id"
        ).df()
    parts = dict(iter(rows.groupby("part")))
    partitions = [str(part) for part in parts]
    asset = assets(partitions)["reviews__submit"]
    batch_ids: dict[str, str] = {}
    for partition, part in zip(partitions, parts.values(), strict=True):
        manifest: Any = asset(context(partition), upstream=part)
        (batch_ids[partition],) = manifest["batch_id"]
    state(folder).write_text(json.dumps(batch_ids))
    return f"{len(rows)} rows"


def collect(folder: Path) -> str:
    batch_ids: dict[str, str] = json.loads(state(folder).read_text())
    asset = assets(list(batch_ids))["reviews"]
    results: list[Any] = [
        asset(context(partition), config={"batch_id": batch_id})
        for partition, batch_id in batch_ids.items()
    ]
    found = pd.concat(results) if len(results) > 1 else results[0]
    found["id"] = found["custom_id"].astype("int64")
    is_failed = found["error"].notna() | found["invalid_output"]
    return half.land(
        folder,
        found.loc[~is_failed, ["id", *Review.model_fields]],
        found.loc[is_failed, ["id", "error", "raw_output"]],
    )


def state(folder: Path) -> Path:
    return folder / "state.json"


if __name__ == "__main__":
    half.run(submit, collect)
