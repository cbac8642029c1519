"""Which rows belong to a partition, for each kind of partitions and of column."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import dagster as dg
import duckdb
import pytest
from dagster_duckdb_pandas import DuckDBPandasIOManager
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import Project

Make = Callable[..., Project]

DAYS = dg.DailyPartitionsDefinition("2026-01-01", timezone="Europe/Berlin")


@pytest.mark.parametrize(
    ("column_type", "values"),
    [
        ("TIMESTAMP", ["2026-01-01 23:59:59", "2026-01-02", "2026-01-02 23:59:59.9", "2026-01-03"]),
        ("DATE", ["2026-01-01", "2026-01-02", "2026-01-02", "2026-01-03"]),
        ("VARCHAR", ["2026-01-01", "2026-01-02", "2026-01-02 10:00:00", "2026-01-03"]),
        (
            "TIMESTAMP WITH TIME ZONE",
            [
                "2026-01-01 23:59:59+01",
                "2026-01-02 00:00:00+01",
                "2026-01-02 22:59:59+00",
                "2026-01-02 23:00:00+00",
            ],
        ),
    ],
)
def test_a_day_is_a_time_window_of_any_column_that_tells_the_time(
    project: Make, column_type: str, values: list[str]
) -> None:
    made = project(
        partitions_def=DAYS, partition_expr="at", source="posts", prompt="Rate {{ id }} {{ at }}"
    )
    made.sql(f'CREATE TABLE posts (id INTEGER, "at" {column_type})')
    for number, value in enumerate(values):
        made.sql(f"INSERT INTO posts VALUES ($n, CAST($v AS {column_type}))", n=number, v=value)

    assert made.materialize("2026-01-02").rows == ["1", "2"]
    assert made.answers("DISTINCT _partition") == ["2026-01-02"]


@pytest.mark.parametrize(
    ("partitions_def", "key", "expected"),
    [
        (dg.HourlyPartitionsDefinition("2026-01-01-00:00"), "2026-01-02-10:00", ["1"]),
        (dg.MonthlyPartitionsDefinition("2026-01-01"), "2026-01-01", ["0", "1", "2"]),
        (dg.WeeklyPartitionsDefinition("2025-12-28"), "2025-12-28", ["0", "1"]),
    ],
    ids=["hourly", "monthly", "weekly"],
)
def test_other_time_windows(
    project: Make, partitions_def: dg.PartitionsDefinition, key: str, expected: list[str]
) -> None:
    made = project(
        partitions_def=partitions_def,
        partition_expr="at",
        source="posts",
        prompt="Rate {{ id }} now",
    )
    made.sql(
        "CREATE TABLE posts AS SELECT * FROM (VALUES (0, TIMESTAMP '2026-01-01 10:00:00'), "
        "(1, TIMESTAMP '2026-01-02 10:59:59'), (2, TIMESTAMP '2026-01-31'), "
        "(3, TIMESTAMP '2026-02-01')) AS t(id, \"at\")"
    )

    assert made.materialize(key).rows == expected


def test_several_days_of_one_run_keep_their_rows_apart(project: Make) -> None:
    made = project(
        partitions_def=DAYS, partition_expr="at", source="posts", prompt="Rate {{ id }} now"
    )
    made.sql(
        "CREATE TABLE posts AS SELECT * FROM (VALUES (1, DATE '2026-01-01'), "
        "(1, DATE '2026-01-02'), (2, DATE '2026-01-03')) AS t(id, \"at\")"
    )

    made.materialize("2026-01-01", "2026-01-02")

    assert made.answers("_partition, id") == [("2026-01-01", 1), ("2026-01-02", 1)]


def test_a_dynamic_partition_may_be_deleted_while_its_batch_is_out(project: Make) -> None:
    made = project(partitions_def=dg.DynamicPartitionsDefinition(name="corpora"))
    made.load([("new corpus", "n1", "x")])
    run = made.start("new corpus")
    made.end_batches()

    assert run.advance() is None
    assert made.answers("_partition") == ["new corpus"]


LANGUAGE_BY_DAY = dg.MultiPartitionsDefinition(
    {"language": dg.StaticPartitionsDefinition(["de", "en"]), "day": DAYS}
)


def test_multi_partitions_compare_each_dimension_with_its_expression(project: Make) -> None:
    made = project(
        partitions_def=LANGUAGE_BY_DAY,
        partition_expr={"language": "lower(lang)", "day": "at"},
        source="posts",
        prompt="Rate {{ id }} now",
    )
    made.sql(
        "CREATE TABLE posts AS SELECT * FROM (VALUES (1, 'DE', DATE '2026-01-02'), "
        "(2, 'EN', DATE '2026-01-02'), (3, 'DE', DATE '2026-01-03')) AS t(id, lang, \"at\")"
    )

    key = dg.MultiPartitionKey({"language": "de", "day": "2026-01-02"})

    assert made.materialize(str(key)).rows == ["1"]


@pytest.mark.parametrize(("column_type", "key"), [("INTEGER", "7"), ("DATE", "2026-01-07")])
def test_a_static_key_is_compared_as_the_columns_type(
    project: Make, column_type: str, key: str
) -> None:
    made = project(
        partitions_def=dg.StaticPartitionsDefinition([key, "none of them"]),
        partition_expr="part",
        source="posts",
        prompt="Rate {{ id }} now",
    )
    made.sql(f"CREATE TABLE posts AS SELECT 1 AS id, CAST('{key}' AS {column_type}) AS part")

    assert made.materialize(key).rows == ["1"]
    assert made.materialize("none of them").rows == []


def _read_by_io_manager(
    made: Project, partitions_def: dg.PartitionsDefinition, key: str
) -> list[int]:
    seen: list[int] = []

    @dg.asset(partitions_def=partitions_def, ins={"answers": dg.AssetIn(key="sentiment")})
    def reader(answers) -> None:  # noqa: ANN001  # pandas has no types here
        seen.extend(sorted(answers["id"]))

    result = dg.materialize(
        [reader, made.assets_def.to_source_asset()],
        selection=[reader],
        partition_key=key,
        resources={"io_manager": DuckDBPandasIOManager(database=str(made.path))},
    )
    assert result.success
    return seen


def test_an_io_manager_reads_the_answers_of_a_day(project: Make) -> None:
    made = project(
        partitions_def=DAYS, partition_expr="at", source="posts", prompt="Rate {{ id }} now"
    )
    made.sql(
        "CREATE TABLE posts AS SELECT * FROM (VALUES (1, DATE '2026-01-01'), "
        "(2, DATE '2026-01-02')) AS t(id, \"at\")"
    )
    made.materialize("2026-01-01", "2026-01-02")

    assert _read_by_io_manager(made, DAYS, "2026-01-02") == [2]


def test_an_io_manager_reads_the_answers_of_a_multi_partition(project: Make) -> None:
    made = project(
        partitions_def=LANGUAGE_BY_DAY,
        partition_expr={"language": "lang", "day": "at"},
        source="posts",
        prompt="Rate {{ id }} now",
    )
    made.sql(
        "CREATE TABLE posts AS SELECT * FROM (VALUES (1, 'de', DATE '2026-01-02'), "
        "(2, 'en', DATE '2026-01-02')) AS t(id, lang, \"at\")"
    )
    keys = [
        str(dg.MultiPartitionKey({"language": language, "day": "2026-01-02"}))
        for language in ("de", "en")
    ]
    made.materialize(*keys)

    assert _read_by_io_manager(made, LANGUAGE_BY_DAY, keys[1]) == [2]


NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="{}"), min_size=1, max_size=20
).filter(lambda name: name.strip() == name and not name.startswith("_"))


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    table=NAMES,
    columns=st.lists(NAMES, min_size=3, max_size=3, unique_by=lambda name: name.casefold()),
    partition=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20),
    prompt=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="{}")),
)
def test_no_name_key_or_prompt_is_ever_taken_for_sql(
    tmp_path_factory: pytest.TempPathFactory,
    table: str,
    columns: list[str],
    partition: str,
    prompt: str,
) -> None:
    key, part, text = (f"{name} {number}" for number, name in enumerate(columns))
    directory = tmp_path_factory.mktemp("hostile")
    made = Project(
        directory,
        table=f"hostile.{_quoted(table + ' answers')}",
        source=_quoted(table),
        row_key=key,
        prompt=f"Rate {{{{ {key} }}}} {prompt} {{{{ {text} }}}}",
        include=[part],
        partitions_def=dg.StaticPartitionsDefinition([partition]),
        partition_expr=part,
        output=None,
    )
    _create(made.path, table, [key, part, text], ["1", partition, prompt])

    made.materialize(partition)

    (batch,) = made.claude.simulator.batches()
    ((_, params),) = made.claude.simulator.requests(batch.id)
    assert params["messages"][0]["content"] == f"Rate 1 {prompt} {prompt}"
    answers = f"hostile.{_quoted(table + ' answers')}"
    assert made.sql(f"SELECT {_quoted(key)}, {_quoted(part)}, _partition FROM {answers}") == [
        ("1", partition, partition)
    ]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _create(path: Path, table: str, columns: list[str], values: list[str]) -> None:
    defined = ", ".join(f"{_quoted(name)} VARCHAR" for name in columns)
    with closing(duckdb.connect(str(path), config={"custom_user_agent": "dagster"})) as connection:
        connection.execute(f"CREATE TABLE {_quoted(table)} ({defined})")
        connection.execute(f"INSERT INTO {_quoted(table)} VALUES (?, ?, ?)", values)
