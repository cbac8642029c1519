"""A nightly job: each day's messages, and what they are about by the next morning."""

from contextlib import closing
from typing import Literal

import dagster as dg
from dagster_duckdb import DuckDBResource
from pydantic import BaseModel

from dagster_claude_batch import build_claude_batch_asset
from example_project.defs.snippets import snippets

DAYS = dg.DailyPartitionsDefinition("2026-10-01")


@dg.asset(deps=[snippets], group_name="daily", kinds={"duckdb"})
def messages(duckdb: DuckDBResource) -> dg.MaterializeResult:
    """The tweets as if they had come in since October, some each minute."""
    with duckdb.get_connection() as connection, closing(connection):
        connection.execute(
            """
            CREATE OR REPLACE TABLE messages AS
            SELECT snippet_id AS message_id, text,
                TIMESTAMP '2026-10-01' + INTERVAL 1 MINUTE * (
                    20 * (row_number() OVER (ORDER BY hash(snippet_id)) - 1)) AS received_at
            FROM snippets WHERE corpus = 'tweets'
            """
        )
        rows = connection.execute("SELECT count(*) FROM messages").fetchall()[0][0]
    return dg.MaterializeResult(metadata={"dagster/row_count": rows})


class Topic(BaseModel):
    """What Claude answers for each message."""

    topic: Literal["people", "work", "media", "food", "weather", "other"]


message_topics = build_claude_batch_asset(
    "message_topics",
    source=messages,
    row_key="message_id",
    prompt="What is this message mostly about?\n\n{{ text }}",
    output=Topic,
    include=("received_at",),
    partitions_def=DAYS,
    partition_expr="received_at",
    group_name="daily",
)

nightly = dg.build_schedule_from_partitioned_job(
    dg.define_asset_job("message_topics_job", selection=[message_topics]),
    name="nightly_topics",
    hour_of_day=1,
)
