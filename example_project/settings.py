"""Where the example keeps its files, and how many rows it asks about."""

import os
from pathlib import Path

ROWS_ASKED_OF_CLAUDE = 50


def is_simulated() -> bool:
    """Without an API key, a lexicon on this machine answers instead of Claude."""
    return not os.environ.get("ANTHROPIC_API_KEY")


def home() -> Path:
    """Directory of the DuckDB file: below ``EXAMPLE_HOME``, or ``.example`` where you are.

    Simulated and real answers never share a table.
    """
    base = Path(os.environ.get("EXAMPLE_HOME") or ".example").resolve()
    return base / ("simulated" if is_simulated() else "claude")


def rows_per_corpus() -> int | None:
    """How many rows of each corpus are loaded: ``EXAMPLE_ROWS``; None means all of them.

    With an API key, rows cost money: then it is the first 50, unless ``EXAMPLE_ROWS`` is set.
    """
    if rows := os.environ.get("EXAMPLE_ROWS"):
        return int(rows)
    return None if is_simulated() else ROWS_ASKED_OF_CLAUDE
