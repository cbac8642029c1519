"""Functions that the simulator is told to import by name."""

from __future__ import annotations

from typing import Any


def shout(params: dict[str, Any]) -> str:
    return params["messages"][0]["content"].upper()


def refuse(_params: dict[str, Any], _custom_id: str, _seen: int) -> str:
    return "refusal"


NOT_A_FUNCTION = 3
