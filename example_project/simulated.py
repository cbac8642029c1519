"""What the simulator answers: what this machine can measure, and now and then a failure."""

import base64
import hashlib
import io
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from PIL import Image, ImageStat
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

NEUTRAL_BELOW = 0.05
"""The lexicon's own limit: scores nearer to zero are neutral."""

GREY_BELOW, BRIGHT_FROM = 40, 110
"""Of 255: mean saturation and mean value of a picture."""

_COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")


def answer(params: Mapping[str, Any]) -> dict[str, Any] | str:
    """Answer one request as far as this machine can: each kind of question in its way."""
    content = params["messages"][-1]["content"]
    pictures = (
        [block for block in content if block["type"] == "image"] if _is_blocks(content) else []
    )
    if pictures:
        return _caption(base64.b64decode(pictures[0]["source"]["data"]))
    tweets = re.findall(r'<row number="(\d+)">(.*?)</row>', _text(params), re.DOTALL)
    if tweets:
        return {"rows": [{"row": int(number), "mood": _mood(tweet)} for number, tweet in tweets]}
    question, _, text = _text(params).partition("\n\n")
    if question.startswith("Which mood"):
        return {"mood": _mood(text)}
    if question.startswith("Translate into "):
        return f"[{question.removeprefix('Translate into ').rstrip(':')}] {text}"
    if question.startswith("What is this message"):
        return {"topic": _topic(text)}
    if question.startswith("What does this film review praise"):
        return {"praised": _praised(text), "of_children": bool(_words(text) & _CHILDREN)}
    score = _analyzer().polarity_scores(text)["compound"]
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
    return _text(params).partition("\n\n")[2]


def _text(params: Mapping[str, Any]) -> str:
    content = params["messages"][-1]["content"]
    if not _is_blocks(content):
        return str(content)
    return "".join(block["text"] for block in content if block["type"] == "text")


def _is_blocks(content: object) -> bool:
    return isinstance(content, list)


def _caption(picture: bytes) -> dict[str, Any]:
    """Describe what can be measured of a picture: its colour and its light."""
    with Image.open(io.BytesIO(picture)) as opened:
        width, height = opened.size
        hue, saturation, value = ImageStat.Stat(opened.convert("HSV")).mean
    colour = _COLOURS[int(hue / 256 * len(_COLOURS))] if saturation > GREY_BELOW else "grey"
    light = "bright" if value > BRIGHT_FROM else "dark"
    shape = "wide" if width > height else "tall"
    return {
        "caption": f"A {light} picture, mostly {colour}.",
        "alt_text": f"{width} by {height} pixels, mostly {colour}; nobody has looked at it.",
        "tags": [colour, light, shape],
    }


def _mood(text: str) -> str:
    """The first mood of which a word occurs, else what the lexicon makes of it."""
    words = _words(text)
    found = next((mood for mood, known in _MOODS.items() if words & known), None)
    score = _analyzer().polarity_scores(text)["compound"]
    return found or {"positive": "cheerful", "negative": "sad", "neutral": "calm"}[_label(score)]


_MOODS = {
    "angry": {"hate", "damn", "stupid", "angry", "annoying", "ugh"},
    "afraid": {"scared", "afraid", "worried", "nervous", "scary"},
    "tired": {"tired", "sleep", "sleepy", "exhausted", "bed"},
}


def _topic(text: str) -> str:
    """The first topic of which a word occurs."""
    words = _words(text)
    return next((topic for topic, known in _TOPICS.items() if words & known), "other")


_TOPICS = {
    "work": {"work", "job", "boss", "office", "meeting", "school", "homework", "exam"},
    "food": {"food", "eat", "eating", "dinner", "lunch", "breakfast", "coffee", "beer", "cake"},
    "media": {"movie", "film", "song", "music", "album", "tv", "show", "book", "video", "game"},
    "weather": {"rain", "sun", "sunny", "snow", "weather", "cold", "hot", "storm"},
    "people": {"friend", "friends", "mom", "dad", "girl", "boy", "people", "family", "baby"},
}


def _praised(text: str) -> str:
    """The first subject of which a word occurs, if the lexicon takes the text for praise."""
    words = _words(text)
    found = next((subject for subject, known in _SUBJECTS.items() if words & known), "story")
    praises = _label(_analyzer().polarity_scores(text)["compound"]) == "positive"
    return found if praises else "nothing"


_SUBJECTS = {
    "acting": {"acting", "actor", "actors", "actress", "performance", "performances", "cast"},
    "humour": {"funny", "comedy", "humor", "humour", "laugh", "laughs", "hilarious", "witty"},
    "pictures": {"visual", "visually", "beautiful", "images", "cinematography", "photography"},
    "music": {"music", "score", "songs", "soundtrack"},
}
_CHILDREN = {"children", "child", "kids", "kid", "family", "families"}


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


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
