"""What the README shows works as it stands there."""

import json
import os
import re
import shlex
import subprocess
import sys
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
from dagster_claude_batch.simulator import Simulator
from dagster_claude_batch.status import Out, table_of
from dagster_claude_batch.tables import ANSWER_COLUMNS, FAILURE_COLUMNS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()
BIN = Path(sys.executable).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _block(begins: str, language: str = "python") -> str:
    """The one block that begins like this."""
    (found,) = [block for block in _blocks(language) if block.startswith(begins)]
    return found


def _ran(*command: str, folder: Path) -> str:
    """What one of the environment's own commands prints."""
    program, *arguments = command
    path = os.environ.get("PYTHONPATH", "")
    ended = subprocess.run(
        [str(BIN / program), *arguments],
        cwd=folder,
        env={"PATH": str(BIN), "PYTHONPATH": path, "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_the_first_command_runs_the_example_and_the_second_the_tests() -> None:
    example, tests = _blocks("sh")[:2]

    assert example.count("\n") == tests.count("\n") == 1
    assert example.endswith(".venv/bin/python -m example_project\n")
    assert tests.endswith(".venv/bin/python -m pytest\n")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, in which we are, with the table that the README's declaration asks about."""
    monkeypatch.chdir(tmp_path)
    with closing(duckdb.connect("warehouse.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE snippets AS SELECT 'tweets' AS corpus, 's1' AS snippet_id, "
            "'I love it' AS text"
        )
    return tmp_path


def _materialized() -> dg.ExecuteInProcessResult:
    """A run of the README's declaration, where its simulator is at work."""
    declared: dict[str, Any] = {}
    exec(_blocks("python")[0], declared)  # noqa: S102  # our own README
    claude = LocalClaudeBatchResource(
        path="simulator", processing_seconds=[0, 0], poll_interval_seconds=0.1
    )
    return dg.materialize(
        [declared["snippet_sentiment"]],
        partition_key="tweets",
        resources={**declared["defs"].resources, "claude_batch": claude},
    )


def _answered() -> list[Any]:
    with closing(duckdb.connect("warehouse.duckdb")) as connection:
        return connection.execute("SELECT snippet_id FROM snippet_sentiment").fetchall()


@pytest.mark.usefixtures("here")
def test_the_declaration_is_an_asset_that_materializes() -> None:
    assert _materialized().success
    assert _answered() == [("s1",)]


def test_a_database_that_was_made_smaller_knows_what_it_knew(here: Path) -> None:
    _materialized()
    (copying,) = re.findall(r"^  ```sql\n(.*?)^  ```$", DEPLOYMENT, re.MULTILINE | re.DOTALL)
    with closing(duckdb.connect()) as connection:
        connection.execute(copying)
    (here / "smaller.duckdb").replace(here / "warehouse.duckdb")

    assert _materialized().success
    assert _answered() == [("s1",)]
    assert len(Simulator("simulator").batches()) == 1


def test_the_command_that_starts_ones_own_project_finds_the_declaration(tmp_path: Path) -> None:
    (options,) = re.findall(r"^dagster dev (.*)$", _block("pip", "bash"), re.MULTILINE)
    (tmp_path / "definitions.py").write_text(_blocks("python")[0])

    listed = _ran("dagster", "asset", "list", *shlex.split(options), folder=tmp_path)

    assert listed.split() == ["snippet_sentiment"]


def test_all_tests_are_those_and_the_exhaustive_ones() -> None:
    (command,) = _blocks("sh", (ROOT / "docs" / "development.md").read_text())
    python, *arguments = shlex.split(command)
    of_a_file = ("--collect-only", "--quiet", "-n", "0", "-p", "no:cacheprovider")
    path = "tests/engine/test_database.py"
    assert python == ".venv/bin/python"

    every = _ran("python", *arguments, *of_a_file, path, folder=ROOT)
    ordinary = _ran("python", "-m", "pytest", *of_a_file, path, folder=ROOT)

    assert set(ordinary.splitlines()) < {*every.splitlines(), ordinary.splitlines()[-1]}
    assert every.count("::") > ordinary.count("::") > 0


def test_batches_end_at_once_where_a_test_wants_them_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    simulator = Simulator("simulator")
    params = {
        "model": "claude-haiku-5-5",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    body = {"requests": [{"custom_id": "a", "params": params}]}
    batch = simulator.create([json.dumps(body).encode()])
    before = simulator.now()

    exec(_block("from datetime import timedelta"), {})  # noqa: S102  # our own README

    assert simulator.retrieve(batch.id).processing_status == "ended"
    assert simulator.now() - before >= timedelta(hours=24)


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
    declared: dict[str, Any] = {}
    (python,) = _blocks("python", DEPLOYMENT)
    exec(python, declared)  # noqa: S102  # our own documentation

    asset = build_claude_batch_asset(
        "studied", source="t", row_key="id", prompt="{{ x }}", claude_resource="claude_research"
    )
    resources = {**declared["resources"], "duckdb": dg.ResourceDefinition.none_resource()}
    defs = dg.Definitions(assets=[asset], sensors=declared["sensors"], resources=resources)
    dg.Definitions.validate_loadable(defs)

    assert set(declared["resources"]) == {"claude_batch", "claude_research"}
    assert [sensor.name for sensor in declared["sensors"]] == ["research_sensor"]


def test_the_code_server_in_docker_is_started_with_options_that_dagster_has(
    tmp_path: Path,
) -> None:
    (text,) = _blocks("yaml", DEPLOYMENT)
    compose = yaml.safe_load(text)
    (service,) = compose["services"].values()
    program, *command = shlex.split(service["command"])
    words = [word for word in command if not word.startswith("-")][:2]

    known = _ran(program, *words, "--help", folder=tmp_path)

    assert (program, words) == ("dagster", ["code-server", "start"])
    options = [word for word in command if word.startswith("-")]
    assert [each for each in options if not re.search(rf"{each}\b", known)] == []
    assert {volume.partition(":")[0] for volume in service["volumes"]} == set(compose["volumes"])
    assert "ANTHROPIC_API_KEY" in service["environment"]


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
