"""The mood of short tweets: twenty share a request, and so the instructions."""

from typing import Literal

from pydantic import BaseModel, Field

from dagster_claude_batch import build_claude_batch_asset
from example_project.defs.snippets import snippets

SYSTEM = (
    "You read tweets for a study of moods. Irony counts as what is meant. Emoticons count as much "
    "as words. Do not guess what happened before or after."
)


class Mood(BaseModel):
    """What Claude answers for each tweet."""

    mood: Literal["cheerful", "sad", "angry", "afraid", "tired", "calm"] = Field(
        description="The strongest one; calm if none is."
    )


tweet_moods = build_claude_batch_asset(
    "tweet_moods",
    query="SELECT * FROM snippets WHERE corpus = 'tweets' AND length(text) < 80",
    deps=[snippets],
    row_key="snippet_id",
    system=SYSTEM,
    prompt="Which mood does this tweet show?\n\n{{ text }}",
    output=Mood,
    max_tokens=50,
    include=("text",),
    rows_per_request=20,
    pilot=100,
    max_failure_rate=0.05,
    description="Twenty tweets share a request: what packing saves is in the README.",
    group_name="sentiment",
)
