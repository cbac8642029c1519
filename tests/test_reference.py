"""The reference says what the code says, and leaves nothing out."""

import re
import runpy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import duckdb
import pytest

from dagster_claude_batch import ClaudeBatchComponent, ledger, ledger_tables, outcomes, tables
from dagster_claude_batch.status import Out

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "build.py"))


def test_the_reference_is_up_to_date(built: dict[str, Any]) -> None:
    written = (DOCS / "reference.md").read_text()

    assert written == built["reference"](), "run `python docs/build.py`"


def test_the_keys_of_the_status_in_json_are_described() -> None:
    _, section = (DOCS / "deployment.md").read_text().split("### `claude-batch status`")
    _, described = section.split("## Upgrading")[0].split("| key | is |")

    assert re.findall(r"^\| `(\w+)` \|", described, re.MULTILINE) == [
        each.name for each in fields(Out)
    ]


def test_nothing_stands_there_without_being_described() -> None:
    lines = (DOCS / "reference.md").read_text().splitlines()
    cells = [line for line in lines if line.startswith("| `")]

    assert len(cells) > 200
    assert [line for line in cells if re.search(r"\| +\|$", line)] == []


def test_each_form_that_yaml_may_have_stands_there_with_its_fields() -> None:
    text = (DOCS / "reference.md").read_text()
    forms = ClaudeBatchComponent.get_model_cls().model_json_schema()["$defs"]
    asset = forms.pop("ClaudeBatchAssetModel")["properties"]
    sections = dict(re.findall(r"^#### (.+?)\n(.+?)(?=\n#)", text, re.MULTILINE | re.DOTALL))

    assert len(sections) == len(forms) > 10
    for form in forms.values():
        argument, colon, which = form["title"].partition(":")
        section = sections[f"`{argument}`{colon}{which}"]
        assert all(f"| `{field}` |" in section for field in form["properties"]), form["title"]
    odd = {name for name, told in asset.items() if "$ref" in str(told)}
    assert odd <= set(re.findall(r"^\| `(\w+)` \| [^|]+ \|$", text, re.MULTILINE))


def _of_a_real_ledger() -> Iterator[tuple[str, str]]:
    with closing(duckdb.connect()) as connection:
        ledger.open_ledger(connection, datetime.now(UTC))
        ledger.register_asset(connection, "a", row_key={"id": "BIGINT"}, include={})
        yield from connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_schema = 'claude_batch' AND NOT table_name LIKE 'requests\\_%' ESCAPE '\\'"
        ).fetchall()


def test_every_column_of_the_ledger_is_described() -> None:
    described = {
        (table, column)
        for table, (_, columns) in ledger_tables.DESCRIPTIONS.items()
        for column in columns
    }
    described |= {("pruned", column) for column in ledger_tables.DESCRIPTIONS["spending"][1]}

    assert set(_of_a_real_ledger()) == described


def test_every_column_and_error_of_ours_is_described() -> None:
    assert set(tables.DESCRIPTIONS) == set(tables.ANSWER_COLUMNS) | set(tables.FAILURE_COLUMNS)
    assert set(outcomes.OWN_ERRORS) == set(get_args(outcomes.OwnErrorType))
