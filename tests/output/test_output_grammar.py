"""Which answers DuckDB alone tells to be valid: only those that the model takes as they are."""

import json
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal

import duckdb
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, field_validator
from stored import output_of, stored

from dagster_claude_batch.output import Output
from dagster_claude_batch.output.grammar import Grammar


class Mood(Enum):
    GOOD = "good"
    BAD = 'b"a\\d'


class Part(BaseModel):
    name: str
    count: int | None


class Everything(BaseModel):
    """All that a grammar knows."""

    label: Literal["positive", "it's (not)*"]
    mood: Mood
    text: str
    short: str = Field(min_length=1, max_length=3)
    whole: int
    few: int = Field(ge=-2, lt=3)
    real: float
    share: float = Field(gt=0.1, le=1)
    flag: bool
    maybe: str | None
    some: int | None = Field(default=None, ge=0)
    part: Part
    other: Part | None
    topics: list[str]
    two: list[int | None] = Field(min_length=1, max_length=2)
    parts: list[Part]


OUTPUT = Output.from_model(Everything, asset="everything")
ANSWER: dict[str, Any] = {
    "label": "positive",
    "mood": "good",
    "text": "",
    "short": "äöü",
    "whole": 0,
    "few": 2,
    "real": 0.5,
    "share": 1,
    "flag": True,
    "maybe": None,
    "some": None,
    "part": {"name": "n", "count": 1},
    "other": None,
    "topics": [],
    "two": [None],
    "parts": [{"name": "n", "count": None}],
}


def is_proven(connection: duckdb.DuckDBPyConnection, output: Output, text: str) -> bool:
    assert output.grammar is not None
    question = f"SELECT {output.grammar.sql('text')} FROM (SELECT $text AS text)"
    (found,) = connection.execute(question, {"text": text}).fetchall()[0]
    return bool(found)


def spelt(**changes: Any) -> str:
    return json.dumps(ANSWER | changes, ensure_ascii=False)


def test_an_answer_is_proven_however_it_is_laid_out(connection: duckdb.DuckDBPyConnection) -> None:
    compact = json.dumps(ANSWER, separators=(",", ":"))

    assert is_proven(connection, OUTPUT, spelt())
    assert is_proven(connection, OUTPUT, compact)
    assert is_proven(connection, OUTPUT, f" \n{json.dumps(ANSWER, indent=4)}\r\n\t")


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "it's (not)*"},
        {"mood": 'b"a\\d'},
        {"text": "\" \\ / \b\f\n\r\t \0 \x7f \u2028 太好了 😀 {}[],:'$text"},
        {"whole": -(10**17)},
        {"real": -1.25e-7},
        {"share": 0.1000000000000001},
        {"some": 0, "other": {"name": "", "count": None}},
        {"topics": ["a", "", "b,]"], "two": [1, None]},
    ],
    ids=str,
)
def test_what_the_model_takes_is_proven(
    connection: duckdb.DuckDBPyConnection, changes: dict[str, Any]
) -> None:
    text = spelt(**changes)

    assert is_proven(connection, OUTPUT, text)
    assert stored(connection, OUTPUT, text) == stored(connection, OUTPUT, OUTPUT.validate(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        spelt()[:-1],
        spelt()[:-1] + ",}",
        spelt() + "x",
        f"[{spelt()}]",
        spelt(more=1),
        json.dumps(dict(reversed(ANSWER.items()))),
        json.dumps({name: value for name, value in ANSWER.items() if name != "some"}),
        spelt().replace('"whole": 0', '"whole": 0, "whole": 0'),
        spelt().replace('"whole"', '"Whole"'),
        spelt(label="Positive"),
        spelt(mood='b"a\\\\d'),
        spelt(label=None),
        spelt(short=""),
        spelt(short="abcd"),
        spelt(whole="0"),
        spelt(whole=True),
        spelt(whole=1.0),
        spelt(whole=2**63),
        spelt().replace('"whole": 0', '"whole": 00'),
        spelt().replace('"whole": 0', '"whole": -0'),
        spelt(few=3),
        spelt(few=-3),
        spelt(real="0.5"),
        spelt(real=None),
        spelt(real=float("nan")),
        spelt(real=float("inf")),
        spelt().replace('"real": 0.5', '"real": 1e400'),
        spelt().replace('"real": 0.5', '"real": 1.'),
        spelt().replace('"real": 0.5', '"real": .5'),
        spelt().replace('"real": 0.5', '"real": 00.5'),
        spelt().replace('"real": 0.5', '"real": 01'),
        spelt().replace('"real": 0.5', '"real": -'),
        spelt().replace('"real": 0.5', '"real": '),
        spelt(share=0.1),
        spelt(share=1.0000000000000002),
        spelt(flag="true"),
        spelt(flag=1),
        spelt(some=-1),
        spelt(part=None),
        spelt(part={"name": "n"}),
        spelt(topics=[None]),
        spelt(topics=None),
        spelt(topics=["a"]).replace('["a"]', '["a",]'),
        spelt(two=[]),
        spelt(two=[1, 2, 3]),
        spelt(text="X").replace("X", r"\ud800"),
        spelt(text="X").replace("X", r"\ud83d\ude00"),
        spelt(text="X").replace("X", r"\x41"),
        spelt(text="X").replace("X", "\n"),
        spelt(text="X").replace("X", "\0"),
        "```json\n" + spelt() + "\n```",
    ],
)
def test_all_else_is_left_to_the_model(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    assert not is_proven(connection, OUTPUT, text)


# --- whatever is answered -------------------------------------------------------------------

TEXTS = st.text(max_size=4) | st.sampled_from(["positive", "good", "Good", "äöü"])
NUMBERS = st.integers(-4, 4) | st.integers() | st.floats(-2, 2) | st.floats()
PARTS = st.fixed_dictionaries({"name": TEXTS, "count": st.none() | NUMBERS})
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "label": st.sampled_from(["positive", "it's (not)*"]),
    "mood": st.sampled_from([mood.value for mood in Mood]),
    "text": TEXTS,
    "short": TEXTS,
    "whole": st.integers(),
    "few": st.integers(-4, 4),
    "real": NUMBERS,
    "share": NUMBERS,
    "flag": st.booleans(),
    "maybe": st.none() | TEXTS,
    "some": st.none() | st.integers(-1, 4),
    "part": PARTS,
    "other": st.none() | PARTS,
    "topics": st.lists(TEXTS, max_size=2),
    "two": st.lists(st.none() | st.integers(), max_size=3),
    "parts": st.lists(PARTS, max_size=2),
}
ANY = st.none() | st.booleans() | NUMBERS | TEXTS | st.lists(st.none() | TEXTS, max_size=2)
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r")])


@st.composite
def answers(draw: st.DrawFn) -> str:
    """Something like an answer: values of the right type or any, spelt as JSON, and damaged."""
    likely = st.fixed_dictionaries({name: st.just(value) for name, value in ANSWER.items()})
    answer: dict[str, Any] = draw(likely)
    for name in draw(st.sets(st.sampled_from(sorted(ANSWER)), max_size=4)):
        answer[name] = draw(VALUES[name] | ANY)
    escaped = draw(st.booleans())
    text = json.dumps(answer, ensure_ascii=escaped, separators=draw(SEPARATORS))
    if draw(st.booleans()):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 2)))
        text = (
            text[:start]
            + draw(st.sampled_from(["", "0", "1", ",", "-", ".", "e5", " ", "\\n"]))
            + text[end:]
        )
    return text


@settings(max_examples=300, deadline=None)
@given(text=answers())
def test_what_is_proven_comes_to_what_the_model_would_make_of_it(
    connection: duckdb.DuckDBPyConnection, text: str
) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return  # no text that DuckDB could hold
    if is_proven(connection, OUTPUT, text):
        validated = OUTPUT.validate(text)  # raises for what it refuses
        assert stored(connection, OUTPUT, text) == stored(connection, OUTPUT, validated)


# --- which models have a grammar ------------------------------------------------------------


def grammar(annotation: object, **config: Any) -> Grammar | None:
    fields: dict[str, Any] = {"value": (annotation, ...)}
    model = create_model("Model", __config__=ConfigDict(**config), **fields)
    return Output.from_model(model, asset="asset").grammar


class Checked(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def strip(cls, text: str) -> str:
        return text.strip()


class Counting(BaseModel):
    text: str

    def model_post_init(self, _context: object) -> None:
        self.text += "!"


class Initialized(BaseModel):
    text: str

    def __init__(self, **values: Any) -> None:
        super().__init__(**{**values, "text": "mine"})


class Stars(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[str, Field(pattern="a+")],
        Annotated[str, pydantic.StringConstraints(to_lower=True)],
        Annotated[str, pydantic.StringConstraints(strip_whitespace=True)],
        Annotated[str, BeforeValidator(str)],
        Annotated[int, Field(multiple_of=2)],
        Annotated[int, Field(ge=2**60)],
        Annotated[str, Field(alias="other")],
        list[Annotated[int, Field(ge=0)]],
        set[str],
        tuple[str, ...],
        int | str,
        pydantic.PositiveInt | None | str,
        Stars,
        Literal[1, 2],
        Checked,
        Counting,
        Initialized,
        list[Checked],
        pydantic.StrictInt,
        pydantic.NaiveDatetime,
        pydantic.UUID4,
    ],
    ids=str,
)
def test_a_model_that_may_refuse_or_change_more_has_none(annotation: object) -> None:
    assert grammar(annotation) is None


def test_a_model_with_a_field_that_is_not_stored_has_none() -> None:
    model = create_model("Model", text=(str, ...), thought=(str, Field(exclude=True)))

    assert Output.from_model(model, asset="asset").grammar is None


@pytest.mark.parametrize(
    "config",
    [
        {"str_strip_whitespace": True},
        {"str_to_lower": True},
        {"str_max_length": 3},
        {"strict": True},
        {"coerce_numbers_to_str": True},
        {"alias_generator": str.upper},
    ],
    ids=str,
)
def test_a_model_whose_config_changes_what_it_reads_has_none(config: dict[str, Any]) -> None:
    assert grammar(str, **config) is None
    assert grammar(str) is not None


def test_a_model_that_stands_in_another_twice_has_one() -> None:
    output = output_of(create_model("Two", a=(Part, ...), b=(list[Part], ...)))

    assert output.grammar is not None


def test_a_pattern_that_would_be_very_long_is_none() -> None:
    choices = Literal[tuple(f"choice number {n:09}" for n in range(2_000))]  # pyright: ignore[reportInvalidTypeForm]

    assert grammar(choices) is None
