"""What the simulator answers in the end-to-end tests."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CURED = "cured"
"""The file in ``E2E_HOME`` from whose existence on doomed reviews are answered like any other."""


def answer(params: Mapping[str, Any]) -> str:
    return _review(params).upper()


def outcome(params: Mapping[str, Any], _custom_id: str, _seen: int) -> str | None:
    review = _review(params)
    if "refused" in review:
        return "refusal"
    if "doomed" in review and not (Path(os.environ["E2E_HOME"]) / CURED).exists():
        return "errored:overloaded_error"
    return None


def _review(params: Mapping[str, Any]) -> str:
    return params["messages"][-1]["content"]
