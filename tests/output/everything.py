"""A model with a field of every supported type."""

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field, NaiveDatetime

from dagster_claude_batch.output import Output


class Mood(Enum):
    GOOD = "good"
    BAD = "Bad"


class Stars(IntEnum):
    ONE = 1
    TWO = 2


class Part(BaseModel):
    name: str
    count: int | None


class Everything(BaseModel):
    text: str
    whole: int
    real: float
    flag: bool
    label: Literal["a", "B"]
    mood: Mood
    stars: Stars
    level: Literal[1, 2]
    maybe: str | None
    day: date
    instant: datetime
    local: NaiveDatetime
    clock: time
    span: timedelta
    uid: UUID
    money: Decimal = Field(max_digits=12, decimal_places=2)
    wide: Decimal
    part: Part
    parts: list[Part | None]
    tags: set[str]
    row: tuple[float, ...]
    either: int | str | list[Part] | None


TYPES = {
    "text": "VARCHAR",
    "whole": "BIGINT",
    "real": "DOUBLE",
    "flag": "BOOLEAN",
    "label": "VARCHAR",
    "mood": "VARCHAR",
    "stars": "BIGINT",
    "level": "BIGINT",
    "maybe": "VARCHAR",
    "day": "DATE",
    "instant": "TIMESTAMPTZ",
    "local": "TIMESTAMP",
    "clock": "TIME",
    "span": "INTERVAL",
    "uid": "UUID",
    "money": "DECIMAL(12, 2)",
    "wide": "DECIMAL(38, 9)",
    "part": 'STRUCT("name" VARCHAR, "count" BIGINT)',
    "parts": 'STRUCT("name" VARCHAR, "count" BIGINT)[]',
    "tags": "VARCHAR[]",
    "row": "DOUBLE[]",
    "either": "JSON",
}
EVERYTHING = Output.from_model(Everything, asset="everything")
