"""How the end-to-end tests declare their assets."""

from typing import Any

import dagster as dg
import pandas as pd

from dagster_claude_batch import build_claude_batch_asset

CITIES = dg.StaticPartitionsDefinition(["amsterdam", "berlin", "copenhagen"])

whole: dict[str, Any] = {"partitions_def": None, "partition_expr": None}


def asked(name: str, **declared: Any) -> dg.AssetsDefinition:
    return build_claude_batch_asset(
        name,
        row_key="review_id",
        **{
            "source": f"{name}_source",
            "prompt": "{{ review }}",
            "partitions_def": CITIES,
            "partition_expr": "city",
            **declared,
        },
    )


def read(answers: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """``<asset>_read``: what an IO manager reads of the answers, stored by partition again."""
    expression = answers.metadata_by_key[answers.key].get("partition_expr")

    @dg.asset(
        name=f"{answers.key.path[-1]}_read",
        ins={"reviews": dg.AssetIn(answers.key)},
        partitions_def=answers.partitions_def,
        metadata={"partition_expr": expression} if expression else None,
    )
    def copy(reviews: pd.DataFrame) -> pd.DataFrame:
        return reviews[["_partition", "review_id", "response"]]

    return copy
