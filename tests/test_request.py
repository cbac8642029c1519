"""Templates, and the hashes that decide whether a row is asked again."""

import pytest
from pydantic import BaseModel, Field
from request_hashes import request_hash

from dagster_claude_batch.output import Output
from dagster_claude_batch.request.shape import RequestShape
from dagster_claude_batch.request.template import Template


@pytest.mark.parametrize(
    ("text", "texts", "columns"),
    [
        ("{{ text }}", ("", ""), ("text",)),
        ("Rate: {{text}} please", ("Rate: ", " please"), ("text",)),
        ("{{ a }}{{ b }}", ("", "", ""), ("a", "b")),
        ('{"json": {"x": {{ x }}}}', ('{"json": {"x": ', "}}"), ("x",)),
        ('{"deep": {"deeper": {}}}', ('{"deep": {"deeper": {}}}',), ()),
        ("{ text }", ("{ text }",), ()),
        ("{{ two words }}", ("", ""), ("two words",)),
        ("{{}} {{ }}", ("{{}} {{ }}",), ()),
    ],
)
def test_only_a_name_in_double_braces_is_a_placeholder(
    text: str, texts: tuple[str, ...], columns: tuple[str, ...]
) -> None:
    assert Template.parse(text) == Template(texts, columns)


class Rating(BaseModel):
    label: str = Field(description="one word")
    score: float


def _shape(**changed: object) -> RequestShape:
    output = Output.from_model(Rating, asset="a")
    declared: dict[str, object] = {
        "prompt": Template.parse("{{ p }}"),
        "model": "claude-haiku-5-5",
        "system": "Be brief.",
        "params": {"stop_sequences": ["END"], "metadata": {"user_id": "u"}},
        "schema": output.schema,
        "declared_schema": output.declared_schema,
    }
    return RequestShape(**{**declared, **changed})  # type: ignore[arg-type]


def test_the_request_hash_is_pinned() -> None:
    # If this fails, every user's every row would be asked, and paid for, again: do not adapt the
    # expectation, unless HASH_VERSION was raised on purpose.
    text_only = RequestShape(model="claude-haiku-5-5", prompt=Template.parse("{{ p }}"))

    assert request_hash(text_only, "Rate this: 😀 \x00") == "v1:c3358c38645ebdf88551490fe22a7845"
    assert request_hash(_shape(), "Rate this") == "v1:a9fe40525137c8134bbf88c2bd656b1e"


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "claude-haiku-4-5"},
        {"system": "Be long."},
        {"system": None},
        {"params": {"stop_sequences": ["STOP"]}},
        {"declared_schema": {"type": "object"}},
    ],
    ids=["model", "system", "no system", "params", "output"],
)
def test_another_question_has_another_hash(changed: dict[str, object]) -> None:
    assert request_hash(_shape(**changed), "p") != request_hash(_shape(), "p")


@pytest.mark.parametrize(
    "changed",
    [
        {"schema": {"spelled": "otherwise"}},
        {"params": {"stop_sequences": ["END"], "metadata": {"user_id": "somebody else"}}},
        {"params": {"stop_sequences": ["END"], "service_tier": "auto"}},
    ],
    ids=["the SDK's spelling of the schema", "metadata", "service tier"],
)
def test_the_same_question_has_the_same_hash(changed: dict[str, object]) -> None:
    assert request_hash(_shape(**changed), "p") == request_hash(_shape(), "p")


def test_the_order_of_parameters_does_not_matter() -> None:
    one = _shape(params={"a": 1, "b": 2})
    other = _shape(params={"b": 2, "a": 1})

    assert request_hash(one, "p") == request_hash(other, "p")


def test_what_is_the_same_for_all_rows_is_as_declared() -> None:
    tree = _shape(params={"output_config": {"effort": "low"}}).tree()

    assert tree["output_config"]["format"]["type"] == "json_schema"
    assert tree["output_config"]["effort"] == "low"
    assert tree["system"] == "Be brief."
