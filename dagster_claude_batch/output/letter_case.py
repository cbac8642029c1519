"""Correct the letter case of choices, which the API does not enforce.

Only a string that should be one of a few given ones is touched: free text stays as answered,
and so do choices that differ in case alone. None instead of a function means that there is
nothing to correct.
"""

from collections.abc import Sequence
from typing import cast

from dagster_claude_batch.output.columns import Field, Recase, Shape
from dagster_claude_batch.output.values import SCALARS


def recase_choice(values: Sequence[object]) -> Recase | None:
    """Correct a string that is one of the values but for its case."""
    texts = [value for value in values if isinstance(value, str)]
    spelling = {text.casefold(): text for text in texts}
    if not texts or len(spelling) < len(texts):
        return None  # values that differ in case alone cannot be told apart

    def recase(value: object) -> object:
        return spelling.get(value.casefold(), value) if isinstance(value, str) else value

    return recase


def recase_items(recase: Recase | None) -> Recase | None:
    """Correct every item of a list."""
    if recase is None:
        return None

    def recase_all(value: object) -> object:
        return (
            [recase(item) for item in cast("list[object]", value)]
            if isinstance(value, list)
            else value
        )

    return recase_all


def recase_fields(fields: Sequence[Field]) -> Recase | None:
    """Correct every field of an object, by whichever of its keys it is there."""
    by_key = {key: field.shape.recase for field in fields for key in field.keys}
    if not any(by_key.values()):
        return None

    def recase(value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {
            key: correct(item) if (correct := by_key.get(key)) else item
            for key, item in cast("dict[str, object]", value).items()
        }

    return recase


def recase_each(shapes: Sequence[Shape]) -> Recase | None:
    """Correct for every member of a union in turn, unless any string is a member."""
    corrections = [shape.recase for shape in shapes if shape.recase]
    if not corrections or any(shape == SCALARS[str] for shape in shapes):
        return None

    def recase(value: object) -> object:
        for correct in corrections:
            value = correct(value)
        return value

    return recase
