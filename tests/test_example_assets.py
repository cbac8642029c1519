"""The assets of the example, each materialized as from the UI, with the simulator it comes with."""

import base64
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
import yaml
from dagster_duckdb import DuckDBResource
from dagster_duckdb_pandas import DuckDBPandasIOManager

from dagster_claude_batch import ClaudeBatchComponent, LocalClaudeBatchResource
from example_project import definitions
from example_project.defs.daily_topics import DAYS, message_topics, messages, nightly
from example_project.defs.picture_captions import caption_sheet, picture_captions
from example_project.defs.pictures import PICTURES, pictures
from example_project.defs.snippet_translations import snippet_translations
from example_project.defs.snippets import snippets
from example_project.defs.tweet_moods import tweet_moods

DEFS = Path(definitions.__file__).parent / "defs"


class Example:
    """A warehouse and a simulator of its own."""

    def __init__(self, home: Path) -> None:
        self.database = str(home / "warehouse.duckdb")
        self.claude = LocalClaudeBatchResource(
            path=str(home / "simulator"),
            answer="example_project.simulated:answer",
            processing_seconds=[0, 0],
            poll_interval_seconds=0.1,
        )

    def materialize(
        self, *assets: dg.AssetsDefinition, **arguments: Any
    ) -> dg.ExecuteInProcessResult:
        """Materialize assets, all but the first selected ones as they are."""
        resources = {
            "duckdb": DuckDBResource(database=self.database),
            "dataframes": DuckDBPandasIOManager(database=self.database, schema="main"),
            "claude_batch": self.claude,
        }
        return dg.materialize(list(assets), resources=resources, **arguments)

    def sql(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(duckdb.connect(self.database)) as connection:
            return connection.execute(sql).fetchall()

    def params(self) -> list[dict[str, Any]]:
        """What was asked."""
        simulator = self.claude.simulator
        return [p for batch in simulator.batches() for _, p in simulator.requests(batch.id)]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    monkeypatch.setenv("EXAMPLE_ROWS", "30")
    return Example(tmp_path)


def test_each_picture_stands_beside_its_caption(example: Example) -> None:
    result = example.materialize(pictures, picture_captions, caption_sheet)

    (sheet,) = result.asset_materializations_for_node("caption_sheet")
    shown = str(sheet.metadata["captions"].value)
    names = {path.stem for path in PICTURES.glob("*.jpg")}
    assert {name for (name,) in example.sql("SELECT name FROM picture_captions")} == names
    for path in PICTURES.glob("*.jpg"):
        inline = base64.b64encode(path.read_bytes()).decode()
        (row,) = [line for line in shown.splitlines() if inline in line]
        ((caption,),) = example.sql(
            f"SELECT caption FROM picture_captions WHERE name = '{path.stem}'"
        )
        assert f"| {caption} |" in row


# Dagster's own, where it reads a component.
@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated")
@pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.BetaWarning")
def test_what_is_declared_in_yaml_is_answered_too(example: Example) -> None:
    written = yaml.safe_load((DEFS / "review_subjects" / "defs.yaml").read_text())
    component = ClaudeBatchComponent.from_attributes_dict(attributes=written["attributes"])
    (subjects,) = [asset.build() for asset in component.assets]
    example.materialize(snippets)

    assert example.materialize(subjects).success

    rows = example.sql("SELECT text, praised, of_children FROM review_subjects")
    assert len(rows) == 30
    assert {praised for _, praised, _ in rows} >= {"nothing", "acting"}
    for text, _, of_children in rows:
        assert of_children or "children" not in text


def test_each_language_of_a_corpus_is_a_partition(example: Example) -> None:
    example.materialize(snippets)
    key = dg.MultiPartitionKey({"language": "German", "corpus": "tweets"})

    example.materialize(snippet_translations, partition_key=key)

    rows = example.sql("SELECT _partition, text, response FROM snippet_translations")
    assert len(rows) == 30
    assert {partition for partition, _, _ in rows} == {str(key)}
    assert all(response == f"[German] {text}" for _, text, response in rows)
    assert {params["system"][:13] for params in example.params()} == {"You translate"}


# Dagster's own schedules call it.
@pytest.mark.filterwarnings("ignore:.*run_request_for_partition. is deprecated:DeprecationWarning")
def test_each_night_the_day_before_is_asked(example: Example) -> None:
    example.materialize(snippets, messages)
    repository = dg.Definitions(
        assets=[snippets, messages, message_topics],
        schedules=[nightly],
        resources={
            "duckdb": DuckDBResource(database=example.database),
            "claude_batch": example.claude,
        },
    ).get_repository_def()
    night = dg.build_schedule_context(
        scheduled_execution_time=DAYS.start.replace(day=2, hour=1), repository_def=repository
    )
    (request,) = repository.get_schedule_def(nightly.name).evaluate_tick(night).run_requests or ()

    example.materialize(message_topics, partition_key=request.partition_key)

    assert request.partition_key == "2026-10-01"
    counts = example.sql("SELECT _partition, count(*) FROM message_topics GROUP BY 1")
    assert counts == [("2026-10-01", 30)]


def test_short_tweets_share_requests(example: Example) -> None:
    example.materialize(snippets)

    example.materialize(tweet_moods)

    moods = example.sql("SELECT mood, count(*) FROM tweet_moods GROUP BY 1 ORDER BY 2 DESC")
    rows = sum(count for _, count in moods)
    assert rows > 10
    assert len(moods) > 1
    assert len(example.params()) == -(-rows // 20)
