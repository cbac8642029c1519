"""What Dagster's UI shows: of a run that failed, of the arguments of a launch, of the columns."""

from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from dagster_duckdb import DuckDBResource
from pydantic import BaseModel, Field

from dagster_claude_batch import (
    ClaudeBatchConfig,
    LocalClaudeBatchResource,
    build_claude_batch_asset,
    build_claude_batch_jobs,
)
from dagster_claude_batch.jobs import CancelConfig, PruneConfig, SelectionConfig
from dagster_claude_batch.tables import DESCRIPTIONS

QUARTERS = dg.StaticPartitionsDefinition(["o'hara", "west"])


class Rated(BaseModel):
    stars: int = Field(description="From 1 to 5.")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(duckdb.connect("w.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE reviews AS FROM (VALUES ('o''hara', 1, 'good'), ('o''hara', 2, NULL), "
            "('west', 3, NULL)) AS r(quarter, review_id, review)"
        )


def asked() -> dg.AssetsDefinition:
    return build_claude_batch_asset(
        "rated",
        source="reviews",
        row_key="review_id",
        prompt="Rate {{ review }}",
        output=Rated,
        partitions_def=QUARTERS,
        partition_expr="quarter",
        max_failure_rate=0.5,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )


def ended(**launched: Any) -> dg.ExecuteInProcessResult:
    claude = LocalClaudeBatchResource(
        path="simulator", processing_seconds=[0, 0], poll_interval_seconds=0.05
    )
    return dg.materialize(
        [asked()],
        resources={"duckdb": DuckDBResource(database="w.duckdb"), "claude_batch": claude},
        raise_on_error=False,
        **launched,
    )


def columns_of(metadata: Any) -> dict[str, str | None]:
    found = metadata["dagster/column_schema"]
    schema = found.schema if isinstance(found, dg.TableSchemaMetadataValue) else found
    return {column.name: column.description for column in schema.columns}


def test_the_error_of_a_failed_run_shows_the_query_that_lists_its_failed_rows() -> None:
    result = ended(partition_key="west")

    failure = result.failure_data_for_node("rated")
    assert failure is not None
    assert failure.user_failure_data is not None
    shown = failure.user_failure_data.metadata
    assert shown["failed_rows"].value == shown["failed/invalid_row"].value == 1
    assert shown["rows_left_for_a_cap"].value == 0
    _, query, _ = str(shown["failures_sql"].value).split("\n")
    with closing(duckdb.connect("w.duckdb")) as connection:
        assert connection.execute(f"SELECT review_id FROM ({query})").fetchall() == [(3,)]


def test_the_query_of_a_partition_with_a_quote_in_its_key_can_be_run() -> None:
    result = ended(partition_key="o'hara")

    assert result.success
    (made,) = result.asset_materializations_for_node("rated")
    _, query, _ = str(made.metadata["failures_sql"].value).split("\n")
    with closing(duckdb.connect("w.duckdb")) as connection:
        assert connection.execute(f"SELECT review_id FROM ({query})").fetchall() == [(2,)]


def test_the_columns_of_an_asset_and_of_its_materializations_are_described() -> None:
    asset = asked()
    (made,) = ended(partition_key="o'hara").asset_materializations_for_node("rated")

    assert columns_of(asset.metadata_by_key[asset.key])["stars"] == "From 1 to 5."
    described = columns_of(made.metadata)
    assert described["stars"] == "From 1 to 5."
    ours = {name: said for name, said in described.items() if name.startswith("_")}
    assert ours == {name: DESCRIPTIONS[name] for name in ours}
    assert "_cost_usd" in ours


def test_the_launchpad_describes_each_argument_of_a_run() -> None:
    assert arguments_of(asked().op) == said_by(ClaudeBatchConfig)


@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("collect", SelectionConfig),
        ("cancel", CancelConfig),
        ("prune", PruneConfig),
        ("delete_remote_results", SelectionConfig),
    ],
)
def test_the_launchpad_describes_each_argument_of_a_job(task: str, config: type[dg.Config]) -> None:
    (job,) = [each for each in build_claude_batch_jobs() if each.name == f"claude_batch_{task}"]
    op = job.graph.node_named(f"claude_batch_{task}_op").definition

    assert arguments_of(op) == said_by(config)


def arguments_of(op: Any) -> dict[str, str]:
    """What the launchpad shows of the config of an op."""
    fields = op.config_schema.as_field().config_type.fields
    return {name: field.description for name, field in fields.items()}


def said_by(config: type[dg.Config]) -> dict[str, str | None]:
    said = {name: field.description for name, field in config.model_fields.items()}
    assert all(said.values())
    return said
