"""What the README shows works as it stands there."""

import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
import yaml

from dagster_claude_batch import LocalClaudeBatchResource, build_claude_batch_asset
from dagster_claude_batch.status import Out, table_of
from dagster_claude_batch.tables import ANSWER_COLUMNS, FAILURE_COLUMNS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


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


def test_what_the_command_prints_is_what_it_prints() -> None:
    now = datetime.now(UTC)
    sent = Out(
        "snippet_sentiment",
        ("tweets",),
        "open",
        "submitted",
        "msgbatch_01voPoWP",
        1,
        5_000,
        now - timedelta(minutes=7),
        Decimal("1.713940"),
    )
    planned = Out(
        "snippet_sentiment",
        ("tweets",),
        "open",
        "planned",
        None,
        2,
        9_997,
        now - timedelta(minutes=7),
        None,
    )
    (shown,) = _blocks("console")

    assert shown.splitlines()[1:] == list(table_of([sent, planned], now))


def test_the_second_workspace_has_a_resource_and_a_sensor() -> None:
    deployment = (ROOT / "docs" / "deployment.md").read_text()
    declared: dict[str, Any] = {}
    (python,) = _blocks("python", deployment)
    exec(python, declared)  # noqa: S102  # our own documentation

    asset = build_claude_batch_asset(
        "studied", source="t", row_key="id", prompt="{{ x }}", claude_resource="claude_research"
    )
    resources = {**declared["resources"], "duckdb": dg.ResourceDefinition.none_resource()}
    defs = dg.Definitions(assets=[asset], sensors=declared["sensors"], resources=resources)
    dg.Definitions.validate_loadable(defs)
    (compose,) = _blocks("yaml", deployment)
    assert set(yaml.safe_load(compose)) == {"services", "volumes"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text())

    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^a-z0-9_ -]", "", h.lower()).replace(" ", "-") for h in heads}
            assert anchor in anchors, link
    assert links or page.name in {"batches.md", "what_happens_when.md"}
