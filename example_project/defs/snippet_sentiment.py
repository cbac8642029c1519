"""The sentiment of every snippet, asked of Claude in batches."""

from typing import Literal

import dagster as dg
from pydantic import BaseModel, Field

from dagster_claude_batch import build_claude_batch_asset
from example_project.defs.snippets import snippets


class Sentiment(BaseModel):
    """What Claude answers for each snippet; the fields become columns."""

    label: Literal["positive", "neutral", "negative"] = Field(
        description="What the writer feels about the subject, all in all."
    )
    score: float = Field(
        ge=-1, le=1, description="From -1, as negative as can be, to 1, as positive as can be."
    )


snippet_sentiment = build_claude_batch_asset(
    "snippet_sentiment",
    source=snippets,
    row_key="snippet_id",
    prompt="Rate the sentiment of this text:\n\n{{ text }}",
    output=Sentiment,
    include=("human_score",),
    partitions_def=dg.StaticPartitionsDefinition(["amazon_reviews", "movie_reviews", "tweets"]),
    partition_expr="corpus",
    group_name="sentiment",
)
