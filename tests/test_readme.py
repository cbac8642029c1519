"""What the README shows works as it stands there."""

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from dagster_claude_batch import LocalClaudeBatchResource, build_claude_batch_asset
from dagster_claude_batch.tables import ANSWER_COLUMNS, FAILURE_COLUMNS

README = (Path(__file__).parent.parent / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _block(begins: str) -> str:
    """The one block of Python that begins like this."""
    (found,) = [block for block in _blocks("python") if block.startswith(begins)]
    return found


def test_the_first_command_runs_the_example_and_the_second_the_tests() -> None:
    example, tests = _blocks("sh")[:2]

    assert example.count("\n") == tests.count("\n") == 1
    assert example.endswith(".venv/bin/python -m example_project\n")
    assert tests.endswith(".venv/bin/python -m pytest\n")


def test_the_declaration_is_an_asset_that_materializes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(duckdb.connect("warehouse.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE snippets AS SELECT 'tweets' AS corpus, 's1' AS snippet_id, "
            "'I love it' AS text"
        )
    declared: dict[str, Any] = {}
    exec(_blocks("python")[0], declared)  # noqa: S102  # our own README
    resources = {
        **declared["defs"].resources,
        "claude_batch": LocalClaudeBatchResource(
            path="simulator", processing_seconds=[0, 0], poll_interval_seconds=0.1
        ),
    }

    result = dg.materialize(
        [declared["snippet_sentiment"]], partition_key="tweets", resources=resources
    )

    assert result.success
    with closing(duckdb.connect("warehouse.duckdb")) as connection:
        assert connection.execute("SELECT snippet_id FROM snippet_sentiment").fetchall() == [
            ("s1",)
        ]


def test_the_simulators_declaration_names_real_arguments() -> None:
    declared: dict[str, Any] = {"LocalClaudeBatchResource": LocalClaudeBatchResource}

    exec(_block("claude_batch = Local"), declared)  # noqa: S102  # our own README

    assert declared["claude_batch"].answer == "my_project.simulated:answer"


def test_the_prompts_that_are_shown_can_be_declared() -> None:
    declared: dict[str, Any] = {}
    parts, function = _block("from dagster_claude_batch import Document").split("\n\n\n", 1)

    for prompt in (parts, function):
        exec(prompt, declared)  # noqa: S102  # our own README
        asset = build_claude_batch_asset(
            "checked", source="complaints", row_key="id", prompt=declared["prompt"]
        )
        assert asset.key == dg.AssetKey("checked")

    assert declared["prompt"]({"language": "German", "text": "Hello"}).startswith("Translate into")


def test_every_column_that_the_readme_lists_exists() -> None:
    (answers_row,) = re.findall(r"^\| `main\.snippet_sentiment` .*$", README, re.MULTILINE)
    (failures_row,) = re.findall(
        r"^\| `main\.snippet_sentiment_failures` .*$", README, re.MULTILINE
    )

    assert set(re.findall(r"`(_\w+)`", answers_row)) == set(ANSWER_COLUMNS)
    assert set(re.findall(r"`(_\w+)`", failures_row)) <= set(FAILURE_COLUMNS)
