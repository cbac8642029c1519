"""What every variant asks and is answered: rows of about 1 KB, answers of about 1 KB."""

import json
import struct
import zlib
from contextlib import closing
from random import Random
from typing import Any, Final, Literal

import duckdb
from pydantic import BaseModel, Field

MODEL: Final = "claude-haiku-5-5"
MAX_TOKENS: Final = 1_024
FAILED_EVERY: Final = 200
"""One result in so many is a request that the API refused."""

INSTRUCTION: Final = (
    "Read the review between the lines. Say whether its writer is positive, neutral or negative "
    "about the product, how much so, and which topics come up; then sum it up for the people "
    "who make it."
)


class Review(BaseModel):
    """What is answered for a review."""

    label: Literal["positive", "neutral", "negative"]
    score: float = Field(ge=-1, le=1)
    topics: list[str]
    summary: str


# Texts as people write them: quotes, braces, backslashes, and letters of more than one byte.
_TEXT: Final = """
    the battery lasts, but its cable doesn't: 'cheap' they said "café" naïve {not json} \\ and
    delivery took ages some more — quality is fine for that price of 12 € I'd say would buy again,
    never again, my daughter loves it; 太好了 mostly works on Tuesdays
"""
_WORDS: Final = tuple(_TEXT.split())
_SPACES: Final = (" ", " ", " ", " ", " ", " ", "\n")

SOURCE: Final = "texts"
SEED: Final = 11


def sentences(random: Random, size: int) -> str:
    """Words up to so many characters."""
    text = ""
    while len(text) < size:
        text += random.choice(_WORDS) + random.choice(_SPACES)
    return text[:size]


def _answer(number: int) -> str:
    random = Random(SEED + number)
    answer: dict[str, Any] = {
        "label": random.choice(["positive", "neutral", "negative"]),
        "score": round(random.uniform(-1, 1), 2),
        "topics": random.sample(["battery", "cable", "price", "delivery", "quality", "noise"], 3),
        "summary": sentences(random, 880),
    }
    return json.dumps(answer, ensure_ascii=False)


ANSWERS: Final = [_answer(number) for number in range(1_000)]


def picture(random: Random, side: int = 16) -> bytes:
    """A PNG of about 1 KB; what stands behind its end is no part of it."""
    lines = b"".join(b"\0" + random.randbytes(3 * side) for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(lines), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )


def make_source(database: str, rows: int) -> None:
    """Write the table that is asked about: ``id``, ``text`` and ``picture``."""
    random = Random(SEED)
    pool = [sentences(random, 790) for _ in range(1_000)]
    pictures = [picture(random) for _ in range(1_000)]
    with closing(duckdb.connect(database)) as connection:
        connection.execute(
            f"CREATE TABLE {SOURCE} AS SELECT i AS id, i || ': ' || pool[1 + i % 1000] AS text, "
            "pictures[1 + i % 1000] || encode(i::VARCHAR) AS picture FROM range($rows) AS r(i), "
            "(SELECT $pool::VARCHAR[] AS pool, $pictures::BLOB[] AS pictures)",
            {"rows": rows, "pool": pool, "pictures": pictures},
        )
