"""What the simulator answers: a real sentiment lexicon, and now and then a failure."""

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

NEUTRAL_BELOW = 0.05
"""The lexicon's own limit: scores nearer to zero are neutral."""


def answer(params: Mapping[str, Any]) -> dict[str, str | float]:
    """Answer one request as the model would: a label and a score for the snippet."""
    score = _analyzer().polarity_scores(_snippet(params))["compound"]
    return {"label": _label(score), "score": score}


def outcome(params: Mapping[str, Any], custom_id: str, seen: int) -> str | None:  # noqa: ARG001 - the simulator passes all three
    """Let a few snippets fail, most of them only the first time; None is an ordinary answer.

    Always the same snippets: about 0.6 % fail once, and 0.03 % are refused however often
    they are asked.
    """
    bucket = _bucket(_snippet(params), of=10_000)
    if bucket < 3:  # noqa: PLR2004 - shares per 10,000 are easiest to read where they are used
        return "refusal"
    if seen > 0:
        return None
    if bucket < 33:  # noqa: PLR2004 - as above
        return "errored:overloaded_error"
    if bucket < 43:  # noqa: PLR2004 - as above
        return "expired"
    return "max_tokens" if bucket < 63 else None  # noqa: PLR2004 - as above


def _snippet(params: Mapping[str, Any]) -> str:
    """Return the text below the prompt's first line."""
    content = params["messages"][-1]["content"]
    if not isinstance(content, str):
        content = "".join(block["text"] for block in content if block["type"] == "text")
    return content.partition("\n\n")[2]


def _label(score: float) -> str:
    if score >= NEUTRAL_BELOW:
        return "positive"
    return "negative" if score <= -NEUTRAL_BELOW else "neutral"


def _bucket(text: str, *, of: int) -> int:
    """Hash alike on every machine and in every process, unlike ``hash``."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % of


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()  # reads its lexicon: slow
